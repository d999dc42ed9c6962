"""From a scan to its mask: channels, grids and classes of one model or of several."""

import errno
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from bright import CARD, bright_model, infer, scan_file
from small import array, needs_kernels, network

from meshnet import UserError, load_model, segment_scan
from meshnet.cohort.kept import check_output
from meshnet.inference import models as named
from meshnet.inference import scan
from meshnet.inference.scan import read_case
from meshnet.networks.build import Model
from meshnet.networks.card import Card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.scans.grid import Grid, conform, target_affine, to_native
from meshnet.scans.nifti import read_image


def test_several_channels_from_files_or_one_4d_file(tmp_path):
    two = bright_model(tmp_path / "two", channels=2)
    first, second = scan_file(tmp_path / "f.nii.gz"), scan_file(tmp_path / "t.nii.gz", (slice(0, 1),) * 3)
    infer(f"{first},{second}", "-o", tmp_path / "x.nii.gz", "--model", two, "--no-picture")
    both = [nib.load(path) for path in (first, second)]
    stacked = np.stack([np.asarray(image.dataobj) for image in both], -1)
    nib.save(nib.Nifti1Image(stacked, both[0].affine, both[0].header), tmp_path / "4d.nii.gz")
    infer(tmp_path / "4d.nii.gz", "-o", tmp_path / "y.nii.gz", "--model", two, "--no-picture")
    x, y = (np.asarray(nib.load(tmp_path / name).dataobj) for name in ("x.nii.gz", "y.nii.gz"))
    assert x.any() and np.array_equal(x, y)
    found = infer(first, "-o", tmp_path / "z.nii.gz", "--model", two, check=False)
    assert found.returncode == 2 and "expected" in found.stderr and "channel0" in found.stderr
    assert not (tmp_path / "z.nii.gz").exists()


def test_a_small_mask_for_a_scan_is_refused_as_what_it_may_be(tmp_path):
    """Nothing of it is left on the model's grid, so that it would be refused as an empty scan."""
    mask = np.zeros((100, 120, 128), np.uint8)
    mask[51, 61, 65] = 1
    nib.save(nib.Nifti1Image(mask, np.diag([2.0, 2, 2, 1])), tmp_path / "m.nii")
    with pytest.raises(UserError, match=r"m\.nii: T2w holds no values but 0 and 1, .* is it a mask and not a scan"):
        read_case([tmp_path / "m.nii"], [Model(None, Card(**CARD))])


@pytest.mark.parametrize("ceiling", [None, "10GB"])
def test_under_a_ceiling_no_scan_is_read_ahead(model, tmp_path, monkeypatch, ceiling):
    import infer as script

    scans = [scan_file(tmp_path / f"{name}.nii.gz") for name in "abc"]
    events, (read, segment) = [], (scan.read_case, script.segment)

    def reading(paths, models):
        events.append(f"read {paths[0].name[0]}")
        return read(paths, models)

    def segmenting(case, models, plan, *arguments):
        time.sleep(0.3)  # time enough to read what would be read ahead
        events.append(f"done {plan['mask'].name[0]}")
        return segment(case, models, plan, *arguments)

    monkeypatch.setattr(scan, "read_case", reading)
    monkeypatch.setattr(script, "segment", segmenting)
    flags = [] if ceiling is None else ["--max_memory", ceiling]
    monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, scans), "--model", str(model), "--no-picture", *flags])
    assert not script.main()
    order = ["read a", "read b", "done a", "read c", "done b", "done c"]
    assert events == (order if ceiling is None else [f"{what} {name}" for name in "abc" for what in ("read", "done")])


def many(monkeypatch, folder, model, *flags):
    """Runs infer.py in this process on three scans of ``folder``, and returns it and the module."""
    import infer as script

    scans = [scan_file(folder / f"{name}.nii.gz") for name in "abc"]
    monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, scans), "--model", str(model), "-o", str(folder / "out"),
                                      *flags])
    return script


@pytest.mark.parametrize("flags", [(), ("--max_memory", "10GB"), ("--agreement",)])
def test_a_scan_is_written_while_the_next_is_computed(model, tmp_path, monkeypatch, flags):
    """But not under a limit of this process's memory, nor where a second look computes as well."""
    script, begun = many(monkeypatch, tmp_path, model, "--no-picture", *flags), []
    write, compute, second = script.write_files, scan.segment_case, threading.Event()

    def computing(case, *arguments, **settings):
        begun.append(case)
        if len(begun) > 1:
            second.set()
        return compute(case, *arguments, **settings)

    def writing(case, *arguments):
        overlapped.append(case is not begun[0] or second.wait(0.5 if flags else 20))
        return write(case, *arguments)

    overlapped = []
    monkeypatch.setattr(scan, "segment_case", computing)
    monkeypatch.setattr(script, "write_files", writing)
    assert not script.main()
    assert overlapped == [not flags, True, True]


def test_what_fails_while_it_is_written_is_a_failure_of_that_scan(model, tmp_path, monkeypatch, capsys):
    script = many(monkeypatch, tmp_path, model, "--no-picture")
    write = script.write_files

    def failing(case, found, models, planned, *others):
        if planned["mask"].name.startswith("b"):
            time.sleep(0.3)  # the next one is being computed
            raise UserError("b cannot be written")
        return write(case, found, models, planned, *others)

    monkeypatch.setattr(script, "write_files", failing)
    assert script.main() == 1
    said = capsys.readouterr()
    assert [line.split("_lesion")[0][-1] for line in said.out.splitlines()] == ["a", "c"]
    assert "error: b cannot be written\n1 of 3 scans could not be segmented" in said.err
    assert not (tmp_path / "out" / "b_lesion.nii.gz").exists()


def test_a_full_disk_ends_all_and_leaves_no_part(model, tmp_path, monkeypatch):
    script = many(monkeypatch, tmp_path, model, "--no-picture")
    monkeypatch.setattr(nib, "save", lambda *given: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space"):
        script.main()
    assert not list((tmp_path / "out").glob("*.nii*"))


def test_ctrl_c_lets_what_is_being_written_become_whole(model, tmp_path, monkeypatch):
    script, begun = many(monkeypatch, tmp_path, model, "--no-picture"), threading.Event()
    write, compute = script.write_files, scan.segment_case

    def computing(case, *arguments, **settings):
        if seen and begun.wait(20):
            raise KeyboardInterrupt
        seen.append(case)
        return compute(case, *arguments, **settings)

    def writing(*arguments):
        begun.set()
        time.sleep(0.5)
        return write(*arguments)

    seen = []
    monkeypatch.setattr(scan, "segment_case", computing)
    monkeypatch.setattr(script, "write_files", writing)
    with pytest.raises(KeyboardInterrupt):
        script.main()
    out = tmp_path / "out"
    assert [path.name for path in out.glob("*.nii*")] == ["a_lesion.nii.gz"] and nib.load(out / "a_lesion.nii.gz")
    assert len(list((out / ".meshnet").glob("*.json"))) == 1  # and it is recorded as done


def test_each_model_of_an_ensemble_sees_its_own_grid(tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    cards = [Card(**(CARD | more)) for more in ({}, {"averaged": True}, {}, {"shifted": True})]
    inputs = read_case([path], [Model(None, card) for card in cards]).inputs
    grids = [{}], [{"averaged": True}], [{}], [{}, {"offset": 0.5}]
    assert [len(views) for views in inputs] == [1, 1, 1, 2]
    for views, wanted in zip(inputs, grids):
        for (volume, affine), more in zip(views, wanted):
            expected = conform(read_image(path), Grid(8.0, (32, 32, 32), **more))
            assert (volume[0] == np.asarray(expected.dataobj) / np.float32(255)).all()
            assert (affine == expected.affine).all()
    assert inputs[0][0][0] is inputs[2][0][0] is inputs[3][0][0], "what is the same is conformed once"
    assert all((inputs[0][0][0] != other).any() for other in (inputs[1][0][0], inputs[3][1][0]))


def test_a_shifted_model_gives_the_mean_of_two_grids_half_a_voxel_apart(tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    folders = [bright_model(tmp_path / name, scale=4.0, **more)
               for name, more in (("one", {}), ("both", {"shifted": True}))]
    maps = []
    for folder in folders:
        infer(path, "-o", folder / "m.nii.gz", "--model", folder, "--probability", "--no-picture")
        maps.append(np.asarray(nib.load(folder / "m_probability.nii.gz").dataobj))
    image = read_image(path)
    grid = Grid(8.0, (32, 32, 32))
    moved = conform(image, replace(grid, offset=0.5))
    middle = target_affine(image, grid)
    half = np.eye(4)
    half[:3, 3] = 0.5
    np.testing.assert_allclose(np.linalg.inv(middle) @ moved.affine, half, atol=1e-6)
    level = np.asarray(moved.dataobj).astype(np.float32) / 255
    other = to_native(1 / (1 + np.exp(-4.0 * (np.maximum(level, 0) - 0.6))), moved.affine, image)
    np.testing.assert_allclose(maps[1], (maps[0] + other) / 2, atol=1e-5)
    assert np.abs(maps[1] - maps[0]).max() > 0.05


def three_classes(folder, marks):
    """Dim is fluid, bright is lesion: logits 0, 40 (x - 0.6) and 10 (x - 0.2), which meet at x = 0.73."""
    model = MeshNet(channels=1, in_channels=1, dilations=[1], norm="none", classes=3)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.blocks[0].conv.weight.data[0, 0, 1, 1, 1] = 1
    model.head.weight.data[1:, 0, 0, 0, 0] = torch.tensor([40.0, 10.0])
    model.head.bias.data[1:] = torch.tensor([-24.0, -2.0])
    save_model(folder, model, Card(**(CARD | {"classes": ["background", "lesion", "fluid"], "marks": marks})))
    return folder


def test_a_class_that_is_there_to_be_told_apart_is_not_marked(tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    marked, both = three_classes(tmp_path / "marked", "lesion"), three_classes(tmp_path / "both", None)
    masks = []
    for model in (marked, both):
        infer(path, "-o", tmp_path / "m.nii.gz", "--model", model, "--overwrite", "--no-picture")
        masks.append(np.asarray(nib.load(tmp_path / "m.nii.gz").dataobj))
    bright = np.asarray(nib.load(path).dataobj) == 1000
    assert masks[0].max() == 1 and masks[1].max() == 2 and (masks[1] == 2).sum() > 4 * bright.sum()
    overlap = (masks[0] == 1) & bright
    assert 2 * overlap.sum() / ((masks[0] == 1).sum() + bright.sum()) > 0.7
    found = infer(path, "-o", tmp_path / "n.nii.gz", "--model", marked, both, check=False)
    assert found.returncode == 2 and "marks all of its classes, expected lesion as" in found.stderr


def test_an_ensemble_wants_its_channels_in_one_order(tmp_path):
    scan_file(tmp_path / "a.nii.gz")
    models = [bright_model(tmp_path / name, channels=2) for name in ("one", "two")]
    card = json.loads((models[1] / "config.json").read_text())
    (models[1] / "config.json").write_text(json.dumps(card | {"channels": card["channels"][::-1]}))
    scans = f"{tmp_path / 'a.nii.gz'},{tmp_path / 'a.nii.gz'}"
    found = infer(scans, "--model", *models, "-o", tmp_path / "m.nii.gz", check=False)
    assert found.returncode == 2 and "channel1" in found.stderr and not (tmp_path / "m.nii.gz").exists()


def test_the_orientation_of_the_file_does_not_matter(model, tmp_path):
    scan = nib.load(scan_file(tmp_path / "a.nii.gz"))
    turned = nib.as_closest_canonical(scan).slicer[:, ::-1, :]
    nib.save(turned, tmp_path / "b.nii.gz")
    for name in ("a", "b"):
        infer(tmp_path / f"{name}.nii.gz", "--model", model, "--no-picture")
    a, b = (nib.load(tmp_path / f"{name}_lesion.nii.gz") for name in "ab")
    back = np.asarray(nib.as_closest_canonical(a).slicer[:, ::-1, :].dataobj)
    other = np.asarray(b.dataobj)
    # Not to the voxel: mri_convert's grid is centred on voxel n / 2, which a flip moves by one voxel.
    assert 2 * (back & other).sum() / (back.sum() + other.sum()) > 0.85


def same_image(one: nib.Nifti1Image, other: nib.Nifti1Image) -> bool:
    """Whether two images hold the same bits of the same type on the same grid, with the same header."""
    data = [np.asanyarray(image.dataobj) for image in (one, other)]
    return (data[0].dtype == data[1].dtype and np.array_equal(*data) and np.array_equal(one.affine, other.affine)
            and all(np.array_equal(one.header[key], other.header[key])
                    for key in ("sform_code", "qform_code", "xyzt_units", "pixdim", "srow_x", "quatern_b")))


@pytest.mark.parametrize("flags, settings", [
    ([], {}), (["--threshold", 0.3, "--min_lesion_mm3", 0], {"threshold": 0.3, "min_lesion_mm3": 0}),
    (["--crop", "none", "--max_memory", "8GB", "--threads", 1],
     {"crop": "none", "max_memory": 8_000_000_000, "threads": 1}),
])
def test_one_call_gives_the_mask_of_infer_to_the_bit(tmp_path, flags, settings):
    folder = bright_model(tmp_path / "model", scale=7.0)
    path = scan_file(tmp_path / "a.nii.gz")
    told = json.loads(infer(path, "--model", folder, "--probability", "--no-picture", "--json", *flags).stdout)
    mask, probability = nib.load(told["mask"]), nib.load(told["probability"])
    before = torch.get_num_threads()
    for given in (str(path), path, [path], nib.load(path)):
        for model in (folder, load_model(folder)):
            found = segment_scan(given, model, probabilities=True, **settings)
            assert same_image(found.mask, mask) and same_image(found.probabilities, probability)
            assert (found.volume_ml, found.lesions, found.largest_ml) == tuple(
                told[key] for key in ("volume_ml", "lesions", "largest_ml"))
    assert np.asarray(mask.dataobj).any() and torch.get_num_threads() == before
    assert segment_scan(path, folder, **settings).probabilities is None


def test_a_mask_has_the_grid_and_the_codes_of_its_scan(model, tmp_path):
    image = nib.load(scan_file(tmp_path / "a.nii.gz", codes=(1, 4)))
    image.header.set_xyzt_units("mm", "sec")
    found = segment_scan(image, model, probabilities=True)
    for made in (found.mask, found.probabilities):
        assert made.shape == image.shape and np.array_equal(made.affine, image.affine)
        assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (1, 4)
        assert made.header["xyzt_units"] == image.header["xyzt_units"]
        assert np.array_equal(made.header["pixdim"], image.header["pixdim"])
    assert found.mask.get_data_dtype() == np.uint8 and found.probabilities.get_data_dtype() == np.float32
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    assert found.volume_ml == pytest.approx(np.asarray(found.mask.dataobj).sum() * voxel_ml, abs=1e-3)


def test_channels_are_a_list_of_files_a_list_of_images_or_one_4d_image(tmp_path):
    two = bright_model(tmp_path / "two", channels=2)
    paths = [scan_file(tmp_path / "f.nii.gz"), scan_file(tmp_path / "t.nii.gz", (slice(0, 1),) * 3)]
    images = [nib.load(path) for path in paths]
    stacked = np.stack([np.asarray(image.dataobj) for image in images], -1)
    whole = nib.Nifti1Image(stacked, images[0].affine, images[0].header)
    first, *others = [segment_scan(given, two).mask for given in (paths, images, whole, [paths[0], images[1]])]
    assert np.asarray(first.dataobj).any() and all(same_image(first, other) for other in others)
    assert not same_image(first, segment_scan(paths[::-1], two).mask), "the channels' order matters"
    for given in (paths[0], images[0], [*paths, paths[0]]):
        with pytest.raises(UserError, match=r"expected 2 \(channel0, channel1\)"):
            segment_scan(given, two)


def test_a_list_of_models_is_averaged_as_infer_does(model, tmp_path):
    path, other = scan_file(tmp_path / "a.nii.gz"), bright_model(tmp_path / "other", scale=3.0, shifted=True)
    infer(path, "-o", tmp_path / "m.nii.gz", "--model", model, other, "--probability", "--no-picture")
    found = segment_scan(path, [model, load_model(other)], probabilities=True)
    assert same_image(found.mask, nib.load(tmp_path / "m.nii.gz"))
    assert same_image(found.probabilities, nib.load(tmp_path / "m_probability.nii.gz"))


def test_what_cannot_be_segmented_is_told_in_one_line(model, tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    image = nib.load(path)
    data = np.asarray(image.dataobj)
    broken = nib.Nifti1Image(np.where(data > 900, np.nan, data), image.affine, image.header)
    nowhere = nib.Nifti1Image(data, image.affine, image.header)
    nowhere.header["sform_code"] = nowhere.header["qform_code"] = 0
    empty = nib.Nifti1Image(np.zeros_like(data), image.affine, image.header)
    (tmp_path / "cut.nii.gz").write_bytes(path.read_bytes()[:2000])
    for given, settings, words in (
            (broken, {}, "NaN"), (nowhere, {}, "no affine"), (empty, {}, "every voxel is zero"),
            (tmp_path / "cut.nii.gz", {}, "cut.nii.gz: truncated"),
            (tmp_path / "none.nii.gz", {}, "no such file"), (path, {"threshold": 1.5}, "threshold: found 1.5"),
            (path, {"threshold": float("nan")}, "threshold: found nan"),
            (path, {"crop": "brain"}, "crop: found 'brain'"),
            (path, {"model": tmp_path / "none"}, "found no such model"), (path, {"device": "toaster"}, "toaster")):
        with pytest.raises(UserError, match=words) as told:
            segment_scan(given, **({"model": model} | settings))
        assert "\n" not in str(told.value)


def test_the_head_of_a_scan_is_looked_for_once(tmp_path, monkeypatch):
    """However many grids it is fitted to."""
    calls, find = [], scan.head_box
    monkeypatch.setattr(scan, "head_box", lambda *given, **more: calls.append(1) or find(*given, **more))
    model = load_model(bright_model(tmp_path / "model", shape=[20, 20, 20], shifted=True))
    views = read_case([scan_file(tmp_path / "a.nii.gz")], [model]).inputs[0]
    assert len(views) == 2 and len(calls) == 1 and all(max(volume.shape) > 20 for volume, _ in views)


def test_remarks_say_what_was_dropped(model, tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    every = segment_scan(path, model, min_lesion_mm3=0)
    assert every.remarks == () and every.lesions == 1
    none = segment_scan(path, model, min_lesion_mm3=500_000)
    assert not np.asarray(none.mask.dataobj).any() and (none.volume_ml, none.lesions, none.largest_ml) == (0, 0, 0)
    assert none.remarks == (f"{every.volume_ml:.2f} mL found below the 500 mL from which it is kept",)


def test_a_contrast_decides_in_the_mask_the_line_and_the_header(tmp_path):
    """The bright block is about sure to be a lesion, but nowhere of probability 1."""
    path, about = scan_file(tmp_path / "a.nii.gz"), {"about": {"trust": {"FLAIR or DWI": "not tried."}}}
    own = {"scaling": "lesions_bright", "threshold": 0.999, "others": about}
    model = bright_model(tmp_path / "m", **own, contrasts={"FLAIR or DWI": {"threshold": 0.3, "sure": 0.5}})
    found = infer(path, "--model", model, "--no-picture", "--json")
    told = json.loads(found.stdout)
    assert told["contrast"] == "FLAIR or DWI" and told["expect"] == "not tried." and told["lesions"] == 1
    assert (told["threshold"], told["sure"]) == (0.3, 0.5)
    text = infer(path, "--model", model, "--no-picture")
    assert (" scans;\n  from probability 0.3 to 0.999, where a lesion reaches 0 to 0.5, by contrast; all sizes are "
            "kept\n" in text.stderr)
    assert "; looks like FLAIR or DWI (" in text.stdout and "FLAIR or DWI: not tried.\n" in text.stderr
    strict = bright_model(tmp_path / "s", **own, contrasts={"FLAIR or DWI": {"threshold": 0.3, "sure": 1.0}})
    none = segment_scan(path, strict)
    assert none.lesions == 0 and none.contrast == "FLAIR or DWI"
    assert none.remarks == (f"{told['volume_ml']:.2f} mL found that nowhere reaches the probability 1 from which it is "
                            "kept",)
    assert segment_scan(path, strict, threshold=0.3).volume_ml == told["volume_ml"]  # the user's decides alone


def test_scans_joined_by_a_comma_for_a_model_of_one_channel(tmp_path):
    model = bright_model(tmp_path / "m")
    with pytest.raises(UserError, match=r"found 2 files of one case, expected 1, since the model has one channel "
                                        r"\(T2w\); put a space between scans, not a comma"):
        segment_scan([scan_file(tmp_path / "a.nii.gz"), scan_file(tmp_path / "b.nii.gz")], model)


@needs_kernels
@pytest.mark.parametrize("norm", ["batch", "none", "group", "instance"])
def test_no_meshnet_needs_pytorch(tmp_path, norm):
    save_model(tmp_path / "model", network(dilations=(1, 2), norm=norm), Card(**CARD))
    path = scan_file(tmp_path / "a.nii.gz")
    code = ("import sys; from meshnet import segment_scan; "
            f"found = segment_scan({str(path)!r}, {str(tmp_path / 'model')!r}, device='cpu', probabilities=True); "
            f"found.probabilities.to_filename({str(tmp_path / 'p.nii.gz')!r}); print('torch' in sys.modules)")
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "False\n"
    here = segment_scan(path, load_model(tmp_path / "model"), probabilities=True)
    assert np.allclose(np.asarray(here.probabilities.dataobj), nib.load(tmp_path / "p.nii.gz").get_fdata(), atol=1e-4)


def test_what_a_caller_may_give_as_a_model_or_a_setting(tmp_path):
    folder = bright_model(tmp_path / "model")
    path = scan_file(tmp_path / "a.nii.gz")
    expected = segment_scan(path, folder)
    for given in (MeshNet.from_pretrained(folder), [MeshNet.from_pretrained(folder), folder]):
        assert segment_scan(path, given).volume_ml == expected.volume_ml
    other = bright_model(tmp_path / "two", channels=2)
    for wrong, words in (
            (dict(scan=[], model=folder), "scan: found an empty list"),
            (dict(scan=path, model=MeshNet(channels=2, dilations=[1])), "model: found a MeshNet without a card"),
            (dict(scan=path, model=[load_model(folder), load_model(other)]), "^model 2: has classes"),
            (dict(scan=path, model=folder, threads=0), "threads: found 0"),
            (dict(scan=path, model=folder, min_lesion_mm3=-5), "min_lesion_mm3: found -5")):
        with pytest.raises(UserError, match=words) as caught:
            segment_scan(**wrong)
        assert len(str(caught.value)) < 300


def test_a_scan_that_the_grid_does_not_hold_gets_a_larger_one(tmp_path):
    data = np.zeros((40, 40, 100), np.float32)
    data[6:34, 6:34, 4:96] = np.random.default_rng(0).uniform(250, 350, (28, 28, 92))
    data[15:25, 15:25, 84:94] = 1000
    nib.save(nib.Nifti1Image(data, np.diag([4, 4, 4, 1])), tmp_path / "long.nii.gz")  # 400 mm
    found = segment_scan(tmp_path / "long.nii.gz", bright_model(tmp_path / "model"))
    assert found.volume_ml == pytest.approx(64, rel=0.3) and any("grid was enlarged" in line for line in found.remarks)


def test_the_first_and_the_last_thick_slice_are_marked(tmp_path):
    data = np.zeros((60, 60, 20), np.float32)
    data[10:50, 10:50] = 300
    data[20:40, 20:40] = 1000
    nib.save(nib.Nifti1Image(data, np.diag([4, 4, 6.7, 1])), tmp_path / "thick.nii.gz")
    mask = segment_scan(tmp_path / "thick.nii.gz", bright_model(tmp_path / "model")).mask
    each = np.asarray(mask.dataobj).sum((0, 1))
    assert each.min() > 0.9 * each.max() > 0


def test_a_mask_of_another_program_is_kept(tmp_path):
    folder, path = bright_model(tmp_path / "model"), scan_file(tmp_path / "a.nii.gz")
    mask = tmp_path / "a_lesion.nii.gz"
    nib.save(nib.load(path), mask)
    before = mask.read_bytes()
    refused = infer(path, "--model", folder, "--no-picture", check=False)
    assert refused.returncode == 2 and "was not written by this program" in refused.stderr
    assert mask.read_bytes() == before
    infer(path, "--model", folder, "--no-picture", "--overwrite")
    written = mask.read_bytes()
    same = infer(path, "--model", folder, "--no-picture")  # its own is replaced
    assert mask.read_bytes() == written != before and "replaces" not in same.stderr
    volume_ml = array(nib.load(mask)).astype(bool).sum() * abs(np.linalg.det(nib.load(mask).affine)) / 1000
    other = infer(path, "--model", folder, "--no-picture", "--threshold", "0.999999")
    assert mask.read_bytes() != written
    assert f"warning: {path}: replaces an earlier mask of {volume_ml:.2f} mL, by another model" in other.stderr


def test_whatever_lies_where_a_mask_would_go_is_kept_unless_it_is_of_this_program(model, tmp_path):
    path, mask = scan_file(tmp_path / "a.nii.gz"), tmp_path / "a_lesion.nii.gz"
    planned = {"scans": [path], "mask": mask, "picture": tmp_path / "a_lesion.png",
               "probability": tmp_path / "a_lesion_probability.nii.gz"}
    found = segment_scan(path, model, probabilities=True)
    nib.save(found.mask, tmp_path / "ours.nii.gz")
    ours = (tmp_path / "ours.nii.gz").read_bytes()
    corrected = array(found.mask).copy()
    corrected[20, 20, 20] ^= 1  # by hand, in a program that keeps the header
    nib.save(nib.Nifti1Image(corrected, found.mask.affine, found.mask.header), tmp_path / "edited.nii.gz")
    for name, content, kept in (("a_lesion.nii.gz", ours, False), ("a_lesion.nii.gz", ours[:-40], True),
                                ("a_lesion.nii.gz", b"", True), ("a_lesion.nii.gz", ours[:30], True),
                                ("a_lesion.nii.gz", (tmp_path / "edited.nii.gz").read_bytes(), True),
                                ("a_lesion.png", b"a drawing", True), ("a_lesion_probability.nii.gz", b"x", True)):
        (tmp_path / name).write_bytes(content)
        if kept:
            with pytest.raises(UserError, match=f"{name}: exists and was not written by this program"):
                check_output(planned, overwrite=False, probability=True, picture=True)
        else:
            check_output(planned, overwrite=False, probability=True, picture=True)
        (tmp_path / name).unlink()
    (tmp_path / "a_lesion.nii.gz").symlink_to(tmp_path / "edited.nii.gz")
    with pytest.raises(UserError, match="was not written by this program"):
        check_output(planned, overwrite=False, probability=True, picture=True)


def test_the_order_of_models_changes_nothing(tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    models = [bright_model(tmp_path / f"m{level}", level=level) for level in (0.5, 0.6, 0.7)]
    one, other = (segment_scan(path, order) for order in (models, models[::-1]))
    assert np.array_equal(array(one.mask), array(other.mask)) and one.volume_ml == other.volume_ml > 0


@pytest.mark.parametrize("rank, gpus, found", [("0", 1, 0), ("1", 1, 0), ("3", 2, 1), ("3", 8, 3)])
def test_torchrun_gives_out_the_gpus_in_turn(monkeypatch, rank, gpus, found):
    """Two processes on a machine with one GPU share it, rather than refuse a flag that nobody gave."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert named.pick_device(None) == torch.device("cuda", found)

"""infer.py as a user runs it: the scan's own grid, ensembles, thresholds, and one line for bad input."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import run_script_file

from meshnet.inference import scan
from meshnet.inference.scan import read_case
from meshnet.networks.build import Model
from meshnet.networks.card import Card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet
from meshnet.scans.grid import Grid, conform, target_affine, to_native
from meshnet.scans.mask import clean, lesion_volumes_mm3
from meshnet.scans.nifti import read_image

CARD = {"channels": ["T2w"], "classes": ["background", "lesion"], "voxel_mm": 8.0, "shape": [32, 32, 32],
        "threshold": 0.5}


def bright_model(folder, channels=1, scale=40.0, level=0.6, **card):
    """A network whose lesion logit is ``scale * (first channel - level)``: bright is lesion, worked by hand."""
    model = MeshNet(channels=1, in_channels=channels, dilations=[1], norm="none")
    for parameter in model.parameters():
        parameter.data.zero_()
    model.blocks[0].conv.weight.data[0, 0, 1, 1, 1] = 1
    model.head.weight.data[1] = scale
    model.head.bias.data[1] = -scale * level
    names = [f"channel{i}" for i in range(channels)] if channels > 1 else ["T2w"]
    save_model(folder, model, Card(**(CARD | {"channels": names} | card)))
    return folder


def scan_file(path, bright=(slice(20, 30), slice(22, 34), slice(24, 40)), codes=(2, 1)):
    """An oblique scan of 8 mm voxels: a dim head with a bright block."""
    data = np.zeros((50, 60, 64), np.float32)
    data[8:-8, 8:-8, 8:-8] = 300
    data[bright] = 1000
    turn = np.eye(4)
    angle = np.deg2rad(12)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([-4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [90, -120, -100]
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bright_model(tmp_path_factory.mktemp("model"))


def infer(*arguments, check=True, **options):
    return run_script_file("infer.py", *arguments, check=check, **options)


def test_a_mask_on_exactly_the_scan_grid_with_a_picture(model, tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    found = infer(path, "--model", model, "--json", "--probability")
    scan, mask = nib.load(path), nib.load(tmp_path / "a_lesion.nii.gz")
    assert mask.shape == scan.shape and np.array_equal(mask.affine, scan.affine)
    assert mask.get_data_dtype() == np.uint8
    assert (int(mask.header["sform_code"]), int(mask.header["qform_code"])) == (2, 1)
    assert np.allclose(mask.header.get_zooms(), scan.header.get_zooms())
    truth = np.asarray(scan.dataobj) == 1000
    labels = np.asarray(mask.dataobj)
    assert 2 * (labels & truth).sum() / (labels.sum() + truth.sum()) > 0.75  # on an 8 mm grid and back
    result = json.loads(found.stdout)
    assert result["volume_ml"] == pytest.approx(labels.sum() * 64 / 1000, abs=1e-3) and result["lesions"] == 1
    probability = np.asarray(nib.load(result["probability"]).dataobj)
    assert np.array_equal(probability >= 0.5, labels > 0)
    assert (tmp_path / "a_lesion.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.nii.gz", "a_lesion.nii.gz", "a_lesion.png", "a_lesion_probability.nii.gz"]


def test_a_real_head_keeps_its_header(model, shared_data, tmp_path):
    path = shared_data / "t2_stroke" / "M2265_T2w.nii.gz"
    infer(path, "-o", tmp_path / "m.nii.gz", "--model", model)
    scan, mask = nib.load(path), nib.load(tmp_path / "m.nii.gz")
    assert mask.shape == scan.shape and np.array_equal(mask.affine, scan.affine)
    for field in ("sform_code", "qform_code", "xyzt_units", "pixdim"):
        assert np.array_equal(mask.header[field], scan.header[field]), field


def test_thresholds_cleaning_and_ensembles(model, tmp_path):
    path = scan_file(tmp_path / "a.nii.gz")
    other = bright_model(tmp_path / "other", level=2.0)  # finds nothing: probability near 0

    def volume(*flags):
        return json.loads(infer(path, "--json", "--no-picture", *flags).stdout)["volume_ml"]

    alone = volume("--model", model)
    assert volume("--model", model, "--threshold", 0.99) < alone < volume("--model", model, "--threshold", 0.01)
    assert volume("--model", model, "--min_lesion_mm3", 1e9) == 0
    # The average of about 1 and about 0 lies just below a half; at the block's blurred edge it is less.
    assert 0.6 * alone < volume("--model", model, other, "--threshold", 0.4) < alone
    assert volume("--model", model, other, "--threshold", 0.6) == 0


def test_averaged_weights_are_used_on_request(tmp_path):
    folder = bright_model(tmp_path / "model")
    other = bright_model(tmp_path / "other", level=2.0)  # finds nothing anywhere
    (other / "model.safetensors").rename(folder / "model_ema.safetensors")
    path = scan_file(tmp_path / "a.nii.gz")
    volumes = [json.loads(infer(path, "--model", folder, "--json", "-o", tmp_path / f"{len(flags)}.nii.gz",
                                *flags).stdout)["volume_ml"] for flags in ([], ["--ema"])]
    assert volumes[0] > 0 and volumes[1] == 0


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


def test_many_scans_skip_what_is_done_and_go_on_after_a_bad_one(model, tmp_path):
    folder, out = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b", "c"):
        scan_file(folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:2000])  # cut off
    found = infer(folder, "-o", out, "--model", model, "--no-picture", check=False)
    assert found.returncode == 1 and "b.nii.gz" in found.stderr and "1 of 3" in found.stderr
    masks = {name: out / f"{name}_lesion.nii.gz" for name in "abc"}
    assert masks["a"].is_file() and masks["c"].is_file() and not masks["b"].exists()
    stamp = masks["a"].stat().st_mtime_ns
    (folder / "b.nii.gz").unlink()
    again = infer(folder, "-o", out, "--model", model, "--no-picture")
    assert masks["a"].stat().st_mtime_ns == stamp and "is there already" in again.stderr
    shares = [infer(folder, "-o", tmp_path / f"rank{rank}", "--model", model, "--no-picture",
                    env={"RANK": str(rank), "WORLD_SIZE": "2"}) for rank in (0, 1)]
    assert [share.stdout.count("_lesion.nii.gz") for share in shares] == [1, 1]


@pytest.mark.parametrize(("make", "words"), [
    (lambda p, m: [p / "no.nii.gz", "--model", m], ["no.nii.gz", "no such file"]),
    (lambda p, m: ["--model", m], ["no scan given"]),
    (lambda p, m: [p / "a.nii.gz", "--model", p / "nothing"], ["nothing"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--threshold", 2], ["--threshold", "2", "0 to 1"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "-o", p / "a.nii.gz"], ["is the scan itself"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "-o", p / ".." / p.name / "a.nii.gz"], ["is the scan itself"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--threads", 0], ["--threads", "0"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--threads", 10**6], ["--threads", "1 to 1024"]),
    (lambda p, m: [p / "a.nii.gz", p / "a.nii.gz", "--model", m], ["a_lesion.nii.gz", "both"]),
    (lambda p, m: [p / "a.nii.gz", p / "b.nii.gz", "--model", m, "-o", p / "one.nii.gz"], ["names one mask"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--max_memory", "lots"], ["--max_memory", "lots", "2GB"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "--device", "warp9"], ["--device", "warp9"]),
    (lambda p, m: [p / "a.nii.gz", "--device", "warp9"], ["--device", "warp9"]),  # the built-in network
    (lambda p, m: [p / "typo" / "no.nii.gz", "--model", m], ["no.nii.gz", "no such file"]),  # and no folder is made
    (lambda p, m: [",".join([str(p / "no.nii.gz")] * 300), "--model", m], ["no.nii.gz", "no such file"]),
    (lambda p, m: [p / "a.nii.gz", "--model", m, "-o", "/proc/nothing/x"], ["/proc/nothing", "-o"]),
])
def test_a_mistake_is_one_line(model, tmp_path, make, words):
    scan_file(tmp_path / "a.nii.gz")
    found = infer(*make(tmp_path, model), check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert all(word in found.stderr for word in words), found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("ceiling", [None, "10GB"])
def test_under_a_ceiling_no_scan_is_read_ahead(model, tmp_path, monkeypatch, ceiling):
    import infer as script

    scans = [scan_file(tmp_path / f"{name}.nii.gz") for name in "abc"]
    events, (read, segment) = [], (scan.read_case, script.segment_and_write)

    def reading(paths, models):
        events.append(f"read {paths[0].name[0]}")
        return read(paths, models)

    def segmenting(case, models, plan, arguments):
        time.sleep(0.3)  # time enough to read what would be read ahead
        events.append(f"done {plan['mask'].name[0]}")
        return segment(case, models, plan, arguments)

    monkeypatch.setattr(scan, "read_case", reading)
    monkeypatch.setattr(script, "segment_and_write", segmenting)
    flags = [] if ceiling is None else ["--max_memory", ceiling]
    monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, scans), "--model", str(model), "--no-picture", *flags])
    assert not script.main()
    order = ["read a", "read b", "done a", "read c", "done b", "done c"]
    assert events == (order if ceiling is None else [f"{what} {name}" for name in "abc" for what in ("read", "done")])


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


def test_a_folder_with_the_name_of_the_mask_is_not_found_out_after_the_computing(model, tmp_path):
    scan_file(tmp_path / "a.nii.gz")
    (tmp_path / "m.nii.gz").mkdir()
    found = infer(tmp_path / "a.nii.gz", "--model", model, "-o", tmp_path / "m.nii.gz", check=False)
    assert found.returncode == 2 and "is a folder" in found.stderr and found.stderr.count("\n") == 1


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


def test_small_lesions_are_dropped_by_volume_and_26_connected():
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1  # one lesion, joined at a corner: 2 voxels
    mask[4, 4, 4] = 1
    spacing = np.array([2.0, 1.0, 1.5])
    assert sorted(lesion_volumes_mm3(mask, spacing)) == [3.0, 6.0]
    assert clean(mask, spacing, 6.0).sum() == 2 and clean(mask, spacing, 6.1).sum() == 0
    assert np.array_equal(clean(mask, spacing, 0), mask)


def test_a_reader_that_leaves_ends_it_without_a_traceback(root):
    reading, writing = os.pipe()
    os.close(reading)
    found = subprocess.run([sys.executable, "infer.py", "--list_models"], cwd=root, stdout=writing,
                           stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, "")

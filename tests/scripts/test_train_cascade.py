"""The second network of a cascade: prepared, trained, and used as the folder that training leaves."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from cascades import CLASSES, first_network, write_cascade
from conftest import run_script_file
from model_folders import edit
from safetensors.torch import load_file, save_file
from small import array
from training_runs import train

from meshnet import UserError, load_model, segment_scan
from meshnet.data.reader import PreparedData
from meshnet.data.row import Settings
from meshnet.data.synthetic.case import make_case
from meshnet.inference.cascade import second_volume
from meshnet.inference.predict import predict
from meshnet.inference.prepared import first_of
from meshnet.inference.scan import read_case
from meshnet.networks.build import build, network_for
from meshnet.networks.card import Card, read_card
from meshnet.networks.cascade import drop_first, of_contrast
from meshnet.networks.folder import save_model
from meshnet.scans.grid import to_native
from meshnet.training.start_from import start_from

SYNTHETIC = ["--format", "synthetic", "--cases", 6, "--voxel_mm", 8, "--averaged", "--outer", 2, "--inner", 1,
             "--workers", 1]
EPOCHS = ["--training.max_epochs", 2]


def write_first(folder, **card):
    """The first network of ``cascades.write_cascade`` alone, for T2w scans."""
    values = {"channels": ["T2w, FLAIR"], "classes": CLASSES, "voxel_mm": 16.0, "averaged": True, "shifted": True,
              "centre": "middle", "scaling": "lesions_bright", "orientation": "RAS", "marks": "lesion"}
    save_model(folder, first_network(len(card.get("channels", "1"))), Card(**values | card))
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return write_first(tmp_path_factory.mktemp("first") / "one")


@pytest.fixture(scope="module")
def data(first, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "second"
    run_script_file("prepare.py", *SYNTHETIC, "--first", first, "--out", out)
    return out


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "second"
    train(data, folder, *EPOCHS)
    return folder


def test_a_case_is_prepared_as_infer_gives_it_to_the_second_network(data, first):
    prepared = PreparedData(data)
    assert prepared.inputs == ["T2w", "lesion", "fluid"] and prepared.info["first"] == CLASSES[1:]
    assert [prepared.info[key] for key in ("centre", "orientation", "scaling", "averaged")] == [
        "middle", "RAS", "lesions_bright", True]
    kept = read_card(data / "first")
    assert kept.channels == ["T2w"] and kept.changed(channels=["T2w, FLAIR"]) == read_card(first)
    assert (data / "first" / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    model = load_model(first)
    for index in (0, 3):
        image = make_case(index, 8.0, "demo")[0]
        cascade = load_second(model, prepared)
        case = read_case([image], [cascade])
        expected, _ = second_volume(model, case.inputs[0], case.seconds[0], 8.0)
        assert expected[1:].max() > 100
        apart = np.abs(prepared.read(index, "image").astype(int) - expected)
        assert apart.max() <= 1 and (apart > 0).mean() < 1e-3  # PyTorch here, the kernels there
        x0, x1, y0, y1, z0, z1 = prepared.rows[index]["head_box"]
        outside = prepared.read(index, "image")
        outside[:, x0:x1, y0:y1, z0:z1] = 0
        assert not outside.any()


def test_with_the_mirror_image_it_is_prepared_trained_and_run_so(data, run, first, tmp_path):
    out, folder = tmp_path / "mirrored", tmp_path / "run"
    run_script_file("prepare.py", *SYNTHETIC, "--first", first, "--mirror", "--out", out)
    prepared, plain = PreparedData(out), PreparedData(data)
    assert prepared.inputs == ["T2w", "lesion", "fluid", "T2w, mirrored", "lesion, mirrored", "fluid, mirrored"]
    image = make_case(2, 8.0, "demo")[0]
    found = prepared.read(2, "image")
    assert np.array_equal(found[:3], plain.read(2, "image")) and found[3:].any()
    train(out, folder, *EPOCHS, "--augment.contrast", 1, "--augment.flip", 1)
    model = load_model(folder)
    network, card = model
    assert card.mirror and network.arguments["in_channels"] == 6
    case = read_case([image], [model])
    expected, _ = second_volume(network.first, case.inputs[0], case.seconds[0], 8.0, card.across)
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3
    nib.save(image, tmp_path / "a.nii.gz")
    assert segment_scan(tmp_path / "a.nii.gz", folder).volume_ml >= 0
    for given, init, line in ((out, run, "is given no mirror image, expected the mirror image as well"),
                              (data, folder, "is given the mirror image as well, expected no mirror image")):
        said = run_script_file("train.py", "--data", given, "--run_dir", tmp_path / "x", "--init", init, check=False)
        assert said.returncode == 2 and f"{line} as the data set holds it" in said.stderr
    again = tmp_path / "again"
    run_script_file("prepare.py", *SYNTHETIC[:4], "--outer", 2, "--inner", 1, "--workers", 1, "--like", folder, "--out",
                    again)
    assert np.array_equal(PreparedData(again).read(2, "image"), found)


def load_second(first, prepared):
    """A model with the first network and the grid of a data set, whose second network is not run."""
    from meshnet.networks.build import Model

    info = prepared.info
    card = Card(channels=["T2w"], classes=["background", "lesion"], first=info["first"], voxel_mm=info["voxel_mm"],
                shape=info["shape"], orientation=info["orientation"], centre=info["centre"], averaged=True,
                scaling=info["scaling"])
    second = first_network()
    second.first = first
    return Model(second, card)


def test_a_run_folder_is_a_cascade_from_the_first_checkpoint_on(data, tmp_path):
    train(data, tmp_path / "run", *EPOCHS, "--stop_epoch", 1)
    model, card = load_model(tmp_path / "run")
    assert card.first == CLASSES[1:] and card.centre == "middle" and model.first.card.channels == ["T2w"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["arguments"]["in_channels"] == 3
    train(data, tmp_path / "run", *EPOCHS)
    assert load_model(tmp_path / "run").network.first is not None


def test_what_infer_gives_is_what_training_validated(data, run, tmp_path):
    prepared, image = PreparedData(data), make_case(2, 8.0, "demo")[0]
    nib.save(image, tmp_path / "a.nii.gz")
    found = segment_scan(tmp_path / "a.nii.gz", run, probabilities=True)
    share = predict(load_model(run).network, prepared.image(2))[1:2]
    model = load_model(run)
    case = read_case([image], [model])
    _, box = second_volume(model.network.first, case.inputs[0], case.seconds[0], 8.0)
    inside = np.zeros(share.shape, bool)
    inside[:, *(slice(a, b) for a, b in box)] = True
    share[~inside] = 0  # which validation leaves as it is
    affine = np.array(prepared.rows[2]["conformed_affine"]).reshape(4, 4)
    expected = to_native(share, affine, image, seen_only=True)[0]
    assert np.abs(array(found.probabilities) - expected).max() < 0.02 and np.ptp(expected) > 0.05
    said = run_script_file("infer.py", tmp_path / "a.nii.gz", "-o", tmp_path / "m.nii.gz", "--model", run,
                           "--no-picture").stderr
    assert "(two networks, of 16 mm and 8 mm): marks lesion" in said


def test_it_is_tested_like_any_run(data, run):
    assert "mean lesion Dice" in run_script_file("train.py", "--test", "--run_dir", run).stdout


def test_like_a_cascade_prepares_the_same_with_its_own_first_network(data, run, tmp_path):
    said = run_script_file("prepare.py", *SYNTHETIC[:4], "--outer", 2, "--inner", 1, "--workers", 1, "--like", run,
                           "--out", tmp_path / "again").stdout
    assert f"--init {run}" in said
    ours, theirs = PreparedData(tmp_path / "again"), PreparedData(data)
    assert ours.inputs == theirs.inputs and ours.info["centre"] == "middle"
    assert np.array_equal(ours.read(1, "image"), theirs.read(1, "image"))
    train(tmp_path / "again", tmp_path / "tuned", *EPOCHS, "--init", run)
    assert read_card(tmp_path / "tuned" / "first") == read_card(run / "first")


def test_another_first_network_is_another_data_set(data, first, tmp_path):
    other = write_first(tmp_path / "other")
    model, card = load_model(other)
    model.head.bias.data[0] = 100  # it finds nothing
    save_model(other, model, card)
    out = tmp_path / "out"
    said = run_script_file("prepare.py", *SYNTHETIC, "--first", other, "--out", out).stderr
    prepared = PreparedData(out)
    assert prepared.info["fingerprint"] != PreparedData(data).info["fingerprint"]
    assert not prepared.read(0, "image").any() and prepared.rows[0]["inside_ml"] == 0
    ml = sum(row["outside_ml"] for row in prepared.rows)
    assert f"warning\t{ml:.2f} of {ml:.2f} mL of the lesions, in 6 of 6 cases, lie outside" in said
    assert f"{prepared.rows[0]['outside_ml']:.2f} of {prepared.rows[0]['outside_ml']:.2f} mL of the lesion lie" in said
    run_script_file("prepare.py", *SYNTHETIC, "--out", out)  # without one: nothing of it is left
    assert not (out / "first").exists() and PreparedData(out).inputs == ["T2w"]


@pytest.mark.parametrize("changes", [{"voxel_mm": 12.0}, {"shifted": False}, {"averaged": False}, {"centre": "n/2"},
                                     {"shape": [20, 20, 20]}, {"orientation": "LIA"}, {"scaling": "conform_uint8"}])
def test_a_first_network_that_sees_scans_otherwise_is_another_one(first, tmp_path, changes):
    found = []
    for folder in (first, write_first(tmp_path / "other", **changes)):
        scaling = read_card(folder).scaling
        known = first_of(folder / "model.safetensors", scaling, ["T2w"])
        found.append(Settings(None, "minmax", None, None, 1, (), first=known).identity)
    assert found[0] != found[1] and found[0]["first"][1][0] == found[1]["first"][1][0]  # the weights are the same


def test_a_data_set_whose_first_network_is_another_one_is_not_trained_on(data, tmp_path):
    for name, spoil, line in (
            ("card", lambda first: edit(first / "config.json", voxel_mm=12.0), "first: found another first network "
                                                                               "than the cases of this data set"),
            ("weights", lambda first: (first / "model.safetensors").unlink(), "first/model.safetensors: not found, "
                                                                              "expected the weights of a cascade's")):
        shutil.copytree(data, tmp_path / name)
        spoil(tmp_path / name / "first")
        found = train(tmp_path / name, tmp_path / "run", *EPOCHS, check=False)
        assert found.returncode == 2 and f"{tmp_path / name}/{line}" in found.stderr, found.stderr
        assert not (tmp_path / "run" / "first").exists()


def test_a_run_keeps_the_first_network_that_it_began_with(data, tmp_path):
    copy, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(data, copy)
    train(copy, folder, *EPOCHS, "--stop_epoch", 1)
    card = (folder / "first" / "config.json").read_bytes()
    edit(folder / "first" / "config.json", shifted=False)
    found = train(copy, folder, *EPOCHS, check=False)
    assert found.returncode == 2, found.stderr
    assert f"{folder / 'first'}: found another first network than that of {copy}, expected the same" in found.stderr
    (folder / "first" / "config.json").write_bytes(card)
    shutil.rmtree(copy / "first")  # of which the data set's prepared.json says enough
    train(copy, folder, *EPOCHS)
    assert (folder / "first" / "config.json").read_bytes() == card
    edit(folder / "first" / "config.json", shifted=False)  # a finished run is left as it is
    assert "already finished" in (said := train(copy, folder, *EPOCHS)).stdout + said.stderr


def test_a_folder_called_first_is_removed_only_where_it_is_a_cascades(first, tmp_path):
    for name, described, left in (("none", None, True), ("plain", {"first": None}, True), ("not", "[", True),
                                  ("cascade", {"first": ["lesion"]}, False)):
        shutil.copytree(first, tmp_path / name / "first")
        if described:
            (tmp_path / name / "prepared.json").write_text(described if name == "not" else json.dumps(described))
        drop_first(tmp_path / name, "prepared.json")
        assert (tmp_path / name / "first" / "model.safetensors").exists() == left, name


def test_what_is_called_first_in_a_plain_data_set_or_run_stays(tiny_data, first, tmp_path):
    out, folder = tmp_path / "out", tmp_path / "run"
    for where in (out, folder):
        (where / "shards").mkdir(parents=True)
        shutil.copytree(first, where / "first")
    run_script_file("prepare.py", *SYNTHETIC, "--out", out)
    train(tiny_data, folder, "--training.max_epochs", 1)
    train(tiny_data, folder, "--training.max_epochs", 1, "--no-resume")
    for where in (out, folder):
        assert (where / "first" / "model.safetensors").is_file()


def test_how_much_of_a_lesion_lies_outside(data):
    prepared = PreparedData(data)
    for index, row in enumerate(prepared.rows):
        marked = prepared.read(index, "mask") > 0
        total = marked.sum() * 0.512
        assert row["inside_ml"] + row["outside_ml"] == pytest.approx(total)
        seen = np.argwhere(prepared.read(index, "image").any(0))
        marked[tuple(slice(a, b + 1) for a, b in zip(seen.min(0), seen.max(0)))] = False
        assert row["outside_ml"] == pytest.approx(marked.sum() * 0.512)


def test_what_cannot_be_a_first_network_is_refused(tmp_path, first):
    cascade = write_cascade(tmp_path / "two")
    two = write_first(tmp_path / "channels", channels=["T1w", "T2w"], scaling="conform_uint8")
    scaled = write_first(tmp_path / "scaled", scaling="minmax")
    for flags, line in (
            (["--first", cascade], f"--first {cascade}: is a cascade, expected a single network; its own first one is "
                                   f"{cascade / 'first'}"),
            (["--first", two], f"--first {two}: has channels T1w, T2w, expected T2w as the data set"),
            (["--first", scaled], f"--first {scaled}: has scaling minmax, expected conform_uint8 or lesions_bright"),
            (["--first", first, "--scaling", "conform_uint8"],
             f"--scaling: found conform_uint8 beside --first {first}, expected lesions_bright")):
        found = run_script_file("prepare.py", *SYNTHETIC, *flags, "--out", tmp_path / "out", check=False)
        assert found.returncode == 2 and line in found.stderr and found.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
    found = run_script_file("prepare.py", *SYNTHETIC, "--mirror", "--out", tmp_path / "out", check=False)
    assert found.returncode == 2 and "--mirror: found no --first, expected" in found.stderr
    alone = write_first(tmp_path / "alone")
    model, card = load_model(alone)
    model.head.weight.data, model.head.bias.data = model.head.weight.data[:2], model.head.bias.data[:2]
    model.arguments["classes"] = 2
    save_model(alone, model, card.changed(classes=CLASSES[:2]))
    found = run_script_file("prepare.py", *SYNTHETIC, "--like", cascade, "--first", alone, "--out", tmp_path / "out",
                            check=False)
    assert found.returncode == 2 and (f"--first {alone}: has the classes lesion, expected lesion, fluid as the first "
                                      "network of --like has them") in found.stderr


def test_a_start_from_a_network_of_the_other_stage_is_refused(data, run, tiny_data, tmp_path):
    for given, init, line in ((data, run / "first", "is given the scan alone, expected the probabilities of a first "
                                                    "network for lesion, fluid as the data set"),
                              (tiny_data, run, "is given the probabilities of a first network for lesion, fluid, "
                                               "expected the scan alone")):
        edit(init / "config.json", scaling=PreparedData(given).info["scaling"], orientation=PreparedData(
            given).info["orientation"])
        edit(run / "first" / "config.json", scaling=PreparedData(given).info["scaling"])
        found = run_script_file("train.py", "--data", given, "--run_dir", tmp_path / "x", "--init", init, check=False)
        assert found.returncode == 2 and line in found.stderr, found.stderr


def test_fine_tuning_starts_from_the_weights_for_what_the_cases_look_like(data, tmp_path, capsys):
    prepared = PreparedData(data)
    looks = prepared.info["looks"]
    assert sum(looks.values()) == 6 and looks == {name: [row["looks"] for row in prepared.rows].count(name)
                                                  for name in looks}
    folder = write_cascade(tmp_path / "two", own=["T1w", "FLAIR or DWI"], orientation="RAS")
    model, _ = load_model(folder)
    info = prepared.info | {"classes": CLASSES, "channels": ["T1w"]}

    def started(**changes):
        network = build(model.name, model.arguments)
        start_from(network, str(folder), info | changes)
        said = capsys.readouterr().err.splitlines()
        return network.state_dict(), [line for line in said if "weights" in line]

    for found, contrast, notes in (
            ({"T2w": 5}, "T2w", []), ({"FLAIR or DWI": 1}, "FLAIR or DWI", []),
            ({"T1w": 2, "T2w": 1, "FLAIR or DWI": 3}, "FLAIR or DWI", [
                f"note: --init {folder}: 3 of 6 cases look like T1w, T2w, for which it has other weights than for "
                "FLAIR or DWI; those for the latter are taken"]),
            ({}, "T2w", [f"note: --init {folder}: has other weights for scans that look like T1w, FLAIR or DWI, and "
                         "the data set does not say what its cases look like; those for the rest are taken. Prepare "
                         f"it again with prepare.py --like {folder} to have the right ones"])):
        weights, said = started(looks=found)
        expected = of_contrast(network_for(model, contrast).state_dict(), None)
        assert weights.keys() == expected.keys() and all((weights[name] == expected[name]).all() for name in expected)
        assert said == notes
    edit(folder / "config.json", contrasts={"FLAIR or DWI": {"own_weights": True}})
    tensors = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in tensors.items() if "for_contrast.T1w" not in name},
              folder / "model.safetensors")
    weights, said = started(looks={"FLAIR or DWI": 4, "T1w": 3, "T2w": 2})  # 5 have one set, which is for both
    assert said == [f"note: --init {folder}: 4 of 9 cases look like FLAIR or DWI, for which it has other weights than "
                    "for T1w, T2w; those for the latter are taken"]
    assert (weights["head.bias"] == model.head.bias).all()
    shutil.copytree(data, tmp_path / "copy")
    edit(tmp_path / "copy/prepared.json", looks=[1])
    with pytest.raises(UserError, match=r"found looks \[1\], which prepare.py does not write; run it again"):
        PreparedData(tmp_path / "copy")


def test_both_stages_are_fine_tuned_by_four_commands(tmp_path):
    """What docs/training.md says, with tiny networks."""
    cascade = write_cascade(tmp_path / "cascade", channels=("T2w, FLAIR",))
    lines = ["subject,image,mask"]
    for i in range(4):
        image, mask, *_ = make_case(i, 8.0, "demo")
        fluid = (array(image) > np.quantile(array(image), 0.98)) & (array(mask) == 0)
        nib.save(image, tmp_path / f"scan{i}.nii.gz")
        nib.save(nib.Nifti1Image((array(mask) + 2 * fluid).astype(np.uint8), mask.affine), tmp_path / f"mask{i}.nii.gz")
        lines.append(f"s{i},scan{i}.nii.gz,mask{i}.nii.gz")
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    prepare = ["prepare.py", tmp_path / "cases.csv", "--outer", 2, "--inner", 1, "--workers", 1, "--no-pictures",
               "--labels", 1, 2, "--classes", "lesion", "fluid", "--marks", "lesion"]
    flags = ["--training.max_epochs", 1, "--data.workers", 0]
    one, two, first, second = (tmp_path / name for name in ("one", "two", "run1", "run2"))
    run_script_file(*prepare, "--like", cascade / "first", "--out", one)
    run_script_file("train.py", "--init", cascade / "first", "--data", one, "--run_dir", first, *flags)
    run_script_file(*prepare, "--like", cascade, "--first", first, "--out", two)
    run_script_file("train.py", "--init", cascade, "--data", two, "--run_dir", second, *flags)
    assert (second / "first" / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert load_model(second).card.channels == load_model(second).network.first.card.channels == ["image"]
    found = segment_scan(tmp_path / "scan0.nii.gz", second, probabilities=True)
    assert found.mask.shape == (32, 32, 32) and np.ptp(array(found.probabilities)) > 0

"""Networks taken in: their card, their grid and scaling, and what is no MeshNet."""

import pytest
import torch
from as_published import change, made_up, run_command
from conftest import run_script_file
from small import CARD

from meshnet.errors import UserError
from meshnet.networks import build, folder
from meshnet.networks.card import Card, read_card
from meshnet.networks.folder import save_model
from meshnet.networks.meshnet import MeshNet


@pytest.mark.parametrize(("voxel_mm", "shape"), [(1, None), (8, None), (16, [12, 12, 12])])
def test_a_network_of_sub_volumes_gets_the_grid_of_a_head(tmp_path, voxel_mm, shape):
    """brainchop has networks of 38³ and 30×256×256 voxels at 1 mm; their scans are conformed as all others."""
    path, _ = made_up(tmp_path)
    run_command("import", path, tmp_path / "m", "--voxel_mm", voxel_mm)
    assert read_card(tmp_path / "m").shape == shape


def test_the_scaling_is_what_the_file_asks_for(tmp_path):
    path, _ = made_up(tmp_path)
    for asked, words, scaling in ((None, (), "minmax"), ({"type": "minmax"}, (), "minmax"),
                                  ({"type": "quantile", "min": 5, "max": 95}, (), "brainchop_quantile"),
                                  ({"type": "other"}, ("--scaling", "quantile"), "quantile")):
        change(path, "_normalize", asked)
        run_command("import", path, tmp_path / "m", *words)
        assert read_card(tmp_path / "m").scaling == scaling


@pytest.mark.parametrize(("breaking", "message"), [
    (lambda p: p.write_text("{}"), "not a TensorFlow.js layers model"),
    (lambda p: p.with_name("model.bin").unlink(), "model.bin: not found"),
    (lambda p: p.with_name("model.bin").write_bytes(b"1234"), "found 4 bytes"),
    (lambda p: p.with_name("model.bin").write_bytes(p.with_name("model.bin").read_bytes() + b"1234"), "not belong"),
    (lambda p: change(p, "strides", [2, 2, 2]), "stride"),
    (lambda p: change(p, "dilation_rate", [1, 2, 1]), "differs by axis"),
    (lambda p: change(p, "use_bias", False), "weights that no layer uses"),
    (lambda p: change(p, "name", "other"), "takes c0, expected other alone"),
    (lambda p: change(p, "weightsManifest", [{"paths": ["../../secret"], "weights": []}]), "in the same folder"),
    (lambda p: change(p, "weightsManifest", [{"weights": []}]), "not a TensorFlow.js layers model"),
    (lambda p: change(p, "weightsManifest", [{"paths": [], "weights": [{"name": "x"}]}]), "not a TensorFlow.js"),
    (lambda p: change(p, "modelTopology", {"model_config": {"config": {"layers": ["x", "y"]}}}), "incomplete"),
    (lambda p: change(p, "_normalize", "minmax"), "choose with --scaling"),
    (lambda p: change(p, "_normalize", {"type": "quantile", "min": 2, "max": 98}), "choose with --scaling"),
])
def test_what_is_no_meshnet_is_one_line(tmp_path, breaking, message):
    path, _ = made_up(tmp_path)
    breaking(path)
    with pytest.raises(UserError, match=message):
        run_command("import", path, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_import_writes_over_nothing_but_an_import(tmp_path):
    path, _ = made_up(tmp_path)
    run_command("import", path, tmp_path / "m")
    run_command("import", path, tmp_path / "m", "--channels", "T2w")
    assert read_card(tmp_path / "m").channels == ["T2w"]
    save_model(tmp_path / "trained", MeshNet(4), Card(**CARD))
    foreign = "other than an imported model"
    for taken, message in ((tmp_path / "trained", foreign), (tmp_path, foreign), (path, "is a file")):
        with pytest.raises(UserError, match=message):
            run_command("import", path, taken)
    with pytest.raises(UserError, match="is a folder; expected brainchop's"):
        run_command("import", tmp_path, tmp_path / "n")
    (tmp_path / "m" / "first").mkdir()  # someone else's, as this is no cascade
    (tmp_path / "m" / "first" / "model.safetensors").write_bytes(b"weights")
    run_command("import", path, tmp_path / "m")
    assert (tmp_path / "m" / "first" / "model.safetensors").read_bytes() == b"weights"
    (tmp_path / "m" / "config.json").unlink()  # as an import that was interrupted leaves it
    (tmp_path / "m" / ".tmp-1-model.safetensors").write_bytes(b"half")
    run_command("import", path, tmp_path / "m")
    for name, content in (("model.safetensors", b"weights"), ("recipe.yaml", b"model: {name: meshnet}")):
        foreign = tmp_path / f"with {name}"
        foreign.mkdir()
        (foreign / name).write_bytes(content)
        with pytest.raises(UserError, match="other than an imported model"):
            run_command("import", path, foreign)
        assert {path.name: path.read_bytes() for path in foreign.iterdir()} == {name: content}


def test_an_interrupted_second_import_has_no_card(tmp_path, monkeypatch):
    """Else new weights would be read with the old network's activation."""
    path, _ = made_up(tmp_path)
    run_command("import", path, tmp_path / "m")
    with monkeypatch.context() as changed, pytest.raises(KeyboardInterrupt):
        changed.setattr(folder, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run_command("import", path, tmp_path / "m")
    with pytest.raises(UserError, match=r"config\.json: not found"):
        build.load_model(tmp_path / "m")


@pytest.mark.parametrize(("flags", "message"), [
    (["--orientation", "XYZ"], "--orientation: found 'XYZ'"), (["--orientation", "LLA"], "--orientation"),
    (["--voxel_mm", "0"], "--voxel_mm"), (["--voxel_mm", "nan"], "--voxel_mm"), (["--voxel_mm", "inf"], "--voxel_mm")])
def test_a_grid_that_cannot_be_is_refused(tmp_path, flags, message):
    path, _ = made_up(tmp_path)
    with pytest.raises(UserError, match=message):
        run_command("import", path, tmp_path / "m", *flags)
    assert not (tmp_path / "m").exists()


def test_an_imported_network_is_fine_tuned_and_segments(tiny_data, tmp_path):
    """With its own architecture, which --init takes from it; another one of the same tensors is refused."""
    path, _ = made_up(tmp_path, activation="elu", bias=False)
    run_command("import", path, tmp_path / "m", "--channels", "T2w", "--scaling", "conform_uint8")
    common = ("--data", tiny_data, "--data.workers", 0, "--training.max_epochs", 1, "--run_dir", tmp_path / "run")
    start = ("--init", tmp_path / "m")
    for flags, words in ((("--model.activation", "relu"), "has activation"),
                         (("--model.norm", "instance", "--model.norm_affine", "false"), "has norm")):
        found = run_script_file("train.py", *common, *flags, *start, check=False)
        assert found.returncode == 2 and words in found.stderr and not (tmp_path / "run").exists(), found.stderr
    still = ("--optimizer.lr", "1e-30", "--optimizer.weight_decay", 0)
    run_script_file("train.py", *common, *start, *still)
    before, after = (build.load_model(folder)[0] for folder in (tmp_path / "m", tmp_path / "run"))
    assert all(torch.allclose(a, b) for a, b in zip(before.parameters(), after.parameters()))
    card = read_card(tmp_path / "run")
    assert before.arguments == after.arguments and card.training_data["began_as"] == "m"

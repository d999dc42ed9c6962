"""Model folders: what is written comes back, and everything broken is one line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from meshnet.config import Config
from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks import folder as model_folder
from meshnet.networks.card import read_card
from meshnet.networks.meshnet import MeshNet
from meshnet.scans.mask import decide, what_counts
from meshnet.training import start_from

CARD = {"channels": ["T2w"], "classes": ["background", "lesion"]}


def make(folder, **arguments):
    torch.manual_seed(1)
    model = MeshNet(**{"channels": 4, "dilations": (1, 2), **arguments})
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    model_folder.save_model(folder, model, CARD)
    return model.eval()


@pytest.mark.parametrize("arguments", [
    {}, {"norm": "none", "activation": "elu"}, {"norm": "group", "norm_affine": False, "bias": False},
    {"norm": "group", "norm_groups": 2, "activation": "gelu"}, {"norm": "instance"}, {"dropout": 0.5},
    {"final_bias": False, "checkpointing": True}])
def test_round_trip(tmp_path, arguments):
    model = make(tmp_path / "m", **arguments)
    loaded, card = build.load_model(tmp_path / "m")
    x = torch.randn(2, 1, 7, 6, 5)
    assert torch.equal(loaded(x), model(x)) and not loaded.training
    assert card["arguments"] == model.arguments and card["orientation"] == "LIA" and card["threshold"] == 0.5


def test_a_weights_file_chooses_itself(tmp_path):
    make(tmp_path)
    other = MeshNet(4, dilations=(1, 2))
    model_folder.save_weights(tmp_path / "model_ema.safetensors", other.state_dict())
    for given in ({"name": tmp_path / "model_ema.safetensors"},
                  {"name": str(tmp_path), "weights": "model_ema.safetensors"}):
        assert torch.equal(build.load_model(**given)[0].head.weight, other.head.weight)


def test_half_precision_weights_load_as_float32(tmp_path):
    model = make(tmp_path)
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    loaded, _ = build.load_model(tmp_path)
    assert loaded.head.weight.dtype == torch.float32
    assert torch.allclose(loaded.head.weight, model.head.weight, atol=1e-3)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(folder, key):
    state = load_file(folder / "model.safetensors")
    del state[key]
    save_file(state, folder / "model.safetensors")


BROKEN = {
    "no card": (lambda f: (f / "config.json").unlink(), "config.json: not found"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "not found; the folder has no weights"),
    "other weights": (lambda f: os.rename(f / "model.safetensors", f / "last.safetensors"), "there is last"),
    "card not JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "card a list": (lambda f: (f / "config.json").write_text("[1]"), "found format 'list', expected 1"),
    "another project's card": (lambda f: edit(f / "config.json", format=None), "found format None"),
    "a newer format": (lambda f: edit(f / "config.json", format=2), "newer version"),
    "no classes": (lambda f: edit(f / "config.json", classes=[]), "found classes"),
    "too many classes": (lambda f: edit(f / "config.json", classes=["a", "b", "c"]), "3 classes, expected 2"),
    "unknown network": (lambda f: edit(f / "config.json", name="alexnet"), "model alexnet: unknown"),
    "unknown argument": (lambda f: edit(f / "config.json", arguments={"width": 3}), "width"),
    "bad argument": (lambda f: edit(f / "config.json", arguments={"activation": "sine"}), "activation 'sine'"),
    "truncated": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:900]),
                  "not a whole safetensors file"),
    "a pickle": (lambda f: torch.save({}, f / "model.safetensors"), "not a whole safetensors file"),
    "a tensor less": (lambda f: drop(f, "head.bias"), r"lacks 1 tensors \(head.bias\)"),
    "another depth": (lambda f: edit(f / "config.json", arguments={"channels": 4, "dilations": [1]}), "has unknown"),
    "another width": (lambda f: edit(f / "config.json", arguments={"channels": 5, "dilations": [1, 2]}), "of shape"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_folders_are_one_line(tmp_path, what):
    make(tmp_path)
    breaking, message = BROKEN[what]
    breaking(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        build.load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_name_that_is_nothing_lists_what_there_is(tmp_path):
    for name in ("nothing", str(tmp_path / "no" / "such" / "folder" / "here"), str(tmp_path / "missing.safetensors")):
        with pytest.raises(UserError) as caught:
            build.load_model(name)
        assert name.split("/")[-1].split(".")[0] in str(caught.value) or "config.json" in str(caught.value)
    with pytest.raises(UserError, match=r"meshnet16-synthetic.*share\.py pull"):
        build.load_model("nothing")


def test_disk_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "user" / "stroke")
    assert model_folder.find_folder("user/stroke").is_dir()


def test_the_default_model(tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "BUILT_IN", tmp_path)
    with pytest.raises(UserError, match="--model"):
        model_folder.default_model()
    make(tmp_path / model_folder.DEFAULT_NAME)
    assert build.load_model(model_folder.DEFAULT_NAME)[1] == read_card(model_folder.default_model())


def test_a_full_disk_leaves_the_old_weights(tmp_path, monkeypatch):
    model = make(tmp_path)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        model_folder.save_model(tmp_path, MeshNet(4, dilations=(1, 2)), CARD)
    assert torch.equal(build.load_model(tmp_path)[0].head.weight, model.head.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_config_builds_what_it_says():
    config = Config().model
    config.channels, config.norm, config.checkpointing = 5, "group", True
    arguments = build.arguments_from_config(config, 2, 3, (8, 8, 8))
    model = build.build("meshnet", arguments)
    assert model.checkpointing and model.arguments["norm"] == "group" and model.head.weight.shape[:2] == (3, 5)
    config.options = {"width": 1}
    with pytest.raises(UserError, match="fields of their own"):
        build.arguments_from_config(config, 1, 2, (8, 8, 8))
    config.name, config.options, config.patch = "unetr", {"feature_size": 8}, []
    assert build.arguments_from_config(config, 1, 2, (9, 8, 7)) == {
        "in_channels": 1, "classes": 2, "checkpointing": True, "image_size": [9, 8, 7], "feature_size": 8}
    config.patch = [32, 32, 32]
    assert build.arguments_from_config(config, 1, 2, (9, 8, 7))["image_size"] == [32, 32, 32]


def test_meshnet_does_not_import_monai(tmp_path, root):
    make(tmp_path)
    code = ("import sys; from meshnet.networks.build import load_model; load_model(sys.argv[1]); "
            "sys.exit('monai' in sys.modules or 'huggingface_hub' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False).returncode == 0


def init_info(classes):
    return {"orientation": "LIA", "scaling": "conform_uint8", "window": None, "channels": ["T2w"], "classes": classes}


def test_weights_of_other_classes_begin_with_those_of_the_same_name(tmp_path):
    make(tmp_path / "two")
    before = build.load_model(tmp_path / "two")[0].state_dict()
    network = build.build("meshnet", {"channels": 4, "dilations": [1, 2], "classes": 3})
    fresh = {key: value.clone() for key, value in network.state_dict().items()}
    start_from.start_from(network, tmp_path / "two", init_info(["background", "fluid", "lesion"]))
    now = network.state_dict()
    for part in ("head.weight", "head.bias"):
        assert torch.equal(now[part][[0, 2]], before[part]) and torch.equal(now[part][1], fresh[part][1])
    others = [key for key in now if not key.startswith("head.")]
    assert others and all(torch.equal(now[key], before[key]) for key in others)

    model_folder.save_model(tmp_path / "three", network, {**CARD, "classes": ["background", "fluid", "lesion"]})
    back = build.build("meshnet", {"channels": 4, "dilations": [1, 2]})
    start_from.start_from(back, tmp_path / "three", init_info(["background", "lesion"]))
    assert all(torch.equal(value, before[key]) for key, value in back.state_dict().items())


def test_weights_that_share_no_class_are_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=r"has the classes background, lesion, expected one of them in the data set"):
        start_from.start_from(MeshNet(4, dilations=(1, 2), classes=3), tmp_path,
                              init_info(["background", "core", "rim"]))


def from_three(folder, classes, **card):
    """The head's rows of a network of three channels and the classes background, lesion and fluid, and of one that
    began with it for ``classes``; and whether all else is equal."""
    arguments = {"channels": 3, "dilations": [1, 2]}  # as many channels as classes: only the head counts classes
    before = build.build("meshnet", {**arguments, "classes": 3})
    names = ["background", "lesion", "fluid"]
    model_folder.save_model(folder, before, {**CARD, "classes": names, **card})
    after = build.build("meshnet", {**arguments, "classes": len(classes)})
    start_from.start_from(after, folder, init_info(classes))
    before, after = before.state_dict(), after.state_dict()
    same = all(torch.equal(before[key], after[key]) for key in before if not key.startswith("head."))
    return before["head.weight"], after["head.weight"], same


def test_classes_are_the_same_by_their_names_however_many(tmp_path):
    before, after, same = from_three(tmp_path, ["background", "fluid", "lesion"])
    assert same and torch.equal(after, before[[0, 2, 1]])
    before, after, same = from_three(tmp_path, ["background", "rim", "lesion"])
    assert same and torch.equal(after[[0, 2]], before[[0, 1]])
    assert not any(torch.equal(after[1], row) for row in before)


@pytest.mark.parametrize("classes, rows", [("tumour", [0, 2]), ("fluid", [0, 2]), ("lesion", [0, 1])])
def test_a_data_sets_only_class_is_the_one_that_a_model_marks(tmp_path, classes, rows):
    before, after, same = from_three(tmp_path, ["background", classes], marks="fluid")
    assert same and torch.equal(after, before[rows])


def test_a_network_that_counts_its_classes_twice_wants_them_in_order(tmp_path):
    big, small = (build.build("vnet", {"in_channels": 1, "classes": classes}) for classes in (3, 2))
    model_folder.save_model(tmp_path, big, {**CARD, "classes": ["background", "fluid", "lesion"]})
    with pytest.raises(UserError, match="counts the classes twice; expected the same classes in the same order"):
        start_from.start_from(small, tmp_path, init_info(["background", "lesion"]))


def test_weights_of_averaged_voxels_say_so(tmp_path, capsys):
    make(tmp_path)
    network = build.load_model(tmp_path)[0]
    edit(tmp_path / "config.json", averaged=True)
    start_from.start_from(network, tmp_path, init_info(["background", "lesion"]) | {"averaged": True})
    assert not capsys.readouterr().err
    start_from.start_from(network, tmp_path, init_info(["background", "lesion"]))
    assert "trained on averaged voxels, the data set has others; prepare.py --averaged" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["averaged", "shifted"])
def test_a_switch_of_the_card_is_true_or_false(tmp_path, key):
    make(tmp_path)
    edit(tmp_path / "config.json", **{key: None})
    with pytest.raises(UserError, match=f"config.json: found {key} = None, expected true or false"):
        read_card(tmp_path)


def test_of_several_classes_one_alone_may_be_marked(tmp_path):
    network = build.build("meshnet", {"channels": 4, "dilations": [1], "classes": 3})
    names = ["background", "fluid", "lesion"]
    model_folder.save_model(tmp_path, network, {**CARD, "classes": names, "marks": "lesion", "threshold": 0.4})
    card = read_card(tmp_path)
    probabilities = np.array([[0.1, 0.5, 0.4], [0.3, 0.1, 0.6], [0.0, 0.7, 0.3]], np.float32).T[..., None, None]
    marked = decide(what_counts(probabilities, card), card)
    assert marked.ravel().tolist() == [1, 1, 0]  # by the threshold, though fluid is likelier in the first
    every = decide(what_counts(probabilities, {**card, "marks": None}), card)
    assert every.ravel().tolist() == [1, 2, 1]
    edit(tmp_path / "config.json", marks="rim")
    with pytest.raises(UserError, match="found marks = 'rim', expected one of fluid, lesion"):
        read_card(tmp_path)

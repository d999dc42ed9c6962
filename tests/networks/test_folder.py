"""Model folders: what is written comes back, and everything broken is one line."""

import os

import pytest
import torch
from model_folders import CARD, edit, write_model
from safetensors.torch import load_file, save_file

from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks import folder as model_folder
from meshnet.networks.card import Card, read_card
from meshnet.networks.meshnet import MeshNet


@pytest.mark.parametrize("arguments", [
    {}, {"norm": "none", "activation": "elu"}, {"norm": "group", "norm_affine": False, "bias": False},
    {"norm": "group", "norm_groups": 2, "activation": "gelu"}, {"norm": "instance"}, {"dropout": 0.5},
    {"final_bias": False, "checkpointing": True}])
def test_round_trip(tmp_path, arguments):
    model = write_model(tmp_path / "m", **arguments)
    loaded, card = build.load_model(tmp_path / "m")
    x = torch.randn(2, 1, 7, 6, 5)
    assert torch.equal(loaded(x), model(x)) and not loaded.training
    assert card.arguments == model.arguments and card.orientation == "LIA" and card.threshold == 0.5


def test_a_weights_file_chooses_itself(tmp_path):
    write_model(tmp_path)
    other = MeshNet(4, dilations=(1, 2))
    model_folder.save_weights(tmp_path / "model_ema.safetensors", other.state_dict())
    for given in ({"name": tmp_path / "model_ema.safetensors"},
                  {"name": str(tmp_path), "weights": "model_ema.safetensors"}):
        assert torch.equal(build.load_model(**given)[0].head.weight, other.head.weight)


def test_half_precision_weights_load_as_float32(tmp_path):
    model = write_model(tmp_path)
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    loaded, _ = build.load_model(tmp_path)
    assert loaded.head.weight.dtype == torch.float32
    assert torch.allclose(loaded.head.weight, model.head.weight, atol=1e-3)


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
    write_model(tmp_path)
    breaking, message = BROKEN[what]
    breaking(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        build.load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_disk_goes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "user" / "stroke")
    assert model_folder.find_folder("user/stroke").is_dir()


def test_the_default_model(tmp_path, monkeypatch):
    monkeypatch.setattr(model_folder, "BUILT_IN", tmp_path)
    with pytest.raises(UserError, match="--model"):
        model_folder.default_model()
    write_model(tmp_path / model_folder.DEFAULT_NAME)
    assert build.load_model(model_folder.DEFAULT_NAME)[1] == read_card(model_folder.default_model())


def test_a_full_disk_leaves_the_old_weights(tmp_path, monkeypatch):
    model = write_model(tmp_path)

    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space"):
        model_folder.save_model(tmp_path, MeshNet(4, dilations=(1, 2)), Card(**CARD))
    assert torch.equal(build.load_model(tmp_path)[0].head.weight, model.head.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(("given", "meant"), [
    ("meshnet16-syntetic", "meshnet16-synthetic"), ("meshnet16_synthetic", "meshnet16-synthetic"),
    ("first", "runs/first"), ("frist", "runs/first"), ("runs/first-", "runs/first")])
def test_a_model_s_name_that_is_nearly_right_is_guessed(tmp_path, monkeypatch, given, meant):
    write_model(tmp_path / "runs/first")
    (tmp_path / "runs/frisk").mkdir()  # holds no model
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"; did you mean {meant}"):
        model_folder.find_folder(given)


def test_a_name_like_no_model_s_is_not_guessed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # without runs
    with pytest.raises(UserError) as said:
        model_folder.find_folder("zebra")
    assert "did you mean" not in str(said.value)

"""The public names: what ``meshnet`` offers, that it is loaded on first use, and a network saved and loaded again."""

import subprocess
import sys

import pytest
import torch
from model_folders import write_model
from small import CARD, network

import meshnet
from meshnet import Card, MeshNet, UserError, load_model

NAMES = {"MeshNet", "load_model", "segment_scan", "predict", "Card", "read_image", "conform", "to_native", "save_like",
         "case_metrics", "UserError"}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_eleven_names_are_public_and_each_is_there():
    assert set(meshnet.__all__) == NAMES and len(meshnet.__all__) == 11
    for name in NAMES:
        assert getattr(meshnet, name).__name__ == name and name in dir(meshnet)
        assert getattr(meshnet, name).__doc__, "what is promised is described"
    with pytest.raises(AttributeError, match="no attribute 'baselines'"):
        meshnet.baselines  # noqa: B018


def test_importing_meshnet_loads_nothing_heavy():
    code = "import sys; before = set(sys.modules); import meshnet; print(*set(sys.modules) - before)"
    loaded = {name.split(".")[0] for name in python(code).split()}
    assert "meshnet" in loaded and not loaded & {"torch", "numpy", "scipy", "nibabel", "pandas", "matplotlib", "monai"}


@pytest.mark.parametrize("name", sorted(NAMES - {"MeshNet"}))
def test_only_the_network_itself_loads_torch(name):
    assert python(f"import sys; from meshnet import {name}; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("arguments", [
    {}, {"norm": "group", "norm_groups": 1, "activation": "elu"}, {"in_channels": 2, "classes": 3, "bias": False}])
def test_a_saved_network_is_loaded_as_it_was(tmp_path, arguments):
    model = network(**arguments)
    model.save_pretrained(tmp_path / "plain")
    again = MeshNet.from_pretrained(tmp_path / "plain")
    assert again.arguments == model.arguments and not again.training
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    x = torch.rand(1, model.arguments["in_channels"], 7, 8, 9)
    with torch.no_grad():
        assert torch.equal(model(x), again(x)) and torch.equal(model(x), load_model(tmp_path / "plain").network(x))
    assert len(again.card.channels) == model.arguments["in_channels"]
    assert len(again.card.classes) == model.arguments["classes"]


def test_the_card_of_a_loaded_network_goes_with_it(tmp_path):
    card = Card(**CARD, voxel_mm=4.0, threshold=0.3, metrics={"dice": 0.5})
    network().save_pretrained(tmp_path / "one", card)
    loaded = MeshNet.from_pretrained(tmp_path / "one")
    assert (loaded.card.voxel_mm, loaded.card.threshold, loaded.card.metrics) == (4.0, 0.3, {"dice": 0.5})
    loaded.save_pretrained(tmp_path / "two")
    assert load_model(tmp_path / "two").card == loaded.card == load_model(tmp_path / "one").card


def test_another_architecture_is_one_line(tmp_path):
    write_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"name": "meshnet"', '"name": "unet"'))
    for given in (tmp_path, str(tmp_path / "model.safetensors")):
        with pytest.raises(UserError, match=r"is a unet, expected a MeshNet; load it with meshnet\.load_model") as told:
            MeshNet.from_pretrained(given)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="found no such model"):
        MeshNet.from_pretrained(tmp_path / "nothing")

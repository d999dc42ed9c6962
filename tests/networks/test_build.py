"""Networks by name: from a configuration, from a folder, and no more imported than needed."""

import subprocess
import sys

import pytest
from model_folders import write_model

from meshnet.config import Config
from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks.card import Card


def test_a_name_that_is_nothing_lists_what_there_is(tmp_path):
    for name in ("nothing", str(tmp_path / "no" / "such" / "folder" / "here"), str(tmp_path / "missing.safetensors")):
        with pytest.raises(UserError) as caught:
            build.load_model(name)
        assert name.split("/")[-1].split(".")[0] in str(caught.value) or "config.json" in str(caught.value)
    with pytest.raises(UserError, match=r"meshnet16-synthetic.*share\.py pull"):
        build.load_model("nothing")


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
    write_model(tmp_path)
    code = ("import sys; from meshnet.networks.build import load_model; load_model(sys.argv[1]); "
            "sys.exit('monai' in sys.modules or 'huggingface_hub' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("name, fields", [
    ("meshnet", {"channels": 5, "norm": "group", "dilations": [1, 2]}),
    ("segresnet", {"options": {"init_filters": 8}}), ("unetr", {"patch": [32, 32, 16]})])
def test_a_card_says_its_architecture_as_a_recipe(name, fields):
    """What --init takes from a model builds the same network."""
    config = Config().model
    config.name = name
    for key, value in fields.items():
        setattr(config, key, value)
    arguments = build.arguments_from_config(config, 1, 2, (32, 32, 32))
    card = Card(["T2w"], ["background", "lesion"], name=name, arguments=arguments)
    again = Config().model
    for key, value in build.config_of(card).items():
        setattr(again, key, value)
    assert build.arguments_from_config(again, 1, 2, (48, 48, 48)) == arguments
    assert "dropout" not in build.config_of(card)

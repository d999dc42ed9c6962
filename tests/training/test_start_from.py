"""Weights to begin with: the same classes by their names, and what cannot be begun with."""

import pytest
import torch
from model_folders import CARD, edit, write_model

from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks import folder as model_folder
from meshnet.networks.card import Card
from meshnet.networks.meshnet import MeshNet
from meshnet.training import start_from


def init_info(classes):
    return {"orientation": "LIA", "scaling": "conform_uint8", "window": None, "channels": ["T2w"], "classes": classes}


def test_weights_of_other_classes_begin_with_those_of_the_same_name(tmp_path):
    write_model(tmp_path / "two")
    before = build.load_model(tmp_path / "two")[0].state_dict()
    network = build.build("meshnet", {"channels": 4, "dilations": [1, 2], "classes": 3})
    fresh = {key: value.clone() for key, value in network.state_dict().items()}
    start_from.start_from(network, tmp_path / "two", init_info(["background", "fluid", "lesion"]))
    now = network.state_dict()
    for part in ("head.weight", "head.bias"):
        assert torch.equal(now[part][[0, 2]], before[part]) and torch.equal(now[part][1], fresh[part][1])
    others = [key for key in now if not key.startswith("head.")]
    assert others and all(torch.equal(now[key], before[key]) for key in others)

    model_folder.save_model(tmp_path / "three", network, Card(**{**CARD, "classes": ["background", "fluid", "lesion"]}))
    back = build.build("meshnet", {"channels": 4, "dilations": [1, 2]})
    start_from.start_from(back, tmp_path / "three", init_info(["background", "lesion"]))
    assert all(torch.equal(value, before[key]) for key, value in back.state_dict().items())


def test_weights_that_share_no_class_are_refused(tmp_path):
    write_model(tmp_path)
    with pytest.raises(UserError, match=r"has the classes background, lesion, expected one of them in the data set"):
        start_from.start_from(MeshNet(4, dilations=(1, 2), classes=3), tmp_path,
                              init_info(["background", "core", "rim"]))


def from_three(folder, classes, **card):
    """The head's rows of a network of three channels and the classes background, lesion and fluid, and of one that
    began with it for ``classes``; and whether all else is equal."""
    arguments = {"channels": 3, "dilations": [1, 2]}  # as many channels as classes: only the head counts classes
    before = build.build("meshnet", {**arguments, "classes": 3})
    names = ["background", "lesion", "fluid"]
    model_folder.save_model(folder, before, Card(**{**CARD, "classes": names, **card}))
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
    model_folder.save_model(tmp_path, big, Card(**{**CARD, "classes": ["background", "fluid", "lesion"]}))
    with pytest.raises(UserError, match="has the classes on two axes; expected the same classes in the same order"):
        start_from.start_from(small, tmp_path, init_info(["background", "lesion"]))


def test_weights_of_averaged_voxels_say_so(tmp_path, capsys):
    write_model(tmp_path)
    network = build.load_model(tmp_path)[0]
    edit(tmp_path / "config.json", averaged=True)
    start_from.start_from(network, tmp_path, init_info(["background", "lesion"]) | {"averaged": True})
    assert not capsys.readouterr().err
    start_from.start_from(network, tmp_path, init_info(["background", "lesion"]))
    assert "trained on averaged voxels, the data set has others; prepare.py --like" in capsys.readouterr().err


def test_a_grid_that_lies_half_a_voxel_beside_the_models_is_said(tmp_path, capsys):
    write_model(tmp_path)
    edit(tmp_path / "config.json", centre="middle")
    network, info = build.build("meshnet", {"channels": 4, "dilations": [1, 2]}), init_info(["background", "lesion"])
    for centre in ("middle", "n/2"):
        start_from.start_from(network, tmp_path, info | {"centre": centre})
        said = capsys.readouterr().err
        assert ("trained on grids with the centre 'middle', the data set has 'n/2'" in said) is (centre == "n/2")

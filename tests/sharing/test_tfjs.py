"""TensorFlow.js: the published network and made-up files of its forms, there and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from as_published import DILATIONS, made_up, run_command
from cascades import write_cascade
from small import CARD, randomise
from torch import nn

from meshnet.errors import UserError
from meshnet.inference.scan import conformed_scan
from meshnet.networks import build
from meshnet.networks.card import Card, read_card
from meshnet.networks.meshnet import MeshNet
from meshnet.sharing import tfjs


def test_the_published_model_gives_the_published_labels(published, shared_data):
    import nibabel as nib

    from meshnet.inference import predict

    network, card = build.load_model(published)
    assert (card.orientation, card.scaling, card.voxel_mm, card.shape) == ("LIA", "minmax", 1, [256] * 3)
    volume = conformed_scan([shared_data / "brainchop" / "t1_256.nii.gz"], card)
    logits = predict.predict_logits(network, volume, crop="none")
    reference = np.asarray(nib.load(shared_data / "brainchop" / "labels_reference.nii.gz").dataobj)
    for voxel, expected in (((128, 128, 128), (-1.2891, -4.8115, -3.6016)), ((100, 120, 90), (4.24, 8.7877, 3.5502))):
        assert np.allclose(logits[(slice(None), *voxel)], expected, atol=1e-3)
    assert (logits.argmax(0) != reference).sum() <= 20


def test_exported_again_it_is_the_same_file(published, shared_data, tmp_path):
    network, card = build.load_model(published)
    tfjs.write_tfjs(network, card, tmp_path)
    source = shared_data / "brainchop"
    assert (tmp_path / tfjs.BINARY).read_bytes() == (source / tfjs.BINARY).read_bytes()
    assert meaning(tmp_path / "model.json") == meaning(source / "model.json")


def meaning(path: Path) -> list:
    """What a model.json says, without names of layers and bookkeeping."""
    document = json.loads(path.read_text())
    keys = ("batch_input_shape", "filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate",
            "groups", "activation", "use_bias", "dtype")
    config = document["modelTopology"]["model_config"]["config"]
    layers = [(layer["class_name"], {k: layer["config"].get(k) for k in keys}, len(layer["inbound_nodes"]))
              for layer in config["layers"]]
    order = [node[0][0][0] for layer in config["layers"] for node in [layer["inbound_nodes"]] if node]
    assert order == [layer["name"] for layer in config["layers"][:-1]], "not a chain"
    weights = [[(w["name"].split("/")[1], w["shape"], w["dtype"]) for w in group["weights"]]
               for group in document["weightsManifest"]]
    return [document["format"], layers, weights, [group["paths"] for group in document["weightsManifest"]]]


FORMS = [{"activation": "elu"}, {"activation": "gelu", "norm": "group", "bias": False},
         {"activation": "gelu", "norm": "group", "bias": False, "affine": False},
         {"activation": "gelu", "norm": "by name", "bias": False, "affine": False},
         {"activation": "gelu", "norm": "by name", "bias": False},
         {"activation": "gelu", "norm": "by name", "bias": False, "inline": True},
         {"activation": "elu", "inline": True},
         {"activation": "relu", "norm": "batch"}, {"activation": "relu", "bias": False},
         {"activation": "gelu", "norm": "group", "affine": "shift"},
         {"activation": "gelu", "norm": "group", "affine": "scale"}]


@pytest.mark.parametrize("form", FORMS)
def test_published_forms_compute_the_same(tmp_path, form):
    path, compute = made_up(tmp_path, **form)
    run_command("import", path, tmp_path / "m", "--orientation", "ras", "--channels", "T2w")
    network, card = build.load_model(tmp_path / "m")
    x = torch.randn(1, 1, 12, 11, 10)
    assert torch.allclose(network(x), compute(x), rtol=1e-4, atol=1e-4)
    assert (network.head.bias is not None) and (network.blocks[0].conv.bias is None) == (not form.get("bias", True))
    assert card.orientation == "RAS" and card.channels == ["T2w"]
    tfjs.write_tfjs(network, card, tmp_path / "again")
    if form.get("norm") in (None, "by name"):  # batch norm leaves folded, group norm as brainchop.org runs it
        assert (tmp_path / "again" / tfjs.BINARY).read_bytes() == (tmp_path / "model.bin").read_bytes()
    again, _ = tfjs.read_tfjs(tmp_path / "again" / "model.json")
    assert torch.allclose(again(x), compute(x), rtol=1e-4, atol=1e-4)


def test_half_precision_binary(tmp_path):
    path, compute = made_up(tmp_path, dtype="float16")
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(tfjs.read_tfjs(path)[0](x), compute(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("arguments", [
    {}, {"norm": "group", "norm_groups": 4, "activation": "gelu"}, {"norm": "instance", "bias": False},
    {"norm": "group", "norm_affine": False},
    {"norm": "none", "activation": "elu", "final_bias": False}, {"norm_affine": False}, {"in_channels": 2}])
def test_any_meshnet_travels_through_tfjs(tmp_path, arguments):
    torch.manual_seed(0)
    model = randomise(MeshNet(4, **{"dilations": DILATIONS, **arguments}))
    card = Card(["T2w"], ["background", "lesion"], voxel_mm=4.0)
    tfjs.write_tfjs(model, card, tmp_path)
    again, info = tfjs.read_tfjs(tmp_path / "model.json")
    x = torch.randn(1, model.arguments["in_channels"], 9, 8, 7)
    assert torch.allclose(again(x), model(x), rtol=1e-4, atol=1e-5) and info["shape"] == [64, 64, 64]


def test_what_brainchop_cannot_run_is_not_written(tmp_path):
    card = Card(["T2w"], ["background", "lesion"])
    with pytest.raises(UserError, match="norm_groups: found 2, expected 4 or 0"):
        tfjs.write_tfjs(MeshNet(4, norm="group", norm_groups=2), card, tmp_path / "out")
    with pytest.raises(UserError, match="unet: expected meshnet"):
        tfjs.write_tfjs(nn.Identity(), card.changed(name="unet"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_what_brainchop_knows_is_in_the_file(tmp_path):
    """Layers and activations are TensorFlow.js's own; a norm is in a convolution's name; each class has a colour."""
    model = randomise(MeshNet(4, dilations=DILATIONS, norm="group", activation="gelu", bias=False, classes=4))
    card = Card(["T2w"], ["background", "a", "b", "c"])
    tfjs.write_tfjs(model, card, tmp_path)
    document = json.loads((tmp_path / "model.json").read_text())
    layers = [layer["config"] for layer in document["modelTopology"]["model_config"]["config"]["layers"]]
    assert {layer.get("activation", "linear") for layer in layers} == {"linear", "gelu"}
    assert [layer["name"] for layer in layers[1:4]] == ["conv3d_0_gn", "affine_0", "activation_0"]
    colours = json.loads((tmp_path / "colormap.json").read_text())
    assert colours["labels"] == card.classes and [colours[c][:2] for c in "RGB"] == [[0, 255], [0, 0], [0, 0]]
    assert len(set(zip(*(colours[c] for c in "RGB")))) == 4


@pytest.mark.parametrize(("changes", "words"), [
    ({}, "enableQuantileNorm false"), ({"scaling": "brainchop_quantile"}, "enableQuantileNorm true"),
    ({"voxel_mm": 4.0}, "expect other masks"), ({"orientation": "RAS"}, "expect other masks"),
    ({"scaling": "quantile"}, "expect other masks"), ({"channels": ["T1w", "T2w"]}, "expect other masks")])
def test_what_brainchop_gives_a_network_is_said(changes, words):
    assert words in tfjs.brainchop_fit(Card(**(CARD | changes)))


def test_class_names_come_from_the_colormap(tmp_path):
    path, _ = made_up(tmp_path)
    (tmp_path / "colormap.json").write_text('{"labels": ["background", "stroke"], "R": [0, 255]}')
    run_command("import", path, tmp_path / "m")
    assert read_card(tmp_path / "m").classes == ["background", "stroke"]


@pytest.mark.parametrize("kind, passed", [
    ("Dropout", True), ("SpatialDropout3D", True), ("Activation", True), ("MaxPooling3D", False), ("Dense", False)])
def test_layers_that_do_nothing_are_passed_over_and_others_refused(tmp_path, kind, passed):
    path, compute = made_up(tmp_path)
    document = json.loads(path.read_text())
    layers = document["modelTopology"]["model_config"]["config"]["layers"]
    before, after = layers[1]["name"], layers[2]
    layers.insert(2, {"class_name": kind, "config": {"name": "more", "activation": "linear"}, "name": "more",
                      "inbound_nodes": [[[before, 0, 0, {}]]]})
    after["inbound_nodes"] = [[["more", 0, 0, {}]]]
    path.write_text(json.dumps(document))
    if passed:
        x = torch.randn(1, 1, 8, 8, 8)
        assert torch.allclose(tfjs.read_tfjs(path)[0](x), compute(x), rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(UserError, match=f"found a layer of kind {kind}, expected Conv3D"):
            tfjs.read_tfjs(path)


def test_a_cascade_is_refused(tmp_path):
    network, card = build.load_model(write_cascade(tmp_path / "two"))
    with pytest.raises(UserError, match="is a cascade of two networks, expected a single one"):
        tfjs.write_tfjs(network, card, tmp_path / "out")
    assert not (tmp_path / "out").exists()

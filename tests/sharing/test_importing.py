"""Networks handed on and taken in: the published tfjs model on its real scan, made-up files of the same forms, ONNX."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script_file
from small import CARD, randomise
from torch import nn
from torch.nn import functional

import share
from meshnet.errors import UserError
from meshnet.networks import build, folder
from meshnet.networks.card import DEFAULTS, read_card
from meshnet.networks.folder import save_model, save_weights
from meshnet.networks.meshnet import MeshNet
from meshnet.sharing import published, tfjs, to_onnx

DILATIONS = [1, 3, 2]


def run_command(*words) -> None:
    """``share.py`` with these words, in this process."""
    arguments = vars(share.make_parser().parse_args(list(map(str, words))))
    {"import": share.take_in, "onnx": share.onnx}[arguments.pop("command")](**arguments)


# ---------------------------------------------------------------------------------------------------------- tfjs

def test_the_published_model_gives_the_published_labels(published, shared_data):
    import nibabel as nib

    from meshnet.inference import predict

    network, card = build.load_model(published)
    assert (card["orientation"], card["scaling"], card["voxel_mm"], card["shape"]) == ("LIA", "minmax", 1, [256] * 3)
    volume = to_onnx.read_scan([shared_data / "brainchop" / "t1_256.nii.gz"], card)
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


def write_published(folder: Path, layers: list, weights: list, dtype="float32", **extra) -> Path:
    """A model.json of the published form, from (class, config) and (name, array); written by hand."""
    names = [config["name"] for _, config in layers]
    document = {
        "format": "layers-model", "modelTopology": {"model_config": {"class_name": "Functional", "config": {"layers": [
            {"class_name": kind, "config": config, "name": config["name"],
             "inbound_nodes": [[[names[i - 1], 0, 0, {}]]] if i else []}
            for i, (kind, config) in enumerate(layers)]}}},
        "weightsManifest": [{"paths": ["model.bin"], "weights": [
            {"name": name, "shape": list(array.shape), "dtype": dtype} for name, array in weights]}], **extra}
    (folder / "model.bin").write_bytes(b"".join(np.asarray(a, dtype).tobytes() for _, a in weights))
    (folder / "model.json").write_text(json.dumps(document))
    return folder / "model.json"


def made_up(folder: Path, activation="elu", norm=None, bias=True, affine=True, dtype="float32", inline=False, **extra):
    """A random published network, and a function that computes it with torch's functions alone.

    ``inline``: the activation is a setting of the convolution before it, not a layer.
    """
    rng = np.random.default_rng(0)
    layers = [("InputLayer", {"name": "input", "batch_input_shape": [None, 12, 12, 12, 1]})]
    weights, steps, width = [], [], 1
    for i, dilation in enumerate(DILATIONS):
        kernel = rng.standard_normal((3, 3, 3, width, 6)).astype(dtype).astype("f4") * 0.3
        shift = rng.standard_normal(6).astype(dtype).astype("f4")
        name = f"c{i}_gn" if norm == "by name" else f"c{i}"
        layers.append(("Conv3D", {"name": name, "filters": 6, "kernel_size": [3] * 3, "strides": [1] * 3, "padding":
                                  "same", "dilation_rate": [dilation] * 3, "activation": "linear", "use_bias": bias}))
        weights += [(f"{name}/kernel", kernel)] + ([(f"{name}/bias", shift)] if bias else [])
        gamma, beta, mean = (rng.standard_normal(6).astype("f4") for _ in range(3))
        variance = rng.uniform(0.5, 2, 6).astype("f4")
        gamma, beta = (gamma, beta) if affine else (np.ones(6, "f4"), np.zeros(6, "f4"))
        if norm == "group":
            layers.append(("Activation", {"name": f"n{i}", "activation": "groupnorm", "num_groups": 6,
                                          "epsilon": 1e-5, "num_channels": 6}))
            weights += [(f"n{i}/gamma", gamma), (f"n{i}/beta", beta)]
        if norm == "by name" and affine:  # as brainchop.org's converters write it: a diagonal convolution
            layers.append(("Conv3D", {"name": f"affine_{i}", "filters": 6, "kernel_size": [1] * 3, "strides": [1] * 3,
                                      "padding": "same", "dilation_rate": [1] * 3, "activation": "linear",
                                      "use_bias": True}))
            weights += [(f"affine_{i}/kernel", np.diag(gamma)[None, None, None]), (f"affine_{i}/bias", beta)]
        if norm == "batch":
            layers.append(("BatchNormalization", {"name": f"n{i}", "epsilon": 1e-3}))
            weights += [(f"n{i}/gamma", gamma), (f"n{i}/beta", beta), (f"n{i}/moving_mean", mean),
                        (f"n{i}/moving_variance", variance)]
        if inline:
            layers[-1][1]["activation"] = activation
        else:
            layers.append(("Activation", {"name": f"a{i}", "activation": activation}))
        steps.append((kernel, shift if bias else None, dilation, gamma, beta, mean, variance))
        width = 6
    last, last_bias = rng.standard_normal((1, 1, 1, 6, 2)).astype("f4"), rng.standard_normal(2).astype("f4")
    layers.append(("Conv3D", {"name": "out", "filters": 2, "kernel_size": [1] * 3, "strides": [1] * 3,
                              "padding": "same", "dilation_rate": [1] * 3, "activation": "linear", "use_bias": True}))
    weights += [("out/kernel", last), ("out/bias", last_bias)]

    def compute(x):
        for kernel, shift, dilation, *statistics in steps:
            gamma, beta, mean, variance = map(torch.from_numpy, statistics)
            x = functional.conv3d(x, torch.from_numpy(kernel).permute(4, 3, 0, 1, 2),
                                  None if shift is None else torch.from_numpy(shift), 1, dilation, dilation)
            if norm in ("group", "by name"):
                x = functional.group_norm(x, 6, gamma, beta, 1e-5)
            if norm == "batch":
                x = functional.batch_norm(x, mean, variance, gamma, beta, False, 0.1, 1e-3)
            x = getattr(functional, activation)(x)
        return functional.conv3d(x, torch.from_numpy(last).permute(4, 3, 0, 1, 2), torch.from_numpy(last_bias))

    return write_published(folder, layers, weights, dtype, **extra), compute


FORMS = [{"activation": "elu"}, {"activation": "gelu", "norm": "group", "bias": False},
         {"activation": "gelu", "norm": "group", "bias": False, "affine": False},
         {"activation": "gelu", "norm": "by name", "bias": False, "affine": False},
         {"activation": "gelu", "norm": "by name", "bias": False},
         {"activation": "gelu", "norm": "by name", "bias": False, "inline": True},
         {"activation": "elu", "inline": True},
         {"activation": "relu", "norm": "batch"}, {"activation": "relu", "bias": False}]


@pytest.mark.parametrize("form", FORMS)
def test_published_forms_compute_the_same(tmp_path, form):
    path, compute = made_up(tmp_path, **form)
    run_command("import", path, tmp_path / "m", "--orientation", "ras", "--channels", "T2w")
    network, card = build.load_model(tmp_path / "m")
    x = torch.randn(1, 1, 12, 11, 10)
    assert torch.allclose(network(x), compute(x), rtol=1e-4, atol=1e-4)
    assert (network.head.bias is not None) and (network.blocks[0].conv.bias is None) == (not form.get("bias", True))
    assert card["orientation"] == "RAS" and card["channels"] == ["T2w"]
    tfjs.write_tfjs(network, card, tmp_path / "again")
    if form.get("norm") in (None, "by name"):  # batch norm leaves folded, group norm as brainchop.org runs it
        assert (tmp_path / "again" / tfjs.BINARY).read_bytes() == (tmp_path / "model.bin").read_bytes()
    again, _ = tfjs.read_tfjs(tmp_path / "again" / "model.json")
    assert torch.allclose(again(x), compute(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("voxel_mm", "shape"), [(1, None), (8, None), (16, [12, 12, 12])])
def test_a_network_of_sub_volumes_gets_the_grid_of_a_head(tmp_path, voxel_mm, shape):
    """brainchop has networks of 38³ and 30×256×256 voxels at 1 mm; their scans are conformed as all others."""
    path, _ = made_up(tmp_path)
    run_command("import", path, tmp_path / "m", "--voxel_mm", voxel_mm)
    assert read_card(tmp_path / "m")["shape"] == shape


def test_a_model_by_name_gets_the_card_of_an_import(tmp_path, monkeypatch):
    """Sub-volumes, the file's own scaling and its colormap: as ``import`` reads them."""
    model = published.Public("made up", "T1w", "sub", "0" * 40, "model.bin")
    (tmp_path / "source" / model.commit / "sub").mkdir(parents=True)
    made_up(tmp_path / "source" / model.commit / "sub", _normalize={"type": "quantile", "min": 5, "max": 95})
    monkeypatch.setattr(published, "SOURCE", (tmp_path / "source").as_uri())
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "kept"))
    monkeypatch.setitem(published.PUBLIC, "made-up", model)
    colours = {"labels": ["nothing", "something"]}
    (tmp_path / "source" / model.commit / "sub" / "colormap.json").write_text(json.dumps(colours))
    run_command("import", tmp_path / "source" / model.commit / "sub" / "model.json", tmp_path / "m")
    ours, theirs = (read_card(path) for path in (tmp_path / "m", published.fetch("made-up")))
    assert theirs["shape"] is None and theirs["scaling"] == "brainchop_quantile"
    assert ours | {"training_data": None} == theirs | {"training_data": None} and theirs["classes"][1] == "something"


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
    card = {"name": "meshnet", "shape": None, "voxel_mm": 4.0, "classes": ["background", "lesion"]}
    tfjs.write_tfjs(model, card, tmp_path)
    again, info = tfjs.read_tfjs(tmp_path / "model.json")
    x = torch.randn(1, model.arguments["in_channels"], 9, 8, 7)
    assert torch.allclose(again(x), model(x), rtol=1e-4, atol=1e-5) and info["shape"] == [64, 64, 64]


def test_what_brainchop_cannot_run_is_not_written(tmp_path):
    card = {"name": "meshnet", "shape": None, "voxel_mm": 1.0, "classes": ["background", "lesion"]}
    with pytest.raises(UserError, match="norm_groups: found 2, expected 4 or 0"):
        tfjs.write_tfjs(MeshNet(4, norm="group", norm_groups=2), card, tmp_path / "out")
    with pytest.raises(UserError, match="unet: expected meshnet"):
        tfjs.write_tfjs(nn.Identity(), card | {"name": "unet"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_what_brainchop_knows_is_in_the_file(tmp_path):
    """Layers and activations are TensorFlow.js's own; a norm is in a convolution's name; each class has a colour."""
    model = randomise(MeshNet(4, dilations=DILATIONS, norm="group", activation="gelu", bias=False, classes=4))
    card = {"name": "meshnet", "shape": None, "voxel_mm": 1.0, "classes": ["background", "a", "b", "c"]}
    tfjs.write_tfjs(model, card, tmp_path)
    document = json.loads((tmp_path / "model.json").read_text())
    layers = [layer["config"] for layer in document["modelTopology"]["model_config"]["config"]["layers"]]
    assert {layer.get("activation", "linear") for layer in layers} == {"linear", "gelu"}
    assert [layer["name"] for layer in layers[1:4]] == ["conv3d_0_gn", "affine_0", "activation_0"]
    colours = json.loads((tmp_path / "colormap.json").read_text())
    assert colours["labels"] == card["classes"] and [colours[c][:2] for c in "RGB"] == [[0, 255], [0, 0], [0, 0]]
    assert len(set(zip(*(colours[c] for c in "RGB")))) == 4


@pytest.mark.parametrize(("changes", "words"), [
    ({}, "enableQuantileNorm false"), ({"scaling": "brainchop_quantile"}, "enableQuantileNorm true"),
    ({"voxel_mm": 4.0}, "expect other masks"), ({"orientation": "RAS"}, "expect other masks"),
    ({"scaling": "quantile"}, "expect other masks"), ({"channels": ["T1w", "T2w"]}, "expect other masks")])
def test_what_brainchop_gives_a_network_is_said(changes, words):
    assert words in tfjs.brainchop_fit(DEFAULTS | CARD | changes)


def test_the_scaling_is_what_the_file_asks_for(tmp_path):
    path, _ = made_up(tmp_path)
    for asked, words, scaling in ((None, (), "minmax"), ({"type": "minmax"}, (), "minmax"),
                                  ({"type": "quantile", "min": 5, "max": 95}, (), "brainchop_quantile"),
                                  ({"type": "other"}, ("--scaling", "quantile"), "quantile")):
        change(path, "_normalize", asked)
        run_command("import", path, tmp_path / "m", *words)
        assert read_card(tmp_path / "m")["scaling"] == scaling


def test_class_names_come_from_the_colormap(tmp_path):
    path, _ = made_up(tmp_path)
    (tmp_path / "colormap.json").write_text('{"labels": ["background", "stroke"], "R": [0, 255]}')
    run_command("import", path, tmp_path / "m")
    assert read_card(tmp_path / "m")["classes"] == ["background", "stroke"]


def change(path: Path, where: str, value) -> None:
    document = json.loads(path.read_text())
    layer = document["modelTopology"]["model_config"]["config"]["layers"][1]["config"]
    (layer if where in layer else document)[where] = value
    path.write_text(json.dumps(document))


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


# ---------------------------------------------------------------------------------------------------------- .pth

class Published(nn.Module):
    """A MeshNet as brainchop's training code names it: ``model.0.0.weight`` and so on, from torch's own layers."""

    def __init__(self, activation, norm=None, bias=True, final_bias=True):
        super().__init__()
        blocks, width = [], 1
        for dilation in DILATIONS * 4:  # twelve: names reach two digits
            layers = [nn.Conv3d(width, 5, 3, padding=dilation, dilation=dilation, bias=bias)]
            if norm:
                layers.append(norm())
            blocks.append(nn.Sequential(*layers, activation()))
            width = 5
        self.model = nn.Sequential(*blocks, nn.Conv3d(5, 2, 1, bias=final_bias))

    def forward(self, x):
        return self.model(x)


PTH = {
    "batch norm": ((nn.ReLU, lambda: nn.BatchNorm3d(5)), {}, {"bnorm": True}),
    "folded": ((nn.ReLU,), {}, {"bnorm": False}),
    "folded, ELU": ((nn.ELU,), {}, {"bnorm": False, "elu": True}),
    "group norm without weights, GELU, no bias": (
        (nn.GELU, lambda: nn.GroupNorm(5, 5, affine=False)), {"bias": False, "final_bias": False},
        {"bnorm": True, "gelu": True}),
    "group norm with weights": ((nn.GELU, lambda: nn.GroupNorm(5, 5)), {"bias": False}, {"bnorm": True, "gelu": True}),
}


def save_published(folder: Path, reference: nn.Module, layout: dict) -> Path:
    """``reference`` as a .pth with brainchop's architecture file beside it."""
    torch.save(reference.state_dict(), folder / "model.pth")
    layers = [{"kernel_size": 3, "dilation": d} for d in DILATIONS * 4] + [{"kernel_size": 1, "dilation": 1}]
    (folder / "model.json").write_text(json.dumps({**layout, "layers": layers}))
    return folder / "model.pth"


def test_a_pth_beside_its_tfjs_layers(tmp_path):
    """Some are published with the TensorFlow.js model.json beside them, which says dilations, activation and norm."""
    torch.manual_seed(0)
    made_up(tmp_path, activation="gelu", norm="by name", bias=False, affine=False)
    blocks = [nn.Sequential(nn.Conv3d(width, 6, 3, padding=d, dilation=d, bias=False), nn.GroupNorm(6, 6, affine=False),
                            nn.GELU()) for width, d in zip((1, 6, 6), DILATIONS)]
    reference = nn.Sequential(*blocks, nn.Conv3d(6, 2, 1))
    torch.save(reference.state_dict(), tmp_path / "model.pth")
    run_command("import", tmp_path / "model.pth", tmp_path / "m")
    x = torch.randn(1, 1, 9, 8, 7)
    assert torch.allclose(build.load_model(tmp_path / "m")[0](x), reference(x), atol=1e-5)


def test_a_layout_that_leaves_the_norm_open_is_asked_about(tmp_path):
    torch.manual_seed(0)
    reference = Published(nn.ELU).eval()  # batch norm folded in: biases, no weights of a norm
    path = save_published(tmp_path, reference, {"bnorm": True, "elu": True})
    with pytest.raises(UserError, match="--norm none if batch norm was folded"):
        run_command("import", path, tmp_path / "m")
    run_command("import", path, tmp_path / "m", "--norm", "none")
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(build.load_model(tmp_path / "m")[0](x), reference(x), atol=1e-6)
    with pytest.raises(UserError, match=r"is the architecture of a \.pth file"):
        run_command("import", tmp_path / "model.json", tmp_path / "n")


@pytest.mark.parametrize("what", PTH)
@pytest.mark.parametrize("file", ["plain", "nested", "safetensors"])
def test_pth_forms_compute_the_same(tmp_path, what, file):
    torch.manual_seed(0)
    parts, options, layout = PTH[what]
    reference = randomise(Published(*parts, **options))
    state = reference.state_dict()
    save_published(tmp_path, reference, layout)
    if file == "safetensors":  # as some are published, under the name .pth
        save_weights(tmp_path / "model.pth", state)
    elif file == "nested":
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pth")
    run_command("import", tmp_path / "model.pth", tmp_path / "m")
    network, card = build.load_model(tmp_path / "m")
    x = torch.randn(1, 1, 9, 8, 7)
    assert torch.allclose(network(x), reference(x), rtol=1e-4, atol=1e-5)
    assert network.arguments["norm"] == ("batch" if what == "batch norm" else "none" if "folded" in what else "group")
    assert card["scaling"] == "minmax" and card["orientation"] == "LIA"


def test_pth_by_flags(tmp_path):
    torch.manual_seed(0)
    reference = Published(nn.ELU).eval()
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"12 blocks of unknown dilation.*--dilations"):
        run_command("import", tmp_path / "w.pth", tmp_path / "m")
    with pytest.raises(UserError, match="found 12 blocks, expected 2"):
        run_command("import", tmp_path / "w.pth", tmp_path / "m", "--dilations", "1,2")
    dilations = ",".join(map(str, DILATIONS * 4))
    run_command("import", tmp_path / "w.pth", tmp_path / "m", "--dilations", dilations, "--activation", "elu")
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(build.load_model(tmp_path / "m")[0](x), reference(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("names", ["{kind}{i}", "blocks.{i}.{kind}"])
def test_layers_come_in_the_networks_order_whatever_their_names(tmp_path, kind, names):
    """``conv10`` after ``conv9``, and a norm called ``bn`` after its ``conv``; a safetensors file is sorted by name."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    if kind == "safetensors" and names.startswith("{"):
        pytest.skip("norms and convolutions apart from each other: nothing tells which belongs where")
    reference = randomise(Published(nn.ReLU, lambda: nn.BatchNorm3d(5))).eval()
    state = {}
    for key, tensor in reference.state_dict().items():
        _, i, *part, leaf = key.split(".")
        name = names.format(kind={"0": "conv", "1": "bn"}[part[0]], i=i) if part else "head"
        state[f"{name}.{leaf}"] = tensor
    path = tmp_path / "w.pth"
    torch.save(state, path) if kind == "pth" else save_file(state, path)
    dilations = ",".join(map(str, DILATIONS * 4))
    run_command("import", path, tmp_path / "m", "--dilations", dilations)
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(build.load_model(tmp_path / "m")[0](x), reference(x), rtol=1e-4, atol=1e-5)


def test_flags_go_before_the_file_beside_a_pth_and_the_rest_stays(tmp_path):
    torch.manual_seed(0)
    made_up(tmp_path, activation="gelu", norm="by name", bias=False, affine=False,
            _normalize={"type": "quantile", "min": 5, "max": 95})
    blocks = [nn.Sequential(nn.Conv3d(width, 6, 3, padding=d, dilation=d, bias=False), nn.GroupNorm(6, 6, affine=False),
                            nn.GELU()) for width, d in zip((1, 6, 6), (4, 2, 1))]
    reference = nn.Sequential(*blocks, nn.Conv3d(6, 2, 1))
    torch.save(reference.state_dict(), tmp_path / "model.pth")
    run_command("import", tmp_path / "model.pth", tmp_path / "m", "--dilations", "4,2,1")
    network, card = build.load_model(tmp_path / "m")
    x = torch.randn(1, 1, 9, 8, 7)
    assert torch.allclose(network(x), reference(x), atol=1e-5)
    assert card["scaling"] == "brainchop_quantile" and card["shape"] is None  # of 12 mm: no head


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be opened as plain weights"):
        run_command("import", tmp_path / "w.pth", tmp_path / "m", "--dilations", "1")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "message"), [
    ([1, 2], "found list"), ({}, "found dict"), ({"a": 1}, "found dict"),
    ({"fc.weight": torch.zeros(3, 3)}, "expected a 3D convolution"),
    ({"a.weight": torch.zeros(2, 1, 3, 3, 3), "b.weight": torch.zeros(2, 3, 1, 1, 1)}, "takes 3 channels"),
    ({"a.weight": torch.zeros(2, 1, 5, 5, 5), "b.weight": torch.zeros(2, 2, 1, 1, 1)}, "kernel of"),
])
def test_other_networks_are_one_line(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        run_command("import", tmp_path / "w.pth", tmp_path / "m", "--dilations", "1")


# ---------------------------------------------------------------------------------------------------------- commands

def test_an_import_writes_over_nothing_but_an_import(tmp_path):
    path, _ = made_up(tmp_path)
    run_command("import", path, tmp_path / "m")
    run_command("import", path, tmp_path / "m", "--channels", "T2w")
    assert read_card(tmp_path / "m")["channels"] == ["T2w"]
    save_model(tmp_path / "trained", MeshNet(4), CARD)
    for taken, message in ((tmp_path / "trained", "no imported model"), (tmp_path, "no imported model"),
                           (path, "is a file")):
        with pytest.raises(UserError, match=message):
            run_command("import", path, taken)
    with pytest.raises(UserError, match="is a folder; expected brainchop's"):
        run_command("import", tmp_path, tmp_path / "n")
    (tmp_path / "m" / "config.json").unlink()  # as an import that was interrupted leaves it
    (tmp_path / "m" / ".tmp-1-model.safetensors").write_bytes(b"half")
    run_command("import", path, tmp_path / "m")
    for name, content in (("model.safetensors", b"weights"), ("recipe.yaml", b"model: {name: meshnet}")):
        foreign = tmp_path / f"with {name}"
        foreign.mkdir()
        (foreign / name).write_bytes(content)
        with pytest.raises(UserError, match="no imported model"):
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
    """With the recipe that lies beside it; another architecture of the same tensors is refused."""
    path, _ = made_up(tmp_path, activation="elu", bias=False)
    run_command("import", path, tmp_path / "m", "--channels", "T2w", "--scaling", "conform_uint8")
    common = ("--data", tiny_data, "--data.workers", 0, "--training.max_epochs", 1, "--run_dir", tmp_path / "run")
    start = ("--recipe", tmp_path / "m" / "recipe.yaml", "--init", tmp_path / "m")
    for flags, words in (((), "has activation elu"), ((*start[:2], "--model.activation", "relu"), "has activation"),
                         ((*start[:2], "--model.norm", "instance", "--model.norm_affine", "false"), "has norm")):
        found = run_script_file("train.py", *common, *flags, *start[2:], check=False)
        assert found.returncode == 2 and words in found.stderr and not (tmp_path / "run").exists(), found.stderr
    still = ("--optimizer.lr", "1e-30", "--optimizer.weight_decay", 0)
    run_script_file("train.py", *common, *start, *still)
    before, after = (build.load_model(folder)[0] for folder in (tmp_path / "m", tmp_path / "run"))
    assert all(torch.allclose(a, b) for a, b in zip(before.parameters(), after.parameters()))
    card = read_card(tmp_path / "run")
    assert before.arguments == after.arguments and card["training_data"]["began_as"] == "m"


def test_the_commands_from_a_shell(tmp_path, root):
    made_up(tmp_path)

    def call(*words):
        return subprocess.run([sys.executable, "share.py", *map(str, words)], cwd=root, check=False,
                              capture_output=True, text=True)

    done = call("import", tmp_path / "model.json", tmp_path / "m")
    assert done.returncode == 0 and "2 classes, LIA, minmax" in done.stdout, done.stderr
    failed = call("import", tmp_path / "nothing.json", tmp_path / "n")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "not found" in failed.stderr
    assert isinstance(share.make_parser(), argparse.ArgumentParser)


@pytest.mark.slow
def test_infer_takes_the_imported_model(published, shared_data, tmp_path, root):
    import nibabel as nib

    scan, mask = shared_data / "brainchop" / "t1_256.nii.gz", tmp_path / "labels.nii.gz"
    subprocess.run([sys.executable, "infer.py", scan, "-o", mask, "--model", published, "--no-picture"], cwd=root,
                   check=True)
    found, reference = (np.asarray(nib.load(path).dataobj)
                        for path in (mask, shared_data / "brainchop" / "labels_reference.nii.gz"))
    assert (found != reference).sum() <= 20

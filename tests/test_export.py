"""Networks handed on and taken in: the published tfjs model on its real scan, made-up files of the same forms, ONNX."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from meshnet import export, export_tfjs, modelfolder
from meshnet.errors import UserError
from meshnet.model import MeshNet

CARD = {"channels": ["T1w"], "classes": ["background", "lesion"]}
DILATIONS = [1, 3, 2]


def run_command(*words) -> None:
    """``python -m meshnet.export`` with these words, in this process."""
    arguments = export.make_parser().parse_args(list(map(str, words)))
    {"import": export.import_model, "onnx": export.export_onnx}[arguments.command](arguments)


def randomise(model: nn.Module) -> nn.Module:
    """Running statistics and affine weights that are not their defaults."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm3d | nn.GroupNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


# ---------------------------------------------------------------------------------------------------------- tfjs

@pytest.fixture(scope="module")
def published(shared_data, tmp_path_factory) -> Path:
    """The published 5-channel model, imported by the command."""
    folder = tmp_path_factory.mktemp("published") / "model"
    run_command("import", shared_data / "brainchop" / "model.json", folder)
    return folder


def test_the_published_model_gives_the_published_labels(published, shared_data):
    import nibabel as nib

    from meshnet import segment

    network, card = modelfolder.load_model(published)
    assert (card["orientation"], card["scaling"], card["voxel_mm"], card["shape"]) == ("LIA", "minmax", 1, [256] * 3)
    volume = export.read_scan([shared_data / "brainchop" / "t1_256.nii.gz"], card)
    logits = segment.predict_logits(network, volume, crop="none")
    reference = np.asarray(nib.load(shared_data / "brainchop" / "labels_reference.nii.gz").dataobj)
    for voxel, expected in (((128, 128, 128), (-1.2891, -4.8115, -3.6016)), ((100, 120, 90), (4.24, 8.7877, 3.5502))):
        assert np.allclose(logits[(slice(None), *voxel)], expected, atol=1e-3)
    assert (logits.argmax(0) != reference).sum() <= 20


def test_exported_again_it_is_the_same_file(published, shared_data, tmp_path):
    network, card = modelfolder.load_model(published)
    export_tfjs.write_tfjs(network, card, tmp_path)
    source = shared_data / "brainchop"
    assert (tmp_path / export_tfjs.BINARY).read_bytes() == (source / export_tfjs.BINARY).read_bytes()
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


def made_up(folder: Path, activation="elu", norm=None, bias=True, affine=True, dtype="float32", **extra):
    """A random published network, and a function that computes it with torch's functions alone."""
    rng = np.random.default_rng(0)
    layers = [("InputLayer", {"name": "input", "batch_input_shape": [None, 12, 12, 12, 1]})]
    weights, steps, width = [], [], 1
    for i, dilation in enumerate(DILATIONS):
        kernel = rng.standard_normal((3, 3, 3, width, 6)).astype(dtype).astype("f4") * 0.3
        shift = rng.standard_normal(6).astype(dtype).astype("f4")
        layers.append(("Conv3D", {"name": f"c{i}", "filters": 6, "kernel_size": [3] * 3, "strides": [1] * 3, "padding":
                                  "same", "dilation_rate": [dilation] * 3, "activation": "linear", "use_bias": bias}))
        weights += [(f"c{i}/kernel", kernel)] + ([(f"c{i}/bias", shift)] if bias else [])
        gamma, beta, mean = (rng.standard_normal(6).astype("f4") for _ in range(3))
        variance = rng.uniform(0.5, 2, 6).astype("f4")
        gamma, beta = (gamma, beta) if affine else (np.ones(6, "f4"), np.zeros(6, "f4"))
        if norm == "group":
            layers.append(("Activation", {"name": f"n{i}", "activation": "groupnorm", "num_groups": 6,
                                          "epsilon": 1e-5, "num_channels": 6}))
            weights += [(f"n{i}/gamma", gamma), (f"n{i}/beta", beta)]
        if norm == "batch":
            layers.append(("BatchNormalization", {"name": f"n{i}", "epsilon": 1e-3}))
            weights += [(f"n{i}/gamma", gamma), (f"n{i}/beta", beta), (f"n{i}/moving_mean", mean),
                        (f"n{i}/moving_variance", variance)]
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
            if norm == "group":
                x = functional.group_norm(x, 6, gamma, beta, 1e-5)
            if norm == "batch":
                x = functional.batch_norm(x, mean, variance, gamma, beta, False, 0.1, 1e-3)
            x = getattr(functional, activation)(x)
        return functional.conv3d(x, torch.from_numpy(last).permute(4, 3, 0, 1, 2), torch.from_numpy(last_bias))

    return write_published(folder, layers, weights, dtype, **extra), compute


FORMS = [{"activation": "elu"}, {"activation": "gelu", "norm": "group", "bias": False},
         {"activation": "gelu", "norm": "group", "bias": False, "affine": False},
         {"activation": "relu", "norm": "batch"}, {"activation": "relu", "bias": False}]


@pytest.mark.parametrize("form", FORMS)
def test_published_forms_compute_the_same(tmp_path, form):
    path, compute = made_up(tmp_path, **form)
    run_command("import", path, tmp_path / "m", "--orientation", "ras", "--channels", "T2w")
    network, card = modelfolder.load_model(tmp_path / "m")
    x = torch.randn(1, 1, 12, 11, 10)
    assert torch.allclose(network(x), compute(x), rtol=1e-4, atol=1e-4)
    assert (network.head.bias is not None) and (network.blocks[0].conv.bias is None) == (not form.get("bias", True))
    assert card["orientation"] == "RAS" and card["shape"] == [12, 12, 12] and card["channels"] == ["T2w"]
    export_tfjs.write_tfjs(network, card, tmp_path / "again")
    if form.get("norm") != "batch":  # which brainchop does not have: it leaves folded
        assert (tmp_path / "again" / export_tfjs.BINARY).read_bytes() == (tmp_path / "model.bin").read_bytes()
    again, _ = export_tfjs.read_tfjs(tmp_path / "again" / "model.json")
    assert torch.allclose(again(x), compute(x), rtol=1e-4, atol=1e-4)


def test_half_precision_binary(tmp_path):
    path, compute = made_up(tmp_path, dtype="float16")
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(export_tfjs.read_tfjs(path)[0](x), compute(x), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("arguments", [
    {}, {"norm": "group", "norm_groups": 2, "activation": "gelu"}, {"norm": "instance", "bias": False},
    {"norm": "none", "activation": "elu", "final_bias": False}, {"norm_affine": False}, {"in_channels": 2}])
def test_any_meshnet_travels_through_tfjs(tmp_path, arguments):
    torch.manual_seed(0)
    model = randomise(MeshNet(4, **{"dilations": DILATIONS, **arguments}))
    card = {"name": "meshnet", "shape": None, "voxel_mm": 4.0, "classes": ["background", "lesion"]}
    export_tfjs.write_tfjs(model, card, tmp_path)
    again, info = export_tfjs.read_tfjs(tmp_path / "model.json")
    x = torch.randn(1, model.arguments["in_channels"], 9, 8, 7)
    assert torch.allclose(again(x), model(x), rtol=1e-4, atol=1e-5) and info["shape"] == [64, 64, 64]


def test_class_names_come_from_the_colormap(tmp_path):
    path, _ = made_up(tmp_path)
    (tmp_path / "colormap.json").write_text('{"labels": ["background", "stroke"], "R": [0, 255]}')
    run_command("import", path, tmp_path / "m")
    assert modelfolder.read_card(tmp_path / "m")["classes"] == ["background", "stroke"]


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
    (lambda p: change(p, "_normalize", {"type": "quantile", "min": 5, "max": 95}), "choose with --scaling"),
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


@pytest.mark.parametrize("what", PTH)
@pytest.mark.parametrize("file", ["plain", "nested", "safetensors"])
def test_pth_forms_compute_the_same(tmp_path, what, file):
    torch.manual_seed(0)
    parts, options, layout = PTH[what]
    reference = randomise(Published(*parts, **options))
    state = reference.state_dict()
    if file == "safetensors":  # as some are published, under the name .pth
        modelfolder.save_weights(tmp_path / "model.pth", state)
    else:
        torch.save({"state_dict": state, "epoch": 3} if file == "nested" else state, tmp_path / "model.pth")
    layers = [{"kernel_size": 3, "dilation": d} for d in DILATIONS * 4] + [{"kernel_size": 1, "dilation": 1}]
    (tmp_path / "model.json").write_text(json.dumps({**layout, "layers": layers}))
    run_command("import", tmp_path / "model.pth", tmp_path / "m")
    network, card = modelfolder.load_model(tmp_path / "m")
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
    assert torch.allclose(modelfolder.load_model(tmp_path / "m")[0](x), reference(x), atol=1e-6)


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


# ---------------------------------------------------------------------------------------------------------- ONNX

def train_a_little(model: nn.Module, size: int = 14, steps: int = 20) -> nn.Module:
    """Teach ``model`` to mark bright blobs, so that its statistics and its answers are a trained network's."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    for _ in range(steps):
        smooth = functional.avg_pool3d(torch.rand(1, 1, *[size] * 3), 5, 1, 2)
        x = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        loss = functional.cross_entropy(model(x), (x[:, 0] > 0.6).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("channels", [5, pytest.param(16, marks=pytest.mark.slow)])
def test_onnx_of_a_trained_meshnet(tmp_path, channels):
    from meshnet.export_onnx import compare, trial_volumes, write_onnx

    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    model = train_a_little(MeshNet(channels))
    modelfolder.save_model(tmp_path / "m", model, CARD)
    model, card = modelfolder.load_model(tmp_path / "m")
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 1e-1)):
        write_onnx(model, card, tmp_path / "m.onnx", precision)
        parity = compare(model, tmp_path / "m.onnx", trial_volumes(1))
        assert parity["relative_difference"] <= tolerance and parity["dice"] >= 0.999, (precision, parity)
    card_inside = json.loads(read_metadata(tmp_path / "m.onnx")["meshnet"])
    assert card_inside["orientation"] == "LIA" and card_inside["precision"] == "fp16"


def read_metadata(path: Path) -> dict:
    import onnx

    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def test_the_comparison_sees_a_difference(tmp_path):
    from meshnet.export_onnx import compare, trial_volumes, write_onnx

    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    model = train_a_little(MeshNet(4, dilations=(1, 2)))
    modelfolder.save_model(tmp_path / "m", model, CARD)
    model, card = modelfolder.load_model(tmp_path / "m")
    write_onnx(model, card, tmp_path / "m.onnx")
    with torch.no_grad():
        model.head.bias[1] += 1
    parity = compare(model, tmp_path / "m.onnx", trial_volumes(1))
    assert parity["relative_difference"] > 1e-2 and parity["dice"] < 0.99


@pytest.mark.slow
def test_onnx_of_segresnet_at_open_sizes(tmp_path, monkeypatch):
    from meshnet import export_onnx

    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    torch.manual_seed(0)
    model = modelfolder.build("segresnet", {"in_channels": 1, "classes": 2}).eval()
    card = {"name": "segresnet", **CARD}
    export_onnx.write_onnx(model, card, tmp_path / "s.onnx")
    volumes = [volume[:, :27] for volume in export_onnx.trial_volumes(1)]  # 27 is padded to 32
    assert export_onnx.compare(model, tmp_path / "s.onnx", volumes)["relative_difference"] <= 1e-4
    assert json.loads(read_metadata(tmp_path / "s.onnx")["meshnet"])["size_multiple"] == 8
    with pytest.raises(UserError, match="expected meshnet or a convolutional baseline"):
        export_onnx.write_onnx(model, {"name": "ukan", **CARD}, tmp_path / "u.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime: not installed; pip install -r requirements-export\.txt"):
        export_onnx.compare(model, tmp_path / "s.onnx", volumes)


# ---------------------------------------------------------------------------------------------------------- commands

def test_the_commands_from_a_shell(tmp_path, root):
    made_up(tmp_path)

    def call(*words):
        return subprocess.run([sys.executable, "-m", "meshnet.export", *map(str, words)], cwd=root, check=False,
                              capture_output=True, text=True)

    done = call("import", tmp_path / "model.json", tmp_path / "m")
    assert done.returncode == 0 and "2 classes, LIA, minmax" in done.stdout, done.stderr
    failed = call("import", tmp_path / "nothing.json", tmp_path / "n")
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and "not found" in failed.stderr
    assert isinstance(export.make_parser(), argparse.ArgumentParser)


@pytest.mark.slow
def test_onnx_of_the_published_model_on_its_scan(published, shared_data, tmp_path):
    from meshnet.export_onnx import compare, write_onnx

    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    network, card = modelfolder.load_model(published)
    volume = export.read_scan([shared_data / "brainchop" / "t1_256.nii.gz"], card)
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 1e-1)):
        write_onnx(network, card, tmp_path / "p.onnx", precision)
        parity = compare(network, tmp_path / "p.onnx", [volume])
        assert parity["relative_difference"] <= tolerance and parity["dice"] >= 0.999, (precision, parity)


@pytest.mark.slow
def test_infer_takes_the_imported_model(published, shared_data, tmp_path, root):
    import nibabel as nib

    scan, mask = shared_data / "brainchop" / "t1_256.nii.gz", tmp_path / "labels.nii.gz"
    subprocess.run([sys.executable, "infer.py", scan, "-o", mask, "--model", published, "--no-picture"], cwd=root,
                   check=True)
    found, reference = (np.asarray(nib.load(path).dataobj)
                        for path in (mask, shared_data / "brainchop" / "labels_reference.nii.gz"))
    assert (found != reference).sum() <= 20

"""Networks in the forms in which others publish them, made up, and the import of them."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import share

DILATIONS = [1, 3, 2]


def run_command(*words) -> None:
    """``share.py`` with these words, in this process."""
    arguments = vars(share.make_parser().parse_args(list(map(str, words))))
    {"import": share.import_network, "onnx": share.onnx}[arguments.pop("command")](**arguments)


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
        gamma = gamma if affine in (True, "scale") else np.ones(6, "f4")
        beta = beta if affine in (True, "shift") else np.zeros(6, "f4")
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


def change(path: Path, where: str, value) -> None:
    document = json.loads(path.read_text())
    layer = document["modelTopology"]["model_config"]["config"]["layers"][1]["config"]
    (layer if where in layer else document)[where] = value
    path.write_text(json.dumps(document))


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


def save_published(folder: Path, reference: nn.Module, layout: dict) -> Path:
    """``reference`` as a .pth with brainchop's architecture file beside it."""
    torch.save(reference.state_dict(), folder / "model.pth")
    layers = [{"kernel_size": 3, "dilation": d} for d in DILATIONS * 4] + [{"kernel_size": 1, "dilation": 1}]
    (folder / "model.json").write_text(json.dumps({**layout, "layers": layers}))
    return folder / "model.pth"

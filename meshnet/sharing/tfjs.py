"""brainchop's TensorFlow.js layout: a Keras layers model (``model.json``) and its weights in one binary, in and out.

Format: the "layers-model" of TensorFlow.js, as brainchop.org reads it. A convolution's kernel is (X, Y, Z, in, out),
where torch has (out, in, X, Y, Z). Group norm is not a Keras layer; published networks store it in two ways:

* The name of a convolution ends in ``_gn``: brainchop.org normalises each of its channels (epsilon 1e-5). Weights of
  the norm, where it has some, are a convolution 1×1×1 behind it with a diagonal kernel. This module writes this form.
* An ``Activation`` called ``groupnorm`` with weights ``gamma`` and ``beta``, which is read but not written: no version
  of brainchop.org runs it.
"""

import colorsys
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch

from meshnet.errors import UserError
from meshnet.files import whole_file, write_text
from meshnet.networks.card import Card
from meshnet.networks.meshnet import MeshNet
from meshnet.numbers import plain
from meshnet.sharing.beside import CARD_NAME, write_beside
from meshnet.sharing.stages import EPSILON, Stage, assemble, stages_of

BINARY = "group1-shard1of1.bin"
OURS = "meshnet"  # who generated the file
NORMALISED = "_gn"  # the end of a convolution's name


# ---------------------------------------------------------------------------------------------------------- reading

def read_tfjs(path: Path) -> tuple[MeshNet, dict]:
    """The MeshNet in ``model.json`` and the binary beside it.

    Returns:
        The network in eval mode, and what the file says of its input: ``shape`` (X, Y, Z; None where open),
        ``normalize`` (brainchop's ``_normalize``; None where absent), and whether it is ``ours``, see ``write_tfjs``.

    Raises:
        UserError: for incomplete files, or layers that a MeshNet does not have.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "layers" in document:
            raise UserError(f"{path}: is the architecture of a .pth file, expected weights; import that file instead")
        config = document["modelTopology"]["model_config"]["config"]
        layers = config["layers"] if isinstance(config, dict) else config
        manifest = document["weightsManifest"]
        check_manifest(manifest)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a TensorFlow.js layers model ({type(error).__name__}: {error}); expected the "
                        "model.json that brainchop.org reads") from None
    weights = read_weights(path, manifest)
    stages: list[Stage] = []
    shape = None
    try:
        check_chain(layers, path)
        for layer in layers:
            settings = layer["config"]
            if layer["class_name"] == "InputLayer":
                sizes = settings["batch_input_shape"][1:4]
                shape = [int(n) for n in sizes] if all(sizes) else None
            else:
                add_layer(stages, layer["class_name"], settings, weights, path)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: a layer or its weights are incomplete ({type(error).__name__}: {error})") from None
    if weights:
        raise UserError(f"{path}: found weights that no layer uses ({', '.join(sorted(weights)[:3])})")
    return assemble(stages, str(path)), {"shape": shape, "normalize": document.get("_normalize"),
                                            "ours": document.get("generatedBy") == OURS}


def check_manifest(manifest: list[dict]) -> None:
    """Raise a KeyError or TypeError where a weights manifest lacks something."""
    for group in manifest:
        for entry in group["weights"]:
            math.prod(entry["shape"]), entry["name"] + "", entry["dtype"]
        "".join(group["paths"])


def check_chain(layers: list[dict], path: Path) -> None:
    """Raise a UserError unless each layer takes the one before it and nothing else."""
    for before, layer in itertools.pairwise(layers):
        inputs = [edge[0] for node in layer.get("inbound_nodes", []) for edge in node]
        if inputs and inputs != [before["config"]["name"]]:
            raise UserError(f"{path}: layer {layer['config']['name']} takes {', '.join(inputs)}, expected "
                            f"{before['config']['name']} alone; a MeshNet is a plain sequence")


def add_layer(stages: list[Stage], kind: str, settings: dict, weights: dict, path: Path) -> None:
    """Add one Keras layer to ``stages``; its weights are taken out of ``weights``."""
    name, activation = settings["name"], settings.get("activation", "linear")
    if kind == "Conv3D":
        kernel = weights.pop(f"{name}/kernel")
        dilations = set(settings.get("dilation_rate", [1, 1, 1]))
        plain = settings.get("padding") == "same" and set(settings.get("strides", [1])) == {1}
        if len(dilations) > 1 or not plain or settings.get("groups", 1) != 1 or kernel.ndim != 5:
            raise UserError(f"{path}: layer {name} has a stride, groups, padding or a dilation that differs by axis; "
                            "not a MeshNet")
        bias = weights.pop(f"{name}/bias") if settings.get("use_bias", True) else None
        if is_scale(stages, kernel, bias):
            stages[-1].gamma, stages[-1].beta = kernel[0, 0, 0].diagonal().clone(), bias
        else:
            stages.append(Stage(kernel.permute(4, 3, 0, 1, 2), bias, dilations.pop()))
            if name.endswith(NORMALISED):
                stages[-1].norm, stages[-1].groups = "group", len(stages[-1].weight)
        if activation != "linear":
            stages[-1].activation = activation
    elif kind == "BatchNormalization" or activation == "groupnorm":
        add_norm(stages[-1], name, settings, weights, path, "batch" if kind == "BatchNormalization" else "group")
    elif kind == "Activation" and activation != "linear":
        if stages[-1].activation:
            raise UserError(f"{path}: layer {name} is a second activation after one convolution; not a MeshNet")
        stages[-1].activation = activation
    elif not (kind.endswith("Dropout") or kind.endswith("Dropout3D") or kind == "Activation"):
        raise UserError(f"{path}: found a layer of kind {kind}, expected Conv3D, Activation, BatchNormalization or "
                        "dropout; not a MeshNet")


def is_scale(stages: list[Stage], kernel: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether a convolution (X, Y, Z, in, out) is the scale and shift of the channel-wise norm right before it."""
    before = stages[-1] if stages else None
    if before is None or before.norm != "group" or before.activation or before.gamma is not None or bias is None:
        return False
    matrix = kernel[0, 0, 0]
    square = kernel.shape[:3] == (1, 1, 1) and matrix.shape[0] == matrix.shape[1]
    return square and torch.equal(matrix, torch.diag(matrix.diagonal()))


def add_norm(stage: Stage, name: str, settings: dict, weights: dict, path: Path, norm: str) -> None:
    """Record a norm layer on ``stage``. Weights of exactly one and zero count as no weights."""
    stage.norm, stage.groups = norm, settings.get("num_groups", 0)
    epsilon = settings.get("epsilon", 1e-3 if norm == "batch" else EPSILON)
    if stage.activation:
        raise UserError(f"{path}: layer {name} normalises after the activation, expected before it; not a MeshNet")
    gamma, beta = weights.pop(f"{name}/gamma", None), weights.pop(f"{name}/beta", None)
    channels = stage.weight.shape[0]
    gamma = torch.ones(channels) if gamma is None else gamma
    beta = torch.zeros(channels) if beta is None else beta
    if norm == "batch":
        stage.mean, stage.variance = weights.pop(f"{name}/moving_mean"), weights.pop(f"{name}/moving_variance")
        stage.variance = stage.variance + (epsilon - EPSILON)  # the same sum under the root
    elif not math.isclose(epsilon, EPSILON, rel_tol=1e-6):
        raise UserError(f"{path}: layer {name} has epsilon {epsilon:g}, expected {EPSILON:g}")
    if norm == "batch" or not (bool((gamma == 1).all()) and bool((beta == 0).all())):
        stage.gamma, stage.beta = gamma, beta


def read_weights(path: Path, manifest: list[dict]) -> dict[str, torch.Tensor]:
    """The named tensors of a weights manifest, read from the binaries beside ``path``."""
    tensors = {}
    for group in manifest:
        content = b""
        for name in group["paths"]:
            if Path(name).name != name:
                raise UserError(f"{path}: names the binary {name!r}, expected a file in the same folder")
            if not (path.parent / name).is_file():
                raise UserError(f"{path.parent / name}: not found; {path.name} needs it beside itself")
            content += (path.parent / name).read_bytes()
        offset = 0
        for entry in group["weights"]:
            if entry.get("dtype") not in ("float32", "float16") or "quantization" in entry:
                raise UserError(f"{path}: {entry.get('name')} is of type {entry.get('dtype')} or quantized, expected "
                                "float32 or float16")
            count, kind = math.prod(entry["shape"]), np.dtype(entry["dtype"]).newbyteorder("<")
            if offset + count * kind.itemsize > len(content):
                raise UserError(f"{path.parent / group['paths'][-1]}: found {len(content)} bytes, expected more for "
                                f"{entry['name']}; copy it again")
            values = np.frombuffer(content, kind, count, offset).astype(np.float32).reshape(entry["shape"])
            tensors[entry["name"]] = torch.from_numpy(values)
            offset += count * kind.itemsize
        if offset != len(content):
            raise UserError(f"{path.parent / group['paths'][-1]}: found {len(content)} bytes, expected {offset}; it "
                            f"does not belong to {path.name}")
    return tensors


# ---------------------------------------------------------------------------------------------------------- writing

def colours(classes: list[str]) -> dict:
    """brainchop's colormap of the classes: black, then hues as far apart as possible, red first."""
    golden = (5**0.5 - 1) / 2
    hues = [colorsys.hsv_to_rgb(i * golden % 1, 1, 1) for i in range(len(classes) - 1)]
    table = [(0, 0, 0), *(tuple(round(255 * part) for part in colour) for colour in hues)]
    return {**{name: [row[i] for row in table] for i, name in enumerate("RGB")}, "labels": classes}


def write_tfjs(model: MeshNet, card: Card, folder: Path) -> None:
    """Write ``folder/model.json``, its binary, ``colormap.json`` (the classes' names) and ``card.json`` (the rest that
    our own import needs), each whole, ``model.json`` last.

    Raises:
        UserError: for a network that is not a MeshNet, a cascade, or a norm over several channels at once.
    """
    if not isinstance(model, MeshNet):
        raise UserError(f"{card.name}: expected meshnet, the only network that brainchop runs; share.py onnx "
                        "exports other convolutional networks")
    if card.first:
        raise UserError(f"{folder}: the model is a cascade of two networks, expected a single one, which is all that "
                        "brainchop runs; share.py web and share.py onnx take cascades")
    stages = stages_of(model)
    if any(stage.norm and stage.groups != len(stage.weight) for stage in stages):
        raise UserError(f"model.norm_groups: found {model.arguments['norm_groups']}, expected "
                        f"{model.arguments['channels']} or 0; brainchop normalises each channel by itself")
    shape = card.shape or [round(256 / card.voxel_mm)] * 3
    common = {"trainable": False, "dtype": "float32"}
    layers = [{"class_name": "InputLayer", "name": "input", "inbound_nodes": [],
               "config": {"batch_input_shape": [None, *shape, model.arguments["in_channels"]], "dtype": "float32",
                          "sparse": False, "ragged": False, "name": "input"}}]
    weights: list[tuple[str, torch.Tensor]] = []

    def add(kind: str, name: str, config: dict) -> None:
        before = layers[-1]["name"]
        layers.append({"class_name": kind, "config": {"name": name, **common, **config}, "name": name,
                       "inbound_nodes": [[[before, 0, 0, {}]]]})

    def convolve(name: str, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> None:
        add("Conv3D", name, {
            "filters": weight.shape[0], "kernel_size": list(weight.shape[2:]), "strides": [1, 1, 1], "padding": "same",
            "data_format": "channels_last", "dilation_rate": [dilation] * 3, "groups": 1, "activation": "linear",
            "use_bias": bias is not None})
        weights.append((f"{name}/kernel", weight.permute(2, 3, 4, 1, 0)))
        if bias is not None:
            weights.append((f"{name}/bias", bias))

    for i, stage in enumerate(stages):
        name = f"conv3d_{i}{NORMALISED if stage.norm else ''}"
        convolve("output" if stage is stages[-1] else name, stage.weight, stage.bias, stage.dilation)
        if stage.gamma is not None:
            convolve(f"affine_{i}", torch.diag(stage.gamma)[:, :, None, None, None], stage.beta, 1)
        if stage.activation:
            add("Activation", f"activation_{i}", {"activation": stage.activation})
    manifest = [{"name": name, "shape": list(tensor.shape), "dtype": "float32"} for name, tensor in weights]
    document = {
        "format": "layers-model", "generatedBy": OURS, "convertedBy": None,
        "modelTopology": {"keras_version": "2.7.0", "backend": "tensorflow", "model_config": {
            "class_name": "Functional", "config": {
                "name": "model", "layers": layers, "input_layers": [["input", 0, 0]],
                "output_layers": [["output", 0, 0]]}}},
        "weightsManifest": [{"paths": [BINARY], "weights": manifest}]}
    content = b"".join(tensor.detach().cpu().numpy().astype("<f4").tobytes() for _, tensor in weights)
    with whole_file(folder / BINARY) as temporary:
        temporary.write_bytes(content)
    write_text(folder / "colormap.json", json.dumps(colours(card.classes)) + "\n")
    write_beside(model, card, folder / CARD_NAME, folder / BINARY)
    write_text(folder / "model.json", json.dumps(document) + "\n")


def brainchop_fit(card: Card) -> str:
    """The settings of brainchop.org's entry for this network, or why they cannot fit it."""
    wanted = f"{card.orientation}, {plain(card.voxel_mm)} mm, {card.scaling}, {' + '.join(card.channels)}"
    given = card.orientation == "LIA" and card.voxel_mm == 1 and len(card.channels) == 1
    # A conformed scan ranges from 0 to 255, so min-max changes nothing.
    quantiles = {"minmax": "false", "conform_uint8": "false", "brainchop_quantile": "true"}.get(card.scaling)
    if given and quantiles:
        return f"for brainchop.org: enableTranspose true, enableQuantileNorm {quantiles}"
    return (f"it was trained on {wanted}, and brainchop.org gives it one LIA volume of 1 mm, scaled min-max or by "
            "quantiles: expect other masks there")

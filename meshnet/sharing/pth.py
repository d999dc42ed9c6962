"""Weights of a MeshNet from elsewhere: a ``.pth`` state dict (or safetensors under that name), layers in order.

Names differ between projects, so layers are recognised by their tensors: five axes are a convolution, running
statistics a batch norm, a single axis an affine group norm. What tensors cannot say (dilations, activation, a norm
without weights) comes from brainchop's ``model.json`` beside the file or from flags.
"""

import json
import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from meshnet.config import ACTIVATIONS
from meshnet.errors import UserError
from meshnet.networks.meshnet import MeshNet
from meshnet.sharing.stages import Stage, assemble
from meshnet.sharing.tfjs import NORMALISED

BNORM = "bnorm"  # what brainchop's files call any norm
NESTED = ("state_dict", "model_state_dict", "model", "net", "network")


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a ``.pth`` file, unpickled with ``weights_only=True``, in its own order, which is the network's;
    or of a safetensors file of that name, in the order of the names.

    Raises:
        UserError: for anything else, in particular a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a .pth or .safetensors file")
    try:
        if zipfile.is_zipfile(path) or path.read_bytes()[:1] == b"\x80":
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            content = sorted_state(load_file(path))
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        words = str(error)[:120].partition("\n")[0]
        raise UserError(f"{path}: cannot be opened as plain weights ({words}); expected a state dict of tensors "
                        "saved by torch.save(model.state_dict(), ...)") from None
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = isinstance(content, dict) and content and all(isinstance(v, torch.Tensor) for v in content.values())
    if not tensors:
        raise UserError(f"{path}: found {type(content).__name__}, expected a state dict of tensors")
    return content


def read_layout(path: Path) -> dict:
    """brainchop's file beside a ``.pth``: ``dilations``, ``norm`` and ``activation``, and from a layers model also
    ``shape`` and ``normalize`` as ``read_tfjs`` gives them.

    It is either ``{"bnorm": bool, "gelu": bool, "elu": bool, "layers": [{"kernel_size", "dilation", …}, …]}``, whose
    ``bnorm`` is a group norm with one group a channel in the newer networks and batch norm in the older (the weights
    decide, see ``read_torch``), or the network's TensorFlow.js layers model.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if "modelTopology" in document:
            return layout_of_layers(document["modelTopology"]["model_config"]["config"]["layers"]) | {
                "normalize": document.get("_normalize")}
        layers = document["layers"]
        dilations = [int(layer["dilation"]) for layer in layers if int(layer["kernel_size"]) != 1]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not brainchop's architecture file ({type(error).__name__}: {error}); expected "
                        '{"layers": [...]}, or give --dilations') from None
    activation = "gelu" if document.get("gelu") else "elu" if document.get("elu") else "relu"
    return {"dilations": dilations, "norm": BNORM if document.get("bnorm") else "none", "activation": activation}


def layout_of_layers(layers: list[dict]) -> dict:
    """``read_layout`` of the layers of a TensorFlow.js model."""
    settings = [layer["config"] for layer in layers]
    convolutions = [s for s in settings if "kernel_size" in s and set(s["kernel_size"]) != {1}]
    activations = [s["activation"] for s in settings if s.get("activation") in ACTIVATIONS]
    normalised = any(s["name"].endswith(NORMALISED) or s.get("activation") == "groupnorm" for s in settings)
    sizes = [s["batch_input_shape"][1:4] for s in settings if "batch_input_shape" in s][:1]
    shape = [int(n) for n in sizes[0]] if sizes and all(sizes[0]) else None
    return {"dilations": [int(s["dilation_rate"][0]) for s in convolutions], "activation": activations[0],
            "norm": "group" if normalised else "none", "shape": shape}


def stages_from_state(state: dict[str, torch.Tensor], path: Path) -> list[Stage]:
    """Convolutions in the order of ``state``, each with the norm that follows it."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        prefix, _, leaf = key.rpartition(".")
        modules.setdefault(prefix, {})[leaf] = tensor.float() if tensor.is_floating_point() else tensor
    stages: list[Stage] = []
    for prefix, parts in modules.items():
        weight = parts.get("weight")
        if weight is not None and weight.ndim == 5:
            stages.append(Stage(weight, parts.get("bias")))
        elif not stages:
            raise UserError(f"{path}: begins with {prefix} ({', '.join(parts)}), expected a 3D convolution; not a "
                            "MeshNet")
        elif "running_mean" in parts:
            stage = stages[-1]
            stage.norm, stage.mean, stage.variance = "batch", parts["running_mean"], parts["running_var"]
            stage.gamma, stage.beta = weight, parts.get("bias")
        elif weight is not None and weight.ndim == 1:
            stages[-1].norm, stages[-1].gamma, stages[-1].beta = "group", weight, parts["bias"]
        else:
            raise UserError(f"{path}: {prefix} holds {', '.join(parts)}, which no MeshNet has")
    return stages


def sorted_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``state`` in the order of its layers' names, since a safetensors file does not keep that of the network."""
    convolutions = {key.rpartition(".")[0] for key, tensor in state.items() if tensor.ndim == 5}
    layer = lambda key: key.rpartition(".")[0]
    return {key: state[key] for key in sorted(state, key=lambda k: natural_order(layer(k), layer(k) in convolutions))}


def natural_order(name: str, first: bool = False) -> list:
    """A sort key by which ``model.10`` comes after ``model.9``, ``conv10`` after ``conv9``, and of the layers in one
    block those with words for names (``0.bn``, ``0.conv``) in that order but for the ``first``."""
    *block, leaf = name.split(".")
    parts = [part for word in [*block, leaf] for part in re.findall(r"\d+|\D+", word)]
    if leaf and not any(letter.isdigit() for letter in leaf):
        parts[len(parts) - 1:] = ["" if first and block else leaf]
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def read_torch(path: Path, layout: dict) -> MeshNet:
    """The MeshNet in a ``.pth`` file.

    Args:
        layout: ``dilations`` (needed), ``activation`` (default relu) and ``norm`` (``none``, ``group``, ``instance``,
            or ``bnorm`` of brainchop's files), which is only asked where the weights do not show one.

    Raises:
        UserError: for files and layers that are not a MeshNet's.
    """
    stages = stages_from_state(read_state(path), path)
    dilations = layout.get("dilations")
    if not dilations:
        raise UserError(f"{path}: found {len(stages) - 1} blocks of unknown dilation; put brainchop's model.json "
                        "beside it or give --dilations 1,2,4,… and --activation")
    if len(dilations) != len(stages) - 1:
        raise UserError(f"{path}: found {len(stages) - 1} blocks, expected {len(dilations)} as the dilations say "
                        f"({','.join(map(str, dilations))})")
    norm = layout.get("norm", "none")
    if norm == BNORM:  # a norm's own weights, where there are some, have said already which it is
        norm = "group"
        if all(stage.norm is None for stage in stages) and stages[0].bias is not None:
            raise UserError(f"{path}: has biases and no weights of a norm, but its layout says bnorm; give --norm none "
                            "if batch norm was fused into the convolutions, else --norm group")
    for stage, dilation in zip(stages, dilations):
        stage.dilation = dilation
        stage.activation = layout.get("activation") or "relu"
        if stage.norm is None and norm != "none":
            stage.norm = norm
    return assemble(stages, str(path))

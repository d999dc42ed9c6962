"""A trained MeshNet for the compiled kernels alone: read and folded with numpy, without importing PyTorch, whose import
takes longer than a small network's work on a scan.

``load`` gives None for whatever is not plain: another network, other norms, no kernels, a GPU in the machine, files
that are not as they should be. The caller then goes by PyTorch, which can do all of it and says what is wrong.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meshnet.boxes import Layer
from meshnet.kernels import calls
from meshnet.modelfolder import WEIGHTS, find_weights, read_card

GPUS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, Windows' for Linux
BATCH_NORM_EPS = 1e-5  # PyTorch's default, which ``model.make_norm`` leaves as it is


@dataclass(frozen=True)
class FoldedMeshNet:
    """The layers of ``layers.fold``, as numpy arrays."""

    layers: list[Layer]
    in_channels: int


def load(name: str | Path, weights: str = WEIGHTS, device: str | None = None) -> tuple[FoldedMeshNet, dict] | None:
    """As ``modelfolder.load_model``, without PyTorch; None where PyTorch is needed.

    Raises:
        UserError: where the model's folder or its card cannot be had.
    """
    if device is None and sys.platform == "linux" and not any(map(os.path.exists, GPUS)):
        device = "cpu"  # as infer.pick_device
    if device != "cpu":
        return None
    path = find_weights(name, weights)
    card = read_card(path.parent)
    arguments = card["arguments"]
    if card["name"] != "meshnet" or arguments.get("norm", "batch") not in ("batch", "none") or not calls.available():
        return None
    tensors = read_plain(path)
    layers = None if tensors is None else fold(tensors, arguments)
    return None if layers is None else (FoldedMeshNet(layers, arguments.get("in_channels", 1)), card)


def read_plain(path: Path) -> dict[str, np.ndarray] | None:
    """The float32 tensors of a safetensors file; None where it has others or is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if not name.endswith(".num_batches_tracked")]  # noqa: SIM118 (no dict)
            if any(file.get_slice(name).get_dtype() != "F32" for name in names):
                return None
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None


def fold(tensors: dict[str, np.ndarray], arguments: dict) -> list[Layer] | None:
    """The layers of the MeshNet with these ``arguments``, folded in float64; None unless ``tensors`` are all that it
    has, in the shapes that it has."""
    left = dict(tensors)

    def take(name: str, shape: tuple[int, ...], wanted: bool = True) -> np.ndarray | None:
        found = left.pop(name, None) if wanted else np.zeros(shape)
        return found.astype(np.float64) if found is not None and found.shape == shape else None

    channels, classes = arguments.get("channels"), arguments.get("classes")
    dilations, inputs = arguments.get("dilations"), arguments.get("in_channels")
    activation, affine = arguments.get("activation"), arguments.get("norm_affine", True)
    if None in (channels, classes, dilations, inputs) or activation not in ("relu", "elu", "gelu"):
        return None
    if not isinstance(dilations, (list, tuple)) or not all(isinstance(d, int) and d >= 1 for d in dilations):
        return None  # PyTorch's way says what is wrong
    layers = []
    for i, dilation in enumerate(dilations):
        weight = take(f"blocks.{i}.conv.weight", (channels, channels if i else inputs, 3, 3, 3))
        bias = take(f"blocks.{i}.conv.bias", (channels,), arguments.get("bias", True))
        if weight is None or bias is None:
            return None
        if arguments.get("norm", "batch") == "batch":
            mean, variance = (take(f"blocks.{i}.norm.running_{name}", (channels,)) for name in ("mean", "var"))
            gain, shift = (take(f"blocks.{i}.norm.{name}", (channels,), affine) for name in ("weight", "bias"))
            if any(part is None for part in (mean, variance, gain, shift)):
                return None
            scale = (gain if affine else 1) / np.sqrt(variance + BATCH_NORM_EPS)
            weight, bias = weight * scale[:, None, None, None, None], (bias - mean) * scale + shift
        layers.append(Layer(weight.astype(np.float32), bias.astype(np.float32), dilation, activation))
    weight = take("head.weight", (classes, channels, 1, 1, 1))
    bias = take("head.bias", (classes,), arguments.get("final_bias", True))
    if weight is None or bias is None or left or not layers:
        return None
    return [*layers, Layer(weight.astype(np.float32), bias.astype(np.float32), 1, "none")]

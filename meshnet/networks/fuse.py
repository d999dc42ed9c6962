"""Batch norm fused into the convolution before it: a trained MeshNet as the layers that it runs as.

``fuse`` does this with PyTorch for a network in memory, ``fuse_tensors`` with numpy for the tensors of a file, so that
a scan can be segmented without importing PyTorch. The two may round differently in the last bit (``rsqrt`` in one, a
division by ``sqrt`` in the other): making them one would change results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from meshnet.config import ACTIVATIONS
from meshnet.kernels.calls import MapNorm

if TYPE_CHECKING:
    import torch
    from torch import nn

    from meshnet.networks.meshnet import MeshNet

# PyTorch's default, which ``norms.make_norm`` keeps. ``fuse`` asks the norm itself; a file does not record the value.
BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Layer:
    """One convolution: ``weight`` (out, in, k, k, k) with k 3 or 1, ``bias`` (out,), then ``norm`` if any, then the
    activation (one of ``config.ACTIVATIONS``, or ``none``). A norm of a network in memory is its own module."""

    weight: torch.Tensor | np.ndarray
    bias: torch.Tensor | np.ndarray
    dilation: int
    activation: str
    norm: nn.Module | MapNorm | None = None

    @property
    def reach(self) -> int:
        """How far, in voxels, this layer looks to each side."""
        return self.dilation if self.weight.shape[-1] == 3 else 0


def fuse(model: MeshNet) -> list[Layer]:
    """The layers of ``model`` in evaluation mode, with batch norm fused into weight and bias (in float64).

    Group and instance norm compute their statistics from the volume itself and are left as they are. The last layer is
    the 1×1×1 convolution to the classes, without an activation. The layers share only those norms with ``model``.
    """
    import torch
    from torch import nn

    from meshnet.kernels.normalise import activation_of

    layers = []
    for block in model.blocks:
        norm = getattr(block, "norm", None)
        weight = block.conv.weight.detach().double()
        bias = torch.zeros_like(weight[:, 0, 0, 0, 0]) if block.conv.bias is None else block.conv.bias.detach().double()
        if isinstance(norm, nn.BatchNorm3d):
            scale = torch.rsqrt(norm.running_var.double() + norm.eps)
            shift = -norm.running_mean.double() * scale
            if norm.affine:
                gain = norm.weight.detach().double()
                scale, shift = scale * gain, shift * gain + norm.bias.detach().double()
            weight, bias = weight * scale[:, None, None, None, None], bias * scale + shift
            norm = None
        layers.append(Layer(weight.float(), bias.float(), block.conv.dilation[0], activation_of(block), norm))
    head = model.head
    bias = torch.zeros_like(head.weight[:, 0, 0, 0, 0]) if head.bias is None else head.bias
    layers.append(Layer(head.weight.detach().float().clone(), bias.detach().float().clone(), 1, "none"))
    return layers


def map_norm(norm: nn.Module | MapNorm) -> MapNorm | None:
    """A group or instance norm as the kernels know it; None for any other."""
    if isinstance(norm, MapNorm):
        return norm
    from torch import nn

    weight, bias = (None if p is None else p.detach().float().contiguous() for p in (norm.weight, norm.bias))
    if type(norm) is nn.GroupNorm:
        return MapNorm(weight, bias, 0 if norm.num_groups == norm.num_channels else norm.num_groups, norm.eps)
    if type(norm) is nn.InstanceNorm3d and not norm.track_running_stats:
        return MapNorm(weight, bias, 0, norm.eps)
    return None


def fuse_tensors(tensors: dict[str, np.ndarray], arguments: dict) -> list[Layer] | None:
    """The layers of the MeshNet with these ``arguments``, fused in float64.

    None unless ``tensors`` are exactly those of that network, in its shapes: PyTorch then says what is wrong.
    """
    left = dict(tensors)

    def take(name: str, shape: tuple[int, ...], wanted: bool = True) -> np.ndarray | None:
        found = left.pop(name, None) if wanted else np.zeros(shape)
        return found.astype(np.float64) if found is not None and found.shape == shape else None

    channels, classes = arguments.get("channels"), arguments.get("classes")
    dilations, inputs = arguments.get("dilations"), arguments.get("in_channels")
    activation, affine = arguments.get("activation"), arguments.get("norm_affine", True)
    if None in (channels, classes, dilations, inputs) or activation not in ACTIVATIONS:
        return None
    if not isinstance(dilations, (list, tuple)) or not all(isinstance(d, int) and d >= 1 for d in dilations):
        return None
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
            norm = None
        elif arguments["norm"] == "none":
            norm = None
        else:
            parts = [take(f"blocks.{i}.norm.{name}", (channels,)) if affine else None for name in ("weight", "bias")]
            if affine and any(part is None for part in parts):
                return None
            groups = arguments.get("norm_groups", 0) if arguments["norm"] == "group" else 0
            norm = MapNorm(*(None if part is None else part.astype(np.float32) for part in parts), groups)
        layers.append(Layer(weight.astype(np.float32), bias.astype(np.float32), dilation, activation, norm))
    weight = take("head.weight", (classes, channels, 1, 1, 1))
    bias = take("head.bias", (classes,), arguments.get("final_bias", True))
    if weight is None or bias is None or left or not layers:
        return None
    return [*layers, Layer(weight.astype(np.float32), bias.astype(np.float32), 1, "none")]

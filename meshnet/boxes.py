"""One layer of a MeshNet as it runs, and the boxes of a volume that each layer must compute. Imports no PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import nn

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Layer:
    """One convolution: ``weight`` (out, in, k, k, k) with k 3 or 1, ``bias`` (out,), then ``norm`` if any, then the
    activation (``relu``, ``elu``, ``gelu`` or ``none``)."""

    weight: torch.Tensor | np.ndarray
    bias: torch.Tensor | np.ndarray
    dilation: int
    activation: str
    norm: nn.Module | None = None

    @property
    def reach(self) -> int:
        """How far, in voxels, this layer looks to each side."""
        return self.dilation if self.weight.shape[-1] == 3 else 0


def whole(shape: tuple[int, ...]) -> Box:
    """The box of a whole (X, Y, Z) volume."""
    return tuple((0, n) for n in shape)


def grow(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    """``box`` grown by ``by`` voxels to every side, as far as the volume goes."""
    return tuple((max(0, a - by), min(n, b + by)) for (a, b), n in zip(box, shape))


def grown(box: Box, by: int) -> Box:
    """``box`` grown by ``by`` voxels to every side, past the volume's ends too."""
    return tuple((a - by, b + by) for a, b in box)


def meet(one: Box, two: Box) -> Box:
    """What two boxes share."""
    return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, two))


def voxels(box: Box) -> int:
    """The number of voxels in ``box``."""
    return math.prod(max(0, b - a) for a, b in box)


def layer_boxes(layers: list[Layer], out: Box, shape: tuple[int, ...]) -> list[Box]:
    """What each layer must compute for ``out``: entry 0 is the input, entry l the output of ``layers[l - 1]``."""
    boxes = [out]
    for layer in reversed(layers):
        boxes.insert(0, grow(boxes[0], layer.reach, shape))
    return boxes

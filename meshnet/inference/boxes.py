"""The boxes of a volume that each layer of a MeshNet must compute, and one pass over a volume. No PyTorch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from meshnet.networks.fuse import Layer

if TYPE_CHECKING:
    import torch

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Gaps = tuple[tuple[int, int, int, int], ...]  # for each axis two ranges, (a, b, c, d); either may be empty


def whole_box(shape: tuple[int, ...]) -> Box:
    """The box of a whole (X, Y, Z) volume."""
    return tuple((0, n) for n in shape)


def grow_within(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    """``box`` grown by ``by`` voxels to every side, as far as the volume goes."""
    return tuple((max(0, a - by), min(n, b + by)) for (a, b), n in zip(box, shape))


def grow_beyond(box: Box, by: int) -> Box:
    """``box`` grown by ``by`` voxels to every side, past the volume's ends too."""
    return tuple((a - by, b + by) for a, b in box)


def intersection(one: Box, two: Box) -> Box:
    """What two boxes share."""
    return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, two))


def voxels(box: Box) -> int:
    """The number of voxels in ``box``."""
    return math.prod(max(0, b - a) for a, b in box)


def layer_boxes(layers: list[Layer], out: Box, shape: tuple[int, ...]) -> list[Box]:
    """What each layer must compute for ``out``: entry 0 is the input, entry l the output of ``layers[l - 1]``."""
    boxes = [out]
    for layer in reversed(layers):
        boxes.insert(0, grow_within(boxes[0], layer.reach, shape))
    return boxes


def air_gaps(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...], content: Box | None) -> list[Gaps]:
    """What of each of ``boxes`` (of ``layer_boxes``) need not be computed, since outside ``content`` the volume is
    constant (None: it is not known to be).

    A voxel whose layers see neither content nor the volume's end along an axis has the value of its neighbour along
    that axis, if the same is true of that. So between what sees an end and what sees content lies a range of equal
    values; one voxel of it is computed on either side, and ``kernels`` copies that into the gap.
    """
    seen = [0, *itertools.accumulate(layer.reach for layer in layers)]
    nothing = content is None
    return [tuple((a, a, b, b) if nothing or by in (0, seen[-1]) else axis_gaps(a, b, *content[axis], shape[axis], by)
                  for axis, (a, b) in enumerate(box)) for box, by in zip(boxes, seen)]


def axis_gaps(a: int, b: int, first: int, last: int, end: int, seen: int) -> tuple[int, int, int, int]:
    """The gaps of one axis before and after content (``first`` to ``last``) in a box from ``a`` to ``b``, ``seen``
    being how far a voxel sees and ``end`` the volume's size."""
    low = seen + 1 if a < seen else a
    low_end = min(max(a, first - seen - 1), b - 1)
    high = max(min(b, last + seen + 1), low_end + 1)
    high_end = end - seen - 1 if b > end - seen else b
    return *((low, low_end) if low < low_end else (a, a)), *((high, high_end) if high < high_end else (b, b))


def computed_size(box: Box, gaps: Gaps) -> tuple[int, ...]:
    """The size of ``box`` along each axis without its gaps."""
    return tuple(b - a - (q - p) - (s - r) for (a, b), (p, q, r, s) in zip(box, gaps))


@dataclass(frozen=True)
class Pass:
    """A network's way over one volume: what both ways to compute, kernels and PyTorch, are given.

    ``result`` is where ``output`` goes: "logits" or "probabilities" (K, X, Y, Z) float32, "labels" (X, Y, Z) uint8.
    ``max_memory`` is the process's ceiling in bytes, ``budget`` what of it is left for the work. Outside ``content``
    the volume is constant (None: nobody knows). Without a ``device`` the layers hold numpy arrays.
    """

    layers: list[Layer]
    volume: np.ndarray  # (C, X, Y, Z) float32, contiguous
    result: np.ndarray
    output: str
    max_memory: int | None = None
    budget: int | None = None
    content: Box | None = None
    threads: int | None = None
    device: torch.device | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the volume on each axis."""
        return self.volume.shape[1:]

"""Boxes of a volume: which part of each layer of a MeshNet a box needs, and one pass over a volume. No PyTorch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from meshnet.networks.fuse import Layer

if TYPE_CHECKING:
    import torch

Side = tuple[int, int]  # of a box along one axis, half open
Box = tuple[Side, Side, Side]
Gaps = tuple[tuple[int, int, int, int], ...]  # for each axis two ranges, (a, b, c, d); either may be empty


def whole_box(shape: tuple[int, ...]) -> Box:
    """The box of a whole (X, Y, Z) volume."""
    return tuple((0, n) for n in shape)


def grow_within(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    """``box`` grown by ``by`` voxels on every side, clipped to the volume."""
    return tuple((max(0, a - by), min(n, b + by)) for (a, b), n in zip(box, shape))


def grow_beyond(box: Box, by: int) -> Box:
    """``box`` grown by ``by`` voxels on every side, past the ends of the volume as well."""
    return tuple((a - by, b + by) for a, b in box)


def intersection(one: Box, two: Box) -> Box:
    """The box that two boxes share."""
    return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, two))


def voxels(box: Box) -> int:
    """The number of voxels in ``box``."""
    return math.prod(max(0, b - a) for a, b in box)


def layer_boxes(layers: list[Layer], out: Box, shape: tuple[int, ...]) -> list[Box]:
    """The box that each layer must compute for ``out``: entry 0 is of the input, entry l of ``layers[l - 1]``."""
    boxes = [out]
    for layer in reversed(layers):
        boxes.insert(0, grow_within(boxes[0], layer.reach, shape))
    return boxes


def air_gaps(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...], content: Box | None) -> list[Gaps]:
    """The part of each of ``boxes`` (from ``layer_boxes``) that need not be computed, because the volume is constant
    outside ``content`` (None: not known to be constant anywhere).

    Where a voxel sees neither content nor an end of the volume along an axis, and neither does its neighbour along that
    axis, both have the same value. So between the voxels that see an end and those that see content lies a range of
    equal values. One voxel at each end of that range is computed, and the kernels copy it into the gap between them.
    """
    seen = [0, *itertools.accumulate(layer.reach for layer in layers)]  # how far each layer sees in the input
    gaps = []
    for box, distance in zip(boxes, seen):
        if content is None or distance in (0, seen[-1]):  # the input is given, and the last layers are needed whole
            gaps.append(tuple((a, a, b, b) for a, b in box))
        else:
            gaps.append(tuple(axis_gaps(*sides, distance) for sides in zip(box, content, shape)))
    return gaps


def axis_gaps(side: Side, content: Side, size: int, seen: int) -> tuple[int, int, int, int]:
    """The gaps (a, b, c, d) along one axis: a to b below content, c to d above it.

    Args:
        side: of the box that a layer computes.
        content: where the volume is not constant.
        size: of the volume.
        seen: how far a voxel of this layer sees in the input, in voxels.
    """
    a, b = side
    first, last = content
    # Values are equal from ``seen`` up to ``first - seen``, and from ``last + seen`` up to ``size - seen``: a voxel
    # nearer to an end sees it, a voxel nearer to content sees that. A gap leaves out one voxel at each end of its
    # range, except where the box itself begins or ends within the range.
    below_from = a if a >= seen else seen + 1
    below_to = min(max(first - seen - 1, a), b - 1)  # at least one voxel of the box is computed
    above_from = max(min(last + seen + 1, b), below_to + 1)
    above_to = b if b <= size - seen else size - seen - 1
    below = (below_from, below_to) if below_from < below_to else (a, a)
    above = (above_from, above_to) if above_from < above_to else (b, b)
    return *below, *above


def computed_size(box: Box, gaps: Gaps) -> tuple[int, ...]:
    """The size of ``box`` along each axis, less its gaps."""
    return tuple(b - a - (q - p) - (s - r) for (a, b), (p, q, r, s) in zip(box, gaps))


@dataclass(frozen=True)
class Pass:
    """One pass of a network over a volume: all that the kernels or PyTorch need to compute a box of it.

    ``result`` receives the ``output``: "logits" or "probabilities" (K, X, Y, Z) float32, "labels" (X, Y, Z) uint8. It
    is a numpy array, or, for logits that stay on ``device``, a tensor there. Where ``filled`` is False only a box of it
    is written.
    ``max_memory`` is the memory limit of the process in bytes, ``budget`` the part of it that is left for this pass.
    Outside ``content`` the volume is constant (None: not known). Where ``device`` is None the layers hold numpy arrays.
    """

    layers: list[Layer]
    volume: np.ndarray  # (C, X, Y, Z) float32, contiguous
    result: np.ndarray | torch.Tensor
    output: str
    max_memory: int | None = None
    budget: int | None = None
    content: Box | None = None
    threads: int | None = None
    device: torch.device | None = None
    filled: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of the volume on each axis."""
        return self.volume.shape[1:]

"""A box of a volume cut into tiles with exact halos, so that what the layers need has a ceiling. Imports no PyTorch."""

from __future__ import annotations

import itertools
import math

import numpy as np

from meshnet.boxes import Box, Layer, air_gaps, computed, layer_boxes
from meshnet.errors import UserError


def plan_tiles(layers: list[Layer], head: Box, shape: tuple[int, ...], budget: int | None, needs,
               content: Box | None = None) -> list[Box]:
    """``head`` cut into the tiles that fit ``budget`` bytes (by ``needs``) with the least computing; ``content`` as in
    ``air_gaps``.

    Raises:
        UserError: if not even the smallest tiles fit.
    """
    if budget is None:
        return [head]
    whole = needs(layers, layer_boxes(layers, head, shape), shape)
    if whole <= budget:  # cuts only add halo
        return [head]
    most = [min(12, max(1, (b - a) // 8)) for a, b in head]
    kinds = [[kinds_of_parts(layers, head, axis, count, shape, needs, content) for count in range(1, n + 1)]
             for axis, n in enumerate(most)]
    best, smallest = None, whole
    for counts in itertools.product(*(range(1, n + 1) for n in most)):
        sides = [kinds[axis][count - 1] for axis, count in enumerate(counts)]
        boxes = layer_boxes(layers, tuple(kind[0] for kind in sides), shape)
        work = math.prod(counts) * sum(map(math.prod, sizes_computed(layers, boxes, shape, content)[1:]))
        if best is not None and work >= best[0]:
            continue
        # The tile of the largest parts needs most, but for this: layers share their room where there are no gaps.
        need = 0
        for tile in itertools.product(*sides):
            need = max(need, needs(layers, layer_boxes(layers, tile, shape), shape))
            if need > budget:
                break
        smallest = min(need, smallest)
        if need <= budget:
            best = work, counts
    if best is None:
        raise UserError(f"max_memory: found too little room for the network's layers, expected at least "
                        f"{smallest / 1e9:.2f} GB beside what the process already holds; raise it")
    return cut(head, best[1])


def kinds_of_parts(layers: list[Layer], head: Box, axis: int, count: int, shape: tuple[int, ...], needs,
                   content: Box | None = None) -> list[tuple[int, int]]:
    """The parts of ``head``'s side along ``axis``, cut into ``count``, that are not alike, first the one for which the
    layers need most memory: parts differ by a voxel, in their gaps, and in their halo, which ends with the volume."""
    kinds = {}
    for side in parts(*head[axis], count):
        boxes = layer_boxes(layers, (*head[:axis], side, *head[axis + 1:]), shape)
        gaps = air_gaps(layers, boxes, shape, content)
        kinds[tuple((box[axis][1] - box[axis][0], *(edge - box[axis][0] for edge in gap[axis]))
                    for box, gap in zip(boxes, gaps))] = side, boxes
    if len(kinds) > 1:
        return [side for side, _ in sorted(kinds.values(), key=lambda kind: -needs(layers, kind[1], shape))]
    return [side]


def sizes_computed(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...], content: Box | None) -> list[tuple]:
    """What of each of ``boxes`` is computed along each axis."""
    return [computed(box, gaps) for box, gaps in zip(boxes, air_gaps(layers, boxes, shape, content))]


def parts(a: int, b: int, count: int) -> list[tuple[int, int]]:
    """``a`` to ``b`` cut into ``count`` nearly equal parts."""
    return list(itertools.pairwise(np.linspace(a, b, count + 1).astype(int).tolist()))


def cut(box: Box, counts: tuple[int, ...]) -> list[Box]:
    """``box`` cut into ``counts`` nearly equal parts along each axis."""
    return list(itertools.product(*(parts(a, b, count) for (a, b), count in zip(box, counts))))

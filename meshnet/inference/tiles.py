"""A box of a volume cut into tiles with exact halos, so that what the layers need has a ceiling. Imports no PyTorch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np

from meshnet.errors import UserError
from meshnet.inference.boxes import Box, air_gaps, computed_size, layer_boxes
from meshnet.networks.fuse import Layer


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
    best, smallest = None, whole
    for counts in (range(1, 13), (1, 2, 4, 8, 16, 24, 32, 48, 64)):  # finer cuts only where nothing else fits
        if best is None:
            best, least = best_cut(layers, head, shape, budget, needs, content, counts)
            smallest = min(smallest, least)
    if best is None:
        raise UserError(f"max_memory: found too little room for the network's layers, expected at least "
                        f"{smallest / 1e9:.2f} GB beside what the process already holds; raise it")
    return cut(head, best)


def best_cut(layers: list[Layer], head: Box, shape: tuple[int, ...], budget: int, needs, content: Box | None,
             counts: Iterable[int]) -> tuple[tuple[int, ...] | None, int]:
    """Into how many of ``counts`` parts to cut each axis of ``head``, None where no tiles fit ``budget``, and the least
    bytes that tiles were found to need."""
    kinds = [{count: distinct_parts(layers, head, axis, count, shape, needs, content)
              for count in counts if count <= max(1, (b - a) // 8)} for axis, (a, b) in enumerate(head)]
    best, smallest = None, math.inf
    for cuts in itertools.product(*kinds):
        sides = [kinds[axis][count] for axis, count in enumerate(cuts)]
        tile = tuple(kind[0] for kind in sides)
        work = math.prod(cuts) * work_of(layers, tile, shape, content)
        if best is not None and work >= best[0]:
            continue
        # Usually the tile of the largest parts needs most. Not always: in tiles without gaps layers share their room,
        # so every combination is asked.
        need = 0
        for tile in itertools.product(*sides):
            need = max(need, needs(layers, layer_boxes(layers, tile, shape), shape))
            if need > budget:
                break
        smallest = min(need, smallest)
        if need <= budget:
            best = work, cuts
    return best and best[1], smallest


def work_of(layers: list[Layer], box: Box, shape: tuple[int, ...], content: Box | None) -> int:
    """The voxels that all layers together compute for ``box``."""
    return sum(map(math.prod, computed_sizes(layers, layer_boxes(layers, box, shape), shape, content)[1:]))


def distinct_parts(layers: list[Layer], head: Box, axis: int, count: int, shape: tuple[int, ...], needs,
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


def computed_sizes(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...], content: Box | None) -> list[tuple]:
    """What of each of ``boxes`` is computed along each axis."""
    return [computed_size(box, gaps) for box, gaps in zip(boxes, air_gaps(layers, boxes, shape, content))]


def parts(a: int, b: int, count: int) -> list[tuple[int, int]]:
    """``a`` to ``b`` cut into ``count`` nearly equal parts."""
    return list(itertools.pairwise(np.linspace(a, b, count + 1).astype(int).tolist()))


def cut(box: Box, counts: tuple[int, ...]) -> list[Box]:
    """``box`` cut into ``counts`` nearly equal parts along each axis."""
    return list(itertools.product(*(parts(a, b, count) for (a, b), count in zip(box, counts))))

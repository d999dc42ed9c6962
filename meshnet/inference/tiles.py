"""A box of a volume cut into tiles with exact halos, so that the layers' memory has a limit. Imports no PyTorch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from meshnet.errors import UserError
from meshnet.inference.boxes import Box, Pass, Side, air_gaps, computed_size, layer_boxes
from meshnet.networks.fuse import Layer

COARSE = range(1, 13)  # parts along an axis, tried first
FINE = (1, 2, 4, 8, 16, 24, 32, 48, 64)  # where no coarse cut fits
SMALLEST_SIDE = 8  # voxels; no side is cut into shorter ones


def plan_tiles(layers: list[Layer], box: Box, shape: tuple[int, ...], budget: int | None, needs,
               content: Box | None = None) -> list[Box]:
    """``box`` cut into the tiles that fit ``budget`` bytes (None: any) with the least computation.

    Args:
        needs: of (layers, boxes from ``layer_boxes``, shape), the bytes that computing a tile takes.
        content: outside of it the volume is constant, as in ``air_gaps``.

    Raises:
        UserError: if not even the smallest tiles fit.
    """
    if budget is None:
        return [box]
    bytes_for = lambda tile: needs(layers, layer_boxes(layers, tile, shape), shape)
    smallest = bytes_for(box)
    if smallest <= budget:  # a cut would only add halo
        return [box]
    for counts in (COARSE, FINE):
        best, least = best_cut(box, counts, budget, bytes_for, partial(work_of, layers, shape=shape, content=content),
                               partial(distinct_parts, layers, box, shape=shape, bytes_for=bytes_for, content=content))
        if best is not None:
            return cut(box, best)
        smallest = min(smallest, least)
    raise UserError(f"max_memory: found too little room for the network's layers, expected at least "
                    f"{smallest / 1e9:.2f} GB beside what the process already holds; raise it")


def best_cut(box: Box, counts: Iterable[int], budget: int, bytes_for: Callable[[Box], int],
             work_for: Callable[[Box], int], parts_for: Callable[[int, int], list[Side]],
             ) -> tuple[tuple[int, ...] | None, int]:
    """The cut of ``box`` with the least work of those whose tiles all fit ``budget`` bytes.

    Args:
        counts: numbers of parts to try along each axis.
        bytes_for, work_for: the memory and the work of one tile.
        parts_for: ``distinct_parts`` of (axis, count).

    Returns:
        The number of parts along each axis, or None where no cut fits; and the least memory that any cut needs.
    """
    choices = [{count: parts_for(axis, count) for count in counts if count <= max(1, (b - a) // SMALLEST_SIDE)}
               for axis, (a, b) in enumerate(box)]
    best, least_work, least_bytes = None, math.inf, math.inf
    for cuts in itertools.product(*choices):
        sides = [choices[axis][count] for axis, count in enumerate(cuts)]
        largest = tuple(distinct[0] for distinct in sides)
        work = math.prod(cuts) * work_for(largest)
        if work < least_work:
            # The tile of the largest parts usually needs the most memory, but not always: layers share memory in tiles
            # without gaps. So every combination of distinct parts is tried.
            needed = peak_bytes(itertools.product(*sides), budget, bytes_for)
            least_bytes = min(least_bytes, needed)
            if needed <= budget:
                best, least_work = cuts, work
    return best, least_bytes


def peak_bytes(tiles: Iterable[Box], budget: int, bytes_for: Callable[[Box], int]) -> int:
    """The most memory that one of ``tiles`` needs, or that of the first one that needs more than ``budget``."""
    most = 0
    for tile in tiles:
        most = max(most, bytes_for(tile))
        if most > budget:
            break
    return most


def distinct_parts(layers: list[Layer], box: Box, axis: int, count: int, shape: tuple[int, ...],
                   bytes_for: Callable[[Box], int], content: Box | None = None) -> list[Side]:
    """One each of the different parts that ``box`` has along ``axis`` when cut into ``count``, the one that needs the
    most memory first.

    Parts differ by a voxel of length, in their gaps, and in their halos, which end where the volume ends.
    """
    found = {}
    for side in parts(*box[axis], count):
        tile = (*box[:axis], side, *box[axis + 1:])
        boxes = layer_boxes(layers, tile, shape)
        gaps = air_gaps(layers, boxes, shape, content)
        form = tuple((one[axis][1] - one[axis][0], *(edge - one[axis][0] for edge in gap[axis]))
                     for one, gap in zip(boxes, gaps))
        found[form] = side, tile
    if len(found) == 1:
        return [side]
    return [side for side, _ in sorted(found.values(), key=lambda part: -bytes_for(part[1]))]


def work_of(layers: list[Layer], box: Box, shape: tuple[int, ...], content: Box | None) -> int:
    """The number of voxels that all layers together compute for ``box``."""
    boxes = layer_boxes(layers, box, shape)
    sizes = [computed_size(one, gaps) for one, gaps in zip(boxes, air_gaps(layers, boxes, shape, content))]
    return sum(map(math.prod, sizes[1:]))


def parts(a: int, b: int, count: int) -> list[Side]:
    """``a`` to ``b`` cut into ``count`` nearly equal parts."""
    return list(itertools.pairwise(np.linspace(a, b, count + 1).astype(int).tolist()))


def cut(box: Box, counts: tuple[int, ...]) -> list[Box]:
    """``box`` cut into ``counts`` nearly equal parts along each axis."""
    return list(itertools.product(*(parts(a, b, count) for (a, b), count in zip(box, counts))))


def refuse_beyond(task: Pass, need: int) -> None:
    """Raise UserError where ``need`` bytes, for maps that cannot be cut into tiles, are beyond the budget."""
    if task.budget is not None and need > task.budget:
        raise UserError(f"max_memory: found {task.max_memory / 1e9:.2f} GB, expected at least "
                        f"{(task.max_memory - task.budget + need) / 1e9:.2f} GB, since group and instance norm need "
                        f"whole maps; raise it")

"""A MeshNet computed on a box of a volume by the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meshnet.inference.boxes import Box, Pass, air_gaps, layer_boxes
from meshnet.inference.tiles import plan_tiles
from meshnet.kernels import calls
from meshnet.networks.fuse import Layer


def make_compute(task: Pass) -> Callable[[Box], None]:
    """A function that computes a box of ``task.result``, tile by tile."""
    needs = partial(compiled_bytes, content=task.content, threads=task.threads)

    def compute(box: Box) -> None:
        for tile in plan_tiles(task.layers, box, task.shape, task.budget, needs, task.content):
            run_compiled(task, tile)

    return compute


def run_compiled(task: Pass, tile: Box) -> None:
    """Compute ``tile`` of ``task.result`` in one call of the kernels."""
    *convolutions, head = task.layers
    boxes = layer_boxes(task.layers, tile, task.shape)
    gaps = air_gaps(task.layers, boxes, task.shape, task.content)[:-1]
    boxes = boxes[:-1]
    pairs = calls.choose_pairs(*widths_and_dilations(task.layers), boxes, task.shape, task.budget, gaps, task.threads)
    column = calls.Column([layer.weight for layer in convolutions], [layer.bias for layer in convolutions],
                          [layer.dilation for layer in convolutions], [layer.activation for layer in convolutions])
    calls.run_column(column, task.volume, task.result, task.output, boxes=boxes, gaps=gaps, pairs=pairs,
                     head=(head.weight.reshape(len(head.bias), -1), head.bias), threads=task.threads)


def compiled_bytes(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...], content: Box | None = None,
                   threads: int | None = None) -> int:
    """The least working memory of ``run_compiled``, in bytes: without planes in pairs."""
    gaps = air_gaps(layers, boxes, shape, content)[:-1]
    pairs = [False] * (len(layers) - 1)
    return calls.column_bytes(*widths_and_dilations(layers), boxes[:-1], shape, pairs, gaps, threads)


def widths_and_dilations(layers: list[Layer]) -> tuple[list[int], list[int]]:
    """Channels of the input and of each 3×3×3 layer, and the dilations of those layers."""
    convolutions = layers[:-1]
    widths = [convolutions[0].weight.shape[1], *(layer.weight.shape[0] for layer in convolutions)]
    return widths, [layer.dilation for layer in convolutions]

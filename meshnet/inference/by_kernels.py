"""A MeshNet computed on a box of a volume by the compiled kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meshnet.inference.boxes import Box, Pass, air_gaps, layer_boxes, whole_box
from meshnet.inference.tiles import plan_tiles, refuse_beyond
from meshnet.kernels import calls, normed
from meshnet.networks.fuse import Layer, map_norm


def make_compute(task: Pass) -> Callable[[Box], None]:
    """A function that computes a box of ``task.result``, tile by tile; with norms over whole maps at once."""
    if task.layers[0].norm is not None:
        return partial(run_normed, task)
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


def run_normed(task: Pass, box: Box) -> None:
    """Compute ``task.result`` of a network with group or instance norm, whose maps cannot be cut.

    Raises:
        UserError: where that takes more memory than there may be.
    """
    *convolutions, head = task.layers
    widths, dilations = widths_and_dilations(task.layers)
    need = normed.normed_bytes(widths, dilations, task.shape, task.threads)
    refuse_beyond(task, need)
    assert box == whole_box(task.shape)
    column = calls.Column([layer.weight for layer in convolutions], [layer.bias for layer in convolutions], dilations,
                          [layer.activation for layer in convolutions],
                          [map_norm(layer.norm) for layer in convolutions])
    classes = (head.weight.reshape(len(head.bias), -1), head.bias)
    normed.run_normed(column, classes, task.volume, task.result, task.output, task.threads)


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

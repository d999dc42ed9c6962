"""A MeshNet with group or instance norm by the compiled kernels: layer after layer, on whole volumes.

Such a norm needs the mean and the variance of a whole map before its first value can be used, so layers cannot be
computed together, plane by plane, as ``calls.run_column`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from meshnet.kernels import calls
from meshnet.kernels.calls import ACTIVATION_CODES, OUTPUTS, Column, MapNorm, address, contiguous

if TYPE_CHECKING:
    from meshnet.kernels.calls import Array

ROOM = 16  # floats that the kernels may read behind a map


def run_normed(column: Column, head: tuple[Array, Array], volume: np.ndarray, out: np.ndarray, output: str,
               threads: int | None = None) -> None:
    """Compute ``column``, whose layers all have ``norms``, and the classes on a whole ``volume`` (C, X, Y, Z) into
    ``out``.

    Args:
        head: weight (K, C) and bias (K,) of the 1×1×1 convolution to the classes.
        volume, out: contiguous; ``out`` is (K, X, Y, Z) float32 for ``output`` ``logits`` and ``probabilities``, and
            (X, Y, Z) uint8 for ``labels``.
        threads: None means ``calls.thread_count``.
    """
    threads, shape = threads or calls.thread_count(), volume.shape[1:]
    voxels, widest = int(np.prod(shape)), max(weight.shape[0] for weight in column.weights)
    rooms = [np.empty(widest * voxels + ROOM, np.float32) for _ in column.weights[:2]]
    layers = zip(column.weights, column.biases, column.dilations, column.activations, column.norms)
    for number, (weight, bias, dilation, activation, norm) in enumerate(layers):
        y = rooms[number % 2][:weight.shape[0] * voxels].reshape(-1, *shape)
        calls.run_column(Column([weight], [bias], [dilation], ["none"]), volume, y, threads=threads)
        scale, shift = scale_and_shift(norm, *statistics(y, threads))
        calls.library().meshnet_norm(address(y), address(y), 1, len(y), voxels, address(scale), address(shift),
                                     ACTIVATION_CODES[activation], threads)
        volume = y
    weight, bias = (contiguous(part) for part in head)
    if calls.library().meshnet_classes(address(volume), len(volume), voxels, address(weight), address(bias), len(bias),
                                       OUTPUTS[output], address(out), threads):
        raise MemoryError("meshnet kernels: no memory for the classes")


def statistics(y: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance (C,), float64, of each channel of ``y`` (C, X, Y, Z)."""
    mean, variance = np.empty((2, len(y)))
    if calls.library().meshnet_statistics(address(y), 1, len(y), y[0].size, address(mean), address(variance), threads):
        raise MemoryError("meshnet kernels: no memory for statistics")
    return mean, variance


def scale_and_shift(norm: MapNorm, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``norm`` of a map whose channels have these statistics, as scale · y + shift; each (C,) float32."""
    groups = norm.groups or len(mean)
    means, variances = mean.reshape(groups, -1), variance.reshape(groups, -1)
    middle = means.mean(1, keepdims=True)
    spread = (variances + (means - middle) ** 2).mean(1, keepdims=True)
    ones = np.ones_like(means)
    scale = (ones / np.sqrt(spread + norm.eps)).ravel()
    if norm.weight is not None:
        scale = scale * np.asarray(norm.weight, np.float64)
    shift = -(middle * ones).ravel() * scale
    if norm.bias is not None:
        shift = shift + np.asarray(norm.bias, np.float64)
    return scale.astype(np.float32), shift.astype(np.float32)


def normed_bytes(widths: Sequence[int], dilations: Sequence[int], shape: Sequence[int], threads: int | None = None,
                 ) -> int:
    """The bytes that ``run_normed`` takes beside volume and result: two maps, and what the largest layer takes.

    ``widths`` are the channels of the input and of each layer.
    """
    box = tuple((0, n) for n in shape)
    maps = min(2, len(dilations)) * max(widths[1:]) * int(np.prod(shape, dtype=np.int64)) * 4
    return maps + max(calls.column_bytes(widths[i:i + 2], [d], [box, box], shape, threads=threads)
                      for i, d in enumerate(dilations))

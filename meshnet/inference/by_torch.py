"""A MeshNet as the layers that it runs as, and PyTorch's way to compute them."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from meshnet.errors import UserError
from meshnet.inference.boxes import Box, Pass, grow_beyond, layer_boxes, voxels
from meshnet.inference.tiles import plan_tiles
from meshnet.networks.fuse import Layer

SLAB = 24 << 20  # bytes that PyTorch's path computes at once; glibc maps anew whatever is above 32 MiB


def activate(x: torch.Tensor, kind: str) -> torch.Tensor:
    """The activation ``kind``, in place where torch can."""
    if kind == "relu":
        return x.relu_()
    if kind == "elu":
        return functional.elu_(x)
    return functional.gelu(x) if kind == "gelu" else x


def make_compute(task: Pass) -> Callable[[Box], None]:
    """A function that computes a box of ``task.result``, tile by tile, by PyTorch."""
    source = torch.from_numpy(task.volume).to(task.device)

    def compute(box: Box) -> None:
        for tile in tiles_of(task, box):
            where = tuple(slice(a, b) for a, b in tile)
            task.result[(..., *where)] = as_output(run_box(task.layers, source, tile), task.output)

    return compute


def tiles_of(task: Pass, box: Box) -> list[Box]:
    """The tiles of ``box``, of which each fits the budget.

    Raises:
        UserError: where none does; group and instance norm need whole maps, which cannot be cut.
    """
    if all(layer.norm is None for layer in task.layers):
        return plan_tiles(task.layers, box, task.shape, task.budget, torch_bytes)
    need = torch_bytes(task.layers, [box] * (len(task.layers) + 1), task.shape)
    if task.budget is not None and need > task.budget:
        raise UserError(f"max_memory: found {task.max_memory / 1e9:.2f} GB, expected at least "
                        f"{(task.max_memory - task.budget + need) / 1e9:.2f} GB, since group and instance norm need "
                        f"whole maps; raise it")
    return [box]


def as_output(logits: torch.Tensor, output: str) -> np.ndarray:
    """Logits (K, …) as the kind of ``output`` asked for."""
    if output == "labels":
        return most_likely(logits).cpu().numpy()
    return (logits.softmax(dim=0) if output == "probabilities" else logits).float().cpu().numpy()


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The class of the highest of ``logits`` (K, X, Y, Z), uint8, the lowest one at a tie; torch's arg-max is slow over
    the first axis."""
    highest, labels = logits[0], torch.zeros_like(logits[0], dtype=torch.uint8)
    for k in range(1, len(logits)):
        labels.masked_fill_(logits[k] > highest, k)
        highest = torch.maximum(highest, logits[k]) if k + 1 < len(logits) else highest
    return labels


def run_box(layers: list[Layer], volume: torch.Tensor, out: Box) -> torch.Tensor:
    """Logits (K, *out) by PyTorch, from ``volume`` (C, X, Y, Z).

    Maps lie with their channels last, in two pieces of memory that the layers use in turn. A layer is computed some
    planes at a time, so that what the library writes is still in the cache when the activation puts it in its place,
    and comes from memory that the system need not clear each time.
    """
    *column, last = layers
    boxes = layer_boxes(layers, out, tuple(volume.shape[1:]))
    x = volume[(slice(None), *(slice(a, b) for a, b in boxes[0]))][None]
    x = x.contiguous(memory_format=torch.channels_last_3d)
    room = max((layer.weight.shape[0] * voxels(box) for layer, box in zip(column, boxes[1:])), default=0)
    memory = [x.new_empty(room) for _ in column[:2]]
    for number, (layer, have, want) in enumerate(zip(column, boxes, boxes[1:])):
        channels, size = layer.weight.shape[0], [b - a for a, b in want]
        y = memory[number % 2][:channels * voxels(want)].view(1, *size, channels).permute(0, 4, 1, 2, 3)
        for part in slabs(have, want, layer.reach, 4 * channels if x.device.type == "cpu" else 0):
            to = y[:, :, part[0][0] - want[0][0]:part[0][1] - want[0][0]]
            activate_into(to, convolve_part(layer, x, have, part), "none" if layer.norm else layer.activation)
        x = activate(layer.norm(y), layer.activation) if layer.norm else y
    pixels = x[0].permute(1, 2, 3, 0).reshape(-1, x.shape[1])  # the last layer as a matrix product
    return torch.addmm(last.bias[:, None], last.weight.flatten(1), pixels.t()).view(-1, *(b - a for a, b in out))


def slabs(have: Box, want: Box, reach: int, bytes_per_voxel: int) -> list[Box]:
    """``want`` in slabs along its first axis of at most ``SLAB`` bytes (or of one plane), each of whose planes find the
    same sides of what they look at within ``have``."""
    (first, last), *others = want
    planes = max(1, SLAB // max(1, bytes_per_voxel * voxels(((0, 1), *others))))
    edges = sorted({first, last, *(min(max(edge, first), last) for edge in (have[0][0] + reach, have[0][1] - reach))})
    return [((at, min(b, at + planes)), *others) for a, b in itertools.pairwise(edges) for at in range(a, b, planes)]


def convolve_part(layer: Layer, x: torch.Tensor, have: Box, part: Box) -> torch.Tensor:
    """The 3×3×3 convolution of ``layer`` on ``part`` (one of ``slabs``), from ``x`` (1, C, *have)."""
    reach, (a, b) = layer.reach, part[0]
    before, after = have[0][0] <= a - reach, b + reach <= have[0][1]  # else those planes are zero: left out
    weight = layer.weight[:, :, 0 if before else 1:3 if after else 2].contiguous(memory_format=torch.channels_last_3d)
    x = x[:, :, (a - reach if before else a) - have[0][0]:(b + reach if after else b) - have[0][0]]
    # Rows and columns are padded on both sides by as much as the side that lacks more; what is too much is cut off.
    lack = [max(c - d, f - e, 0) for (c, e), (d, f) in zip(have[1:], grow_beyond(part, reach)[1:])]
    if x.device.type == "cpu" and torch.backends.mkldnn.is_available():
        if x.shape[1] == 1:  # a second channel of zeros, since one alone is no layout with channels last
            x = functional.pad(x[0, 0, ..., None], (0, 1)).permute(3, 0, 1, 2)[None]
            weight = functional.pad(weight[:, 0, ..., None], (0, 1)).permute(0, 4, 1, 2, 3)
        # What conv3d calls by itself, but not for few voxels, where it falls back to something slow.
        x = torch.mkldnn_convolution(x, weight, layer.bias, [0, *lack], [1] * 3, [layer.dilation] * 3, 1)
    else:
        x = functional.conv3d(x, weight, layer.bias, dilation=layer.dilation, padding=(0, *lack))
    starts = [c - (a - p + reach) for (a, _), (c, _), p in zip(have[1:], part[1:], lack)]
    return x[(slice(None), slice(None), slice(None), *(slice(s, s + d - c) for s, (c, d) in zip(starts, part[1:])))]


def activate_into(y: torch.Tensor, x: torch.Tensor, kind: str) -> None:
    """Put the activation of ``x`` into ``y``."""
    if kind == "relu":
        torch.clamp_min(x, 0, out=y)
    else:
        y.copy_(activate(x, kind))


def torch_bytes(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...]) -> int:
    """Working memory of ``run_box``: the maps that layers use in turn, a slab (twice where the library changes its
    layout) and what a norm makes of a map."""
    sizes = [4 * layer.weight.shape[0] * voxels(box) for layer, box in zip(layers, boxes[1:])]
    first = 4 * layers[0].weight.shape[1] * voxels(boxes[0])
    return first + min(2, len(layers) - 1) * max(sizes[:-1], default=0) + 2 * min(SLAB, max(sizes)) + max(
        sizes[-1], max((size for size, layer in zip(sizes, layers) if layer.norm), default=0))

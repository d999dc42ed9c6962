"""A MeshNet computed on a box of a volume by PyTorch."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from meshnet.inference.boxes import Box, Pass, grow_beyond, layer_boxes, voxels
from meshnet.inference.tiles import plan_tiles, refuse_beyond
from meshnet.networks.fuse import Layer
from meshnet.scans.mask import slices

SLAB = 24 << 20  # bytes computed at once; glibc asks the system for new memory for everything above 32 MiB


def activate(x: torch.Tensor, kind: str) -> torch.Tensor:
    """The activation ``kind`` of ``x``, in place where torch can."""
    if kind == "relu":
        return x.relu_()
    if kind == "elu":
        return functional.elu_(x)
    return functional.gelu(x) if kind == "gelu" else x


def make_compute(task: Pass) -> Callable[[Box], None]:
    """A function that computes a box of ``task.result``, tile by tile."""
    source = torch.from_numpy(task.volume).to(task.device)

    def compute(box: Box) -> None:
        for tile in tiles_of(task, box):
            logits = run_box(task.layers, source, tile)
            kept = isinstance(task.result, torch.Tensor)  # logits that stay where they were computed
            task.result[(..., *slices(tile))] = logits if kept else as_output(logits, task.output)

    return compute


def tiles_of(task: Pass, box: Box) -> list[Box]:
    """``box`` cut into tiles that fit the budget.

    Raises:
        UserError: where none do, or whole maps, which group and instance norm need, do not.
    """
    if all(layer.norm is None for layer in task.layers):
        return plan_tiles(task.layers, box, task.shape, task.budget, torch_bytes)
    refuse_beyond(task, torch_bytes(task.layers, [box] * (len(task.layers) + 1), task.shape))
    return [box]


def as_output(logits: torch.Tensor, output: str) -> np.ndarray:
    """Logits (K, X, Y, Z) as ``output``: "logits" or "probabilities" (K, X, Y, Z) float32, "labels" (X, Y, Z) uint8."""
    if output == "labels":
        return most_likely(logits).cpu().numpy()
    return (logits.softmax(dim=0) if output == "probabilities" else logits).float().cpu().numpy()


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The class (X, Y, Z), uint8, with the highest of ``logits`` (K, X, Y, Z); of equal ones the lowest.

    torch's own argmax is slow over the first axis.
    """
    highest, labels = logits[0], torch.zeros_like(logits[0], dtype=torch.uint8)
    for k in range(1, len(logits)):
        labels.masked_fill_(logits[k] > highest, k)
        highest = torch.maximum(highest, logits[k]) if k + 1 < len(logits) else highest
    return labels


def run_box(layers: list[Layer], volume: torch.Tensor, out: Box) -> torch.Tensor:
    """Logits (K, *out) by PyTorch, from ``volume`` (C, X, Y, Z).

    Maps have their channels last in memory and use two buffers in turn. A layer is computed a few planes at a time:
    what the library writes is then still in the cache when the activation copies it into the map, and fits in memory
    that is used again, which the system need not clear each time.
    """
    *convolutions, head = layers
    boxes = layer_boxes(layers, out, tuple(volume.shape[1:]))
    x = volume[(slice(None), *slices(boxes[0]))][None]
    x = x.contiguous(memory_format=torch.channels_last_3d)
    most = max((layer.weight.shape[0] * voxels(box) for layer, box in zip(convolutions, boxes[1:])), default=0)
    buffers = [x.new_empty(most) for _ in convolutions[:2]]
    for number, (layer, have, want) in enumerate(zip(convolutions, boxes, boxes[1:])):
        channels, size = layer.weight.shape[0], [b - a for a, b in want]
        y = buffers[number % 2][:channels * voxels(want)].view(1, *size, channels).permute(0, 4, 1, 2, 3)
        for part in slabs(have, want, layer.reach, 4 * channels if x.device.type == "cpu" else 0):
            to = y[:, :, part[0][0] - want[0][0]:part[0][1] - want[0][0]]
            activate_into(to, convolve_part(layer, x, have, part), "none" if layer.norm else layer.activation)
        x = activate(layer.norm(y), layer.activation) if layer.norm else y
    pixels = x[0].permute(1, 2, 3, 0).reshape(-1, x.shape[1])  # the last layer as a matrix product
    return torch.addmm(head.bias[:, None], head.weight.flatten(1), pixels.t()).view(-1, *(b - a for a, b in out))


def slabs(have: Box, want: Box, reach: int, bytes_per_voxel: int) -> list[Box]:
    """``want`` cut along its first axis into slabs of at most ``SLAB`` bytes, or of one plane.

    Within a slab, either all planes find the planes ``reach`` below them in ``have`` or none does; likewise above.
    """
    (first, last), *others = want
    planes = max(1, SLAB // max(1, bytes_per_voxel * voxels(((0, 1), *others))))
    edges = sorted({first, last, *(min(max(edge, first), last) for edge in (have[0][0] + reach, have[0][1] - reach))})
    return [((at, min(b, at + planes)), *others) for a, b in itertools.pairwise(edges) for at in range(a, b, planes)]


def convolve_part(layer: Layer, x: torch.Tensor, have: Box, part: Box) -> torch.Tensor:
    """The 3×3×3 convolution of ``layer`` on ``part`` (one of ``slabs``), from ``x`` (1, C, *have)."""
    # First axis: planes below or above ``have`` lie outside the volume, where the padding is zero. Rather than being
    # padded, the input is cut to the planes that exist, and the weight to the taps that look at them.
    (have_from, have_to), (a, b) = have[0], part[0]
    low, high, first_tap, end_tap = a - layer.reach, b + layer.reach, 0, 3
    if low < have_from:
        low, first_tap = a, 1
    if high > have_to:
        high, end_tap = b, 2
    x = x[:, :, low - have_from:high - have_from]
    weight = layer.weight[:, :, first_tap:end_tap].contiguous(memory_format=torch.channels_last_3d)
    # Other axes: padded on both sides by what the side that lacks more lacks. What that computes too much is cut off.
    wanted = grow_beyond(part, layer.reach)
    padding = [max(have_a - a, b - have_b, 0) for (have_a, have_b), (a, b) in zip(have[1:], wanted[1:])]
    y = convolve_padded(x, weight, layer.bias, layer.dilation, padding)
    index = [slice(None)] * 3
    for (have_a, _), (part_a, part_b), pad in zip(have[1:], part[1:], padding):
        start = part_a - (have_a - pad + layer.reach)  # the result begins ``reach`` voxels inside the padded input
        index.append(slice(start, start + part_b - part_a))
    return y[tuple(index)]


def convolve_padded(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dilation: int,
                    padding: list[int]) -> torch.Tensor:
    """``conv3d`` with ``padding`` (Y, Z), by a faster call on CPUs."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return functional.conv3d(x, weight, bias, dilation=dilation, padding=(0, *padding))
    if x.shape[1] == 1:  # with one channel alone "channels last" means nothing, so a second one of zeros is added
        x = functional.pad(x[0, 0, ..., None], (0, 1)).permute(3, 0, 1, 2)[None]
        weight = functional.pad(weight[:, 0, ..., None], (0, 1)).permute(0, 4, 1, 2, 3)
    # conv3d itself calls this, except for few voxels, where it chooses something slow.
    return torch.mkldnn_convolution(x, weight, bias, [0, *padding], [1] * 3, [dilation] * 3, 1)


def activate_into(y: torch.Tensor, x: torch.Tensor, kind: str) -> None:
    """Write the activation ``kind`` of ``x`` into ``y``; ``x`` may be overwritten."""
    if kind == "relu":
        torch.clamp_min(x, 0, out=y)
    else:
        y.copy_(activate(x, kind))


def torch_bytes(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...]) -> int:
    """The working memory of ``run_box`` in bytes: the input, the two buffers for maps, a slab (twice, since the library
    may change its layout), and the largest result of a norm or of the last layer."""
    sizes = [4 * layer.weight.shape[0] * voxels(box) for layer, box in zip(layers, boxes[1:])]
    first = 4 * layers[0].weight.shape[1] * voxels(boxes[0])
    return first + min(2, len(layers) - 1) * max(sizes[:-1], default=0) + 2 * min(SLAB, max(sizes)) + max(
        sizes[-1], max((size for size, layer in zip(sizes, layers) if layer.norm), default=0))

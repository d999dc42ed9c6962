"""A MeshNet computed on a box of a volume on a CUDA device: half maps, and tiles that fit the card's memory.

Maps are in half precision (or in the type of autocast). Should a result not be finite, which a network without norms
might reach, the box is computed again in float32. Not run on a GPU: see docs/log/gpu.md.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from meshnet.inference.boxes import Box, Pass, grow_beyond, layer_boxes, voxels
from meshnet.inference.by_torch import activate, as_output
from meshnet.inference.crop import NOTICED, Face, compute_cropped, inner_faces
from meshnet.inference.tiles import plan_tiles, refuse_beyond
from meshnet.networks import gpu_norm
from meshnet.networks.fuse import Layer
from meshnet.scans.mask import slices

LAST = torch.channels_last_3d
SHARE = 0.8  # of the memory that is free on the card, where no limit is given
SINGLE = torch.float32


def compute_on_card(task: Pass, box: Box, air: np.ndarray | None, grows: bool) -> tuple[Box, torch.Tensor]:
    """``predict.compute_task`` for a result that stays on the card.

    The host waits once for all that it has to know: whether the result is finite, and at which faces of the box the
    network marks something; once more for each time that the box grows or is computed again.
    """
    fill = task.result.new_zeros(len(task.result)) if air is None else answer_to_air(task.layers, air)
    unchecked: list[tuple[Box, torch.Tensor]] = []
    compute = make_compute(task, unchecked)

    def marked(computed: Box) -> list[Face]:
        faces = list(inner_faces(computed, task.shape)) if grows else []
        while True:
            at_faces = [is_marked(task.result[(..., *slices(where))], fill) for _, where in faces]
            flags = [*(wrong for _, wrong in unchecked), *at_faces]
            found = torch.stack(flags).tolist() if flags else []
            again = [tile for (tile, _), wrong in zip(unchecked, found) if wrong]
            found = found[len(unchecked):]
            unchecked.clear()
            if not again:
                return [face for (face, _), wanted in zip(faces, found) if wanted]
            for tile in again:
                compute(tile, SINGLE)

    return compute_cropped(task, box, compute, fill, marked), fill


def answer_to_air(layers: list[Layer], air: np.ndarray) -> torch.Tensor:
    """``crop.fill_value`` where the layers are: the logits (K,) in a volume that is ``air`` (C,) everywhere."""
    x = torch.from_numpy(air).to(layers[0].weight.device, non_blocking=True)
    with torch.autocast("cuda", enabled=False):
        for layer in layers:
            x = activate(layer.weight.sum((2, 3, 4)) @ x + layer.bias, layer.activation)
    return x


def is_marked(logits: torch.Tensor, fill: torch.Tensor) -> torch.Tensor:
    """Whether a network marks anything in ``logits`` (K, …), as ``crop.marked_faces`` has it; a boolean on the card."""
    others = torch.arange(len(fill), device=fill.device) != fill.argmax()
    wide = (slice(None), *[None] * (logits.dim() - 1))
    return ((logits.softmax(0) > fill.softmax(0)[wide] + NOTICED) & others[wide]).any()


def make_compute(task: Pass, unchecked: list[tuple[Box, torch.Tensor]] | None = None) -> Callable[[Box], None]:
    """A function that computes a box of ``task.result``, tile by tile.

    What is not finite is computed again in float32. Where ``unchecked`` is given, that is left to the caller: each
    tile is appended to it with whether it is so, on the card.
    """
    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else torch.float16
    limit = task.max_memory or int(SHARE * free_bytes(task.device))
    task = replace(task, max_memory=limit, budget=limit - torch.cuda.memory_allocated(task.device))
    source = torch.from_numpy(task.volume).to(task.device, non_blocking=True)  # changes its type there, not on the host
    source = source.to(kind)
    layers = {kind: [in_type(layer, kind, task.device) for layer in task.layers]}

    def compute(box: Box, kind: torch.dtype = kind) -> None:
        if kind not in layers:
            layers[kind] = [in_type(layer, kind, task.device) for layer in task.layers]
        for tile in tiles_of(task, box, kind.itemsize):
            volume = source if kind == source.dtype else torch.from_numpy(task.volume).to(task.device, kind)
            logits = run_box(layers[kind], volume, tile)
            if kind != SINGLE:
                wrong = ~torch.isfinite(logits).all()
                if unchecked is not None:
                    unchecked.append((tile, wrong))
                elif wrong:
                    del logits
                    compute(tile, SINGLE)
                    continue
            on_card = isinstance(task.result, torch.Tensor)  # logits that stay where they were computed
            task.result[(..., *slices(tile))] = logits if on_card else as_output(logits, task.output)

    return compute


def free_bytes(device: torch.device) -> int:
    """Memory of the card that this process can have: what is free, and what it has reserved and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def in_type(layer: Layer, kind: torch.dtype, device: torch.device) -> Layer:
    """``layer`` with weights of that type on the device, and its norm there."""
    norm = layer.norm
    if norm is not None and any(part.device != device for part in [*norm.parameters(), *norm.buffers()]):
        norm = copy.deepcopy(norm).to(device)
    return replace(layer, weight=layer.weight.to(device, kind).contiguous(memory_format=LAST),
                   bias=layer.bias.to(device, kind), norm=norm)


def tiles_of(task: Pass, box: Box, itemsize: int) -> list[Box]:
    """``box`` cut into tiles that fit the budget, for maps of ``itemsize`` bytes a value.

    Raises:
        UserError: where none do, or whole maps, which group and instance norm need, do not.
    """
    def needs(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...]) -> int:
        return gpu_bytes(layers, boxes, shape, itemsize)

    if all(layer.norm is None for layer in task.layers):
        return plan_tiles(task.layers, box, task.shape, task.budget, needs)
    refuse_beyond(task, needs(task.layers, [box] * (len(task.layers) + 1), task.shape))
    return [box]


def run_box(layers: list[Layer], volume: torch.Tensor, out: Box) -> torch.Tensor:
    """Logits (K, *out), float32, from ``volume`` (C, X, Y, Z) in the type of the layers."""
    *convolutions, head = layers
    boxes = layer_boxes(layers, out, tuple(volume.shape[1:]))
    with torch.autocast("cuda", enabled=False):
        x = volume[(slice(None), *slices(boxes[0]))][None].contiguous(memory_format=LAST)
        for layer, have, want in zip(convolutions, boxes, boxes[1:]):
            held = [x]
            del x
            x = convolve(layer, held, have, want)
            if layer.norm is not None:
                normalise(layer.norm, x)
            x = activate(x, layer.activation)
        return functional.conv3d(x, head.weight, head.bias)[0].float()


def convolve(layer: Layer, held: list[torch.Tensor], have: Box, want: Box) -> torch.Tensor:
    """The 3×3×3 convolution of ``layer`` on ``want``, from (1, C, *have), which is taken out of ``held`` and freed.

    Each axis is padded on both sides by what the side that lacks more lacks; what that computes too much is cut off.
    """
    padding = paddings(layer.reach, have, want)
    y = functional.conv3d(held.pop(), layer.weight, layer.bias, padding=padding, dilation=layer.dilation)
    index = [slice(None)] * 2
    for (first, _), (a, b), pad in zip(have, want, padding):
        start = a - (first - pad + layer.reach)  # the result begins ``reach`` voxels inside the padded input
        index.append(slice(start, start + b - a))
    return y[tuple(index)].contiguous(memory_format=LAST)


def paddings(reach: int, have: Box, want: Box) -> list[int]:
    """How many voxels of zeros each axis of ``have`` needs for a convolution on ``want``."""
    wanted = grow_beyond(want, reach)
    return [max(first - low, high - last, 0) for (first, last), (low, high) in zip(have, wanted)]


def normalise(norm: torch.nn.Module, x: torch.Tensor) -> None:
    """Group or instance norm of ``x`` (1, C, X, Y, Z), in place."""
    channels = x.shape[1]
    mean, inverse, _ = gpu_norm.statistics(norm, x, None, channels)
    weight, shift = gpu_norm.widened(norm.weight, channels), gpu_norm.widened(norm.bias, channels)
    torch.batch_norm_elemt(x, weight, shift, mean, inverse, norm.eps, out=x)


def gpu_bytes(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...], itemsize: int) -> int:
    """The bytes of tensors that ``run_box`` and its output take beside the volume, for maps of ``itemsize`` bytes a
    value: of each layer its input, what is convolved, and that cut to its box; then the logits in three forms."""
    whole = itemsize * layers[0].weight.shape[1] * int(np.prod(shape))
    below = itemsize * layers[0].weight.shape[1] * voxels(boxes[0])
    most = below
    for layer, have, want in zip(layers[:-1], boxes, boxes[1:]):
        width = itemsize * layer.weight.shape[0]
        made, kept = width * convolved_voxels(layer.reach, have, want), width * voxels(want)
        most = max(most, below + made, made + kept if made != kept else kept,
                   2 * kept if layer.activation == "gelu" else kept)
        below = kept
    logits = layers[-1].weight.shape[0] * voxels(boxes[-1])
    return whole + max(most, below + itemsize * logits, (itemsize + 4 + 4) * logits)


def convolved_voxels(reach: int, have: Box, want: Box) -> int:
    """The voxels that ``convolve`` computes for ``want`` from ``have``, with those that it cuts off."""
    return math.prod(b - a + 2 * (pad - reach) for (a, b), pad in zip(have, paddings(reach, have, want)))

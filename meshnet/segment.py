"""Run a network over one whole volume: norm folded into the convolutions, only the head computed, memory capped.

A trained MeshNet is a column of convolutions at full resolution. Three facts make it quick to run:

* In evaluation batch norm is a scale and a shift, so it is folded into the weights beside it (``fold``).
* A part of the output needs only that part of each layer, grown by how far the layers above it look
  (``layer_boxes``). So the head can be computed without the rest of the air, and any volume can be cut into tiles with
  exact halos, which gives the peak memory a ceiling.
* Constant air gives constant maps, but for what the volume's end and the head change within the layers' sight
  (``air_gaps``). The kernels copy what lies between.

Inside the head's box ``crop="head"`` gives what the full volume gives, to rounding, whatever lies outside: what the
layers need of the air around it is computed, and zero padding is only where the volume itself ends. The box grows where
the network finds something at one of its sides (``marked_sides``), so what begins in the head is followed wherever it
goes. Elsewhere the network's answer to endless air of the border's median value is filled in (``fill_value``). What a
network marks in the air without touching the box, such as beside the volume's end where it sees zero padding, is not
looked for; ``crop="none"`` is always the full volume.

A ``FoldedMeshNet`` is run by the compiled kernels without importing PyTorch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from meshnet.air import Side, border_values, check_crop, content_box, fill_value, find_head, grow_box, marked_sides
from meshnet.boxes import Box, air_gaps, layer_boxes, whole
from meshnet.errors import UserError
from meshnet.folded import FoldedMeshNet
from meshnet.kernels import calls
from meshnet.machine import resident_bytes
from meshnet.networks.fuse import Layer
from meshnet.tiles import plan_tiles, work_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from meshnet.networks.meshnet import MeshNet


def predict(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
            threads: int | None = None) -> np.ndarray:
    """Class probabilities (K, X, Y, Z), float32.

    Args:
        model: a ``MeshNet`` in evaluation mode, a ``FoldedMeshNet``, or any other network (run as it is; one with an
            attribute ``patch`` by MONAI's sliding window of that size).
        volume: (C, X, Y, Z), scaled as in training (0..1), numpy or torch.
        crop: ``head`` computes the head's box, grown as long as the network finds something at a side of it, and fills
            the rest with the network's answer to air; a box ((x0, x1), (y0, y1), (z0, z1)) is computed as it is, the
            rest filled; ``none`` computes everything. Models with group or instance norm, and other networks, are
            always run in full.
        max_memory: ceiling in bytes for the whole process, as far as this function adds to it; None means no ceiling.
        device: where to compute; None means where the model is.
        threads: CPU threads; None means ``torch.get_num_threads()``.

    The result lies in memory with its axes in the order of ``volume``'s.

    Raises:
        UserError: a volume with the wrong number of axes or channels, NaN or infinite voxels, an unknown crop, or a
            ceiling that is too low.
    """
    return run(model, volume, crop, max_memory, device, threads, "probabilities")


def predict_labels(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
                   threads: int | None = None) -> np.ndarray:
    """The most probable class of each voxel (X, Y, Z), uint8; the lowest one at a tie. Arguments as ``predict``."""
    return run(model, volume, crop, max_memory, device, threads, "labels")


def predict_logits(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
                   threads: int | None = None) -> np.ndarray:
    """Logits (K, X, Y, Z), float32. Arguments as ``predict``."""
    return run(model, volume, crop, max_memory, device, threads, "logits")


def run(model: nn.Module, volume, crop, max_memory, device, threads, output: str) -> np.ndarray:
    """``predict``, ``predict_labels`` and ``predict_logits`` in one; ``output`` names which."""
    volume = check_volume(model, volume)
    if isinstance(model, FoldedMeshNet):
        return run_layers(model.layers, volume, crop, max_memory, None, threads, output)
    import torch

    from meshnet.networks.meshnet import MeshNet

    device = torch.device(device) if device is not None else next(model.parameters()).device
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            if not isinstance(model, MeshNet):
                if max_memory is not None:
                    raise UserError(f"max_memory: found a ceiling for {type(model).__name__}, expected one for a "
                                    f"MeshNet alone, whose volumes can be cut; leave it out")
                return finish(run_other(model, torch.from_numpy(np.ascontiguousarray(volume)), device), output)
            return run_meshnet(model, volume, crop, max_memory, device, output)
    finally:
        torch.set_num_threads(before)


def check_volume(model: nn.Module, volume) -> np.ndarray:
    """``volume`` as float32 numpy (C, X, Y, Z), or a UserError."""
    volume = np.asarray(volume.detach().cpu() if hasattr(volume, "detach") else volume)
    if isinstance(model, FoldedMeshNet):
        channels = model.in_channels
    else:
        from meshnet.networks.meshnet import MeshNet

        channels = model.arguments["in_channels"] if isinstance(model, MeshNet) else volume.shape[0]
    if volume.ndim != 4 or volume.shape[0] != channels or 0 in volume.shape:
        raise UserError(f"volume: found shape {tuple(volume.shape)}, expected (C, X, Y, Z) with C = {channels}; "
                        f"give one channel for each modality that the model was trained on")
    volume = np.asarray(volume, dtype=np.float32)
    if not np.isfinite(volume).all():
        raise UserError("volume: found NaN or infinite voxels, expected finite intensities; mend the scan")
    return volume


def run_other(model: nn.Module, volume: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Logits (K, X, Y, Z) of a network that is not a MeshNet."""
    model = model.to(device)
    patch = getattr(model, "patch", None)
    if patch is None:
        return model(volume[None].to(device))[0]
    from monai.inferers import sliding_window_inference

    size = (patch,) * 3 if isinstance(patch, int) else tuple(patch)
    return sliding_window_inference(volume[None].to(device), size, 1, model, overlap=0.5, mode="gaussian")[0]


def finish(logits: torch.Tensor, output: str) -> np.ndarray:
    """Logits (K, …) as the kind of ``output`` asked for."""
    if output == "labels":
        return most_likely(logits).cpu().numpy()
    return (logits.softmax(dim=0) if output == "probabilities" else logits).float().cpu().numpy()


def most_likely(logits: torch.Tensor) -> torch.Tensor:
    """The class of the highest of ``logits`` (K, X, Y, Z), uint8, the lowest one at a tie; torch's arg-max is slow over
    the first axis."""
    import torch

    highest, labels = logits[0], torch.zeros_like(logits[0], dtype=torch.uint8)
    for k in range(1, len(logits)):
        labels.masked_fill_(logits[k] > highest, k)
        highest = torch.maximum(highest, logits[k]) if k + 1 < len(logits) else highest
    return labels


def run_meshnet(model: MeshNet, volume: np.ndarray, crop, max_memory, device: torch.device, output: str) -> np.ndarray:
    """``run`` for a MeshNet by PyTorch, or by the kernels where they can."""
    from meshnet.networks.fuse import fuse

    layers = [replace(layer, weight=layer.weight.to(device), bias=layer.bias.to(device)) for layer in fuse(model)]
    return run_layers(layers, volume, crop, max_memory, device, None, output)


def run_layers(layers: list[Layer], volume: np.ndarray, crop, max_memory, device: torch.device | None,
               threads: int | None, output: str) -> np.ndarray:
    """Crop, cut into tiles, compute each, put them together. ``device`` None: the layers are numpy's, for kernels."""
    local = all(layer.norm is None for layer in layers)
    compiled = device is None or (local and len(layers) > 1 and device.type == "cpu" and calls.available())
    axes = memory_axes(volume)
    crop = check_crop(volume, crop)
    if compiled and axes != (0, 1, 2):  # turning weights costs nothing; the result lies in memory as the volume
        turned = [replace(layer, weight=turn(layer.weight, axes)) for layer in layers]
        crop = crop if isinstance(crop, str) else tuple(crop[axis] for axis in axes)
        return turn(run_layers(turned, turn(volume, axes), crop, max_memory, device, threads, output), np.argsort(axes))
    volume = np.ascontiguousarray(volume)
    shape, classes, labels = volume.shape[1:], layers[-1].weight.shape[0], output == "labels"
    content = content_box(volume) if local and crop != "none" else None
    box = find_head(volume, crop, content) if local else whole(shape)
    result = np.empty(shape if labels else (classes, *shape), np.uint8 if labels else np.float32)
    budget = None if max_memory is None else max_memory - resident_bytes() - result.nbytes  # not yet in memory
    if compiled:
        compute = partial(by_kernels, layers, volume, result, output, budget, content, threads)
    else:
        import torch

        source = torch.from_numpy(volume).to(device)
        compute = partial(by_torch, layers, source, result, output, max_memory, budget)
    if box == whole(shape):
        compute(box)
        return result
    fill = fill_value(layers, border_values(volume), output)
    result.T[...] = fill  # the classes, if any, are the last axis of T
    compute(box)
    moved: set[Side] = set()
    while crop == "head" and (sides := marked_sides(result, box, fill, output)):
        box, parts = cheapest(layers, *grow_box(box, sides, moved, shape), shape, content if compiled else None)
        moved.update(sides)
        for part in parts:
            compute(part)
    return result


def cheapest(layers: list[Layer], box: Box, added: list[Box], shape: tuple[int, ...],
             content: Box | None) -> tuple[Box, list[Box]]:
    """The box to have and the parts to compute for it, where ``added`` is all that is missing in ``box``: those, or all
    of it at once, since each part has a halo of its own, or the whole volume where that is less than twice the work."""
    work, at_once, everything = (sum(work_of(layers, part, shape, content) for part in parts)
                                 for parts in (added, [box], [whole(shape)]))
    if everything < 2 * min(work, at_once):
        return whole(shape), [whole(shape)]
    return box, added if work < at_once else [box]


def by_kernels(layers: list[Layer], volume: np.ndarray, result: np.ndarray, output: str, budget: int | None,
               content: Box | None, threads: int | None, box: Box) -> None:
    """``box`` of ``result``, tile by tile, by the compiled kernels."""
    needs = partial(compiled_bytes, content=content, threads=threads)
    for tile in plan_tiles(layers, box, volume.shape[1:], budget, needs, content):
        run_compiled(layers, volume, tile, content, result, output, budget, threads)


def by_torch(layers: list[Layer], source: torch.Tensor, result: np.ndarray, output: str, max_memory: int | None,
             budget: int | None, box: Box) -> None:
    """``box`` of ``result``, tile by tile, by PyTorch."""
    from meshnet.layers import run_box, torch_bytes

    shape = source.shape[1:]
    if all(layer.norm is None for layer in layers):
        tiles = plan_tiles(layers, box, shape, budget, torch_bytes)
    else:
        need, tiles = torch_bytes(layers, [box] * (len(layers) + 1), shape), [box]
        if budget is not None and need > budget:
            raise UserError(f"max_memory: found {max_memory / 1e9:.2f} GB, expected at least "
                            f"{(max_memory - budget + need) / 1e9:.2f} GB, since group and instance norm need whole "
                            f"maps; raise it")
    for tile in tiles:
        where = tuple(slice(a, b) for a, b in tile)
        result[(..., *where)] = finish(run_box(layers, source, tile), output)


def memory_axes(volume: np.ndarray) -> tuple[int, int, int]:
    """The axes of ``volume`` (C, X, Y, Z) as they lie in memory, if each channel lies there in one piece."""
    axes = tuple(sorted(range(3), key=lambda axis: -volume.strides[1 + axis]))
    return axes if turn(volume, axes).flags.c_contiguous else (0, 1, 2)


def turn(array, axes):
    """``array`` (…, X, Y, Z), a tensor or numpy's, with its last three axes in the order ``axes``; a view."""
    first = array.ndim - 3
    order = (*range(first), *(first + int(axis) for axis in axes))
    return array.transpose(order) if isinstance(array, np.ndarray) else array.permute(order)


def run_compiled(layers: list[Layer], volume: np.ndarray, out: Box, content: Box | None, result: np.ndarray,
                 output: str, budget: int | None, threads: int | None = None) -> None:
    """As ``run_box`` and ``finish``, by the compiled kernels, written into ``result`` (K, X, Y, Z) or (X, Y, Z)."""
    *column, last = layers
    shape = tuple(volume.shape[1:])
    boxes = layer_boxes(layers, out, shape)
    gaps = air_gaps(layers, boxes, shape, content)[:-1]
    boxes = boxes[:-1]
    pairs = calls.choose_pairs(*sizes(layers), boxes, shape, budget, gaps, threads)
    calls.run_column([layer.weight for layer in column], [layer.bias for layer in column],
                       [layer.dilation for layer in column], [layer.activation for layer in column], volume, result,
                       output, boxes, head=(last.weight.reshape(len(last.bias), -1), last.bias), pairs=pairs,
                       gaps=gaps, threads=threads)


def compiled_bytes(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...], content: Box | None = None,
                   threads: int | None = None) -> int:
    """The least working memory of ``run_compiled``."""
    gaps = air_gaps(layers, boxes, shape, content)[:-1]
    return calls.column_bytes(*sizes(layers), boxes[:-1], shape, [False] * (len(layers) - 1), gaps, threads)


def sizes(layers: list[Layer]) -> tuple[list[int], list[int]]:
    """Channels of the input and of each 3×3×3 layer, and those layers' dilations."""
    column = layers[:-1]
    return ([column[0].weight.shape[1], *(layer.weight.shape[0] for layer in column)],
            [layer.dilation for layer in column])

"""Run a network on a whole volume: norm fused into the convolutions, only the head computed, memory limited.

A trained MeshNet is a sequence of convolutions at full resolution. Three facts make it fast to run:

* In evaluation mode batch norm is a scale and a shift, so it is fused into the weights before it (``networks.fuse``).
* A part of the output needs only that part of each layer, enlarged by how far the later layers look (``layer_boxes``).
  So the head can be computed without the rest of the air, and a volume can be cut into tiles with exact halos, which
  limits the memory.
* Where the volume is constant, so are the maps, except near the ends of the volume and near the head (``air_gaps``).
  The kernels copy these values instead of computing them.

Inside the head's box ``crop="head"`` returns what the whole volume returns, to rounding: as much of the surrounding air
is computed as the layers need, and zero padding is used only at the ends of the volume. If the network marks something
at a face of the box (``marked_faces``), the box grows, so that what begins in the head is followed to its end. The rest
is filled with the network's answer to air of the border's median value (``fill_value``). Something that a network
marks in the air without touching the box, such as at an end of the volume where it sees zero padding, is not found;
``crop="none"`` always computes the whole volume.

A ``FusedMeshNet`` is run by the compiled kernels without importing PyTorch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from meshnet.errors import UserError
from meshnet.inference import by_kernels
from meshnet.inference.boxes import Box, Pass, whole_box
from meshnet.inference.crop import (
    Seen,
    border_values,
    check_crop,
    compute_cropped,
    content_box,
    fill_value,
    look,
    marked_faces,
)
from meshnet.inference.light import FusedMeshNet
from meshnet.kernels import calls
from meshnet.machine import resident_bytes
from meshnet.networks.fuse import Layer, map_norm
from meshnet.scans.mask import slices

if TYPE_CHECKING:
    import torch
    from torch import nn

    from meshnet.networks.meshnet import MeshNet


class Answer(NamedTuple):
    """The logits of a volume (X, Y, Z), where they were computed: ``logits``, a tensor (K, *box) of the device, within
    ``box``, and ``fill``, a tensor (K,), everywhere else."""

    logits: torch.Tensor
    box: Box
    fill: torch.Tensor


def predict(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
            threads: int | None = None) -> np.ndarray:
    """Class probabilities (K, X, Y, Z), float32.

    Args:
        model: a ``MeshNet`` in evaluation mode, a ``FusedMeshNet``, or any other network. Other networks run as they
            are; if they have an attribute ``patch``, by MONAI's sliding window of that size.
        volume: (C, X, Y, Z), scaled as in training (0..1), numpy or torch.
        crop: ``head`` computes the head's box, enlarged as long as the network marks something at a face of it, and
            fills the rest with the network's answer to air. A box ((x0, x1), (y0, y1), (z0, z1)) is computed as it is
            and the rest filled. ``none`` computes everything. Models with group or instance norm, and other networks,
            always compute everything.
        max_memory: limit in bytes for the whole process, as far as this function adds to it; None means no limit.
        device: where to compute; None means where the model is.
        threads: CPU threads; None means ``torch.get_num_threads()``.

    The axes of the result have the same order in memory as those of ``volume``.

    Raises:
        UserError: for a volume with the wrong number of axes or channels, NaN or infinite voxels, an unknown crop, or
            a memory limit that is too low.
    """
    return run_network(model, volume, crop, max_memory, device, threads, "probabilities")


def predict_labels(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
                   threads: int | None = None) -> np.ndarray:
    """The most probable class of each voxel (X, Y, Z), uint8; of equal ones the lowest. Arguments as ``predict``."""
    return run_network(model, volume, crop, max_memory, device, threads, "labels")


def predict_logits(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
                   threads: int | None = None) -> np.ndarray:
    """Logits (K, X, Y, Z), float32. Arguments as ``predict``."""
    return run_network(model, volume, crop, max_memory, device, threads, "logits")


def answer(model: nn.Module, volume, device=None, seen: Seen | None = None) -> Answer:
    """The same logits as ``predict_logits`` with ``crop="head"``, left on the device that computed them and without a
    whole volume of them being written. Arguments as ``predict``; ``model`` is no ``FusedMeshNet``. ``seen`` is
    ``seen_by(model, volume)``, where that is known."""
    return run_network(model, volume, "head", None, device, None, "logits", False, seen)


def seen_by(model: nn.Module, volume: np.ndarray) -> Seen | None:
    """What ``model`` needs to know of ``volume`` (C, X, Y, Z) to compute only the head; None for a network that always
    computes everything."""
    from meshnet.networks.meshnet import MeshNet

    return look(volume) if isinstance(model, MeshNet) and model.arguments["norm"] in ("batch", "none") else None


def run_network(model: nn.Module, volume, crop, max_memory, device, threads, output: str,
                whole: bool = True, seen: Seen | None = None) -> np.ndarray | Answer:
    """What ``predict``, ``predict_labels``, ``predict_logits`` and ``answer`` share; ``output`` is "probabilities",
    "labels" or "logits". Where ``whole`` is False the logits are returned as an ``Answer``."""
    volume = check_volume(model, volume)
    if isinstance(model, FusedMeshNet):
        return run_layers(model.layers, volume, crop, output, max_memory, threads)[0]
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
                    raise UserError(f"max_memory: found a limit for {type(model).__name__}, expected a MeshNet, the "
                                    f"only network whose volumes can be cut into tiles; leave it out")
                from meshnet.inference.by_torch import as_output

                logits = run_other(model, torch.from_numpy(np.ascontiguousarray(volume)), device)
                if whole:
                    return as_output(logits, output)
                return Answer(logits.float(), whole_box(volume.shape[1:]), logits.new_zeros(len(logits)).float())
            found, box, fill = run_meshnet(model, volume, crop, max_memory, device, output, whole, seen)
            found = found if whole else torch.as_tensor(found)[(..., *slices(box))]
            return found if whole else Answer(found, box, torch.as_tensor(fill, dtype=torch.float32))
    finally:
        torch.set_num_threads(before)


def check_volume(model: nn.Module, volume) -> np.ndarray:
    """``volume`` (C, X, Y, Z) as a float32 numpy array.

    Raises:
        UserError: where ``model`` cannot take it.
    """
    volume = np.asarray(volume.detach().cpu() if hasattr(volume, "detach") else volume)
    if isinstance(model, FusedMeshNet):
        channels = model.in_channels
    else:
        from meshnet.networks.meshnet import MeshNet

        channels = model.arguments["in_channels"] if isinstance(model, MeshNet) else volume.shape[0]
    if volume.ndim != 4 or volume.shape[0] != channels or 0 in volume.shape:
        raise UserError(f"volume: found shape {tuple(volume.shape)}, expected (C, X, Y, Z) with C = {channels}; "
                        f"give one channel for each modality that the model was trained on")
    volume = np.asarray(volume, dtype=np.float32)
    if not np.isfinite(volume).all():
        raise UserError("volume: found NaN or infinite voxels, expected finite intensities; repair the scan")
    return volume


def run_other(model: nn.Module, volume: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Logits (K, X, Y, Z) of a network that is not a MeshNet, from ``volume`` (C, X, Y, Z)."""
    model = model.to(device)
    patch = getattr(model, "patch", None)
    if patch is None:
        return model(volume[None].to(device, non_blocking=True))[0]
    from monai.inferers import sliding_window_inference

    size = (patch,) * 3 if isinstance(patch, int) else tuple(patch)
    volume = volume[None].to(device, non_blocking=True)
    return sliding_window_inference(volume, size, 1, model, overlap=0.5, mode="gaussian")[0]


def run_meshnet(model: MeshNet, volume: np.ndarray, crop, max_memory, device: torch.device, output: str,
                whole: bool, seen: Seen | None) -> tuple:
    """``run_layers`` for a MeshNet, by the kernels where they can be used, else by PyTorch."""
    from meshnet.networks.fuse import fuse

    layers = [replace(layer, weight=layer.weight.to(device), bias=layer.bias.to(device)) for layer in fuse(model)]
    return run_layers(layers, volume, crop, output, max_memory, device=device, whole=whole, seen=seen)


def run_layers(layers: list[Layer], volume: np.ndarray, crop: str | Box, output: str, max_memory: int | None = None,
               threads: int | None = None, device: torch.device | None = None, whole: bool = True,
               seen: Seen | None = None) -> tuple[np.ndarray | torch.Tensor, Box, np.ndarray | torch.Tensor]:
    """``output`` of ``layers`` on ``volume``: crop, cut into tiles, compute them.

    Args:
        layers: of ``networks.fuse``. Where ``device`` is None they hold numpy arrays, which only the kernels take.
        volume: (C, X, Y, Z), float32.
        crop, max_memory, threads: as in ``predict``.
        whole: False leaves what was not computed unwritten, and what PyTorch computes on ``device``.
        seen: ``look(volume)``, where that is known.

    Returns:
        (K, X, Y, Z) float32, or labels (X, Y, Z) uint8, with the axes in memory in the order of ``volume``'s; the box
        that was computed; and what stands outside it, (K,) or the label.
    """
    local = all(layer.norm is None for layer in layers)  # each voxel depends on its neighbourhood only
    compiled = device is None or (len(layers) > 1 and device.type == "cpu" and calls.available() and (
        local or all(layer.norm is not None and map_norm(layer.norm) for layer in layers[:-1])))
    crop = check_crop(volume, crop)
    axes = memory_axes(volume) if compiled else (0, 1, 2)
    if axes != (0, 1, 2):  # permuting the weights costs nothing, copying a volume does
        layers = [replace(layer, weight=permute_axes(layer.weight, axes)) for layer in layers]
        volume, crop = permute_axes(volume, axes), crop if isinstance(crop, str) else tuple(crop[axis] for axis in axes)
    volume = np.ascontiguousarray(volume)
    shape, labels = volume.shape[1:], output == "labels"
    air, content, box = None, None, whole_box(shape)
    if local and crop == "head":
        air, content, box = look(volume) if seen is None else seen.in_order(axes)
    elif local and crop != "none":
        air, box = border_values(volume), crop
        content = content_box(volume, air)
    size = shape if labels else (layers[-1].weight.shape[0], *shape)
    if whole or compiled:
        result = np.empty(size, np.uint8 if labels else np.float32)
    else:
        result = layers[-1].weight.new_empty(size)
    # The pages of the result are not in memory yet, so it is counted beside what is.
    budget = None if max_memory is None else max_memory - resident_bytes() - result.nbytes
    task = Pass(layers, volume, result, output, max_memory, budget, content if compiled else None, threads, device,
                whole)
    box, fill = compute_task(task, box, air, crop == "head", compiled)
    back = np.argsort(axes)
    return permute_axes(result, back), tuple(box[axis] for axis in back), fill


def compute_task(task: Pass, box: Box, air: np.ndarray | None, grows: bool,
                 compiled: bool) -> tuple[Box, np.ndarray | torch.Tensor]:
    """Compute ``box`` of ``task.result``; if it ``grows``, more where the network marks something at a face of it.
    ``air`` is the volume's value there, (C,); None where ``box`` is the whole volume.

    Returns:
        The box that was computed in the end, and what stands outside it.
    """
    if compiled:
        compute = by_kernels.make_compute(task)
    elif task.device.type == "cuda":
        from meshnet.inference import on_gpu

        if not task.filled:
            return on_gpu.compute_on_card(task, box, air, grows)
        compute = on_gpu.make_compute(task)
    else:
        from meshnet.inference import by_torch

        compute = by_torch.make_compute(task)
    if box == whole_box(task.shape):
        compute(box)
        return box, np.zeros(1 if task.output == "labels" else len(task.result), np.float32)
    fill = fill_value(task.layers, air, task.output)
    marked = partial(marked_faces, task.result, fill=fill, output=task.output)
    return compute_cropped(task, box, compute, fill, marked if grows else None), fill


def memory_axes(volume: np.ndarray) -> tuple[int, int, int]:
    """The order in which the axes X, Y, Z of ``volume`` (C, X, Y, Z) lie in memory, the fastest last.

    (0, 1, 2) also where the channels are not contiguous in any order.
    """
    axes = tuple(sorted(range(3), key=lambda axis: -volume.strides[1 + axis]))
    return axes if permute_axes(volume, axes).flags.c_contiguous else (0, 1, 2)


def permute_axes(array, axes):
    """A view of ``array`` (…, X, Y, Z), a tensor or a numpy array, with its last three axes in the order ``axes``."""
    first = array.ndim - 3
    order = (*range(first), *(first + int(axis) for axis in axes))
    return array.transpose(order) if isinstance(array, np.ndarray) else array.permute(order)

"""Run a network over one whole volume: norm fused into the convolutions, only the head computed, memory capped.

A trained MeshNet is a column of convolutions at full resolution. Three facts make it quick to run:

* In evaluation batch norm is a scale and a shift, so it is fused into the weights beside it (``networks.fuse``).
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

A ``FusedMeshNet`` is run by the compiled kernels without importing PyTorch.
"""


from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from meshnet.errors import UserError
from meshnet.inference import by_kernels
from meshnet.inference.boxes import Box, Pass, whole_box
from meshnet.inference.crop import box_to_compute, check_crop, compute_cropped, content_box
from meshnet.inference.light import FusedMeshNet
from meshnet.kernels import calls
from meshnet.machine import resident_bytes
from meshnet.networks.fuse import Layer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from meshnet.networks.meshnet import MeshNet


def predict(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
            threads: int | None = None) -> np.ndarray:
    """Class probabilities (K, X, Y, Z), float32.

    Args:
        model: a ``MeshNet`` in evaluation mode, a ``FusedMeshNet``, or any other network (run as it is; one with an
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
    if isinstance(model, FusedMeshNet):
        return run_layers(model.layers, volume, crop, output, max_memory, threads)
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
                from meshnet.inference.by_torch import as_output

                return as_output(run_other(model, torch.from_numpy(np.ascontiguousarray(volume)), device), output)
            return run_meshnet(model, volume, crop, max_memory, device, output)
    finally:
        torch.set_num_threads(before)


def check_volume(model: nn.Module, volume) -> np.ndarray:
    """``volume`` as float32 numpy (C, X, Y, Z), or a UserError."""
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


def run_meshnet(model: MeshNet, volume: np.ndarray, crop, max_memory, device: torch.device, output: str) -> np.ndarray:
    """``run`` for a MeshNet by PyTorch, or by the kernels where they can."""
    from meshnet.networks.fuse import fuse

    layers = [replace(layer, weight=layer.weight.to(device), bias=layer.bias.to(device)) for layer in fuse(model)]
    return run_layers(layers, volume, crop, output, max_memory, device=device)


def run_layers(layers: list[Layer], volume: np.ndarray, crop: str | Box, output: str, max_memory: int | None = None,
               threads: int | None = None, device: torch.device | None = None) -> np.ndarray:
    """Crop, cut into tiles, compute each, put them together. Without a ``device`` the layers are numpy's, for the
    kernels."""
    local = all(layer.norm is None for layer in layers)
    compiled = device is None or (local and len(layers) > 1 and device.type == "cpu" and calls.available())
    crop = check_crop(volume, crop)
    axes = memory_axes(volume) if compiled else (0, 1, 2)
    if axes != (0, 1, 2):  # turning weights costs nothing, turning a volume does
        layers = [replace(layer, weight=permute_axes(layer.weight, axes)) for layer in layers]
        volume, crop = permute_axes(volume, axes), crop if isinstance(crop, str) else tuple(crop[axis] for axis in axes)
    volume = np.ascontiguousarray(volume)
    shape, labels = volume.shape[1:], output == "labels"
    content = content_box(volume) if local and crop != "none" else None
    box = box_to_compute(volume, crop, content) if local else whole_box(shape)
    result = np.empty(shape if labels else (layers[-1].weight.shape[0], *shape), np.uint8 if labels else np.float32)
    budget = None if max_memory is None else max_memory - resident_bytes() - result.nbytes  # not yet in memory
    task = Pass(layers, volume, result, output, max_memory, budget, content if compiled else None, threads, device)
    if compiled:
        compute = by_kernels.make_compute(task)
    else:
        from meshnet.inference import by_torch

        compute = by_torch.make_compute(task)
    if box == whole_box(shape):
        compute(box)
    else:
        compute_cropped(task, box, compute, grows=crop == "head")
    return permute_axes(result, np.argsort(axes))  # lies in memory as the volume


def memory_axes(volume: np.ndarray) -> tuple[int, int, int]:
    """The axes of ``volume`` (C, X, Y, Z) as they lie in memory, if each channel lies there in one piece."""
    axes = tuple(sorted(range(3), key=lambda axis: -volume.strides[1 + axis]))
    return axes if permute_axes(volume, axes).flags.c_contiguous else (0, 1, 2)


def permute_axes(array, axes):
    """``array`` (…, X, Y, Z), a tensor or numpy's, with its last three axes in the order ``axes``; a view."""
    first = array.ndim - 3
    order = (*range(first), *(first + int(axis) for axis in axes))
    return array.transpose(order) if isinstance(array, np.ndarray) else array.permute(order)

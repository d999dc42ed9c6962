"""The air around a head: the head's box, how far it must grow, and what a network says of air. Imports no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from meshnet.errors import UserError
from meshnet.inference.boxes import Box, Pass, intersection, voxels, whole_box
from meshnet.inference.tiles import work_of
from meshnet.networks.fuse import Layer
from meshnet.scans.head import head_box

CROPS = ("head", "none")
NOISY = 0.6  # a box of more than this share of the volume is not cut out by constant air: its air holds noise
STEP = 16  # voxels by which a side of the head's box moves where the network marks something at it
NOTICED = 0.1  # of probability, above what air has; well below thresholds that are in use

Side = tuple[int, bool]  # of a box: its axis, and whether it is the upper one


def content_or_head_box(volume: np.ndarray, content: Box | None = None) -> Box:
    """The head's box in ``volume`` (C, X, Y, Z): ``content``, by default ``content_box``.

    Where noise in the air makes that more than ``NOISY`` of the volume, the box of ``scans.head.head_box``, joined over
    the channels. A volume without contrast is its own box.
    """
    box = content or content_box(volume)
    if voxels(box) <= NOISY * voxels(whole_box(volume.shape[1:])):
        return box
    boxes = [head_box(channel) for channel in volume]
    return intersection(box, tuple((min(a for a, _ in sides), max(b for _, b in sides)) for sides in zip(*boxes)))


def content_box(volume: np.ndarray) -> Box:
    """The box of what differs from the border's median values in any channel of ``volume`` (C, X, Y, Z); the whole
    volume where nothing does."""
    differs = (volume != border_values(volume)[:, None, None, None]).any(axis=0)
    if not differs.any():
        return whole_box(volume.shape[1:])
    plane = differs.any(axis=2)
    profiles = plane.any(axis=1), plane.any(axis=0), differs.any(axis=(0, 1))
    return tuple((int(a), int(b) + 1) for a, b in (np.flatnonzero(p)[[0, -1]] for p in profiles))


def border_values(volume: np.ndarray) -> np.ndarray:
    """The median (C,) of each channel over the six faces of ``volume`` (C, X, Y, Z)."""
    faces = [volume[:, end].reshape(volume.shape[0], -1) for end in (0, -1)]
    faces += [volume[:, :, end].reshape(volume.shape[0], -1) for end in (0, -1)]
    faces += [volume[:, :, :, end].reshape(volume.shape[0], -1) for end in (0, -1)]
    return np.median(np.concatenate(faces, axis=1), axis=1).astype(np.float32)


def fill_value(layers: list[Layer], air: np.ndarray, output: str) -> np.ndarray:
    """What endless constant air (C,) gives: logits or probabilities (K,), or the label."""
    x = air
    for layer in layers:
        weight, bias = (part if isinstance(part, np.ndarray) else part.cpu().numpy()
                        for part in (layer.weight, layer.bias))
        x = weight.sum(axis=(2, 3, 4)) @ x + bias
        if layer.activation == "relu":
            x = np.maximum(x, 0)
        elif layer.activation == "elu":
            x = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
        elif layer.activation == "gelu":
            x = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x], np.float32)
    if output == "labels":
        return x.argmax()
    return softmax(x) if output == "probabilities" else x


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of ``logits`` (K, …)."""
    shares = np.exp(logits - logits.max(axis=0))
    return shares / shares.sum(axis=0)


def check_crop(volume: np.ndarray, crop) -> str | Box:
    """``crop`` as it is, or the part of its box that lies in ``volume``; a UserError for anything else."""
    if isinstance(crop, str):
        if crop not in CROPS:
            raise UserError(f"crop: found {crop!r}, expected one of {', '.join(CROPS)} or a box; choose one of them")
        return crop
    shape = volume.shape[1:]
    box = tuple((int(a), int(b)) for a, b in crop)
    if len(box) != 3 or voxels(intersection(box, whole_box(shape))) == 0:
        raise UserError(f"crop: found the box {box}, expected one within the volume {shape}; mend it")
    return intersection(box, whole_box(shape))


def box_to_compute(volume: np.ndarray, crop, content: Box | None = None) -> Box:
    """The box to compute, for ``crop`` = ``head``, ``none`` or a box; ``content`` is what ``content_box`` finds."""
    if isinstance(crop, str):
        return content_or_head_box(volume, content) if crop == "head" else whole_box(volume.shape[1:])
    return crop


def marked_sides(result: np.ndarray, box: Box, fill: np.ndarray, output: str) -> list[Side]:
    """The sides of ``box``, but for those at the volume's end, where ``result`` says of some voxel what it does not say
    of air: another label, or of another class more than ``NOTICED`` above the probability that air has.

    Args:
        result: ``output`` ("logits", "probabilities" of (K, X, Y, Z), or "labels" (X, Y, Z)), computed in ``box``.
        fill: what endless air gives of the same (``fill_value``).
    """
    sides = []
    for axis, (a, b) in enumerate(box):
        for upper, at, end in ((False, a, 0), (True, b - 1, result.shape[axis - 3] - 1)):
            if at == end:
                continue
            face = result[(..., *(slice(at, at + 1) if axis == other else slice(*box[other]) for other in range(3)))]
            if output == "labels":
                marked = face != fill
            else:
                others = np.arange(len(fill)) != fill.argmax()
                of_air = fill[:, None, None, None]
                if output == "logits":
                    face, of_air = softmax(face), softmax(of_air)
                marked = face[others] > of_air[others] + NOTICED
            if marked.any():
                sides.append((axis, upper))
    return sides


def grow_box(box: Box, sides: list[Side], again: set[Side], shape: tuple[int, ...]) -> tuple[Box, list[Box]]:
    """``box`` with ``sides`` moved out by ``STEP`` voxels, or to the volume's end where they were moved before
    (``again``), and the parts that this adds, which do not overlap."""
    added = []
    for axis, upper in sides:
        (a, b), n = box[axis], shape[axis]
        by = n if (axis, upper) in again else STEP
        part, side = ((b, min(n, b + by)), (a, min(n, b + by))) if upper else ((max(0, a - by), a), (max(0, a - by), b))
        added.append((*box[:axis], part, *box[axis + 1:]))
        box = (*box[:axis], side, *box[axis + 1:])
    return box, added


def compute_cropped(task: Pass, box: Box, compute: Callable[[Box], None], grows: bool) -> None:
    """Compute ``box``, fill the rest with the answer to air, and where it ``grows`` go on into whatever the network
    marks at one of its sides."""
    fill = fill_value(task.layers, border_values(task.volume), task.output)
    task.result.T[...] = fill  # the classes, if any, are the last axis of T
    compute(box)
    moved: set[Side] = set()
    while grows and (sides := marked_sides(task.result, box, fill, task.output)):
        box, parts = cheapest(task.layers, *grow_box(box, sides, moved, task.shape), task.shape, task.content)
        moved.update(sides)
        for part in parts:
            compute(part)


def cheapest(layers: list[Layer], box: Box, added: list[Box], shape: tuple[int, ...],
             content: Box | None) -> tuple[Box, list[Box]]:
    """The box to have and the parts to compute for it, where ``added`` is all that is missing in ``box``: those, or all
    of it at once, since each part has a halo of its own, or the whole volume where that is less than twice the work."""
    work, at_once, everything = (sum(work_of(layers, part, shape, content) for part in parts)
                                 for parts in (added, [box], [whole_box(shape)]))
    if everything < 2 * min(work, at_once):
        return whole_box(shape), [whole_box(shape)]
    return box, added if work < at_once else [box]

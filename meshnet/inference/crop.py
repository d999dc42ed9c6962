"""Cropping to the head: its box, how far the box must grow, and a network's answer to air. Imports no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from meshnet.errors import UserError
from meshnet.inference.boxes import Box, Pass, intersection, voxels, whole_box
from meshnet.inference.tiles import work_of
from meshnet.networks.fuse import Layer
from meshnet.scans.head import head_box
from meshnet.scans.mask import box_of, slices

CROPS = ("head", "none")
NOISY = 0.6  # share of the volume; where the content's box is larger, the air is not constant but noisy
STEP = 16  # voxels by which a face of the head's box moves out where the network marks something at it
NOTICED = 0.1  # probability above that of air from which something is marked; well below the usual thresholds

Face = tuple[int, bool]  # of a box: its axis, and whether it is the upper one


class Seen(NamedTuple):
    """What ``look`` finds in a volume: the value of ``air`` (C,), the box of its ``content``, that of the ``head``."""

    air: np.ndarray
    content: Box
    head: Box

    def in_order(self, axes) -> Seen:
        """The same of the volume with its axes X, Y, Z in the order ``axes``."""
        return Seen(self.air, *(tuple(box[axis] for axis in axes) for box in self[1:]))


def look(volume: np.ndarray) -> Seen:
    """What cropping to the head in ``volume`` (C, X, Y, Z) needs to know of it, whatever the network."""
    air = border_values(volume)
    content = content_box(volume, air)
    return Seen(air, content, content_or_head_box(volume, content))


def content_or_head_box(volume: np.ndarray, content: Box | None = None) -> Box:
    """The box around the head in ``volume`` (C, X, Y, Z).

    Where the air is constant, this is the box of the content: ``content``, or ``content_box`` where that is None. Where
    noise in the air makes that box larger than ``NOISY`` of the volume, it is cut to the box around the heads that
    ``scans.head.head_box`` finds in the channels. A volume without contrast is its own box.
    """
    content = content or content_box(volume)
    if voxels(content) <= NOISY * volume[0].size:
        return content
    heads = [head_box(channel) for channel in volume]
    around_heads = tuple((min(a for a, _ in sides), max(b for _, b in sides)) for sides in zip(*heads))
    return intersection(content, around_heads)


def content_box(volume: np.ndarray, air: np.ndarray | None = None) -> Box:
    """The box around all voxels of ``volume`` (C, X, Y, Z) that differ, in any channel, from the median of the border
    (``air``, where it is known); the whole volume where none do."""
    air = border_values(volume) if air is None else air
    differs = volume[0] != air[0] if len(volume) == 1 else (volume != air[:, None, None, None]).any(axis=0)
    return box_of(differs) or whole_box(volume.shape[1:])


def border_values(volume: np.ndarray) -> np.ndarray:
    """The median (C,) of each channel over the six faces of ``volume`` (C, X, Y, Z)."""
    faces = [volume.take(end, axis).reshape(volume.shape[0], -1) for axis in (1, 2, 3) for end in (0, -1)]
    return np.median(np.concatenate(faces, axis=1), axis=1).astype(np.float32)


def fill_value(layers: list[Layer], air: np.ndarray, output: str) -> np.ndarray:
    """The network's answer to a volume that is ``air`` (C,) everywhere: logits or probabilities (K,), or the label."""
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
    """Probabilities from ``logits`` (K, …)."""
    shares = np.exp(logits - logits.max(axis=0))
    return shares / shares.sum(axis=0)


def check_crop(volume: np.ndarray, crop) -> str | Box:
    """``crop`` if it is "head" or "none"; if it is a box, the part of it that lies in ``volume`` (C, X, Y, Z).

    Raises:
        UserError: for anything else, or a box beside the volume.
    """
    if isinstance(crop, str):
        if crop not in CROPS:
            raise UserError(f"crop: found {crop!r}, expected one of {', '.join(CROPS)} or a box; choose one of them")
        return crop
    shape = volume.shape[1:]
    box = tuple((int(a), int(b)) for a, b in crop)
    if len(box) != 3 or voxels(intersection(box, whole_box(shape))) == 0:
        raise UserError(f"crop: found the box {box}, expected one within the volume {shape}; correct it")
    return intersection(box, whole_box(shape))


def inner_faces(box: Box, shape: tuple[int, ...]) -> Iterator[tuple[Face, Box]]:
    """Each face of ``box`` that does not lie at an end of the volume, and the box of its voxels."""
    for axis, ((a, b), size) in enumerate(zip(box, shape)):
        for upper, at, end in ((False, a, 0), (True, b - 1, size - 1)):
            if at != end:
                yield (axis, upper), (*box[:axis], (at, at + 1), *box[axis + 1:])


def marked_faces(result: np.ndarray, box: Box, fill: np.ndarray, output: str) -> list[Face]:
    """The faces of ``box``, except those at the volume's ends, at which the network marks something.

    A voxel is marked if its label is not that of air, or if a class other than air's has a probability more than
    ``NOTICED`` above the one that it has in air.

    Args:
        result: ``output`` ("logits" or "probabilities" (K, X, Y, Z), or "labels" (X, Y, Z)), computed in ``box``.
        fill: the same for air, from ``fill_value``.
    """
    faces = []
    for face, where in inner_faces(box, result.shape[-3:]):
        values = result[(..., *slices(where))]
        values = values if isinstance(values, np.ndarray) else values.cpu().numpy()
        if output == "labels":
            marked = values != fill
        else:
            others = np.arange(len(fill)) != fill.argmax()
            of_air = fill[:, None, None, None]
            if output == "logits":
                values, of_air = softmax(values), softmax(of_air)
            marked = values[others] > of_air[others] + NOTICED
        if marked.any():
            faces.append(face)
    return faces


def grow_box(box: Box, faces: list[Face], again: set[Face], shape: tuple[int, ...]) -> tuple[Box, list[Box]]:
    """``box`` with ``faces`` moved out, and the parts that this adds, which do not overlap.

    A face moves by ``STEP`` voxels; if it has moved before (is in ``again``), to the end of the volume.
    """
    added = []
    for axis, upper in faces:
        (a, b), size = box[axis], shape[axis]
        by = size if (axis, upper) in again else STEP
        if upper:
            end = min(size, b + by)
            part, side = (b, end), (a, end)
        else:
            start = max(0, a - by)
            part, side = (start, a), (start, b)
        added.append((*box[:axis], part, *box[axis + 1:]))
        box = (*box[:axis], side, *box[axis + 1:])
    return box, added


def compute_cropped(task: Pass, box: Box, compute: Callable[[Box], None], fill: np.ndarray,
                    marked: Callable[[Box], list[Face]] | None) -> Box:
    """Write ``task.result``: compute ``box``, and if it is to be ``filled`` the network's answer to air in the rest.

    The box is enlarged for as long as the network marks something at one of its faces.

    Args:
        compute: writes one box of ``task.result``, by the kernels or by PyTorch.
        fill: the network's answer to air, of ``fill_value``.
        marked: the faces of a computed box at which the network marks something; None for a box that does not grow.

    Returns:
        The box that was computed in the end.
    """
    if task.filled:
        task.result.T[...] = fill  # in T the classes, if any, are the last axis
    compute(box)
    moved: set[Face] = set()
    while marked and (faces := marked(box)):
        larger, added = grow_box(box, faces, moved, task.shape)
        box, parts = cheapest(task.layers, larger, added, task.shape, task.content)
        moved.update(faces)
        for part in parts:
            compute(part)
    return box


def cheapest(layers: list[Layer], box: Box, added: list[Box], shape: tuple[int, ...],
             content: Box | None) -> tuple[Box, list[Box]]:
    """How to enlarge what is computed to ``box``, of which the parts ``added`` are missing.

    Each part has a halo of its own, so it may be less work to compute all of ``box`` again. The whole volume is
    computed where that is less than twice the work of either.

    Returns:
        The box that is computed afterwards, and the parts to compute for it.
    """
    whole = whole_box(shape)
    work_parts = sum(work_of(layers, part, shape, content) for part in added)
    work_box = work_of(layers, box, shape, content)
    if work_of(layers, whole, shape, content) < 2 * min(work_parts, work_box):
        return whole, [whole]
    return box, added if work_parts < work_box else [box]

"""Facts about a finished scan that a table, a sidecar or a page shows: which half, how large a head, which model."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meshnet.networks.card import WEIGHTS, Card
from meshnet.networks.cascade import FIRST
from meshnet.networks.folder import default_model, find_weights
from meshnet.scans.head import head_box
from meshnet.scans.mask import box_of, slices

ONE_SIDE = 0.9  # share of the volume from which a half is named


def side_of(mask: np.ndarray, affine: np.ndarray, middle_mm: float) -> str | None:
    """The half of the scan that holds at least ``ONE_SIDE`` of the marked voxels: ``left``, ``right`` or ``both``; None
    for an empty mask.

    Args:
        mask: (X, Y, Z), lesion where > 0.
        affine: (4, 4), from voxel to RAS+ mm, as the file's header has it.
        middle_mm: the middle of the head on the axis from left to right, in mm.
    """
    box = box_of(mask)
    if box is None:
        return None
    where = np.argwhere(mask[slices(box)] > 0) + [low for low, _ in box]
    right = float(np.mean(where @ affine[0, :3] + affine[0, 3] > middle_mm))
    return "right" if right >= ONE_SIDE else "left" if right <= 1 - ONE_SIDE else "both"


def head_facts(volume: np.ndarray, affine: np.ndarray) -> dict:
    """The head in a conformed volume (X, Y, Z) with axes along those of its ``affine`` (4, 4), voxel to RAS+ mm.

    Returns ``middle_mm`` (of the axis from left to right), ``head_mm`` (its extent along x, y and z) and ``grey``, the
    median value of the voxels in its box that are above the box's mean.
    """
    box = head_box(volume, margin=0.0)
    ends = np.array([[low for low, _ in box], [high - 1 for _, high in box]], float)
    mm = ends @ affine[:3, :3].T + affine[:3, 3]
    inside = volume[slices(box)][::2, ::2, ::2]
    tissue = inside[inside > inside.mean()]
    extent = np.abs(mm[1] - mm[0]) + np.abs(affine[:3, :3]).sum(1)
    return {"middle_mm": round(float(mm[:, 0].mean()), 2), "head_mm": [round(float(v), 1) for v in extent],
            "grey": round(float(np.median(tissue)) if tissue.size else 0.0, 4)}


def model_facts(names: Sequence[str | Path | None], cards: Sequence[Card], weights: str) -> list[dict]:
    """What identifies each model, without a path of this machine: name, version, revision, the hash of its weights, and
    of a cascade that of the first network's."""
    found = []
    for name, card in zip(names, cards):
        path = find_weights(name or default_model(), weights)
        parts = path.parent.parts
        hub = parts[-3] if len(parts) > 3 and parts[-2] == "snapshots" else ""
        first = {"FirstWeightsSHA256": sha256(path.parent / FIRST / WEIGHTS)} if card.first else {}
        found.append({"Name": hub.removeprefix("models--").replace("--", "/") or path.parent.name,
                      "Version": card.version, **({"Revision": parts[-1]} if hub else {}), "Weights": path.name,
                      "WeightsSHA256": sha256(path), **first})
    return found


def sha256(path: Path) -> str:
    """Of a file's content, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

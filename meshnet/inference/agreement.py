"""How far a mask depends on what should not matter: the side that a lesion is on, or which of several models looks."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

import nibabel as nib
import numpy as np

from meshnet.inference.cascade import View
from meshnet.inference.scan import Case, added, average
from meshnet.networks.build import Model
from meshnet.networks.card import common_decision
from meshnet.scans.grid import left_to_right
from meshnet.scans.mask import kept, voxel_volume_mm3


def agreement(case: Case, models: Sequence[Model], mask: np.ndarray, *, threshold: float | None = None,
              min_lesion_mm3: float | None = None, also: Sequence[str] = (), crop: str = "head",
              max_memory: int | None = None, threads: int | None = None) -> float:
    """How well the masks of a second look agree, 0 to 1, which computes the network once more.

    For one model: ``mask`` (X, Y, Z) from ``segment_case`` and the mask of the mirrored scan, brought back. For several
    models: the masks of each of them alone, as the mean over all pairs. Two masks of b and c mL with a in both agree
    by (2 a + 1 mL) / (b + c + 1 mL), so that specks in an otherwise empty mask are no disagreement. Other arguments as
    for ``segment_case``.
    """
    card, like = models[0].card, case.images[0]
    voxel_mm3 = voxel_volume_mm3(like.affine)
    also = added([model.card for model in models], case.contrast, also)
    veto = threshold is None and not also and len(models) == 1  # as it counted for the mask
    looks = list(zip(models, case.inputs, case.seconds))
    if len(models) == 1:
        second = case.seconds[0] and mirrored(case.seconds[0])
        looks = [(models[0], [mirrored(view) for view in case.inputs[0]], second)]
    masks = [mask > 0] if len(models) == 1 else []
    for model, views, second in looks:
        looked = Case([like], [views], seconds=[second], contrast=case.contrast)
        decision = common_decision([model.card], case.contrast, threshold, min_lesion_mm3, veto, also)
        found = average(looked, [model], decision.also, crop, max_memory, threads, veto)
        masks.append(kept(card.marking.labels(found, decision.threshold), found[-1], voxel_mm3, decision)[0] > 0)
    return round(statistics.fmean(overlap(a, b, voxel_mm3) for a, b in itertools.combinations(masks, 2)), 3)


def mirrored(view: View) -> View:
    """A view whose array is flipped along the axis from left to right, and its affine with it: it lies where it lay,
    but a network, which sees the array alone, takes its left for its right.
    """
    volume, affine = view
    axis = left_to_right(nib.aff2axcodes(affine))
    back = np.eye(4)
    back[axis, axis], back[axis, 3] = -1, volume.shape[1 + axis] - 1
    return np.ascontiguousarray(np.flip(volume, 1 + axis)), affine @ back


def overlap(a: np.ndarray, b: np.ndarray, voxel_mm3: float) -> float:
    """The Dice of two masks with a millilitre added to both sides of the ratio."""
    both, one, other = (np.count_nonzero(part) * voxel_mm3 / 1000 for part in (a & b, a, b))
    return (2 * both + 1) / (one + other + 1)

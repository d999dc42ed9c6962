"""The Dice of a network at every threshold, from histograms of its probabilities.

Early in training no probability reaches 0.5, so that the Dice there is 0 however well the network already ranks voxels.
Counting the probabilities of lesion and other voxels in bins, once for each case, gives the Dice at all thresholds.
"""

from collections.abc import Sequence

import numpy as np
import torch

BINS = 200  # a threshold at each edge: 0.005 to 0.995
THRESHOLDS = tuple(k / BINS for k in range(1, BINS))
EDGES = np.array((0.0, *THRESHOLDS, 2.0), np.float32)


def histograms(probability: torch.Tensor, truth: torch.Tensor, room: torch.Tensor | None = None) -> torch.Tensor:
    """Voxels by probability: (2, BINS), of other voxels and of lesion, on the device of the arguments.

    Args:
        probability: of lesion, of any shape.
        truth: whether each voxel is lesion, boolean, of the same shape.
        room: float32 of the same shape, which is overwritten; as in ``loss.sums_of``.

    A value at an edge of a bin belongs to the upper bin, as a voxel at the threshold is lesion. On a GPU nothing is
    waited for; a value within rounding of an edge may be counted on its other side there.
    """
    if probability.device.type == "cpu":
        values, truth = probability.float().flatten(), truth.flatten().numpy()
        scaled = torch.mul(values, BINS, out=None if room is None else room.view(-1))
        with np.errstate(invalid="ignore"):  # a NaN, which ends the run; here it is in the first bin
            bins = np.minimum(scaled.numpy().astype(np.uint8), BINS - 1)  # right but for rounding
        close = np.flatnonzero(scaled.frac_().sub_(0.5).abs_().numpy() > 0.4999)
        near, at = values.numpy()[close], bins[close].astype(np.intp)
        bins[close] = at + (near >= EDGES[at + 1]) - (near < EDGES[at])
        lesion, every = (torch.bincount(torch.from_numpy(part), minlength=BINS) for part in (bins[truth], bins))
        return torch.stack([every - lesion, lesion])
    outside = torch.full_like(probability, -1.0, dtype=torch.float32)
    parts = [torch.where(truth == lesion, probability.float(), outside) for lesion in (False, True)]
    return torch.stack([torch.histc(part, BINS, 0.0, 1.0) for part in parts]).long()


def dice_by_threshold(counts: Sequence[Sequence[int]]) -> list[float]:
    """The Dice of one case at each of ``THRESHOLDS``, from its ``histograms``; 1 where there is no lesion and none is
    predicted (see ``scans.metrics``)."""
    others, lesion = counts
    found, tp = sum(others[1:]) + sum(lesion[1:]), sum(lesion[1:])
    truth, scores = sum(lesion), []
    for k in range(1, BINS):
        scores.append(2 * tp / (found + truth) if found + truth else 1.0)
        found, tp = found - others[k] - lesion[k], tp - lesion[k]
    return scores


def best_threshold(curves: Sequence[Sequence[float]]) -> tuple[float, int]:
    """The threshold with the highest mean Dice over the cases (of equal ones the nearest to 0.5), and its place in
    ``THRESHOLDS``.

    Args:
        curves: ``dice_by_threshold`` of each case.
    """
    means = [sum(values) / len(values) for values in zip(*curves)]
    top = max(means)
    place = min((k for k, mean in enumerate(means) if mean >= top - 1e-12), key=lambda k: abs(THRESHOLDS[k] - 0.5))
    return THRESHOLDS[place], place

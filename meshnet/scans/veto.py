"""Lesions that a cascade finds and that are taken for none, by what is in and around them and on the other side.

Each connected part that could be marked gets a score, linear in the values of ``values_of``; below 0 its probability
becomes less than what is marked. Weights are in the model's card, by contrast, and are learned from synthetic heads
(``benchmarks/trust/veto.py``). The page computes the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from meshnet.scans.mask import label_lesions, peaks_of

NEAREST = 1e-3  # to 0 and 1, of probabilities before their logits are taken
LESS = 0.5  # the probabilities of a part that is taken back are multiplied by this and by the threshold


@dataclass(frozen=True)
class Veto:
    """The score is ``bias`` + ``weights`` times ``values_of`` a part. ``sure`` is that of the decision where the veto
    counts; None: the same as without it."""

    bias: float
    weights: tuple[float, ...]
    sure: float | None = None

    def score(self, values: Sequence[float]) -> float:
        return self.bias + sum(weight * value for weight, value in zip(self.weights, values))


def count_of(channels: int) -> int:
    """The number of values of a part where the network is given so many ``channels``."""
    return 4 + 2 * channels


def parts_of(deciding: np.ndarray, threshold: float, sure: float) -> Iterator[tuple[tuple, np.ndarray, np.ndarray]]:
    """Each 26-connected part from ``threshold`` on that reaches ``sure``: an index of the box around it, one voxel
    larger on each side, and in that box, True for its voxels, and for those that touch them.

    Args:
        deciding: the probability that decides about the mask, (X, Y, Z) float32.
    """
    from scipy import ndimage

    labels, count = label_lesions(deciding >= np.float32(threshold))
    for number, (peak, box) in enumerate(zip(peaks_of(deciding, labels, count), ndimage.find_objects(labels)), 1):
        if peak < np.float32(sure):
            continue
        wide = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)
        inside = labels[wide] == number
        yield wide, inside, ndimage.binary_dilation(inside, np.ones((3, 3, 3), bool)) & ~inside


def values_of(part: tuple[np.ndarray, np.ndarray], deciding: np.ndarray, others: np.ndarray, given: np.ndarray,
              voxel_mm: float) -> list[float]:
    """What the score of a part is made of: the logarithm of its mL; the logits of its highest and its mean
    probability; the mean probability of ``others``; the means of what the network was ``given`` in it, in 0..1, and
    in the voxels around it.

    Args:
        part: its voxels and those around it, boolean, (X, Y, Z) each, as are the next ones, all in one box.
        deciding: the probability that decides about the mask.
        others: the probability of the other classes, without the background.
        given: (C, X, Y, Z) uint8, as ``second.second_input`` has it.
        voxel_mm: edge of a voxel.
    """
    inside, around = part
    found = deciding[inside].astype(np.float64)
    return [math.log(len(found) * voxel_mm ** 3 / 1000), logit(found.max()), logit(found.mean()),
            float(others[inside].mean(dtype=np.float64)),
            *(float(channel[where].mean(dtype=np.float64)) / 255 if where.any() else 0.0
              for where in (inside, around) for channel in given)]


def logit(share: float) -> float:
    return math.log((share + NEAREST) / (1 + NEAREST - share))


def take_back(probabilities: np.ndarray, marked: Sequence[int], given: np.ndarray, threshold: float, sure: float,
              voxel_mm: float, veto: Veto) -> float:
    """Lower the ``probabilities`` of all parts with a score below 0, in place.

    Args:
        probabilities: of the second network, background first, (K, X, Y, Z) float32, within the region.
        marked: the classes whose sum decides about the mask.
        given: as for ``values_of``.
        threshold, sure: of the decision; what is nowhere ``sure`` is not marked anyway, and stays.

    Returns:
        mL of what was taken back.
    """
    marked = list(marked)
    others = [k for k in range(1, len(probabilities)) if k not in marked]
    deciding, beside = (probabilities[some].sum(0, dtype=np.float32) for some in (marked, others))
    taken = 0
    for box, inside, around in parts_of(deciding, threshold, sure):
        values = values_of((inside, around), deciding[box], beside[box], given[(slice(None), *box)], voxel_mm)
        if veto.score(values) >= 0:
            continue
        taken += int(inside.sum())
        lower = np.where(inside, np.float32(LESS * threshold), np.float32(1))
        for k in marked:
            probabilities[(k, *box)] *= lower
        rest = 1 - probabilities[(slice(1, None), *box)].sum(0, dtype=np.float32)
        probabilities[(0, *box)] = np.where(inside, rest, probabilities[(0, *box)])
    return taken * voxel_mm ** 3 / 1000

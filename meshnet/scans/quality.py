"""How good a mask may be: the ``quality`` of a result, and what it is made of. The page computes the same."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from meshnet.scans.mask import box_of, slices
from meshnet.scans.veto import logit

EMPTY_ML = 8.0  # of expected lesion, at which ``Evidence.dice`` of an empty mask is 0.5
LEAST_ML = 0.1  # added to volumes before their logarithms are taken


@dataclass(frozen=True)
class Evidence:
    """What a quality is made of, in mL.

    ``expected_ml`` is the volume of lesion to be expected if the probabilities are right, and ``within_ml`` that inside
    the mask; ``marked_ml`` and ``largest_ml`` are the volumes of the mask and of its largest lesion; ``dropped_ml`` is
    that of lesions which were dropped because they were nowhere sure, or small.
    """

    expected_ml: float
    within_ml: float
    marked_ml: float
    largest_ml: float
    dropped_ml: float

    def dice(self) -> float:
        """The Dice that a mask has in the mean if the probabilities are right, (2 a + 1 mL) / (b + c + 1 mL): a the
        expected volume within the mask, b the whole expected volume, c the mask's.

        Of an empty mask it is 8 mL / (b + 8 mL), a scale that ranks it among others and no calibrated probability
        (``EMPTY_ML`` was chosen on synthetic heads, docs/log/weights.md).
        """
        one = 1 if self.marked_ml else EMPTY_ML
        return (2 * self.within_ml + one) / (self.expected_ml + self.marked_ml + one)

    def values(self) -> list[float]:
        """What ``Learned`` weighs: of a mask, the logit of the mean probability inside it and the logarithms of its
        volume, of its largest lesion's and of what was dropped; of an empty one, the logarithms of the expected volume
        and of what was dropped."""
        if not self.marked_ml:
            return [log_ml(self.expected_ml), log_ml(self.dropped_ml)]
        return [logit(self.within_ml / self.marked_ml), log_ml(self.marked_ml), log_ml(self.largest_ml),
                log_ml(self.dropped_ml)]

    def rounded(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in asdict(self).items()}


COUNTS = {"marked": 4, "empty": 2}  # of ``Evidence.values``


@dataclass(frozen=True)
class Learned:
    """How likely a mask, and an empty one, is of use, which is a Dice of at least 0.3, or at most 1 mL marked in a head
    without a lesion, as synthetic heads had it: a bias and the weights of ``Evidence.values``, of a logistic regression
    (``benchmarks/trust/quality.py``)."""

    marked: Sequence[float]
    empty: Sequence[float]

    def of(self, evidence: Evidence) -> float:
        bias, *weights = self.marked if evidence.marked_ml else self.empty
        score = bias + sum(weight * value for weight, value in zip(weights, evidence.values(), strict=True))
        return 1 / (1 + math.exp(-min(50.0, max(-50.0, score))))


def log_ml(volume: float) -> float:
    return math.log(LEAST_ML + volume)


def evidence_of(probability: np.ndarray, marked: np.ndarray, voxel_mm3: float, largest_mm3: float = 0.0,
                dropped_mm3: float = 0.0) -> Evidence:
    """What the quality of a mask is made of.

    Args:
        probability: of lesion, (X, Y, Z).
        marked: True where the mask is, (X, Y, Z).
        voxel_mm3: volume of a voxel.
        largest_mm3, dropped_mm3: volumes of the mask's largest lesion, and of what was dropped.
    """
    box, each = slices(box_of(marked) or ((0, 0),) * 3), voxel_mm3 / 1000
    sums = (probability.sum(dtype=np.float64), probability[box][marked[box]].sum(dtype=np.float64), marked.sum())
    return Evidence(*(float(one) * each for one in sums), largest_mm3 / 1000, dropped_mm3 / 1000)

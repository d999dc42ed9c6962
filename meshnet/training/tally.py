"""What is counted of a validation case, on the device that computed its logits, and read from there as one vector."""

import math
from typing import NamedTuple

import numpy as np
import torch

from meshnet.inference.by_torch import most_likely
from meshnet.scans.mask import Marks
from meshnet.training.loss import places_in, sums_of
from meshnet.training.sweep import BINS, THRESHOLDS, histograms

SLAB = 1 << 20  # voxels that are counted at once on a CPU
MANY = 0.2  # share of voxels from which on picking them takes longer than counting all
SUMS = 5  # numbers of a class in the loss's sums


class Tally(NamedTuple):
    """What a case's box counts, on the device that computed it.

    ``confusion`` (true label, predicted label) and ``sums`` (``loss.sums_of``) hold numbers of voxels; ``bins``
    (``sweep.histograms``) and ``highest``, the highest probability of lesion, are None where no threshold decides.
    """

    confusion: torch.Tensor
    sums: torch.Tensor
    bins: torch.Tensor | None
    highest: torch.Tensor | None


def tally(logits: torch.Tensor, truth: torch.Tensor, marks: Marks, dice: bool) -> Tally:
    """Count a part of a case: ``logits`` (K, …), float32, and ``truth`` (…), class numbers, on the same device.

    ``dice`` asks for the sums of the soft Dice. A voxel is marked as ``Marks.labels`` does it, but for two classes
    with the same probability, of which it is the background here.
    """
    if logits.device.type != "cpu":
        return tally_part(logits, truth, marks, dice)
    thick = max(1, SLAB // max(1, logits[0, 0].numel()))  # what is computed at once stays in the cache
    room = logits.new_empty((3, thick * logits[0, 0].numel())) if len(logits) == 2 else None
    parts = [tally_part(*each, marks, dice, room) for each in zip(logits.split(thick, 1), truth.split(thick))]
    confusion, sums, bins, highest = zip(*parts)
    if bins[0] is None:
        return Tally(sum(confusion), sum(sums), None, None)
    return Tally(sum(confusion), sum(sums), sum(bins), torch.stack(highest).amax())


def tally_part(logits: torch.Tensor, truth: torch.Tensor, marks: Marks, dice: bool,
               room: torch.Tensor | None = None) -> Tally:
    """``tally`` in one piece; ``room`` as in ``sums_of``."""
    sums, two = sums_of(logits, truth, dice, room), len(logits) == 2
    if marks.marks is None and not two:
        return Tally(pairs(truth, most_likely(logits), len(logits)), sums, None, None)
    one = 1 if marks.marks is None else marks.classes.index(marks.marks)
    places = places_in(room, truth.shape)
    if two:
        score = torch.sub(logits[one], logits[1 - one], out=places[0])
        level, lowest = (math.log(share / (1 - share)) for share in (marks.threshold, THRESHOLDS[0]))
        lowest -= 1e-3
    else:
        score, level, lowest = logits.softmax(0)[one], marks.threshold, THRESHOLDS[0]
    highest, voxels = score.amax(), score.numel()
    if score.device.type == "cpu":  # booleans by numpy, in a tenth of PyTorch's time
        truth, count = truth.numpy() == one, np.count_nonzero
        true, likely = count(truth), score.numpy() >= lowest
        if count(likely) < MANY * voxels:  # nearly all lie below the lowest threshold and are not looked at again
            score, truth = torch.from_numpy(score.numpy()[likely]), truth[likely]
            places = places_in(room, score.shape)
        found = score.numpy() > level if two else score.numpy() >= level
    else:
        truth, count = truth == one, torch.count_nonzero
        true, found = count(truth), score > level if two else score >= level
    both, predicted = count(found & truth), count(found)
    probability = torch.sigmoid(score, out=places[1]) if two else score
    bins = histograms(probability, torch.as_tensor(truth), places[2])
    bins[0, 0], bins[1, 0] = voxels - true - bins[0, 1:].sum(), true - bins[1, 1:].sum()
    confusion = [voxels - predicted - true + both, predicted - both, true - both, both]
    confusion = torch.stack([torch.as_tensor(number) for number in confusion]).view(2, 2)
    return Tally(confusion, sums, bins, highest.sigmoid() if two else highest)


def pairs(truth: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The number of voxels (K, K) of each true class (first axis) with each label; a GPU is not waited for."""
    if truth.device.type == "cpu":
        codes = classes * truth.to(torch.uint8 if classes <= 16 else torch.int32) + labels
        return torch.bincount(codes.flatten(), minlength=classes**2).view(classes, classes)
    numbers = [torch.count_nonzero((truth == k) & (labels == j)) for k in range(classes) for j in range(classes)]
    return torch.stack(numbers).view(classes, classes)


def as_numbers(inside: Tally, fill: torch.Tensor) -> torch.Tensor:
    """A tally, and the logits (K,) beside what it counts, as one vector in float64, which holds all of them exactly."""
    return torch.cat([part.double().flatten() for part in (fill, *inside) if part is not None])


def from_numbers(numbers: torch.Tensor, classes: int, marks: Marks) -> tuple[Tally, torch.Tensor]:
    """The tally and the logits (K,) of ``as_numbers``, on the CPU."""
    scored = classes if marks.marks is None else 2
    sizes = (classes, scored**2, SUMS * classes)
    fill, confusion, sums, rest = numbers.split([*sizes, len(numbers) - sum(sizes)])
    bins, highest = (rest[:-1].long().view(2, BINS), rest[-1].float()) if len(rest) else (None, None)
    return Tally(confusion.long().view(scored, scored), sums.view(SUMS, classes), bins, highest), fill.float()

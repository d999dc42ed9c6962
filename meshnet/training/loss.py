"""Losses for label volumes. Each case is normalised on its own, and a batch is the mean of its cases.

So one process with a batch of two, two processes, and accumulation over two batches give the same gradient;
torch's own weighted mean over a batch does not (its denominator mixes the cases).
"""

import numpy as np
import torch
from torch.nn import functional as F

from meshnet.config import LossConfig


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, smoothing: float,
                  all_count: bool | None = None) -> torch.Tensor:
    """Weighted cross-entropy with label smoothing, one value for each case.

    Args:
        logits: (B, K, X, Y, Z).
        target: (B, X, Y, Z), class numbers of any integer type.
        weight: (K,), class weights.
        smoothing: fraction of the target spread evenly over the K classes.
        all_count: whether every weight is above 0; None means to look, for which a GPU is waited for.

    Returns:
        (B,): for each case what ``torch.nn.CrossEntropyLoss(weight, label_smoothing)`` gives for it alone;
        0 for a case whose voxels all have the weight 0 (a healthy one, without a background weight).
    """
    values = []
    all_count = weight.min() > 0 if all_count is None else all_count
    for one, truth in zip(logits.float(), target.long()):
        if all_count or weight[truth].any():
            values.append(F.cross_entropy(one[None], truth[None], weight.float(), label_smoothing=smoothing))
        else:
            values.append(one.sum() * 0)
    return torch.stack(values)


def soft_dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 minus the soft Dice (Milletari et al. 2016, without squares) of the classes above background, one value a case.

    A class that is absent from the truth counts through the smoothing constant of 1 voxel.
    """
    probabilities = logits.float().softmax(1)
    scores = []
    for label in range(1, logits.shape[1]):
        truth = (target == label).float()
        guess = probabilities[:, label]
        overlap = (guess * truth).sum((1, 2, 3))
        scores.append((2 * overlap + 1) / (guess.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1))
    return 1 - torch.stack(scores).mean(0)


def sums_of(logits: torch.Tensor, target: torch.Tensor, dice: bool = True,
            room: torch.Tensor | None = None) -> torch.Tensor:
    """What the loss of a case is made of, added up over the voxels of a part of it: see ``SegmentationLoss.of_sums``.

    Args:
        logits: (K, …), float32.
        target: (…), class numbers.
        dice: False leaves out what only the soft Dice needs.
        room: (3, at least …) float32, overwritten with values of two classes. Memory that is new each time costs a CPU
            more than the arithmetic.

    Returns:
        (5, K), float64, on the device of the logits, for each class: its voxels, the sum of -log p over them and over
        all voxels, the sum of p over them and over all voxels.
    """
    if len(logits) == 2:  # a third of the time of log_softmax
        places = places_in(room, target.shape)
        difference = torch.sub(logits[1], logits[0], out=places[0])
        losses = [F.softplus(difference, out=places[1])]
        losses.append(torch.sub(losses[0], difference, out=places[2]))
        probabilities = [difference.sigmoid_()] if dice else []
    else:
        losses = list(-logits.log_softmax(0))
        probabilities = [torch.exp(-values) for values in losses[1:]] if dice else []
    sums = logits.new_zeros((5, len(logits)), dtype=torch.float64)
    voxels, own, every, overlap, guess = sums
    voxels[0].fill_(target.numel())
    for k, values in enumerate(losses):
        every[k] = values.sum()
    for k, values in enumerate(probabilities, 1):
        guess[k] = values.sum()
    own[0], lesion = every[0], False
    for k in range(1, len(logits)):  # the background has what is left: most voxels are looked at once
        mask, count = voxels_of(target, k)
        voxels[k] = count
        if mask is None:
            continue
        lesion = True  # no torch.dot: its last bits depend on where memory lies
        voxels[0] -= voxels[k]
        own[k] = (losses[k] * mask).sum()
        if dice:
            overlap[k] = (probabilities[k - 1] * mask).sum()
    if lesion:
        mask, _ = voxels_of(target, 0)
        own[0] = 0.0 if mask is None else (losses[0] * mask).sum()
    return sums


def places_in(room: torch.Tensor | None, shape: torch.Size) -> list[torch.Tensor | None]:
    """Three tensors of ``shape`` in ``room``; None where there is no room, so that new ones are made."""
    return [None] * 3 if room is None else [row[:shape.numel()].view(shape) for row in room]


def voxels_of(target: torch.Tensor, label: int) -> tuple[torch.Tensor | None, torch.Tensor | int]:
    """Which voxels have that label, as 0.0 and 1.0, and how many. On a CPU, which knows at once, None where none has
    it, as in most parts of a volume."""
    if target.device.type != "cpu":
        mask = target == label
        return mask.float(), torch.count_nonzero(mask)
    mask = target.numpy() == label  # numpy compares, counts and converts booleans in a tenth of PyTorch's time
    count = np.count_nonzero(mask)
    return torch.from_numpy(mask.astype(np.float32)) if count else None, count


class SegmentationLoss(torch.nn.Module):
    """The loss of a config: ``ce``, ``dice`` or ``dice_ce``; mean over the cases of a batch, in float32."""

    def __init__(self, config: LossConfig, classes: int):
        super().__init__()
        weight = torch.full((classes,), config.lesion_weight)
        weight[0] = config.background_weight
        self.register_buffer("weight", weight)
        self.config, self.all_count = config, min(config.background_weight, config.lesion_weight) > 0

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, X, Y, Z) and class numbers (B, X, Y, Z) to a scalar. Every voxel counts, padding as well."""
        total = logits.new_zeros((), dtype=torch.float32)
        if self.config.name in ("ce", "dice_ce"):
            total = total + cross_entropy(logits, target, self.weight, self.config.label_smoothing,
                                          self.all_count).mean()
        if self.config.name == "dice":
            total = total + soft_dice(logits, target).mean()
        if self.config.name == "dice_ce":
            total = total + self.config.dice_weight * soft_dice(logits, target).mean()
        return total

    def of_sums(self, sums: torch.Tensor) -> float:
        """The loss of one case as ``forward`` gives it, from ``sums_of`` of its parts, added up; on the CPU."""
        voxels, own, every, overlap, guess = sums.cpu()
        weight, smoothing, total = self.weight.cpu().double(), self.config.label_smoothing, 0.0
        if self.config.name in ("ce", "dice_ce"):
            above = (weight * ((1 - smoothing) * own + smoothing / len(weight) * every)).sum()
            below = (weight * voxels).sum()
            total += float(above / below) if below > 0 else 0.0
        if self.config.name in ("dice", "dice_ce"):
            dice = 1 - ((2 * overlap + 1) / (guess + voxels + 1))[1:].mean()
            total += float(dice) * (1.0 if self.config.name == "dice" else self.config.dice_weight)
        return total

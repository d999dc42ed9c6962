"""Losses for label volumes. Each case is normalised on its own, and a batch is the mean of its cases.

So one process with a batch of two, two processes, and accumulation over two batches give the same gradient;
torch's own weighted mean over a batch does not (its denominator mixes the cases).
"""

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

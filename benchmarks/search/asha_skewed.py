"""Made-up curves of another kind, on which benchmarks/search/asha.py reports and no setting was chosen.

Every formula differs from that of ``asha_curves.Curves``: each parameter's effect is skewed (too high a learning rate
costs much more than too low a one, and may diverge), curves rise by a power law with an extra rise when the learning
rate falls, the noise of an epoch depends on the one before it and is larger for bad runs, a few runs have bad luck as a
whole, and an epoch of a wide network takes longer.
"""

import math

import numpy as np
from asha_curves import ROOT

from meshnet.recipe import load_search
from meshnet.search.space import parse_space


class Skewed:
    """Validation Dice over the paper's space; another landscape for each seed."""

    space = parse_space(load_search([ROOT / "recipes" / "search_space.yaml"]))
    lowest, highest = space.fidelity

    def __init__(self, seed: int):
        numbers = np.random.default_rng([seed, 11])
        self.seed = seed
        self.peak = numbers.uniform([0.55, 0.3, 0.15, 0.05, 0.1], [1.0, 0.8, 0.85, 0.6, 0.9])
        self.below = numbers.uniform([0.5, 0.25, 0.5, 0.5, 1.0], [0.9, 0.5, 1.0, 1.0, 2.5])  # a unit of loss
        self.above = numbers.uniform([0.5, 0.12, 0.4, 0.25, 1.0], [1.2, 0.3, 0.9, 0.6, 2.5])
        self.power = numbers.uniform(1.2, 2.2, 5)
        self.joint = numbers.uniform(-0.35, 0.35, 2)  # of learning rate with decay, and with channels
        self.top = numbers.uniform(0.55, 0.8)
        self.cliff = self.peak[1] + numbers.uniform(0.2, 0.4)  # learning rates above it diverge
        many = np.random.default_rng([seed, 12]).random((20_000, 5))
        self.goal = float(np.quantile(self.final(many), 0.99))

    def final(self, units):
        """True Dice at the last epoch, (N, 5) -> (N,)."""
        units = np.atleast_2d(units)
        moved = units.copy()
        moved[:, 1] += self.joint[0] * (units[:, 2] - 0.5) + self.joint[1] * (units[:, 0] - 0.5)
        away = moved - self.peak
        scaled = np.abs(away) / np.where(away < 0, self.below, self.above)
        loss = (scaled**self.power).sum(1)
        return self.top / (1 + 0.5 * loss) * np.where(units[:, 1] > self.cliff, 0.1, 1)

    def score(self, units, epoch: int, number: int) -> float:
        """Measured Dice of run ``number`` after ``epoch`` epochs; the same question has the same answer."""
        units = np.asarray(units)
        final = float(self.final(units)[0])
        scale = 3 + 12 * (1 - units[1]) ** 2 + 5 * units[0]
        rise = (1 - (1 + epoch / scale) ** -1.3) / (1 - (1 + self.highest / scale) ** -1.3)
        late = 1 / (1 + math.exp(-(epoch / self.highest - 0.75) * 12))  # the learning rate falls
        share = rise * (1 - 0.15 * units[1] * (1 - late / (1 / (1 + math.exp(-3)))))
        numbers = np.random.default_rng([self.seed, 13, number])
        run = numbers.normal(0, 0.006) - (0.05 if numbers.random() < 0.03 else 0)
        steps = numbers.normal(0, 1, self.highest + 1)
        noise = steps[epoch] + 0.5 * steps[epoch - 1]
        return max(0.0, final * share + run + noise * (0.006 + 0.02 * (self.top - final)))

    def reached(self, units) -> bool:
        return bool(self.final(units)[0] >= self.goal)

    def pace(self, number: int, units) -> float:
        """Time of one epoch of this run; 1 for the median width."""
        wide = (0.5 + units[0]) ** 1.5
        return float(wide * np.exp(np.random.default_rng([self.seed, 14, number]).normal(0, 0.15)))

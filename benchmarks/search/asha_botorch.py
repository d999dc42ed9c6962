"""BoTorch's log noisy expected improvement as a sampler for benchmarks/search/asha.py, beside this project's own."""

import itertools
import math
import random

from meshnet.search.asha import Asha
from meshnet.search.sampler import RandomSampler
from meshnet.search.units import as_tried, features, scale_of, snapshot

FIRST, EXPLORE, MOST = 10, 0.05, 300  # as ModelSampler


class LogNEI(RandomSampler):
    """A Gaussian process of the parameters and the logarithm of the epochs, as ``SingleTaskGP`` fits it, and the point
    of the highest ``qLogNoisyExpectedImprovement`` at the top rung. Promotions are those of the rule alone."""

    def __init__(self, space, seed: int):
        super().__init__(space, seed)
        self.encoded = {}

    def _units(self, trial) -> list[float]:
        if trial.number not in self.encoded:
            self.encoded[trial.number] = self.space.encode(trial.parameters)
        return self.encoded[trial.number]

    def suggest(self, number: int, study: Asha) -> dict:
        known = snapshot(study, self._units, MOST)
        if len(known.scored) < FIRST or random.Random(f"{self.seed}/{number}").random() < EXPLORE:
            return super().suggest(number, study)
        return self.space.decode(self._best(known, number))

    def _best(self, known, number: int):
        import numpy as np
        import torch
        from botorch.acquisition.logei import qLogNoisyExpectedImprovement
        from botorch.fit import fit_gpytorch_mll
        from botorch.models import SingleTaskGP
        from botorch.optim import optimize_acqf_mixed
        from gpytorch.mlls import ExactMarginalLogLikelihood

        torch.manual_seed(self.seed * 100_003 + number)
        units, rungs, loss, _ = (np.array(column) for column in zip(*known.scored))

        def rows(units, height):
            return torch.as_tensor(np.column_stack([features(self.space, units), height]), dtype=torch.double)

        seen = rows(units, np.array(known.heights)[rungs])
        finite = np.isfinite(loss)
        score = -np.where(finite, loss, loss[finite].max())
        model = SingleTaskGP(seen, torch.as_tensor((score - score.mean()) / (score.std() + 1e-9))[:, None])
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        at_the_top = rows(units, np.full(len(units), known.heights[-1]))
        waiting = np.array(known.pending)
        pending = rows(waiting, np.full(len(waiting), known.heights[-1])) if len(waiting) else None
        gain = qLogNoisyExpectedImprovement(model, at_the_top, X_pending=pending, prune_baseline=True)
        bounds = torch.stack([torch.zeros(seen.shape[1]), torch.ones(seen.shape[1])]).double()
        best, _ = optimize_acqf_mixed(gain, bounds, q=1, num_restarts=4, raw_samples=128, fixed_features_list=[
            {**chosen, seen.shape[1] - 1: known.heights[-1]} for chosen in self._choices()])
        return as_tried(self.space, self._from(np.clip(best[0, :-1].numpy(), 0, 1 - 1e-9))[None])[0]

    def _columns(self) -> list[list[int]]:
        """The features of each parameter."""
        of = scale_of(self.space)
        return [[at for at, one in enumerate(of) if one == number] for number in range(len(self.space.dimensions))]

    def _choices(self) -> list[dict[int, float]]:
        """Every combination of choices without an order, as values of features."""
        each = [[{at: math.sqrt(0.5) * (at == one) for at in columns} for one in columns]
                for columns in self._columns() if len(columns) > 1]
        return [{at: value for part in parts for at, value in part.items()} for parts in itertools.product(*each)]

    def _from(self, point):
        """Units (D,) of features (C,)."""
        import numpy as np

        return np.array([point[columns[0]] if len(columns) == 1 else (np.argmax(point[columns]) + 0.5) / len(columns)
                         for columns in self._columns()])

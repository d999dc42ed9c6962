"""Where the parameters of a new trial come from: at random, or from a model of all scores so far.

``RandomSampler`` gives trial n the same parameters whatever happened before. ``ModelSampler`` fits a Gaussian process
(scikit-learn) to the scores of all rungs, with the epochs as one more input, and proposes where the expected
improvement at the highest rung is largest (Jones et al., J. Global Optimization 1998; epochs as an input as in
Swersky et al., "Multi-Task Bayesian Optimization", 2013). Running trials count with the score that the model expects
of them, so that workers do not all try the same ("Kriging believer", Ginsbourger et al. 2010).
"""

import heapq
import importlib
import itertools
import math
import random
import warnings
from concurrent.futures import Future, ThreadPoolExecutor

from meshnet.search.asha import Asha, Trial
from meshnet.search.space import Space

SAMPLERS = ("random", "model")
# Longest length scale, in widths of a range. Without a limit a parameter that seems not to matter at few epochs gets
# an endless one, its other values are never tried, and the search circles one point: with 20 instead of 2, four of 24
# simulated studies (benchmarks/search/asha.py, seeds 12 to 35) needed over 2,500 epochs, with 2 none of them over 900.
LONGEST = 2.0
PREFETCH_FROM = 20  # batches of at least this many proposals are computed ahead in a thread: no decision waits for them
FIT_AT_MOST = 100  # scores that the kernel is fitted to (cubic cost); the model is then conditioned on all of them


class RandomSampler:
    """Independent draws; trial n depends on the seed and on n alone."""

    def __init__(self, space: Space, seed: int):
        self.space, self.seed = space, seed

    def prepare(self, study: Asha) -> None:
        """Before the first decision: nothing to do."""

    def suggest(self, number: int, study: Asha) -> dict:
        """Parameters of trial ``number``."""
        return self.space.sample(random.Random(f"{self.seed}/{number}"))


class ModelSampler:
    """Expected improvement of a Gaussian process over parameters and epochs.

    space, seed: as ``RandomSampler``. The first ``first`` trials, and those before any score, are spread evenly, and so
    is a share ``explore`` of the later ones, so that a wrong model cannot trap the study. ``most``: scores that the
    model is fitted to at most (of the highest rungs, the best first); ``candidates``: proposals that are compared.

    ``margin``: what counts as an improvement, in standard deviations of a single score's noise. Without one the search
    circles: once the best point is known to within the noise, its neighbours still promise a little, forever (dozens of
    trials at one point for seed 28 of the simulated curves, 7,034 epochs; 804 with a margin of 2).

    ``batch``: proposals computed at a time, as a share of the known scores. With hundreds of workers a score arrives
    every second and one more changes little, so the model is asked again only when its knowledge has grown by this
    share; where a batch would hold fewer than two proposals it is asked for every trial. Batches of at least
    ``PREFETCH_FROM`` are computed ahead in a thread, started when half of the current batch is used or outdated, from
    what is known at that moment: proposals depend on the order of scores and decisions alone, never on how fast the
    thread is.
    """

    def __init__(
        self, space: Space, seed: int, first: int = 10, explore: float = 0.05, most: int = 300, candidates: int = 600,
        batch: float = 0.02, margin: float = 2.0,
    ):
        self.space, self.seed, self.first, self.explore = space, seed, first, explore
        self.most, self.candidates, self.batch, self.margin = most, candidates, batch, margin
        self.kernel = None
        self.fitted_to = 0
        self.ready: list = []
        self.ready_for = 0
        self.size = 1
        self.coming: Future | None = None
        self.thread: ThreadPoolExecutor | None = None
        self.encoded: dict[int, list[float]] = {}

    def prepare(self, study: Asha) -> None:
        """Before the first decision: import what is needed (seconds) and, in a resumed study, start a batch."""
        importlib.import_module("sklearn.gaussian_process")
        self._spread(0)  # imports, and reads the sequence's table

        if int(self.batch * self._known(study)) >= PREFETCH_FROM:
            self._begin(study, random.Random(f"{self.seed}/{len(study.trials)}/ahead").getrandbits(64))

    def suggest(self, number: int, study: Asha) -> dict:
        """Parameters of trial ``number``, from what ``study`` knows."""
        generator = random.Random(f"{self.seed}/{number}")
        known = self._known(study)
        if number < self.first or known < self.first or generator.random() < self.explore:
            return self.space.decode(self._spread(number))
        if not self.ready or known > self.ready_for:
            self.size = max(1, int(self.batch * known))
            self.ready = self._coming() or self._propose(*self._snapshot(study), self.size, generator.getrandbits(64))
            self.ready_for = known + self.size - 1
        point = self.ready.pop(0)
        half = self.size // 2
        half_used = len(self.ready) <= half or known > self.ready_for - half
        if self.size >= PREFETCH_FROM and self.coming is None and half_used:
            self._begin(study, generator.getrandbits(64))
        return self.space.decode(point)

    @staticmethod
    def _known(study: Asha) -> int:
        """How many scores there are; 0 if none of them is real."""
        rungs = [rung for bracket in study.finished for rung in bracket if rung]
        return sum(map(len, rungs)) if any(rung[0][0] < math.inf for rung in rungs) else 0

    def _begin(self, study: Asha, bits: int) -> None:
        """Make the next batch in the background."""
        self.thread = self.thread or ThreadPoolExecutor(1, "proposals")
        size = max(1, int(self.batch * self._known(study)))
        self.coming = self.thread.submit(self._propose, *self._snapshot(study), size, bits)

    def _coming(self) -> list:
        """The batch that was started in the background (waits for it), or an empty list."""
        coming, self.coming = self.coming, None
        return coming.result() if coming else []

    def _spread(self, number: int):
        """Point ``number`` of a scrambled Sobol sequence: spreads more evenly than chance.

        A first wave of 64 holds a configuration of the best 1 % in 54 of 100 studies, one drawn at random in 47; of
        128 in 83 and 73 (curves of benchmarks/search/asha_curves.py, seeds 0 to 89, six draws each).
        """
        from scipy.stats import qmc

        sequence = qmc.Sobol(len(self.space.dimensions), rng=random.Random(self.seed).getrandbits(63))
        if number:
            sequence.fast_forward(number)
        return sequence.random(1)[0]

    def _snapshot(self, study: Asha) -> tuple[list[float], list[tuple], list]:
        """What a batch is made from: the rungs' heights, scores as (units, rung, loss), units that run without one.

        Of more than ``most`` scores those of the highest rungs, the best first, without looking at all the others.
        """
        height = [math.log(epochs) for epochs in study.rungs]
        height = [(each - height[0]) / max(height[-1] - height[0], 1e-9) for each in height]
        best_first = itertools.chain.from_iterable(
            ((rung, number, loss) for loss, number in heapq.merge(*(bracket[rung] for bracket in study.finished)))
            for rung in reversed(range(len(study.rungs)))
        )
        rows = list(itertools.islice(best_first, self.most + 1))
        rows = rows[: self.most] if len(rows) > self.most else sorted(rows, key=lambda row: (row[1], row[0]))
        scored = [(self._units(study.trials[number]), rung, loss) for rung, number, loss in rows]
        return height, scored, [self._units(trial) for trial in study.trials if trial.running and not trial.scores]

    def _units(self, trial: Trial) -> list[float]:
        if trial.number not in self.encoded:
            self.encoded[trial.number] = self.space.encode(trial.parameters)
        return self.encoded[trial.number]

    def _propose(self, height: list[float], scored: list, pending: list, count: int, bits: int) -> list:
        """``count`` points in units, each with the largest expected improvement given those before it."""
        import numpy as np
        from scipy.special import ndtr

        numbers = np.random.default_rng(bits)
        inputs = np.array([[*units, height[rung]] for units, rung, _ in scored])
        loss = np.array([row[2] for row in scored])
        real = loss[np.isfinite(loss)]
        spread = max(np.median(np.abs(real - np.median(real))) * 1.4826, 1e-12)
        target = np.clip((loss - np.median(real)) / spread, -5, 2)  # how bad the bad ones are does not matter
        target = (target - target.mean()) / (target.std() + 1e-12)
        model = self._fit(inputs, target, numbers)
        if pending:
            waiting = np.column_stack([np.array(pending), np.ones(len(pending))])
            inputs = np.vstack([inputs, waiting])
            target = np.concatenate([target, model.predict(waiting)])
            model = self._condition(inputs, target)
        tops = np.column_stack([inputs[:, :-1], np.ones(len(inputs))])
        believed = model.predict(tops)
        best = believed.min()
        leaders = tops[np.argsort(believed)[:5], :-1]
        near = np.clip(
            leaders[numbers.integers(len(leaders), size=self.candidates // 2)]
            + numbers.normal(0, 1, (self.candidates // 2, leaders.shape[1]))
            * numbers.choice([0.02, 0.05, 0.15], (self.candidates // 2, 1)),
            0, 1 - 1e-9,
        )
        wide = numbers.random((self.candidates - len(near), leaders.shape[1]))
        units = np.vstack([near, wide])
        for column, dimension in enumerate(self.space.dimensions):
            if dimension.discrete or dimension.choices:  # what would really be tried
                units[:, column] = [dimension.encode(dimension.decode(unit)) for unit in units[:, column]]
        mean, covariance = model.predict(np.column_stack([units, np.ones(len(units))]), return_cov=True)
        noise = self.kernel.k2.noise_level  # of one more observation, which no choice of a point improves
        chosen = []
        for _ in range(count):
            deviation = np.sqrt(np.maximum(covariance.diagonal() - noise, 0))
            gain = (best - self.margin * math.sqrt(noise) - mean) / np.maximum(deviation, 1e-9)
            density = np.exp(-(gain**2) / 2) / math.sqrt(2 * math.pi)
            here = int(np.argmax(deviation * (gain * ndtr(gain) + density)))
            chosen.append(units[here])
            # as if observed at its expected mean, which leaves all means unchanged
            covariance -= np.outer(covariance[:, here], covariance[here]) / covariance[here, here]
        return chosen

    def _fit(self, inputs, target, numbers):
        """Refit the kernel when a tenth more is known than at the last fit; otherwise only condition it."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        if self.kernel is not None and len(inputs) < 1.1 * self.fitted_to + 1:
            return self._condition(inputs, target)
        scales = [0.5] * (inputs.shape[1] - 1) + [1.0]
        start = self.kernel or (
            ConstantKernel(1.0, (0.1, 30)) * Matern(scales, (0.1, LONGEST), nu=2.5) + WhiteKernel(0.05, (1e-3, 1.0))
        )
        model = GaussianProcessRegressor(start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a scale at its bound is an answer
            some = numbers.choice(len(inputs), min(len(inputs), FIT_AT_MOST), replace=False)
            self.kernel = model.fit(inputs[some], target[some]).kernel_
        self.fitted_to = len(inputs)
        return self._condition(inputs, target)

    def _condition(self, inputs, target):
        from sklearn.gaussian_process import GaussianProcessRegressor

        return GaussianProcessRegressor(self.kernel, optimizer=None).fit(inputs, target)


def make_sampler(name: str, space: Space, seed: int) -> RandomSampler | ModelSampler:
    """The sampler called ``name``, one of ``SAMPLERS``."""
    return {"random": RandomSampler, "model": ModelSampler}[name](space, seed)

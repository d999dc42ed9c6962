"""A Gaussian process over parameters and epochs that tells the parameters' effect from the luck of runs.

A score of trial i at epochs t is modelled as

    f(x_i, t) + level(t) + run_i + noise

``f`` is a common part plus one that changes with the epochs, both smooth in the parameters (Matern 5/2, one length
scale for each parameter); ``level`` says what all scores gain from one rung to the next; ``run_i`` is the luck of a
trial's seed, the same at all its rungs; ``noise`` is new with each score. All sizes are found by the maximum of the
posterior density: marginal likelihood times log-normal priors (Rasmussen and Williams, "Gaussian Processes for Machine
Learning", 2006, chapters 2.2 and 5.4). What is believed of a configuration is ``f + level`` at the last epoch: neither
luck nor noise.
"""

import contextlib
import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr
from threadpoolctl import ThreadpoolController

# (centre of the prior, its standard deviation in logarithms, least, most), all for scores with a deviation of one
SCALE = (0.8, 0.7, 0.05, 3.0)
COMMON = (1.0, 0.5, 0.2, 5.0)
CHANGE = (0.3, 0.7, 0.03, 3.0)
LEVEL = (0.7, 0.7, 0.03, 5.0)
RUN = (0.1, 0.8, 0.005, 1.0)
NOISE = (0.3, 1.0, 0.01, 1.5)
JITTER = 1e-8
WORST = 2.0  # deviations behind the median that a bad score counts at most: how bad the bad ones are does not matter


@dataclass
class Data:
    """points: (N, C) features. scales: (C,) which length scale each feature has. heights: (N,) 0 for the first rung to
    1 for the last. trials: (N,) which scores share their luck. target: (N,) scores, lower is better."""

    points: np.ndarray
    scales: np.ndarray
    heights: np.ndarray
    trials: np.ndarray
    target: np.ndarray

    def some(self, rows) -> "Data":
        return Data(self.points[rows], self.scales, self.heights[rows], self.trials[rows], self.target[rows])


class Surrogate:
    """The sizes of all parts: fitted by ``fit``. ``condition`` then says what scores tell."""

    def __init__(self, scales: int):
        self.scales = scales
        self.priors = np.array([SCALE] * scales + [COMMON, CHANGE, LEVEL, RUN, NOISE])
        self.theta = np.log(self.priors[:, 0])

    # ---------------------------------------------------------------- kernel
    def _distance(self, one, other, scales, theta):
        """sqrt(5) times the scaled distance, (N, M)."""
        factor = np.exp(-theta[: self.scales])[scales]
        one, other = one * factor, other * factor
        squared = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
        return np.sqrt(5 * np.maximum(squared, 0))

    def covariance(self, one, one_heights, other, other_heights, scales):
        """Of f + level between two sets of points."""
        theta = self.theta
        apart = np.abs(one_heights[:, None] - other_heights)
        distance = self._distance(one, other, scales, theta)
        smooth = (1 + distance + distance**2 / 3) * np.exp(-distance)
        common, change, level = np.exp(2 * theta[self.scales:self.scales + 3])
        return smooth * (common + change * np.exp(-2 * apart)) + level * np.exp(-apart)

    # ---------------------------------------------------------------- fit
    def _loss(self, theta, data: Data, squares, apart, same):
        """Negative logarithm of the posterior density, and its gradient."""
        n, d = len(data.target), self.scales
        distance = self._distance(data.points, data.points, data.scales, theta)
        decay = np.exp(-distance)
        smooth = (1 + distance + distance**2 / 3) * decay
        common, change, level, run, noise = np.exp(2 * theta[d:])
        by_epoch = common + change * apart**2
        kernel = smooth * by_epoch + level * apart + run * same
        kernel[np.diag_indices(n)] += noise + JITTER
        try:
            lower = np.linalg.cholesky(kernel)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = np.linalg.inv(lower)
        inverse = inverse.T @ inverse
        alpha = inverse @ data.target
        away = (theta - np.log(self.priors[:, 0])) / self.priors[:, 1]
        loss = 0.5 * data.target @ alpha + np.log(lower.diagonal()).sum() + 0.5 * away @ away
        half = 0.5 * (inverse - np.outer(alpha, alpha))
        inner = half * by_epoch * (5 / 3) * (1 + distance) * decay
        rows = inner.sum(1)
        each = 2 * (rows @ squares - ((inner @ data.points) * data.points).sum(0))
        gradient = np.empty_like(theta)
        gradient[:d] = np.bincount(data.scales, each, d) * np.exp(-2 * theta[:d])
        product = half * smooth
        gradient[d] = 2 * common * product.sum()
        gradient[d + 1] = 2 * change * (product * apart**2).sum()
        gradient[d + 2] = 2 * level * (half * apart).sum()
        gradient[d + 3] = 2 * run * (half * same).sum()
        gradient[d + 4] = 2 * noise * half.trace()
        return loss, gradient + away / self.priors[:, 1]

    def fit(self, data: Data, steps: int = 50) -> None:
        """Find the sizes, beginning at the last ones."""
        apart = np.exp(-np.abs(data.heights[:, None] - data.heights))
        same = (data.trials[:, None] == data.trials).astype(float)
        found = minimize(self._loss, self.theta, (data, data.points**2, apart, same), "L-BFGS-B", jac=True,
                         bounds=np.log(self.priors[:, 2:]), options={"maxiter": steps})
        self.theta = found.x

    def wandered(self, steps) -> "Surrogate":
        """The same with the logarithms of the length scales moved by ``steps``."""
        other = Surrogate(self.scales)
        other.theta = self.theta.copy()
        other.theta[: self.scales] += steps
        return other

    def condition(self, data: Data) -> "Belief":
        """What is believed given ``data``."""
        return Belief(self, data)


class Belief:
    """What is believed given scores. ``noise``: the standard deviation of one score's noise."""

    def __init__(self, model: Surrogate, data: Data):
        self.model, self.data = model, data
        kernel = model.covariance(data.points, data.heights, data.points, data.heights, data.scales)
        self.parts = np.exp(2 * model.theta[model.scales:])  # variances: common, change, level, run, noise
        self.noise = math.sqrt(self.parts[4])
        kernel += self.parts[3] * (data.trials[:, None] == data.trials)
        kernel[np.diag_indices(len(kernel))] += self.parts[4] + JITTER
        self.lower = np.linalg.cholesky(kernel)
        self.weights = solve_triangular(self.lower, data.target, lower=True)

    def expecting(self, points) -> "Belief":
        """The same after scores at the last epoch of ``points`` (M, C) that are just as expected."""
        data, count = self.data, len(points)
        return Belief(self.model, Data(
            np.vstack([data.points, points]), data.scales, np.concatenate([data.heights, np.ones(count)]),
            np.concatenate([data.trials, -1 - np.arange(count)]), np.concatenate([data.target, self.at(points)[0]])))

    def _across(self, points):
        data = self.data
        return self.model.covariance(data.points, data.heights, points, np.ones(len(points)), data.scales)

    def at(self, points):
        """Mean and variance (M,) of f + level at the last epoch, and the factor (N, M) of covariances."""
        factor = solve_triangular(self.lower, self._across(points), lower=True)
        return factor.T @ self.weights, np.maximum(self.parts[:3].sum() - (factor**2).sum(0), 1e-12), factor

    def of_trials(self, points, trials):
        """Mean and variance (M,) of f + level + run at the last epoch: of the very runs that ``trials`` (M,) names."""
        across = self._across(points) + self.parts[3] * (self.data.trials[:, None] == trials)
        factor = solve_triangular(self.lower, across, lower=True)
        return factor.T @ self.weights, np.maximum(self.parts[:4].sum() - (factor**2).sum(0), 1e-12)

    def learnt(self, points, factor, here: int, variance):
        """A further row of ``factor``: what a score at ``points[here]`` would tell of all ``points``."""
        one, top = points[here:here + 1], np.ones(len(points))
        across = self.model.covariance(one, top[:1], points, top, self.data.scales)[0] - factor[:, here] @ factor
        return across / math.sqrt(variance[here] + self.parts[4])


def standardised(loss):
    """Losses (N,) for the model: mean 0 and deviation 1 after bad ones are cut off. Failures are infinite.

    Returns:
        The targets (N,), and which loss a target of 0 is, and how much of it 1 is.
    """
    real = loss[np.isfinite(loss)]
    median = np.median(real)
    # Where most scores are equal, as a Dice of 0 at first, the deviation is 0: no good score may be cut off then.
    spread = max(np.median(np.abs(real - median)) * 1.4826, (median - real.min()) / 5, 1e-12)
    target = np.clip((loss - median) / spread, -5, WORST)
    middle, deviation = target.mean(), target.std() + 1e-12
    return (target - middle) / deviation, median + spread * middle, spread * deviation


def expected_improvement(mean, variance, goal: float):
    """Of values (N,) that are normal with this mean and variance: by how much they lie below ``goal`` on average."""
    deviation = np.sqrt(variance)
    gain = (goal - mean) / deviation
    return deviation * (gain * ndtr(gain) + np.exp(-(gain**2) / 2) / math.sqrt(2 * math.pi))


@functools.cache
def _limited():
    return ThreadpoolController().limit(limits=1, user_api="blas")  # kept: two threads that restore it would race


def one_thread():
    """Linear algebra by one thread from now on: the matrices are small, and the sums have the same order everywhere."""
    _limited()
    return contextlib.nullcontext()

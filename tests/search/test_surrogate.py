"""The Gaussian process of the search: its gradient, its formulas against dense ones, and what it calls noise."""

import numpy as np
import pytest

from meshnet.search.surrogate import JITTER, Data, Surrogate

TOP = np.ones(1)


def draw(seed: int, noise: float, run: float, count: int = 40) -> Data:
    """Scores of ``count`` trials at one to four rungs: a smooth effect of three parameters, a level, luck and noise."""
    numbers = np.random.default_rng(seed)
    trials = np.repeat(np.arange(count), numbers.integers(1, 5, count))
    rungs = np.concatenate([np.arange(n) for n in np.bincount(trials)])
    points = numbers.random((count, 3))[trials]
    luck = numbers.normal(0, run, count)[trials]
    clean = np.sin(3 * points[:, 0]) + points[:, 1] ** 2 - 0.2 * rungs
    target = (clean - clean.mean()) / clean.std() + luck + numbers.normal(0, noise, len(trials))
    return Data(points, np.array([0, 1, 2]), rungs / 3, trials, target)


def sizes(model: Surrogate) -> np.ndarray:
    """Deviations: common, change, level, run, noise."""
    return np.exp(model.theta[model.scales:])


def dense(model: Surrogate, one: Data, points, heights) -> np.ndarray:
    """The kernel from the docstring, entry by entry."""
    common, change, level, _, _ = sizes(model) ** 2
    scale = np.exp(model.theta[: model.scales])
    matrix = np.empty((len(one.points), len(points)))
    for i, (a, s) in enumerate(zip(one.points, one.heights)):
        for j, (b, t) in enumerate(zip(points, heights)):
            r = np.sqrt(5 * (((a - b) / scale) ** 2).sum())
            smooth = (1 + r + r * r / 3) * np.exp(-r)
            matrix[i, j] = smooth * (common + change * np.exp(-2 * abs(s - t))) + level * np.exp(-abs(s - t))
    return matrix


def whole(model: Surrogate, data: Data) -> np.ndarray:
    """Of all scores, luck and noise included."""
    *_, run, noise = sizes(model) ** 2
    matrix = dense(model, data, data.points, data.heights) + run * (data.trials[:, None] == data.trials)
    return matrix + (noise + JITTER) * np.eye(len(matrix))


def test_the_gradient_is_that_of_the_density():
    data, model = draw(0, 0.2, 0.1), Surrogate(3)
    data.scales = np.array([0, 1, 1])  # two features share a length scale
    model = Surrogate(2)
    apart = np.exp(-np.abs(data.heights[:, None] - data.heights))
    same = (data.trials[:, None] == data.trials).astype(float)
    theta = model.theta + np.random.default_rng(1).normal(0, 0.3, len(model.theta))
    loss = lambda at: model._loss(at, data, data.points**2, apart, same)[0]
    found = model._loss(theta, data, data.points**2, apart, same)[1]
    expected = [(loss(theta + step) - loss(theta - step)) / 2e-5 for step in 1e-5 * np.eye(len(theta))]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_belief_is_the_textbooks():
    """Rasmussen and Williams, equations 2.25 and 2.26, with every entry of the kernel written out."""
    data, model = draw(1, 0.3, 0.2, 12), Surrogate(3)
    points = np.random.default_rng(2).random((5, 3))
    belief = model.condition(data)
    inverse, across = np.linalg.inv(whole(model, data)), dense(model, data, points, np.ones(5))
    mean, variance, _ = belief.at(points)
    own = (sizes(model)[:3] ** 2).sum()
    assert mean == pytest.approx(across.T @ inverse @ data.target)
    assert variance == pytest.approx(own - np.einsum("nm,nk,km->m", across, inverse, across))
    # of very runs: their luck is shared with their earlier scores
    named = data.points[:3]
    across = dense(model, data, named, np.ones(3)) + sizes(model)[3] ** 2 * (data.trials[:, None] == data.trials[:3])
    mean, variance = belief.of_trials(named, data.trials[:3])
    assert mean == pytest.approx(across.T @ inverse @ data.target)
    assert variance == pytest.approx(own + sizes(model)[3] ** 2 - np.einsum("nm,nk,km->m", across, inverse, across))


def test_a_score_that_is_as_expected_changes_no_mean_and_lowers_variances():
    data, model = draw(2, 0.3, 0.2, 15), Surrogate(3)
    points = np.random.default_rng(3).random((6, 3))
    belief = model.condition(data)
    mean, variance, factor = belief.at(points)
    later = belief.expecting(points[2:3])
    after, smaller, _ = later.at(points)
    assert after == pytest.approx(mean)
    down = belief.learnt(points, factor, 2, variance)
    run = sizes(model)[3] ** 2  # a new trial's own luck, which ``learnt`` leaves out
    score = variance[2] + sizes(model)[4] ** 2
    assert smaller == pytest.approx(variance - down**2 * score / (score + run), rel=1e-5)
    assert (smaller < variance).all()


@pytest.mark.parametrize(("noise", "run"), [(0.05, 0.05), (0.5, 0.05), (0.1, 0.5)])
def test_noise_and_the_luck_of_runs_are_told_apart(noise, run):
    model = Surrogate(3)
    model.fit(draw(4, noise, run, 60))
    assert sizes(model)[4] == pytest.approx(noise, rel=0.4)
    if run > noise:
        assert sizes(model)[3] == pytest.approx(run, rel=0.5)
    else:
        assert sizes(model)[3] < max(0.2, noise)


def test_a_lucky_score_is_not_believed():
    """One of 40 noisy scores is 3 deviations too good: it leads by its score and not by what is believed."""
    numbers = np.random.default_rng(5)
    points = numbers.random((40, 1))
    clean = 4 * (points[:, 0] - 0.2) ** 2
    target = clean + numbers.normal(0, 0.3, 40)
    lucky = int(np.argmin(np.abs(points[:, 0] - 0.7)))
    target[lucky] = target.min() - 0.2
    data = Data(points, np.array([0]), np.ones(40), np.arange(40), (target - target.mean()) / target.std())
    model = Surrogate(1)
    model.fit(data)
    believed = model.condition(data).at(points)[0]
    assert target.argmin() == lucky
    assert abs(points[believed.argmin(), 0] - 0.2) < 0.15

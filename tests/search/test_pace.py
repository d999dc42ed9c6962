"""How long an epoch takes, as far as a study has seen, and what is then worth a trial."""

import math
import random
import statistics

import numpy as np
import pytest

from meshnet.search.asha import Asha
from meshnet.search.ledger import Ledger
from meshnet.search.pace import Pace
from meshnet.search.sampler import ModelSampler
from meshnet.search.space import parse_space

SPACE = parse_space({"channels": "uniform(5, 21, discrete=True)", "lr": "loguniform(1e-4, 1)"})


def test_seconds_are_those_of_the_trials_over_their_mean():
    numbers = np.random.default_rng(0)
    points = numbers.random((40, 2))
    seconds = lambda points: 3 * np.exp(1.5 * points[:, 0])  # the second parameter costs nothing
    found = Pace(points, seconds(points) * np.exp(numbers.normal(0, 0.05, 40)))
    new = numbers.random((50, 2))
    expected = seconds(new) / math.exp(np.log(seconds(points)).mean())
    assert found.at(new) == pytest.approx(expected, rel=0.1)
    assert found.seen([3.0 * math.exp(1.5 * points[:, 0].mean()), None]) == pytest.approx([1, 1], rel=0.1)


def test_without_times_everything_takes_one():
    nothing = Pace(None, [])
    assert list(nothing.at(np.zeros((3, 2)))) == [1, 1, 1] and list(nothing.seen([5.0, None])) == [1, 1]
    one = Pace(np.array([[0.2, 0.3]]), [7.0])
    assert one.at(np.random.default_rng(0).random((5, 2))) == pytest.approx(np.ones(5))


def widths(per_hour: bool) -> list[int]:
    """Channels of the later trials; the score does not depend on them, and an epoch costs their square."""
    study, noise = Asha((1, 2, 4), 2, 40, brackets=2), random.Random(0)
    sampler = ModelSampler(SPACE, 0, explore=0, per_hour=per_hour)
    while (job := study.next_decision(lambda number: sampler.suggest(number, study))) is not None:
        trial = study.trials[job.trial]
        trial.pace = trial.parameters["channels"] ** 2 / 100
        study.report(job.trial, -abs(math.log10(trial.parameters["lr"]) + 2) + noise.gauss(0, 0.1))
    return [trial.parameters["channels"] for trial in study.trials[12:]]


def test_gain_for_each_hour_prefers_what_is_quick_and_gain_for_each_epoch_does_not_look():
    assert statistics.mean(widths(per_hour=True)) < statistics.mean(widths(per_hour=False)) - 2


def test_the_ledger_knows_the_pace_of_a_trial_again(tmp_path):
    study = Asha((1, 2), 2, 9)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for _ in range(2):
            job = study.next_decision(lambda number: {"channels": 5, "lr": 0.1})
            ledger.started(job, study)
        ledger.record_scores(0, 0, 2, [(1, 0.5, 3.0)])
        ledger.record_scores(0, 1, 2, [(1, 0.5, 5.0)])
        assert (ledger.pace(0), ledger.pace(1)) == (4.0, None)
        again = Asha((1, 2), 2, 9)
        ledger.rebuild(again)
    assert [trial.pace for trial in again.trials] == [4.0, None]

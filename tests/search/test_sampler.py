"""Samplers: reproducible, inside the space, and the model-based one better than chance."""

import itertools
import math
import random
import statistics
import threading
import time

import numpy as np
import pytest

from meshnet.search.asha import Asha
from meshnet.search.sampler import ModelSampler, RandomSampler, make_sampler
from meshnet.search.space import parse_space
from meshnet.search.units import as_tried, features

SPACE = parse_space(
    {"lr": "loguniform(1e-4, 1)", "bg_weight": "uniform(0, 1)", "warmup_pct": "choices([0.02, 0.1, 0.2])"}
)


def away(parameters: dict) -> float:
    """How far from the optimum at lr 0.01, background 0.3."""
    return (math.log10(parameters["lr"]) + 2) ** 2 / 4 + (parameters["bg_weight"] - 0.3) ** 2


def play(sampler, trials: int, score) -> Asha:
    study = Asha((1, 2, 4), 2, trials, brackets=2)
    while (job := study.next_decision(lambda number: sampler.suggest(number, study))) is not None:
        value = score(study.trials[job.trial].parameters, job.epochs)
        study.fail(job.trial, "diverged") if value is None else study.report(job.trial, value)
    return study


def test_a_random_trial_depends_on_seed_and_number_alone():
    first = [RandomSampler(SPACE, 3).suggest(number, None) for number in range(20)]
    backwards = [RandomSampler(SPACE, 3).suggest(number, None) for number in reversed(range(20))]
    assert first == backwards[::-1]
    assert len({str(parameters) for parameters in first}) == 20
    assert first != [RandomSampler(SPACE, 4).suggest(number, None) for number in range(20)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_model_finds_the_optimum_that_chance_does_not(seed):
    score = lambda parameters, epochs: math.exp(-away(parameters)) * (1 - 0.5**epochs)
    late = [
        statistics.median(away(trial.parameters) for trial in play(sampler(SPACE, seed), 40, score).trials[25:])
        for sampler in (ModelSampler, RandomSampler)
    ]
    assert late[0] < 0.02
    assert late[0] < late[1] / 10


def test_the_model_looks_at_the_top_rung_not_at_the_first():
    """At one epoch a high learning rate is ahead; at four a low one is. Higher rungs are told apart by their epochs.

    Without a margin: there is no noise here, and with one the search looks elsewhere once it is there, after 30 trials.
    """
    score = lambda parameters, epochs: -abs(math.log10(parameters["lr"]) + (1 if epochs == 1 else 2.5)) / 4
    study = play(ModelSampler(SPACE, 0, margin=0), 50, score)
    late = statistics.median(math.log10(trial.parameters["lr"]) for trial in study.trials[30:])
    assert late == pytest.approx(-2.5, abs=0.5)


def test_failures_and_equal_scores_do_not_stop_the_model():
    study = play(ModelSampler(SPACE, 0), 20, lambda parameters, epochs: None if parameters["lr"] > 0.01 else 0.5)
    assert study.done()
    late = study.trials[10:]
    assert sum(trial.parameters["lr"] <= 0.01 for trial in late) > len(late) / 2
    assert play(ModelSampler(SPACE, 0), 12, lambda parameters, epochs: None).done()


def test_workers_are_not_all_sent_to_the_same_place():
    score = lambda parameters, epochs: math.exp(-away(parameters)) * (1 - 0.5**epochs)
    sampler = ModelSampler(SPACE, 0)
    study = play(sampler, 20, score)
    study.max_trials = 30
    started = []
    while (job := study.next_decision(lambda number: sampler.suggest(number, study))) is not None:
        if job.start_epochs == 0:
            started.append(study.trials[job.trial].parameters)
    assert len(started) == 10
    assert len({str(parameters) for parameters in started}) == 10


def test_the_first_wave_is_spread_evenly():
    """Of 32 trials before any score each 32nd of every range has one: Sobol's property, which chance does not have."""
    study, sampler = Asha((1, 2), 2, 99), ModelSampler(SPACE, 7)
    tried = [sampler.suggest(number, study) for number in range(32)]
    for name in ("lr", "bg_weight"):
        column = [dimension.name for dimension in SPACE.dimensions].index(name)
        for place, unit in enumerate(sorted(SPACE.encode(one)[column] for one in tried)):
            assert place - 0.01 < 32 * unit < place + 1.01  # values are rounded to four digits
    assert tried != [ModelSampler(SPACE, 8).suggest(number, study) for number in range(32)]


def test_proposals_made_at_once_are_good_and_different(monkeypatch):
    score = lambda parameters, epochs: math.exp(-away(parameters)) * (1 - 0.5**epochs)
    sampler = ModelSampler(SPACE, 0, explore=0, batch=0.5)
    study = play(sampler, 20, score)
    made = []
    propose = sampler._propose
    monkeypatch.setattr(sampler, "_propose", lambda *given: made.append(propose(*given)) or made[-1])
    sampler.ready = None
    tried = [sampler.suggest(number, study) for number in range(20, 30)]
    assert len(made) == 1
    assert len({str(parameters) for parameters in tried}) == 10
    assert statistics.median(away(parameters) for parameters in tried) < 0.05


def test_the_model_does_not_circle_a_point_that_it_knows_to_within_the_noise():
    """The last twenty of sixty trials lie about 0.04 from the nearest tried before (median); 0.009 to 0.017 where what
    a score cannot tell from its noise counts as much as anything else."""
    for seed in (0, 1):
        noise = random.Random(seed)
        score = lambda parameters, epochs: math.exp(-away(parameters)) * (1 - 0.5**epochs) + noise.gauss(0, 0.02)  # noqa: B023
        study = play(ModelSampler(SPACE, seed, explore=0), 60, score)
        units = [SPACE.encode(trial.parameters) for trial in study.trials]
        nearest = [min(math.dist(units[i], other) for other in units[:i]) for i in range(40, 60)]
        assert statistics.median(nearest) > 0.02
        assert min(away(trial.parameters) for trial in study.trials) < 0.005


def test_the_same_history_gives_the_same_suggestion():
    score = lambda parameters, epochs: math.exp(-away(parameters))
    one, two = (play(make_sampler("model", SPACE, 5), 15, score) for _ in range(2))
    assert [trial.parameters for trial in one.trials] == [trial.parameters for trial in two.trials]


@pytest.mark.parametrize("slow", [0.0, 0.05])
def test_batches_made_in_the_background_depend_on_the_history_alone(monkeypatch, slow):
    """However quick the thread is; and but for the first no batch is made by whoever asks."""
    monkeypatch.setattr("meshnet.search.sampler.PREFETCH_FROM", 4)
    score = lambda parameters, epochs: math.exp(-away(parameters))
    where = []

    class Watched(ModelSampler):
        def _propose(self, *given):
            where.append(threading.current_thread() is threading.main_thread())
            time.sleep(slow)
            return super()._propose(*given)

    plain = play(ModelSampler(SPACE, 5, batch=0.25), 70, score)
    watched = play(Watched(SPACE, 5, batch=0.25), 70, score)
    assert [trial.parameters for trial in plain.trials] == [trial.parameters for trial in watched.trials]
    begun = where.index(False)
    assert all(where[:begun]) and not any(where[begun:]) and len(where) - begun >= 3


def test_a_study_that_is_taken_up_has_its_first_batch_begun(monkeypatch):
    monkeypatch.setattr("meshnet.search.sampler.PREFETCH_FROM", 4)
    score = lambda parameters, epochs: math.exp(-away(parameters))
    study = play(ModelSampler(SPACE, 5), 40, score)
    sampler = ModelSampler(SPACE, 5, explore=0, batch=0.25)
    sampler.prepare(study)
    point, _ = sampler.coming.result().points[0]
    monkeypatch.setattr(sampler, "_propose", None)  # must not be called by whoever asks
    assert sampler.suggest(len(study.trials), study) == SPACE.decode(point)


def test_what_a_batch_is_made_from_is_the_best_of_the_highest_rungs(monkeypatch):
    scores = random.Random(1)
    study = play(make_sampler("random", SPACE, 0), 60, lambda parameters, epochs: scores.choice([0.1, 0.2, math.nan]))
    loss = lambda value: -value if math.isfinite(value) else math.inf
    all_rows = [(SPACE.encode(trial.parameters), rung, loss(value), trial.number) for trial in study.trials
                for rung, value in trial.scores.items()]
    assert ModelSampler(SPACE, 0)._snapshot(study).scored == all_rows
    best = sorted(all_rows, key=lambda row: (-row[1], row[2]))[:25]
    assert ModelSampler(SPACE, 0, most=25)._snapshot(study).scored == best


# ---------------------------------------------------------------- what the model judges, and what it is told
class Counted(ModelSampler):
    """Remembers the answers of its judge."""

    answers: tuple = ()

    def judge(self, shown, study):
        number, worth = super().judge(shown, study)
        self.answers += ((shown, number, worth),)
        return number, worth


def test_the_judge_prefers_what_promises_most_and_asks_for_new_trials_too():
    noise = random.Random(3)
    score = lambda parameters, epochs: math.exp(-away(parameters)) * (1 - 0.5**epochs) + noise.gauss(0, 0.05)
    sampler = Counted(SPACE, 0)
    study = play(sampler, 40, score)
    assert study.done()
    late = sampler.answers[10:]
    assert {worth for *_, worth in late} == {True, False}
    assert all(number in shown for shown, number, _ in sampler.answers)
    chosen = [away(study.trials[number].parameters) for shown, number, _ in late if len(shown) > 1]
    passed = [away(study.trials[other].parameters) for shown, number, _ in late for other in shown if other != number]
    assert statistics.median(chosen) < statistics.median(passed)


def test_choices_without_an_order_are_equally_far_apart_and_numbers_are_not():
    space = parse_space({"model.norm": "choices(['batch', 'group', 'none'])", "warmup_pct": "choices([0.02, 0.1, 0.2])",
                         "channels": "uniform(5, 21, discrete=True)", "lr": "loguniform(1e-4, 1)"})
    numbers = np.random.default_rng(0)
    units = numbers.random((200, 4))
    tried = as_tried(space, units)
    assert tried == pytest.approx(np.array([space.encode(space.decode(one)) for one in units]), abs=1e-3)
    seen = features(space, tried)
    assert seen.shape == (200, 6)
    for one, other in itertools.combinations(np.unique(seen[:, :3], axis=0), 2):
        assert math.dist(one, other) == pytest.approx(1)
    assert sorted(set(seen[:, 3].round(3))) == [0.167, 0.5, 0.833]


def test_no_configuration_is_proposed_twice():
    """It would have the same seed, so the same score."""
    space = parse_space({"channels": "uniform(5, 21, discrete=True)", "warmup_pct": "choices([0.02, 0.1, 0.2])"})
    study = play(ModelSampler(space, 0, explore=0), 30, lambda parameters, epochs: -abs(parameters["channels"] - 9))
    late = [str(trial.parameters) for trial in study.trials[10:]]
    assert len(set(late)) == len(late)

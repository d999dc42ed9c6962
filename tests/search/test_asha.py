"""The rule of successive halving against hand-worked tables and against its properties."""

import ast
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnet.search import asha
from meshnet.search.asha import Asha, Decision, eta_rungs, geometric_rungs


def number_only(number: int) -> dict:
    return {"x": number}


def handed_out(job) -> tuple:
    return None if job is None else (job.trial, job.rung, job.start_epochs, job.epochs)


# ---------------------------------------------------------------- rungs
@pytest.mark.parametrize(
    ("arguments", "rungs"),
    [
        ((15, 50, 4), (15, 22, 33, 50)),  # the paper's range
        ((1, 4, 3), (1, 2, 4)),
        ((1, 243, 6), (1, 3, 9, 27, 81, 243)),  # floating logarithms lose a rung here
        ((1, 10**15, 4), (1, 10**5, 10**10, 10**15)),
        ((2, 3, 2), (2, 3)),
        ((7, 7, 1), (7,)),
        ((3, 9, 1), (9,)),
    ],
)
def test_geometric_rungs_table(arguments, rungs):
    assert geometric_rungs(*arguments) == rungs


@pytest.mark.parametrize(
    ("arguments", "rungs"),
    [
        ((1, 243, 3), (1, 3, 9, 27, 81, 243)),
        ((15, 50, 2), (15, 30, 50)),
        ((15, 50, 1.5), (15, 22, 33, 50)),  # 15, 22.5, 33.75, then 50.6 is over
        ((1, 4, 1.1), (1, 2, 3, 4)),  # equal whole numbers are one rung
        ((5, 8, 1.2), (5, 6, 7, 8)),  # the binary fraction nearest to 1.2 lies below it and would give 5 twice
        ((5, 5, 3), (5,)),
    ],
)
def test_eta_rungs_table(arguments, rungs):
    assert eta_rungs(*arguments) == rungs


@given(st.integers(1, 300), st.integers(0, 3000), st.integers(2, 6))
def test_geometric_rungs_are_the_nearest_whole_numbers(minimum, more, number):
    maximum = minimum + more
    try:
        rungs = geometric_rungs(minimum, maximum, number)
    except ValueError as error:
        assert "no room" in str(error)
        return
    assert (rungs[0], rungs[-1], len(rungs)) == (minimum, maximum, number)
    for i, rung in enumerate(rungs):  # |rung - root| <= 1/2, without taking a root
        exact, gaps = minimum ** (number - 1 - i) * maximum**i, number - 1
        assert (2 * rung - 1) ** gaps <= exact * 2**gaps <= (2 * rung + 1) ** gaps


@pytest.mark.parametrize("arguments", [(0, 5, 2), (5, 4, 2), (1, 5, 0), (1, 2, 3), (15, 16, 4)])
def test_impossible_rungs_are_refused(arguments):
    with pytest.raises(ValueError, match=r"rungs|room"):
        geometric_rungs(*arguments)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"rungs": ()}, "rise"),
        ({"rungs": (0, 2)}, "rise"),
        ({"rungs": (2, 2)}, "rise"),
        ({"eta": 1}, "eta"),
        ({"max_trials": 0}, "max_trials"),
        ({"brackets": 3}, "1 to 2"),
        ({"brackets": 0}, "1 to 2"),
    ],
)
def test_impossible_settings_are_refused(settings_, words):
    with pytest.raises(ValueError, match=words):
        Asha(**{"rungs": (1, 2), "eta": 2, "max_trials": 4, **settings_})


# ---------------------------------------------------------------- tables worked by hand
def test_one_worker_by_hand():
    """eta 2, rungs 1, 2, 4; one worker; trial n scores as written. Worked with pencil and paper."""
    study = Asha((1, 2, 4), 2, max_trials=6)
    score = {0: 0.1, 1: 0.5, 2: 0.3, 3: 0.9, 4: 0.2, 5: 0.6}
    order = []
    while (job := study.next_decision(number_only)) is not None:
        order.append((job.trial, job.epochs))
        study.report(job.trial, score[job.trial])
    assert order == [
        (0, 1), (1, 1),  # one of two may go on: trial 1
        (1, 2),          # alone in its rung: floor(1/2) = 0 may go on
        (2, 1), (3, 1),  # of four the best two, 3 and 1, and 1 went already
        (3, 2),          # of two at epoch 2 the best goes on
        (3, 4),
        (4, 1), (5, 1),  # of six the best three: 3, 5, 1
        (5, 2),          # of three at epoch 2 one: 3, and it went
    ]
    assert study.done()
    assert study.best().number == 3
    assert study.best().scores == {0: 0.9, 1: 0.9, 2: 0.9}


def test_promotion_looks_from_the_top_rung_down_and_never_at_running_trials():
    study = Asha((1, 2, 4), 2, max_trials=10)
    for _ in range(4):
        study.next_decision(number_only)
    assert study.promotable(0, 0) is None  # four run, none is ranked
    study.report(0, 0.4)
    study.report(1, 0.3)
    study.report(2, 0.2)
    assert handed_out(study.next_decision(number_only)) == (0, 1, 1, 2)  # floor(3/2) = 1
    assert handed_out(study.next_decision(number_only)) == (4, 0, 0, 1)  # 1 is second of three: a new trial
    study.report(3, 0.1)
    assert handed_out(study.next_decision(number_only)) == (1, 1, 1, 2)  # floor(4/2) = 2
    study.report(0, 0.1)
    study.report(1, 0.7)
    study.report(4, 0.9)
    study.next_decision(number_only)
    # both trial 4 (rung 0) and trial 1 (rung 1) could go on; rung 1 was looked at first
    assert study.trials[1].rung == 2
    assert handed_out(study.next_decision(number_only)) == (4, 1, 1, 2)


def test_more_than_one_in_eta_may_be_promoted_as_a_rung_fills():
    """Rising scores: from the second on, each new trial is the best so far when it ends and goes on at once."""
    study = Asha((1, 2), 2, max_trials=8)
    promoted = []
    while (job := study.next_decision(number_only)) is not None:
        promoted += [job.trial] if job.rung else []
        study.report(job.trial, float(job.trial))
    assert promoted == [1, 2, 3, 4, 5, 6, 7]  # seven of eight, though floor(8 / 2) = 4
    assert study.best().number == 7


def test_ties_go_to_the_older_trial():
    study = Asha((1, 2), 3, max_trials=3)
    jobs = [study.next_decision(number_only) for _ in range(3)]
    for job in reversed(jobs):
        study.report(job.trial, 0.5)
    assert study.next_decision(number_only).trial == 0
    study.report(0, 0.5)
    assert study.best().number == 0


@pytest.mark.parametrize("maximize", [True, False])
def test_direction(maximize):
    study = Asha((1, 2), 2, max_trials=2, maximize=maximize)
    for _ in range(2):
        study.report(study.next_decision(number_only).trial, float(len(study.trials)))
    assert study.next_decision(number_only).trial == (1 if maximize else 0)


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_ranks_last_in_both_directions(bad, maximize):
    study = Asha((1, 2), 2, max_trials=4, maximize=maximize)
    jobs = [study.next_decision(number_only) for _ in range(4)]
    for job, score in zip(jobs, [bad, 0.2, bad, bad]):
        study.report(job.trial, score)
    assert study.next_decision(number_only).trial == 1
    assert study.next_decision(number_only) is None  # two of four may go on, and no other is a number
    study.report(1, bad)
    assert study.best().number == 1
    assert study.done()


def test_a_failed_trial_counts_as_finished_and_does_not_stop_the_study():
    study = Asha((1, 2), 2, max_trials=2)
    first, second = study.next_decision(number_only), study.next_decision(number_only)
    study.report(first.trial, 0.0)
    assert study.next_decision(number_only) is None
    assert not study.done()
    study.fail(second.trial, "out of memory")
    assert study.trials[1].failed == "out of memory"
    assert study.next_decision(number_only).trial == 0
    study.fail(0, "")
    assert study.done()
    assert study.best().number == 0  # its score at the first rung is a real one


def test_everything_failed():
    study = Asha((1, 2), 2, max_trials=3)
    for _ in range(3):
        study.fail(study.next_decision(number_only).trial, "diverged")
    assert study.next_decision(number_only) is None
    assert study.done()
    assert study.best() is None


def test_brackets_start_higher_up_and_rank_among_themselves():
    """Shares of Hyperband at R = 3, eta = 2: 3/3 * 4, 3/2 * 2, 3/1 * 1 = 4 : 3 : 3."""
    study = Asha((1, 2, 4), 2, max_trials=10, brackets=3)
    for _ in range(10):
        study.next_decision(number_only)
    assert [trial.bracket for trial in study.trials].count(0) == 4
    assert [trial.bracket for trial in study.trials].count(1) == 3
    assert [trial.bracket for trial in study.trials].count(2) == 3
    in_top = [trial for trial in study.trials if trial.bracket == 2]
    assert all(trial.rung == 2 for trial in in_top)
    for trial in in_top:
        study.report(trial.number, 0.9)
    for trial in (trial for trial in study.trials if trial.bracket == 1):
        study.report(trial.number, 0.1 + trial.number / 100)
    best_of_bracket_1 = max(trial.number for trial in study.trials if trial.bracket == 1)
    assert handed_out(study.next_decision(number_only)) == (best_of_bracket_1, 2, 2, 4)


# ---------------------------------------------------------------- properties
class Witness:
    """Drives a study and checks every decision as it is made, by counting afresh rather than by its lists."""

    def __init__(self, study: Asha):
        self.study = study
        self.epochs: dict[int, int] = {}
        self.running: set[int] = set()
        self.log: list[tuple] = []
        self.events: list[tuple] = []

    def loss(self, trial, rung):
        score = trial.scores[rung]
        return math.inf if not math.isfinite(score) else -score if self.study.maximize else score

    def allowed(self) -> list[tuple[int, int]]:
        """(rung, trial) that could be promoted now, from the definition."""
        found = []
        for rung in range(len(self.study.rungs) - 1):
            for bracket in range(self.study.brackets):
                there = [t for t in self.study.trials if t.bracket == bracket and rung in t.scores]
                there.sort(key=lambda t: (self.loss(t, rung), t.number))
                top = there[: int(len(there) / self.study.eta)]
                found += [
                    (rung, t.number)
                    for t in top
                    if t.rung == rung and t.number not in self.running and math.isfinite(t.scores[rung])
                ]
        return found

    def ask(self):
        allowed, before = self.allowed(), len(self.study.trials)
        job = self.study.next_decision(number_only)
        if job is None:
            assert not allowed and before == self.study.max_trials
            return None
        if len(self.study.trials) > before:
            assert not allowed, "a new trial started while a promotion waited"
        else:
            assert (job.rung - 1, job.trial) in allowed, "promoted from outside the top floor(n / eta)"
            assert job.rung - 1 == max(rung for rung, _ in allowed), "a higher rung waited"
        assert job.start_epochs == self.epochs.get(job.trial, 0), "an epoch runs twice or is left out"
        assert job.epochs > job.start_epochs
        assert job.trial not in self.running
        self.epochs[job.trial] = job.epochs
        self.running.add(job.trial)
        self.log.append(handed_out(job))
        self.events.append(("job", job.trial, job.rung))
        return job

    def end(self, number: int, score: float | None):
        self.running.discard(number)
        self.events.append(("end", number, score))
        if score is None:
            self.study.fail(number, "diverged")
        else:
            self.study.report(number, score)


def run_study(seed, workers, max_trials, eta, rungs, brackets, maximize) -> Witness:
    generator = random.Random(seed)
    witness = Witness(Asha(rungs, eta, max_trials, maximize, min(brackets, len(rungs))))
    while True:
        while len(witness.running) < workers and witness.ask() is not None:
            pass
        if not witness.running:
            return witness
        number = generator.choice(sorted(witness.running))
        score = generator.choice([generator.random(), round(generator.random(), 1), math.nan])
        witness.end(number, None if generator.random() < 0.1 else score)


studies = given(
    seed=st.integers(0, 10**6),
    workers=st.integers(1, 9),
    max_trials=st.integers(1, 40),
    eta=st.sampled_from([2, 3, 4, 1.5, Fraction(7, 3)]),
    rungs=st.sampled_from([(1,), (1, 2, 4), (15, 22, 33, 50), (1, 3, 9, 27)]),
    brackets=st.integers(1, 4),
    maximize=st.booleans(),
)


@studies
@settings(max_examples=80, deadline=None)
def test_every_decision_of_a_study_is_lawful(**arguments):
    witness = run_study(**arguments)
    study = witness.study
    assert study.done()
    assert len(study.trials) == arguments["max_trials"]
    assert not witness.allowed()
    for trial in study.trials:  # one score for each rung that was handed out, none twice, none missing
        assert sorted(trial.scores) == list(range(trial.bracket, trial.rung + 1))
        assert witness.epochs[trial.number] == study.rungs[trial.rung]


@studies
@settings(max_examples=25, deadline=None)
def test_the_same_seed_and_order_give_the_same_study(**arguments):
    assert run_study(**arguments).log == run_study(**arguments).log


@studies
@settings(max_examples=40, deadline=None)
def test_a_study_taken_up_from_its_record_is_the_same_study(**arguments):
    """Whenever it is cut, what a ledger keeps (jobs and ends, in order) rebuilds the very state."""
    events = run_study(**arguments).events
    cut = random.Random(arguments["seed"]).randrange(len(events) + 1)
    lived = Asha(arguments["rungs"], arguments["eta"], arguments["max_trials"], arguments["maximize"],
                 min(arguments["brackets"], len(arguments["rungs"])))
    rebuilt = Asha(lived.rungs, lived.eta, lived.max_trials, lived.maximize, lived.brackets)
    for kind, number, value in events[:cut]:
        if kind == "job":
            job = lived.next_decision(number_only)
            trial = lived.trials[number]
            assert (job.trial, job.rung) == (number, value)
            new = number == len(rebuilt.trials)
            assert job == (
                rebuilt.restore(trial.parameters, trial.bracket, job.rung) if new else rebuilt.promote(number)
            )
        else:
            for study in (lived, rebuilt):
                study.fail(number, "diverged") if value is None else study.report(number, value)
    assert repr(rebuilt.trials) == repr(lived.trials)  # by text: NaN is not equal to itself
    assert rebuilt.finished == lived.finished
    assert rebuilt.promoted == lived.promoted
    assert rebuilt.next_decision(number_only) == lived.next_decision(number_only)


# ---------------------------------------------------------------- cost and purity
class Counted(float):
    """A score that counts how often one is compared with another."""

    compared = 0

    def __neg__(self):
        return Counted(float.__neg__(self))

    def __eq__(self, other):
        Counted.compared += 1
        return float.__eq__(self, other)

    __hash__ = float.__hash__


def test_deciding_among_ten_thousand_trials_looks_once_at_the_best_and_ranks_by_halving():
    generator = random.Random(0)
    study = Asha((15, 22, 33, 50), 3, max_trials=20_000, brackets=2)
    while len(study.trials) < 10_000:
        study.report(study.next_decision(number_only).trial, generator.random())
    study.finished = [[[(Counted(loss), trial) for loss, trial in rung] for rung in one] for one in study.finished]
    for _ in range(50):
        best = sum(len(rung) // 3 for bracket in study.finished for rung in bracket[:-1])
        Counted.compared = 0
        job = study.next_decision(number_only)
        assert 0 < Counted.compared <= best
        Counted.compared = 0
        study.report(job.trial, Counted(generator.random()))
        assert Counted.compared <= math.log2(10_000) + 1


def test_asha_needs_the_standard_library_alone_and_neither_clock_nor_files():
    with open(asha.__file__, encoding="utf-8") as handle:
        tree = ast.parse(handle.read())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"bisect", "itertools", "math", "collections.abc", "dataclasses", "fractions"}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "open" not in called


# ---------------------------------------------------------------- a judge
class Stub:
    """Answers as told, and remembers what it was shown."""

    def __init__(self, *answers):
        self.answers, self.shown = list(answers), []

    def __call__(self, shown, study):
        self.shown.append(shown)
        return self.answers.pop(0)


def test_a_judge_chooses_among_what_the_rule_would_promote_worked_by_hand():
    study = Asha((1, 2, 4), 2, 99)
    judge = study.judge = Stub((1, False), (2, False), (2, False), (3, True), (4, True))
    play = lambda score: study.report(study.next_decision(number_only).trial, score)
    play(0.1)  # trial 0 starts, trial 1 too: one finished trial is no half
    play(0.2)  # 1 is shown and not worth it, but two trials in a row were new: promoted
    assert judge.shown == []
    assert study.next_decision(number_only) == Decision(1, 1, 2, 1)
    study.report(1, 0.2)
    play(0.3)  # the best of three is promoted already: nothing is shown, trial 2 starts
    assert judge.shown == [[1]]
    play(0.4)  # 2 is shown and not worth it: trial 3 starts
    assert judge.shown == [[1], [2]]
    assert study.next_decision(number_only) == Decision(2, 1, 2, 1)  # of 3 and 2, the better one first, it takes 2
    assert judge.shown[2] == [3, 2]
    study.report(2, 0.9)
    # of rung 2 the better one of two, and of rung 1 the other one of the best two: higher rungs first
    assert study.next_decision(number_only) == Decision(3, 1, 2, 1)
    assert judge.shown[3] == [2, 3]
    study.report(3, 0.1)


def test_the_rule_decides_alone_where_many_run_and_where_no_trial_is_left():
    study = Asha((1, 2), 2, 12)
    study.judge = lambda shown, study: pytest.fail("was asked")
    first = [study.next_decision(number_only).trial for _ in range(10)]
    for trial in first[:2]:
        study.report(trial, float(trial))
    assert study.running == 8
    assert study.next_decision(number_only) == Decision(1, 1, 2, 1)  # eight still run
    study.judge = lambda shown, study: (shown[0], False)
    for trial in first[2:]:
        study.report(trial, float(trial))
    study.report(1, 1.0)
    assert study.running == 0
    started = [study.next_decision(number_only) for _ in range(2)]
    assert [job.trial for job in started] == [10, 11]  # not worth it
    study.judge = lambda shown, study: pytest.fail("was asked")  # twelve of twelve: the rule promotes the best half
    for job in started:
        study.report(job.trial, 0.0)
    rest = []
    while not study.done():
        rest.append(study.next_decision(number_only))
        study.report(rest[-1].trial, 0.0)
    assert [job.trial for job in rest] == [9, 8, 7, 6, 5, 4]


def test_a_judge_sees_no_failed_and_no_promoted_trial_and_at_most_the_best_of_a_rung():
    study = Asha((1, 2), 2, 999)
    judge = study.judge = Stub((0, False), (0, True))
    jobs = [study.next_decision(number_only) for _ in range(100)]
    for job in jobs:
        if job.trial < 10:
            study.fail(job.trial, "diverged")
        else:
            study.report(job.trial, 1.0 if job.trial == 50 else float(-job.trial))
    study.promote(50)
    study.report(50, 1.0)
    study.next_decision(number_only)
    assert judge.shown == [[10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29]]

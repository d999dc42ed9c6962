"""The best trials once more: which runs, what their scores say, and a real study that does it."""

import json
import math
import random
import statistics
from types import SimpleNamespace

import pytest

from meshnet.errors import UserError
from meshnet.search.asha import Asha
from meshnet.search.confirm import CONFIRMED, Repeat, best_finished, conclude, in_words, planned, read_confirmed
from meshnet.search.drive import confirmed_now


def test_the_runs_use_other_folds_and_other_seeds():
    assert planned([4, 7], [0], 4, 10) == [Repeat(t, f, 11) for f in (1, 2, 3) for t in (4, 7)]
    assert planned([4], [0], 2, 0) == [Repeat(4, 1, 1), Repeat(4, 1, 2), Repeat(4, 1, 3)]
    assert planned([4], [0, 1], 2, 0) == [Repeat(4, f, s) for s in (1, 2) for f in (0, 1)]
    assert planned([], [0], 4, 0) == []


def test_the_best_trials_are_those_of_the_highest_rung_first():
    asha = Asha((1, 2), 2, 4)
    scores = [0.1, 0.4, math.nan, 0.3]
    for score in scores:
        decision = asha._new_trial(lambda number: {})
        asha.report(decision.trial, score)
    assert best_finished(asha, 3) == [1, 3, 0]
    asha.promote(1)
    asha.report(1, 0.2)
    assert best_finished(asha, 3) == [1, 3, 0] and best_finished(asha, 1) == [1]
    asha.promote(3)
    asha.report(3, 0.25)
    assert best_finished(asha, 2) == [3, 1]
    assert best_finished(Asha((1, 2), 2, 4), 3) == []


def test_the_conclusion_by_hand():
    """Two trials, three folds. Means 5 and 3; variance within (1 + 1) / 2; the two-way residuals are all 0, so nothing
    is drawn together: 5 ± 4.3027 · √(1/3)."""
    found = conclude({7: [4.0, 5.0, 6.0], 8: [2.0, 3.0, 4.0]}, True)
    assert found["trial"] == 7 and found["score"] == pytest.approx(5)
    assert found["high"] - found["score"] == pytest.approx(4.302653 * math.sqrt(1 / 3), rel=1e-6)
    assert found["score"] - found["low"] == pytest.approx(found["high"] - found["score"])
    assert conclude({7: [4.0, 5.0, 6.0], 8: [2.0, 3.0, 4.0]}, False)["trial"] == 8


def test_differences_that_are_all_noise_are_drawn_to_the_mean():
    """Residuals ±1 (sum of squares 4, one degree of freedom a fold pair: 4 / 2 = 2 for three folds with one at 0)."""
    found = conclude({0: [2.0, 0.0, 1.3], 1: [0.0, 2.0, 1.0]}, True)
    assert found["trial"] == 0 and found["score"] == pytest.approx((3.3 / 3 + 1.0) / 2)


@pytest.mark.parametrize("folds", [3, 5])
def test_the_interval_holds_the_true_score_as_often_as_it_says(folds):
    """200 simulated studies: the three best of 30 by a noisy score, then scored again with effects of folds and seeds.
    The search's own score of its best is outside much more often, and too high."""
    rng, inside, naive, bias, raw = random.Random(0), 0, 0, [], []
    for _ in range(200):
        truth = [rng.gauss(0.5, 0.03) for _ in range(30)]
        searched = [value + rng.gauss(0, 0.03) for value in truth]
        top = sorted(range(30), key=searched.__getitem__)[-3:]
        fold = [rng.gauss(0, 0.02) for _ in range(folds)]
        found = conclude({t: [truth[t] + fold[f] + rng.gauss(0, 0.03) for f in range(folds)] for t in top}, True)
        expected = truth[found["trial"]]
        inside += found["low"] <= expected <= found["high"]
        half = found["high"] - found["score"]
        naive += abs(searched[top[-1]] - truth[top[-1]]) <= half
        bias.append(found["score"] - expected)
        raw.append(searched[top[-1]] - truth[top[-1]])
    assert inside >= 0.93 * 200
    assert abs(statistics.fmean(bias)) < 0.006 < 0.03 < statistics.fmean(raw)
    assert naive < inside


def test_a_search_confirms_its_best_trials_and_goes_on_with_it(bench):
    """The stand-in's scores rise with the inner fold, and not with the seed."""
    flags = ("--confirm", "2", "--max_trials", "4")
    bench.run("study", *flags)
    study = bench.folder / "study"
    found = json.loads((study / CONFIRMED).read_text())
    assert [len(trial["runs"]) for trial in found["trials"]] == [4, 4]
    assert {run["inner_fold"] for trial in found["trials"] for run in trial["runs"]} == {1, 2}
    assert found["low"] < found["score"] < found["high"]
    text = (study / "best.yaml").read_text()
    assert text.splitlines()[:2] == [f"# trial {found['trial']} of {study}", f"# {in_words(found)}"]
    runs = sorted((study / "confirm").glob("*/*/metrics.jsonl"))
    times = [run.stat().st_mtime_ns for run in runs]
    assert in_words(found) in bench.run("study", *flags)
    assert [run.stat().st_mtime_ns for run in runs] == times  # nothing was trained twice
    assert bench.status("study")["confirmed"] == found


def test_what_was_confirmed_counts_as_long_as_its_trials_are_the_best(tmp_path):
    asha = Asha((1, 2), 2, 8)
    for score in (0.1, 0.4, 0.3):
        asha.report(asha._new_trial(lambda number: {}).trial, score)
    study = SimpleNamespace(asha=asha, plan=SimpleNamespace(folder=tmp_path))
    assert confirmed_now(study) is None
    (tmp_path / CONFIRMED).write_text(json.dumps({"trials": [{"trial": 1}, {"trial": 2}]}))
    assert confirmed_now(study)
    asha.report(asha._new_trial(lambda number: {}).trial, 0.5)
    assert confirmed_now(study) is None


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / CONFIRMED).write_text("{")
    with pytest.raises(UserError, match=r"confirmed\.json: not readable as JSON; delete it"):
        read_confirmed(tmp_path)
    assert read_confirmed(tmp_path / "none") is None

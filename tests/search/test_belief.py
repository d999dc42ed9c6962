"""What the model believes of a study, and in which words."""

import math
import random

import pytest
from made_up_study import SPACE, play, truth

from meshnet.search import belief
from meshnet.search.belief import Watch, believe, going_on, in_words

NOISE = 0.02

@pytest.mark.parametrize("maximize", [True, False])
def test_the_best_its_uncertainty_and_what_matters_are_those_of_the_made_up_curves(maximize):
    noise, sign = random.Random(1), 1 if maximize else -1
    study = play(40, lambda parameters, epochs: sign * (truth(parameters) - 0.1 / epochs + noise.gauss(0, NOISE)),
                 maximize)
    found = Watch(SPACE).final(study)
    known = {trial.number: sign * (truth(trial.parameters) - 0.025) for trial in study.trials}
    assert abs(found["score"] - known[found["trial"]]) < 3 * found["uncertainty"]
    assert 0.002 < found["uncertainty"] < 0.03
    assert sign * known[found["trial"]] > max(sign * value for value in known.values()) - 0.02
    assert NOISE / 2 < found["luck"] < 2 * NOISE
    assert list(found["importance"]) == ["lr", "bg_weight", "warmup_pct"]
    assert found["importance"]["lr"] > 0.85 and sum(found["importance"].values()) == pytest.approx(1)
    assert 0 < found["promise"] < 0.05


def test_what_going_on_promises_falls_as_the_best_is_known_better():
    noise = random.Random(1)
    few, many = (Watch(SPACE).final(play(trials, lambda parameters, epochs: truth(parameters) - 0.1 / epochs
                                         + noise.gauss(0, NOISE))) for trials in (12, 80))
    assert many["promise"] < few["promise"]


def test_nothing_is_believed_of_too_few_scores_or_of_equal_ones():
    assert Watch(SPACE).final(play(4, lambda parameters, epochs: truth(parameters))) is None
    assert Watch(SPACE).final(play(30, lambda parameters, epochs: 0.0)) is None


def test_a_failed_trial_is_never_the_believed_best():
    """Here the good ones have a good first score, and fail later."""
    score = lambda parameters, epochs: math.nan if truth(parameters) > 0.7 and epochs > 1 else truth(parameters)
    study = play(30, score)
    failed = {trial.number for trial in study.trials if not all(map(math.isfinite, trial.scores.values()))}
    assert failed and Watch(SPACE).final(study)["trial"] not in failed


FOUND = {"trial": 6, "score": 0.73119, "uncertainty": 0.006, "luck": 0.01, "promise": 0.002, "promising": None,
         "epochs": 50, "importance": {"lr": 0.6, "bg_weight": 0.1, "channels": 0.3}}


def test_what_is_believed_in_words():
    assert in_words(FOUND, "val_dice", 36.0, 2) == [
        "believed best: trial 6, val_dice 0.7312 ± 0.0060 at the last rung",
        "what matters: lr 60%, channels 30%, bg_weight 10%",
        # 50 epochs of 36 s on two inner folds are an hour of one worker
        "going on: a new trial trained to the end promises 0.0020 more, 0.002 for each hour of a worker; two runs of "
        "one recipe differ by 0.0100"]
    assert going_on(FOUND | {"promise": 0.0009, "promising": 17}, None) == (
        "going on: trial 17 trained to the end promises 0.0009 more; two runs of one recipe differ by 0.0100: hardly "
        "worth it")
    assert len(in_words(FOUND | {"importance": {}}, "val_dice", None)) == 2


def test_a_running_study_does_not_wait_for_it_and_a_fault_ends_nothing(monkeypatch, capsys):
    study, watch = play(20, lambda parameters, epochs: truth(parameters)), Watch(SPACE)
    assert watch.latest(study) is None and watch.coming
    watch.coming.result()
    first = watch.latest(study)
    assert first and not watch.coming  # there is no new score
    study.trials[0].scores[99] = 0.1  # one more
    assert watch.latest(study) is first and not watch.coming  # nor has enough time passed
    watch.next = 0
    monkeypatch.setattr(belief, "believe", lambda *_: 1 / 0)
    watch.latest(study)
    assert watch.coming.exception()
    assert watch.latest(study) is first
    assert "warning: what the model believes of the study is not shown: ZeroDivisionError" in capsys.readouterr().err


def test_the_epochs_that_are_left_are_those_of_the_trial_or_of_all_where_each_rung_begins_anew():
    study = play(30, lambda parameters, epochs: truth(parameters) - 1 / epochs)
    best = study.best().number
    for number, trial in enumerate(study.trials):  # as if the best one had not gone beyond the first rung
        if number == best:
            trial.scores = {0: trial.scores[0]}
    study.finished[0][1:] = [[entry for entry in rung if entry[1] != best] for rung in study.finished[0][1:]]
    known, space, maximize, _ = Watch(SPACE)._given(study)
    assert believe(known, space, maximize)["promising"] == best
    assert [believe(known, space, maximize, anew)["epochs"] for anew in (False, True)] == [4 - 1, 4]

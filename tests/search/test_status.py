"""The table that shows how a study stands."""

import json
import time
from types import SimpleNamespace

import pytest

from meshnet import display
from meshnet.errors import UserError
from meshnet.search import status
from meshnet.search.asha import Asha
from meshnet.search.drive import refuse_other_host
from meshnet.search.status import Screen


def test_a_table_is_drawn_over_itself_on_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    screen = Screen()
    screen.live = True
    screen.draw(["short", "x" * 100])
    first = capsys.readouterr().out
    assert max(map(len, first.splitlines())) < 40  # nothing wraps, so two lines up is the table's first
    screen.draw(["again"])
    assert capsys.readouterr().out == "\x1b[2A\x1b[Jagain\n"
    screen.end(["x" * 100])
    assert capsys.readouterr().out == "\x1b[1A\x1b[J" + "x" * 100 + "\n"


@pytest.fixture
def study():
    """Four of six trials begun: one is good and was promoted, one failed, one still runs."""
    asha = Asha((1, 2, 4), 2, 6)
    for _ in range(2):
        asha.restore({"lr": 0.1}, 0, 0)
    asha.report(0, 0.1)
    asha.report(1, 0.5)
    asha.promote(1)
    asha.report(1, 0.6)
    asha.restore({"lr": 0.2}, 0, 0)
    asha.fail(2, "diverged")
    asha.restore({"lr": 0.3}, 0, 0)
    return SimpleNamespace(
        asha=asha, plan=SimpleNamespace(metric="val_dice", own_schedule=False, inner_folds=(0, 1)), running={},
        launcher=SimpleNamespace(running=lambda: [], slots=2), waiting=[1, 2, 3],
        ledger=SimpleNamespace(seconds_per_epoch=lambda: 10.0))


def test_a_studys_numbers_by_hand(study):
    found = status.snapshot(study, "running", 0)
    assert found["rungs"] == [
        {"epochs": 1, "finished": 3, "promoted": 1, "running": 1, "failed": 1},
        {"epochs": 2, "finished": 1, "promoted": 0, "running": 0, "failed": 0},
        {"epochs": 4, "finished": 0, "promoted": 0, "running": 0, "failed": 0}]
    assert (found["trials"], found["max_trials"], found["waiting"], found["failed"]) == (4, 6, 3, {"2": "diverged"})
    assert (found["epochs"], found["epochs_if_all_in_full"]) == (1 + 2 + 1, 24)
    assert found["best"] == {"trial": 1, "parameters": {"lr": 0.1}, "epochs": 2, "score": 0.6}
    # Two trials to come and half of the running one at the first rung, half of the two at the second, half again.
    assert found["seconds_left"] == 10 * (2.5 * 1 + 1 * 1 + 0.5 * 2) * 2 / 2


def test_a_studys_numbers_where_each_rung_begins_at_nothing(study):
    study.plan.own_schedule = True
    found = status.snapshot(study, "running", 0)
    assert found["epochs"] == 1 + (1 + 2) + 1
    assert found["seconds_left"] == 10 * (2.5 * 1 + 1 * 2 + 0.5 * 4) * 2 / 2
    study.ledger.seconds_per_epoch = lambda: None
    assert status.snapshot(study, "running", 0)["seconds_left"] is None


def test_a_studys_table_in_words(study):
    shown = status.snapshot(study, "running", 0) | {"seconds": 3900, "running": [
        {"trial": 3, "fold": 1, "epochs": 1, "epoch": 0, "where": "here", "seconds": 200.0}]}
    assert status.status_table(shown) == [
        "running: 4 of 6 trials, 4 epochs (17% of training every trial in full), 1 h 05 min",
        "  epochs  finished  promoted  running   failed",
        "       1         3         1        1        1",
        "       2         1         0        0        0",
        "       4         0         0        0        0",
        "  trial 3 inner fold 1: epoch 0 of 1 on here, 3 min 20 s",
        "  best: trial 1, val_dice 0.6000 by epoch 2 (lr 0.1)",
        "  failed trials: 1; trials.csv has the reasons",
        "  about 45 s left"]
    assert "left" not in status.status_table(shown | {"state": "finished"})[-1]


@pytest.mark.parametrize("seconds, words", [
    (0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"),
    (7380, "2 h 03 min")])
def test_durations_in_words(seconds, words):
    assert display.minutes(seconds) == words


def test_a_driver_that_fell_silent_is_said_to_be(study, tmp_path, monkeypatch, capsys):
    shown = status.snapshot(study, "running", 0)
    (tmp_path / "status.json").write_text(json.dumps(shown))
    for age, said in ((60, False), (61, True)):
        now = shown["time"] + age
        monkeypatch.setattr(status, "time", SimpleNamespace(time=lambda now=now: now))
        assert status.show_status(tmp_path) == 0
        assert ("no update from its driver for 61 s" in capsys.readouterr().out) == said
    monkeypatch.setattr(status, "time", SimpleNamespace(time=lambda: shown["time"] - 3600))
    assert status.show_status(tmp_path) == 0
    assert "by this clock, which is 3600 s behind the driver's; run" in capsys.readouterr().out
    for other in ("[]", '{"state": "running", "time": 0}'):
        (tmp_path / "status.json").write_text(other)
        with pytest.raises(UserError, match="not what a study's driver writes; delete it"):
            status.show_status(tmp_path)
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        status.show_status(tmp_path)
    (tmp_path / "status.json").unlink()
    with pytest.raises(UserError, match=r"no status\.json"):
        status.show_status(tmp_path)


@pytest.mark.parametrize("ahead", [-5, 5, 3600])
def test_a_driver_elsewhere_whose_clock_is_ahead_is_no_proof_that_it_is_gone(tmp_path, ahead):
    written = {"state": "running", "time": time.time() + ahead, "seconds": 1.0, "metric": "val_dice", "rungs": [],
               "trials": 0, "max_trials": 1, "running": [], "waiting": 0, "epochs": 0, "epochs_if_all_in_full": 1,
               "seconds_left": None, "seconds_per_epoch": None, "inner_folds": 1, "belief": None, "failed": {},
               "best": None, "driver": {"host": "elsewhere", "pid": 7}}
    (tmp_path / "status.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="being run by process 7 on elsewhere"):
        refuse_other_host(tmp_path)
    (tmp_path / "status.json").write_text(json.dumps(written | {"time": time.time() - 61}))
    refuse_other_host(tmp_path)
    for broken in ({"rungs": [{}]}, {"time": "x"}, {"epochs_if_all_in_full": 0}, {"driver": {"pid": 7}}):
        (tmp_path / "status.json").write_text(json.dumps(written | broken))
        with pytest.raises(UserError, match="not what a study's driver writes"):
            refuse_other_host(tmp_path)

"""Every run is trained once and scored once, whatever is killed, lost or given up on the way."""

import fcntl
import json
import sys
from collections import Counter

import pytest
from stand_in_queue import ALL, FakeLauncher, run_script, what

import crossval
from meshnet.crossval import results
from meshnet.errors import Surroundings
from meshnet.files import write_json, write_text
from meshnet.recipe import load_recipes


def test_every_run_is_trained_once_and_scored_once(place, monkeypatch, capsys):
    launcher = FakeLauncher()
    assert run_script(place, monkeypatch, launcher) == 0
    assert Counter(launcher.log) == dict.fromkeys(ALL, 1)
    assert "[12/12]" in capsys.readouterr().out
    # Every fold of every model comes before any second restart.
    first = [name for kind, name in launcher.log if kind == "train"][:6]
    assert all(name.endswith("restart0") for name in first)
    runs, missing, _ = results.read_runs(place / "out")
    assert (len(runs), missing) == (12, [])
    again = FakeLauncher()
    assert run_script(place, monkeypatch, again) == 0
    assert run_script(place, monkeypatch, again, recipes=()) == 0
    assert again.log == []


def test_a_run_is_called_with_what_the_plan_says(place, monkeypatch):
    jobs = []
    launcher = FakeLauncher()
    submit = launcher.submit
    launcher.submit = lambda job: (jobs.append(job), submit(job))[1]
    run_script(place, monkeypatch, launcher, "--optimizer.lr", "0.01", "--seed", "7", recipes=("m5",))
    job = next(job for job in jobs if what(job) == ("train", "m5/fold2_restart1"))
    arguments = " ".join(job.arguments)
    out = place / "out"
    assert job.script == "train.py"
    assert arguments == (f"--recipe {out}/recipes/m5.yaml --data {place}/data --fold 2 --inner_fold 0 --seed 8 "
                         f"--run_dir {out}/runs/m5/fold2_restart1 --optimizer.lr 0.01")
    assert job.silent_after == 3600
    test = next(job for job in jobs if what(job) == ("test", "m5/fold2_restart1"))
    assert " ".join(test.arguments) == f"--test --run_dir {out}/runs/m5/fold2_restart1 --data {place}/data"
    assert load_recipes([out / "recipes/m5.yaml"]).model.channels == 5


@pytest.mark.parametrize("after", [1, 7, 20])
def test_an_interrupted_call_goes_on_where_it_stopped(place, monkeypatch, after):
    def stop(kind, name, attempt):
        if len(first.log) == after:
            raise KeyboardInterrupt
        return 0

    first, second = FakeLauncher(outcome=stop), FakeLauncher()
    with pytest.raises(KeyboardInterrupt):
        run_script(place, monkeypatch, first)
    assert first.closed == 1
    assert json.loads((place / "out/running.json").read_text()) == []
    assert run_script(place, monkeypatch, second) == 0
    finished = first.log[:-1]  # the last one was cut off
    assert Counter(finished + second.log) == dict.fromkeys(ALL, 1)


def test_processes_that_outlived_a_killed_call_are_taken_up(place, monkeypatch, capsys):
    run_script(place, monkeypatch, FakeLauncher(), recipes=("m5",), restarts="1")
    folder = place / "out/runs/m5/fold1_restart0"
    for name in ("DONE", "test_cases.csv"):
        (folder / name).unlink()
    write_json(place / "out/running.json", [["m5/fold1_restart0", "train", {"run": str(folder)}],
                                            ["m5/fold0_restart0", "train", {"run": "gone"}]])
    launcher = FakeLauncher(adoptable=[str(folder)])
    assert run_script(place, monkeypatch, launcher, recipes=()) == 0
    assert launcher.log == [("train", "m5/fold1_restart0"), ("test", "m5/fold1_restart0")]
    assert "m5/fold1_restart0: still running; adopted" in capsys.readouterr().out


def test_a_run_folder_that_a_lost_process_holds_is_waited_for(place, monkeypatch):
    run_script(place, monkeypatch, FakeLauncher(), recipes=("m5",), restarts="1")
    folder = place / "out/runs/m5/fold1_restart0"
    (folder / "DONE").unlink()
    (folder / "test_cases.csv").unlink()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits = []

        def let_go(_):
            waits.append(1)
            if len(waits) == 3:
                fcntl.flock(lock, fcntl.LOCK_UN)

        launcher = FakeLauncher()
        monkeypatch.setattr("meshnet.runs.launch.make_launcher", lambda *_: launcher)
        monkeypatch.setattr(crossval.time, "sleep", let_go)
        monkeypatch.setattr(sys, "argv", ["crossval.py", "--out", str(place / "out")])
        assert crossval.main() == 0
    assert launcher.log == [("train", "m5/fold1_restart0"), ("test", "m5/fold1_restart0")]
    assert len(waits) >= 3


@pytest.mark.parametrize(("code", "attempts"), [(2, 1), (3, 1), (-9, 3), (1, 3), (None, 3)])
def test_a_failing_run_is_given_up_and_the_others_go_on(place, monkeypatch, capsys, code, attempts):
    bad = "m6/fold1_restart0"
    launcher = FakeLauncher(outcome=lambda kind, name, attempt: code if name == bad else 0)
    write_text(place / f"out/logs/{bad}.log", "epoch 1\nerror: the loss is nan\n\n")
    assert run_script(place, monkeypatch, launcher) == 1
    assert Counter(launcher.log)["train", bad] == attempts
    assert {name for _, name in launcher.log} == {name for _, name in ALL}
    said = capsys.readouterr()
    assert f"{bad}: train failed, exit code {code}: error: the loss is nan" in said.err
    assert "missing runs: 1 (the report lists them); the first: m6, fold 1, restart 0: not started" in said.out
    _, missing, _ = results.read_runs(place / "out")
    assert missing == ["m6, fold 1, restart 0: not started"]


def test_a_run_that_is_killed_once_is_tried_again(place, monkeypatch, capsys):
    launcher = FakeLauncher(outcome=lambda kind, name, attempt: -9 if attempt == 1 else 0)
    assert run_script(place, monkeypatch, launcher, recipes=("m5",), restarts="1") == 0
    assert set(Counter(launcher.log).values()) == {2}
    assert "trying again" in capsys.readouterr().out


def test_ensembles_are_scored_after_all_their_restarts(place, monkeypatch):
    launcher = FakeLauncher(slots=20)  # room enough to start one too early
    assert run_script(place, monkeypatch, launcher, "--ensemble", recipes=("m5",)) == 0
    averaged = [i for i, (kind, _) in enumerate(launcher.log) if kind == "ensemble"]
    assert [launcher.log[i][1] for i in averaged] == [f"m5/fold{f}_ensemble2" for f in range(3)]
    for i, (_, name) in zip(averaged, (launcher.log[i] for i in averaged)):
        before = {n for kind, n in launcher.log[:i] if kind == "test"}
        assert {name.replace("ensemble2", f"restart{r}") for r in range(2)} <= before
    runs, _, _ = results.read_runs(place / "out")
    assert {run.model for run in runs} == {"m5", "m5 (ensemble)"}


def test_what_the_surroundings_end_is_tried_again_and_several_in_a_row_stop(place, monkeypatch, capsys):
    monkeypatch.setattr("meshnet.runs.jobs.PAUSES", (0, 0, 0))
    bad = "m5/fold1_restart0"
    for_a_while = FakeLauncher(outcome=lambda kind, name, attempt: 4 if name == bad and attempt < 4 else 0)
    assert run_script(place, monkeypatch, for_a_while, recipes=("m5",), restarts="1") == 0
    assert Counter(for_a_while.log)["train", bad] == 4
    assert f"{bad}: train ended, not by its own fault: the stand-in's own words" in capsys.readouterr().out
    for_ever = FakeLauncher(outcome=lambda kind, name, attempt: 4)
    with pytest.raises(Surroundings, match="found this 4 times in a row"):
        run_script(place, monkeypatch, for_ever, recipes=("m6",), restarts="1")
    assert for_ever.closed == 1
    assert run_script(place, monkeypatch, FakeLauncher(), recipes=("m6",), restarts="1") == 0

"""The ledger: what it gives back, that nothing is counted twice, and that a kill loses nothing."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from meshnet.errors import UserError
from meshnet.search.asha import Asha, Decision
from meshnet.search.ledger import Ledger, network_file_system


def play(ledger: Ledger, study: Asha, steps: int, seed: int = 0) -> None:
    """``steps`` jobs of one worker with made-up scores, every third trial failing."""
    generator = random.Random(seed)
    for _ in range(steps):
        job = study.next_decision(lambda number: {"x": number, "y": "a"})
        ledger.started(job, study)
        if job.trial % 3 == 2:
            study.fail(job.trial, "diverged")
            ledger.ended(job, None, "diverged")
        else:
            score = generator.random()
            study.report(job.trial, score)
            ledger.ended(job, score)


def test_a_study_rebuilt_from_the_ledger_is_the_same_study(tmp_path):
    study = Asha((1, 2, 4), 2, 50, brackets=2)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        play(ledger, study, 40)
        running = study.next_decision(lambda number: {"x": number, "y": "b"})
        ledger.started(running, study)
    again = Asha((1, 2, 4), 2, 50, brackets=2)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.rebuild(again)
    assert repr(again.trials) == repr(study.trials)
    assert again.finished == study.finished
    assert again.promoted == study.promoted
    assert again.next_decision(lambda number: {}) == study.next_decision(lambda number: {})


def test_a_second_driver_is_refused_and_told_who_holds_the_study(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite"):
        with pytest.raises(UserError, match=rf"run by process {os.getpid()} on .* since 20\d\d-"):
            Ledger(tmp_path / "ledger.sqlite")
        with pytest.raises(UserError, match="run by process"):  # another database, the same study
            Ledger(tmp_path / "other.sqlite", lock=tmp_path / "ledger.lock")
    Ledger(tmp_path / "ledger.sqlite").close()  # free again


def test_other_settings_are_refused_by_name(tmp_path):
    study = Asha((1, 2), 2, 4)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.settings({"eta": 2, "space": {"lr": "uniform(0, 1)"}})
        ledger.settings({"eta": 2, "space": {"lr": "uniform(0, 1)"}})
        play(ledger, study, 1)
        with pytest.raises(UserError, match="started with other settings: eta was 2 and is now 3; use"):
            ledger.settings({"eta": 3, "space": {"lr": "uniform(0, 1)"}})
        with pytest.raises(UserError, match="settings: metric was None and is now 'val_loss'; use"):
            ledger.settings({"eta": 2, "space": {"lr": "uniform(0, 1)"}, "metric": "val_loss"})


def test_a_slip_before_the_first_trial_or_score_binds_no_study(tmp_path):
    study = Asha((1, 2), 2, 4)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.settings({"seed": 4, "metric": "val_dcie", "direction": "max"})
        ledger.settings({"seed": 0, "metric": "val_dcie", "direction": "max"})
        job = study.next_decision(lambda number: {"x": 1})
        ledger.started(job, study)
        ledger.settings({"seed": 0, "metric": "val_loss", "direction": "min"})
        with pytest.raises(UserError, match="seed was 0 and is now 4"):
            ledger.settings({"seed": 4, "metric": "val_loss", "direction": "min"})
        ledger.ended(job, 0.5)
        with pytest.raises(UserError, match="metric was 'val_loss' and is now 'val_dice'"):
            ledger.settings({"seed": 0, "metric": "val_dice", "direction": "min"})


@pytest.fixture
def begun(tmp_path):
    study = Asha((1, 2), 2, 4)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        job = study.next_decision(lambda number: {"x": 1})
        ledger.started(job, study)
        yield ledger, study, job


def test_scores_come_once_and_must_come_back_the_same(begun):
    ledger, _, _ = begun
    ledger.record_scores(0, 0, 4, [(1, 0.1 + 0.2, 9.0)])
    ledger.record_scores(0, 0, 4, [(1, 0.1 + 0.2, 8.0), (2, None, 9.0)])  # epoch 2 was not validated
    ledger.record_scores(0, 1, 4, [(1, 0.5, 9.0)])
    ledger.record_scores(0, 0, 4, [(1, None, 9.0)])  # a score between two validations goes when the trial goes on
    assert ledger.curves() == [(0, 0, 4, 1, 0.30000000000000004), (0, 0, 4, 2, None), (0, 1, 4, 1, 0.5)]
    with pytest.raises(UserError, match=r"trial 0, inner fold 0, epoch 1: found score 0\.3, expected 0\.3000"):
        ledger.record_scores(0, 0, 4, [(1, 0.3, 9.0)])
    with pytest.raises(sqlite3.IntegrityError):  # the table itself refuses a second row
        ledger.database.execute("INSERT INTO scores VALUES (0, 0, 4, 1, 0.9, 1)")


def test_a_decision_or_an_end_cannot_be_recorded_twice(begun):
    ledger, study, job = begun
    with pytest.raises(sqlite3.IntegrityError):
        ledger.started(job, study)
    ledger.ended(job, 0.5)
    with pytest.raises(sqlite3.IntegrityError):
        ledger.ended(job, 0.6)
    assert ledger.database.execute("SELECT score FROM events WHERE kind = 'end'").fetchall() == [(0.5,)]
    with pytest.raises(AssertionError):
        ledger.ended(job, 0.5, "diverged")


def test_attempts_are_open_until_they_end_and_failures_are_counted(begun):
    ledger, _, job = begun
    first = ledger.attempt(job, 0, "here slot 0", {"pid": 7})
    second = ledger.attempt(job, 1, "here slot 1", {"pid": 8})
    assert ledger.open_attempts() == [(first, 0, 0, 0, {"pid": 7}), (second, 0, 0, 1, {"pid": 8})]
    assert ledger.failures(job, 0, ()) == 0
    ledger.attempt_ended(first, "killed by SIGKILL")
    assert ledger.open_attempts() == [(second, 0, 0, 1, {"pid": 8})]
    assert (ledger.failures(job, 0, ()), ledger.failures(job, 1, ())) == (1, 0)
    assert ledger.failures(job, 0, ("killed by SIGKILL",)) == 0
    ledger.attempt_ended(ledger.attempt(job, 0, "here slot 0", {}), "")  # did its work: no failure
    assert ledger.failures(job, 0, ()) == 1


def test_export_by_hand(begun):
    ledger, study, job = begun
    ledger.attempt_ended(ledger.attempt(job, 0, "a slot 0", {}), "killed by SIGKILL")
    ledger.attempt_ended(ledger.attempt(job, 0, "b slot 1", {}), "")
    ledger.ended(job, 0.25)
    study.report(0, 0.25)
    second = study.next_decision(lambda number: {"x": 2})
    ledger.started(second, study)
    ledger.ended(second, None, "out of memory")
    study.fail(1, "out of memory")
    ledger.started(study.next_decision(lambda number: {}), study)  # trial 0 goes up
    assert ledger.export().splitlines() == [
        "trial,x,bracket,rung,state,score_rung_0,attempts,where,reason",
        '0,1,0,1,running,0.25,2,"a slot 0,b slot 1",',
        "1,2,0,0,failed,,0,,out of memory",
    ]
    ledger.ended(Decision(0, 1, 2, 1), 0.5)
    for over, state in ((False, "paused"), (True, "finished")):
        assert f"0,1,0,1,{state},0.25,0.5," in ledger.export(over) and "1,2,0,0,failed" in ledger.export(over)


def test_the_file_system_of_a_ledger(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text("a / ext4 rw 0 0\nb:/home /data nfs4 rw 0 0\nc /data/local xfs rw 0 0\n")
    kinds = {path: network_file_system(Path(path), mounts) for path in ("/x", "/data/s", "/data/local/s")}
    assert kinds == {"/x": "", "/data/s": "nfs4", "/data/local/s": ""}
    monkeypatch.setattr("meshnet.search.ledger.network_file_system", lambda path: "nfs4")
    with pytest.raises(UserError, match="--ledger"):
        Ledger(tmp_path / "ledger.sqlite")


WRITER = """
    import pathlib, sys
    from meshnet.search.asha import Asha
    from meshnet.search.ledger import Ledger
    study = Asha((1, 2, 4), 2, 100_000)
    with Ledger(sys.argv[1]) as ledger:
        ledger.rebuild(study)
        print("begun", flush=True)
        for job in iter(lambda: study.next_decision(lambda number: {"x": number}), None):
            ledger.started(job, study)
            study.report(job.trial, job.trial % 7 / 7)
            ledger.ended(job, job.trial % 7 / 7)
            print("ended", job.trial, job.rung, flush=True)
"""


@pytest.mark.kills
def test_a_writer_shot_at_any_moment_loses_nothing_it_had_said(tmp_path, root):
    """SIGKILL during transactions, again and again: what was printed is recorded, once, and in a lawful order."""
    script = tmp_path / "writer.py"
    script.write_text(textwrap.dedent(WRITER))
    generator, said = random.Random(1), []
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, script, tmp_path / "ledger.sqlite"], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert process.stdout.readline() == "begun\n"
        time.sleep(generator.uniform(0.05, 0.3))
        process.send_signal(signal.SIGKILL)
        lines = process.stdout.read().splitlines()
        process.wait()
        said += [tuple(map(int, line.split()[1:])) for line in lines if line.count(" ") == 2]
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            ends = ledger.database.execute("SELECT trial, rung FROM events WHERE kind = 'end'").fetchall()
            # a job that was decided but not ended is what a driver requeues; here it simply ends
            study = Asha((1, 2, 4), 2, 100_000)
            ledger.rebuild(study)
            for trial in [trial for trial in study.trials if trial.running]:
                job = study.current_decision(trial.number)
                study.report(trial.number, trial.number % 7 / 7)
                ledger.ended(job, trial.number % 7 / 7)
                said.append((trial.number, job.rung))
        assert set(said) - set(ends) <= {said[-1]}
        assert len(ends) == len(set(ends))
    assert len(said) > 20


def test_a_decision_is_recorded_in_as_many_steps_with_ten_thousand_trials_as_with_ten(tmp_path):
    """A trial begun and a trial promoted, in SQLite's own instructions: nothing reads the whole of a table."""
    study = Asha((15, 22, 33, 50), 3, 20_000)

    def next_one(ledger, promoted):
        """Decide until a trial is promoted, or begun, and record that."""
        while True:
            job = study.next_decision(lambda number: {"x": number})
            if (job.rung > 0) == promoted:
                break
            fill(ledger, job)
        steps, statements = [], []
        ledger.database.set_progress_handler(lambda: steps.append(1), 1)
        ledger.database.set_trace_callback(statements.append)
        ledger.started(job, study)
        ledger.database.set_progress_handler(None, 1)
        ledger.database.set_trace_callback(None)
        study.report(job.trial, job.trial % 7 / 7)
        return len(steps), len(statements)

    def fill(ledger, job):
        ledger.database.execute("INSERT OR REPLACE INTO trials VALUES (?, ?, 0, ?, 'paused', '')",
                                (job.trial, json.dumps({"x": job.trial}), job.rung))
        ledger.database.execute("INSERT INTO events (kind, trial, rung, time) VALUES (?, ?, ?, 0)",
                                ("promote" if job.rung else "start", job.trial, job.rung))
        study.report(job.trial, job.trial % 7 / 7)

    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.database.execute("PRAGMA synchronous=OFF")
        found = []
        for trials in (10, 10_000):
            ledger.database.execute("BEGIN")
            while len(study.trials) < trials:
                fill(ledger, study.next_decision(lambda number: {"x": number}))
            ledger.database.execute("COMMIT")
            found.append([next_one(ledger, promoted) for promoted in (False, True)])
    assert found[0] == found[1]
    assert all(0 < instructions < 200 and statements == 4 for instructions, statements in found[1])


def test_a_file_that_is_no_ledger_is_one_line_and_left_as_it_was(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"something else, longer than a header of SQLite" * 100)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"ledger\.sqlite: file is not a database; expected the ledger of a study"):
        Ledger(path)
    assert path.read_bytes() == before


def test_a_damaged_ledger_is_one_line(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        play(ledger, Asha((1, 2), 2, 500), 40)
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 40_000)
    with pytest.raises(UserError, match=r"ledger\.sqlite: .*; expected the ledger"), Ledger(path) as ledger:
        ledger.rebuild(Asha((1, 2), 2, 500))


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """SQLite's own limit of pages stands for the disk."""
    path, study, again = tmp_path / "ledger.sqlite", Asha((1, 2, 4), 2, 5000), Asha((1, 2, 4), 2, 5000)
    with Ledger(path) as ledger:
        ((pages,),) = ledger.database.execute("PRAGMA page_count")
        ledger.database.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(UserError, match=r"ledger\.sqlite: database or disk is full; .* run the same command again"):
            play(ledger, study, 2000)
    with Ledger(path) as ledger:  # there is room again
        ledger.rebuild(again)
        known = len(study.trials) - 1
        assert known > 10
        assert repr(again.trials[:known]) == repr(study.trials[:known])
        play(ledger, again, 5)

"""Jobs: what their ends mean, and the command that starts them."""

import json
import os
from types import SimpleNamespace

import pytest

from meshnet.errors import Surroundings
from meshnet.runs import jobs
from meshnet.runs.jobs import DIVERGED, USER_ERROR, describe_exit, is_retried
from meshnet.runs.launch import make_launcher


def test_describe():
    assert [describe_exit(code) for code in (0, 2, 137, -15, None)] == [
        "", "exit code 2", "killed by SIGKILL", "killed by SIGTERM", "ended, exit code unknown",
    ]


@pytest.mark.parametrize(("code", "failures", "retries", "again"), [
    (-9, 1, 2, True), (-9, 2, 2, True), (-9, 3, 2, False),  # killed: three attempts in all
    (None, 1, 2, True), (1, 2, 2, True), (1, 3, 2, False),
    (USER_ERROR, 1, 2, False), (DIVERGED, 1, 2, False),  # would end the same way
    (-9, 1, 0, False), (0, 1, 1, True),  # 0: ended without a result
])
def test_which_ends_are_tried_again(code, failures, retries, again):
    assert is_retried(code, failures, retries) == again
    assert is_retried(code, failures, retries, hopeless=()) == (failures <= retries)


def test_a_silent_job_is_killed_and_a_beating_one_is_not(job, monkeypatch):
    """By the driver's own clock, whatever the stamp of the heartbeat says."""
    clock = [0.0]
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    launcher = make_launcher("local", workers=2)
    beating, silent = (launcher.submit(job(name, "import time; time.sleep(600)", silent_after=60))
                       for name in ("beating", "silent"))
    clock[0] = 60
    assert launcher.poll() == []
    (beating.job.run_dir / "heartbeat").touch()
    clock[0] = 61
    (end,) = launcher.poll()
    assert end.handle is silent and (end.code, end.reason, end.seconds) == (None, "silent for 60 s", 61)
    for beat in range(5):
        clock[0] += 60
        os.utime(beating.job.run_dir / "heartbeat", (beat, beat))
        assert launcher.poll() == []
    clock[0] += 61
    assert [end.handle for end in launcher.poll()] == [beating] and launcher.free() == 2


def ended(tmp_path, code, output=""):
    job = jobs.Job("train.py", (), tmp_path / "run", tmp_path / "log")
    return jobs.Ended(SimpleNamespace(job=job, output=lambda most=0: output), code, "", 1.0)


@pytest.mark.parametrize(("code", "output", "line"), [
    (4, "epoch 1\nerror: data/a: found no prepared.json\n", "data/a: found no prepared.json"),
    (4, "", "exit code 4 without a word"),
    (1, "OSError: [Errno 28] No space left on device: 'x'", "No space left on device"),
    (2, "error: a.pt: No space left on device", "a.pt: No space left on device"),
    (-7, "epoch 1", "killed by SIGBUS"),
    (2, "error: --fold: found 9", ""), (3, "No space", ""), (5, "error: out of memory", ""), (1, "ValueError", ""),
    (-9, "", ""), (None, "", ""), (0, "No space left on device", ""),
])
def test_what_is_the_surroundings_fault_and_what_may_be_the_runs(tmp_path, code, output, line):
    found = jobs.surroundings_of(ended(tmp_path, code, output))
    assert line in found and bool(line) == bool(found) and not list((tmp_path / "run").glob("*"))


def test_a_run_folder_that_cannot_be_made_is_asked_about(tmp_path):
    (tmp_path / "run").write_text("a file where the share was")
    assert str(tmp_path / "run") in jobs.surroundings_of(ended(tmp_path, 1))


@pytest.mark.parametrize(("output", "code"), [
    ("subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 4.", 4),
    ("  exitcode  : -15 (pid: 6)\n  exitcode  : 3 (pid: 5)", 3),
    ("died with <Signals.SIGBUS: 7>.", -7), ("Traceback", 1),
])
def test_the_exit_code_behind_accelerate_launch(output, code):
    assert jobs.inner_code(1, output) == code and jobs.inner_code(2, output) == 2


def test_trouble_of_runs_that_ran_together_counts_once_and_several_in_a_row_stop(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    trouble = jobs.Trouble((2, 8))
    assert trouble.add(50, "away") == 2 and trouble.waits()
    now[0] = 101
    assert trouble.add(51, "away") == 1 and trouble.count == 1  # it ran beside the first
    now[0] = 103
    assert not trouble.waits() and trouble.add(102.5, "away") == 8
    trouble.over()
    now[0] = 120
    assert trouble.add(115, "away") == 2
    now[0] = 130
    trouble.add(125, "away")
    now[0] = 150
    with pytest.raises(Surroundings, match=r"^away; found this 3 times in a row, .* the same command goes on"):
        trouble.add(145, "away")


@pytest.mark.parametrize(("code", "left", "output", "expected"), [
    (0, {"code": 3, "line": "error: old"}, "", (0, "")),
    (1, {"code": 3, "line": "error: the loss is nan"}, "exitcode : 1 (pid: 5)", (3, "the loss is nan")),
    (None, {"code": 2, "line": "error: --fold"}, "", (2, "--fold")),  # adopted: its exit code went to init
    (1, {"code": 1, "line": "RuntimeError: closed"}, "exitcode : -7 (pid: 5)\nexitcode : 143 (pid: 6)",
     (-7, "RuntimeError: closed")),
    (1, {"code": 1, "line": "ValueError: seven"}, "exitcode : 4 (pid: 5)", (1, "ValueError: seven")),
    (1, {"code": 1, "line": "ValueError: seven"}, "exitcode : -15 (pid: 5)", (1, "ValueError: seven")),
    (-9, {"code": 3, "line": "error: nan"}, "", (-9, "nan")), (2, None, "a\nerror: --fold\nb\n", (2, "--fold")),
    (1, None, "ValueError: seven\n", (1, "ValueError: seven")), (None, None, "", (None, "")),
    (1, "cut off by a full di", "error: full\nexitcode : 4 (pid: 5)", (4, "full")),
])
def test_which_process_of_a_job_counts(tmp_path, code, left, output, expected):
    if left:
        (tmp_path / jobs.WORD_FILE).write_text(left if isinstance(left, str) else json.dumps(left))
    handle = SimpleNamespace(job=SimpleNamespace(run_dir=tmp_path), output=lambda most: output)
    assert jobs.cause_of(handle, code) == expected

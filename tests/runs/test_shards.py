"""One command as several jobs: killed ones are made up for, each item is done once, and the end is written once."""

import argparse
import json
import os
import signal
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest

from meshnet.display import Live
from meshnet.errors import UserError
from meshnet.runs import shards
from meshnet.runs.jobs import Ended, Launcher
from meshnet.runs.launch import make_launcher
from meshnet.runs.place import SHARD, place
from meshnet.runs.shards import Shards, drives

WORKER = """
    import sys, time
    sys.path.insert(0, {root!r})
    from pathlib import Path
    from meshnet.errors import UserError, run_script
    from meshnet.runs import place, shares
    shares.POLL = 0.05

    def main():
        folder, kind, here = Path("."), sys.argv[1], place.place()
        if kind == "wrong":
            raise UserError("--flag: found a mistake")
        claims = shares.Claims(folder / "claims")
        share = shares.Share([f"n{{i:02d}}" for i in range(20)], here, claims, lambda n: (folder / n).exists())
        while (name := share.take()) or share.wait():
            if not name:
                continue
            if kind == "hangs" and not (folder / "go").exists():
                print("took", flush=True)
                time.sleep(60)
            with open(folder / "log", "a") as log:
                log.write(name + "\\n")
            print(f"{{name}} done")
            print("error: n07: broken", file=sys.stderr) if name == "n07" else None
            (folder / name).touch()
            share.finished(name)
        if share.is_last("all"):
            print("a table of 20")
            share.wrote("all", failed=True)
        claims.close()
    run_script(main)
"""


@pytest.fixture
def begin(tmp_path, root, monkeypatch):
    """Makes the shards of a command; the local launcher's jobs are ended after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "LOOK_SECONDS", 0.05)
    (tmp_path / "claims").mkdir()
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER.format(root=str(root))))
    launchers = []

    def make(kind, jobs=3):
        launchers.append(make_launcher("local", jobs, 0, flag="--jobs"))
        return Shards(str(tmp_path / "worker.py"), [kind], tmp_path / "jobs", launchers[-1], Live())

    yield make
    for launcher in launchers:
        launcher.close()


def run(command, until=lambda: False, seconds=60):
    deadline = time.monotonic() + seconds
    while command.step() and not until():
        command.show()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_job_and_a_killed_driver_cost_nothing(begin, tmp_path, capfd):
    first = begin("hangs")
    took = lambda: len(list((tmp_path / "claims").glob("*.claim"))) == 3
    run(first, took)
    (tmp_path / "go").touch()
    os.kill(first.handles[1].pid, signal.SIGKILL)
    run(first, lambda: 1 in first.attempts)
    left = {index: handle.pid for index, handle in first.handles.items()}
    first.launcher.handles.clear()  # this driver is gone, with no word to its jobs

    second = begin("hangs")
    second.adopt()
    assert second.command == first.command and {i: handle.pid for i, handle in second.handles.items()} == {
        index: pid for index, pid in left.items() if index in second.handles}
    for index in (0, 2):
        os.kill(left[index], signal.SIGKILL)
    run(second)
    assert second.end() == 1  # as the one that wrote the table says
    assert sorted((tmp_path / "log").read_text().split()) == [f"n{i:02d}" for i in range(20)]
    told = [line for path in tmp_path.glob("jobs/*/metrics.jsonl") for line in shards.lines_of(path)]
    assert sorted(line["item"] for line in told if "item" in line) == [f"n{i:02d}" for i in range(20)]
    assert len([line for line in told if "total" in line]) == 3  # a job that is started again does not tell it again
    out, err = capfd.readouterr()
    assert "job 1 killed by SIGKILL; started again" in out and "jobs of an earlier call are taken over" in out
    assert out.rstrip().endswith("a table of 20") and out.count("a table of 20") == 1
    assert 1 <= err.count("error: n07: broken") <= 2 and "n06 done" not in out  # once by each driver at most
    assert list((tmp_path / "claims").glob("*.claim")) == []


def test_a_mistake_in_the_command_ends_all_jobs_with_its_line(begin):
    command = begin("wrong")
    command.adopt()
    with pytest.raises(UserError, match="--flag: found a mistake"):
        run(command)


class Played(Launcher):
    """A launcher whose jobs end as a test says; those of ``queue`` wait."""

    def __init__(self, slots):
        super().__init__(slots)
        self.ends, self.queue, self.killed = {}, set(), []

    def _start(self, handle):
        handle.host = "played"

    def _look(self, handle):
        number = int(handle.job.run_dir.name)
        return (self.ends.pop(number), True) if number in self.ends else (None, False)

    def _stop(self, handle, patience):
        self.killed.append(int(handle.job.run_dir.name))

    def adopt(self, job, identity):
        return None

    def waits_for(self, handle):
        return int(handle.job.run_dir.name) in self.queue


def played(tmp_path, jobs=3):
    return Shards("infer.py", ["scans"], tmp_path / "jobs", Played(jobs), Live())


def says(command, index, *lines):
    with open(command.run_dir(index) / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_jobs_that_still_wait_when_all_is_done_are_cancelled(tmp_path, capsys):
    command = played(tmp_path)
    command.step()
    says(command, 0, {"total": 2, "done": 0}, {"item": "a"}, {"item": "b"}, {"merges": -1}, {"wrote": 0})
    says(command, 2, {"total": 2, "done": 0})  # it ran, was preempted, and is in the queue again
    command.launcher.queue, command.launcher.ends = {2}, {0: 0}
    assert not command.step()
    assert sorted(command.launcher.killed) == [1, 2] and command.end() == 0


def test_a_table_that_nobody_wrote_is_written_by_a_job_that_is_started_again(tmp_path):
    command = played(tmp_path, 2)
    command.step()
    says(command, 0, {"total": 1, "done": 0}, {"item": "a"})
    says(command, 1, {"total": 1, "done": 0}, {"merges": 0})
    command.launcher.ends = {0: 0, 1: -9}
    assert command.step() and list(command.handles) == [0]
    command.launcher.ends = {0: 1}
    assert command.step() and not command.handles  # its claim looked alive: a moment later
    command.again -= shards.AGAIN_SECONDS
    command.step()
    says(command, 0, {"merges": -1}, {"wrote": 1})
    command.launcher.ends = {0: 0}
    assert not command.step() and command.end() == 1


def test_a_job_that_fails_without_getting_on_is_given_up_and_the_others_do_its_part(tmp_path, capsys):
    command = played(tmp_path, 2)
    command.step()
    says(command, 1, {"total": 9, "done": 0})
    for code in (-9, -9, 5, -9):
        says(command, 0, {"item": f"a{code}"}) if code == 5 else None  # it got on: counted anew
        command.launcher.ends = {0: code}
        command.step()
        assert 0 in command.handles
    for _ in range(2):
        command.launcher.ends = {0: -9}
        command.step()
    assert list(command.given_up) == [0] and "job 0 is given up" in capsys.readouterr().err
    command.launcher.ends = {1: 2}  # a node without the data: the command itself is right, since others have begun
    assert not command.step()
    with pytest.raises(UserError, match="all 2 jobs failed"):
        command.end()


def test_time_left_is_of_all_jobs_and_begins_with_the_first_look(tmp_path, monkeypatch):
    command, told = played(tmp_path, 2), []
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(shards.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(command.live, "show", told.append)
    command.step()
    command.show()
    says(command, 0, {"total": 40, "done": 10})
    clock.now += 10
    command.show()
    says(command, 0, {"item": "a"}, {"item": "b"})
    says(command, 1, {"total": 40, "done": 11}, {"item": "b"}, {"item": "c"})  # one was done twice
    clock.now += 30
    command.show()
    assert told == ["2 jobs are waiting or starting", "10 of 40 scans done, 1 of 2 jobs at work",
                    "13 of 40 scans done, 2 of 2 jobs at work, about 4 min 30 s left"]


def test_flags_without_a_launcher_are_refused_and_a_job_is_no_driver(monkeypatch):
    given = argparse.Namespace(launcher=None, jobs=2, slurm=None, ray_address=None)
    with pytest.raises(UserError, match="--jobs: found without --launcher"):
        drives(given)
    given.launcher = "local"
    assert drives(given)
    monkeypatch.setenv(SHARD, json.dumps({"index": 1, "count": 4, "command": "c", "lines": "f"}))
    assert not drives(given) and (place().index, place().count, place().shared) == (1, 4, True)
    for wrong in ('{"index": "1", "count": 4}', '{"index": 4, "count": 4}', '{"index": 0, "count": 1, "command": 7}'):
        monkeypatch.setenv(SHARD, wrong)
        with pytest.raises(UserError, match="MESHNET_SHARD: found"):
            place()
    monkeypatch.setenv(SHARD, "1/4")
    with pytest.raises(UserError, match=r"MESHNET_SHARD: found '1/4'"):
        place()


@pytest.mark.slow
def test_infer_and_prepare_by_jobs_of_this_machine(root, model, tmp_path):
    import subprocess

    from bright import scan_file

    (tmp_path / "scans").mkdir()
    for i in range(6):
        scan_file(tmp_path / "scans" / f"s{i}.nii.gz")
    (tmp_path / "scans" / "s3.nii.gz").write_bytes(b"broken")
    call = lambda *words: subprocess.run([sys.executable, *map(str, words)], cwd=tmp_path, text=True, check=False,
                                         capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    jobs = ("--launcher", "local", "--jobs", 2)
    found = call(root / "infer.py", "scans", "-o", "masks", "--model", model, "--report", *jobs)
    assert found.returncode == 1 and found.stderr.count("error: ") == 1 and "s3.nii.gz" in found.stderr
    assert found.stdout == "masks/lesions.csv: 5 scans, 1 failed\nmasks/report.html: the page of 5 scans\n"
    assert len(list((tmp_path / "masks").glob("*_lesion.nii.gz"))) == 5
    one = call(root / "infer.py", "scans/s0.nii.gz", "-o", "one", "--model", model, *jobs)
    assert (one.returncode, one.stdout) == (0, "one/lesions.csv: 1 scan, 0 failed\n")
    wrong = call(root / "infer.py", "scans", "-o", "masks", "--model", "none", *jobs)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1 and "found no such model" in wrong.stderr

    flags = ("--format", "synthetic", "--cases", 6, "--voxel_mm", 8, "--workers", 1, "--out")
    assert call(root / "prepare.py", *flags, "alone").returncode == 0
    shared = call(root / "prepare.py", *flags, "shared", *jobs)
    assert shared.returncode == 0 and "shared: 6 cases, " in shared.stdout, shared.stdout + shared.stderr
    for path in (tmp_path / "alone").rglob("*"):
        if path.is_file():
            assert (tmp_path / "shared" / path.relative_to(tmp_path / "alone")).read_bytes() == path.read_bytes()


def test_an_ended_job_of_an_unknown_code_is_looked_at_again(tmp_path):
    """Of a job that an earlier driver started nobody has the exit code."""
    command = played(tmp_path, 1)
    command.step()
    handle = command.handles.pop(0)
    command.launcher.handles.clear()
    command.collect(0, Ended(handle, None, "ended, exit code unknown", 1.0))
    assert not command.given_up and command.step() and list(command.handles) == [0]

"""Runs as jobs of SLURM, whose commands are stood in for: what a cluster does to jobs, and what is made of it.

tests/scripts/test_slurm.py does the same with real daemons.
"""

import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from stand_in import wait_for

from meshnet.errors import OUT_OF_MEMORY, UserError
from meshnet.runs import slurm, slurm_calls
from meshnet.runs.jobs import Job
from meshnet.runs.launch import make_launcher
from meshnet.runs.slurm import SlurmLauncher
from meshnet.runs.slurm_calls import gpus_of, minutes_of, parse_options

RUN = """
import os, pathlib, signal, sys, time
folder, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
with open(folder / "metrics.jsonl", "a") as file:
    file.write("{}\\n") if kind != "idle" else None
if (folder / "again").exists() or kind == "quick":
    print("done"); sys.exit(0)
(folder / "again").touch() if kind != "idle" else None
if kind == "fails":
    sys.exit(3)
if kind == "usr1":
    signal.signal(signal.SIGUSR1, lambda *_: sys.exit(138))
print("begun", flush=True)
time.sleep(60)
"""


class StandIn:
    """SLURM's commands, as functions: jobs are bash processes on this machine."""

    def __init__(self):
        self.jobs: dict[int, dict] = {}
        self.calls: list[str] = []
        self.busy, self.down, self.forgets = 0, False, False
        self.refusal = "Batch job submission failed: Resource temporarily unavailable"

    def __call__(self, words, environment=None):
        self.calls.append(words[0])
        if self.down:
            return 1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"
        return getattr(self, words[0])(list(words[1:]), environment)

    def sbatch(self, words, environment):
        if self.busy:
            self.busy -= 1
            return 1, "", f"sbatch: error: {self.refusal}"
        text = Path(words[-1]).read_text()
        if "partition=none" in text:
            return 1, "", "sbatch: error: invalid partition specified: none"
        number = len(self.jobs) + 1
        self.jobs[number] = {"script": words[-1], "environment": environment, "text": text, "restarts": 0}
        self.run(number)
        return 0, f"{number}\n", ""

    def run(self, number):
        job = self.jobs[number]
        log = re.search(r"--output=\"?([^\"\n]+)", job["text"])[1]
        with open(log, "ab") as output:
            job["process"] = subprocess.Popen(["bash", job["script"]], start_new_session=True, stdout=output, env={
                **job["environment"], "SLURM_JOB_ID": str(number), "SLURM_RESTART_COUNT": str(job["restarts"])})
        job["state"] = "RUNNING"

    def end(self, number, state, by=signal.SIGTERM):
        """End a job as SLURM does: all its processes are signalled."""
        job = self.jobs[number]
        os.killpg(job["process"].pid, by)
        job["process"].wait(10)
        job["state"] = state

    def squeue(self, words, _):
        for job in self.jobs.values():
            if job["state"] == "RUNNING" and job["process"].poll() is not None:
                job["state"] = "FAILED" if job["process"].returncode else "COMPLETED"
        return 0, "".join(f"{number}|{job['state']}|None\n" for number, job in self.jobs.items()
                          if not (self.forgets and job["state"] in slurm_calls.OVER)), ""

    def scancel(self, words, _):
        for word in words:
            self.end(int(word), "CANCELLED")
        return 0, "", ""

    def sacct(self, words, _):
        return 1, "", "Slurm accounting storage is disabled"

    def scontrol(self, words, _):
        if self.forgets:
            return 1, "", "Invalid job id specified"
        job = self.jobs[int(words[-1])]
        return 0, f"JobId={words[-1]} JobState={job['state']} Reason=None ExitCode={job.get('code', '0:0')}", ""


@pytest.fixture
def cluster(monkeypatch):
    found = StandIn()
    monkeypatch.setattr(slurm, "command_of", found)
    monkeypatch.setattr(slurm_calls, "command_of", found)
    monkeypatch.setattr(slurm, "SQUEUE_SECONDS", 0.05)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
    yield found
    for job in found.jobs.values():
        if job["process"].poll() is None:
            os.killpg(job["process"].pid, signal.SIGKILL)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "run.py").write_text(RUN)
    return tmp_path


def launch(said, workers=2, options="partition=gpu,time=4:00:00"):
    return SlurmLauncher(workers, 0, None, options, said.append)


def job(place, kind, silent_after=0.0):
    folder = place / kind
    return Job(str(place / "run.py"), (str(folder), kind), folder, folder / "output.log", silent_after)


def ended(launcher, seconds=20):
    found = []
    wait_for(lambda: found.extend(launcher.poll()) or found, seconds, 0.01)
    return found[0]


def begun(place, kind):
    wait_for(lambda: (place / kind / "output.log").exists() and "begun" in (place / kind / "output.log").read_text())


def test_the_script_says_what_sbatch_needs_and_ends_are_seen_in_files(cluster, place, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")  # of the job that the driver itself may be in
    monkeypatch.setattr(slurm, "SQUEUE_SECONDS", 1000.0)
    launcher = launch([])
    launcher.submit(job(place, "quick"))
    text = (place / "quick" / ".slurm.sh").read_text()
    for line in ("--partition=gpu", "--time=4:00:00", "--open-mode=append", "--dependency=singleton", "--requeue",
                 "--signal=B:USR1@120", f"--output={place}/quick/output.log"):
        assert f"#SBATCH {line}\n" in text
    assert re.search(r"--job-name=meshnet-[0-9a-f]{32}\n", text)
    assert "SLURM_JOB_ID" not in cluster.jobs[1]["environment"]
    one = ended(launcher)
    assert (one.code, one.reason) == (0, "")
    (place / "fails").mkdir()
    (place / "away from home").mkdir()
    placed = replace(job(place, "fails"), folder=place / "away from home", variables=(("SHARD", "3"),))
    launcher.submit(placed)
    assert f"\ncd '{place}/away from home' || exit 4\n" in (place / "fails" / ".slurm.sh").read_text()
    assert cluster.jobs[2]["environment"]["SHARD"] == "3"
    assert ended(launcher).code == 3
    assert cluster.calls.count("squeue") <= 1  # a half minute has not passed


@pytest.mark.parametrize(("state", "by", "words"), [
    ("TIMEOUT", signal.SIGTERM, "reached its time limit"), ("CANCELLED", signal.SIGTERM, "was cancelled"),
    ("PREEMPTED", signal.SIGKILL, "was preempted"), ("NODE_FAIL", signal.SIGKILL, "lost its node")])
def test_what_the_scheduler_did_is_no_fault_of_the_run(cluster, place, state, by, words):
    said = []
    launcher = launch(said)
    launcher.submit(job(place, "long"))
    begun(place, "long")
    cluster.end(1, state, by)
    assert ended(launcher).code == 0 and list(cluster.jobs) == [1, 2]  # the second goes on, and is done
    assert any(f"job 1 {words}; goes on from its last resume point as job 2" in line for line in said)


def test_a_requeued_job_is_waited_for_under_its_number(cluster, place):
    launcher = launch([])
    handle = launcher.submit(job(place, "long", silent_after=60))
    begun(place, "long")
    wait_for(lambda: launcher.poll() == [] and not launcher.waits)
    cluster.end(1, "PENDING")
    wait_for(lambda: launcher.poll() == [] and launcher.waits)
    handle.beat_seen -= 100  # in the queue it needs no heartbeat
    assert launcher.poll() == []
    cluster.jobs[1]["restarts"] = 1
    cluster.run(1)
    assert ended(launcher).code == 0 and list(cluster.jobs) == [1]


def test_a_signal_before_the_time_limit_reaches_the_run(cluster, place):
    said = []
    launcher = launch(said)
    launcher.submit(job(place, "usr1"))
    begun(place, "usr1")
    os.kill(cluster.jobs[1]["process"].pid, signal.SIGUSR1)  # as --signal=B: does
    assert ended(launcher).code == 0 and list(cluster.jobs) == [1, 2]
    assert "job 1 was asked to end; goes on" in said[0]


def test_a_run_that_never_gets_on_fails_in_the_end(cluster, place):
    said = []
    launcher = launch(said)
    launcher.submit(job(place, "idle"))
    for number in (1, 2, 3, 4):
        wait_for(lambda number=number: launcher.poll() == [] and number in cluster.jobs)
        cluster.end(number, "TIMEOUT", signal.SIGKILL)
    assert ended(launcher).code is None and "4 times without a step" in said[-1] and len(cluster.jobs) == 4


def test_memory_and_faults_of_the_run_are_its_own(cluster, place):
    launcher = launch([])
    launcher.submit(job(place, "long"))
    begun(place, "long")
    cluster.end(1, "OUT_OF_MEMORY", signal.SIGKILL)
    assert ended(launcher).code == OUT_OF_MEMORY
    (place / "long" / "again").unlink()
    launcher.submit(job(place, "long"))
    begun(place, "long")
    wait_for(lambda: cluster.jobs[2]["process"].poll() is None)
    cluster.jobs[2]["code"] = "0:9"
    cluster.end(2, "FAILED", signal.SIGKILL)
    assert ended(launcher).code == -9  # a signal that SLURM did not send: as anywhere else


def test_a_busy_or_restarting_cluster_is_waited_for(cluster, place):
    said, cluster.busy = [], 3
    launcher = launch(said)
    launcher.submit(job(place, "quick"))
    assert not cluster.jobs and launcher.free() == 1
    launcher.poll()
    cluster.down = True
    time.sleep(0.1)
    assert launcher.poll() == []
    cluster.down = False
    assert ended(launcher).code == 0
    assert len([line for line in said if line.startswith("sbatch: ")]) == 2  # once each, however often it was tried


POLICY = ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time "
          "limits)")


@pytest.mark.parametrize("line", [
    f"AssocMaxSubmitJobLimit sbatch: error: {POLICY}", f"QOSMaxSubmitJobPerUserLimit sbatch: error: {POLICY}", POLICY,
    "Batch job submission failed: Unable to contact slurm controller (connect failure)",
    "Batch job submission failed: Socket timed out on send/recv operation", "sbatch does not answer (TimeoutExpired)"])
def test_a_full_queue_is_waited_for_however_long(cluster, place, monkeypatch, line):
    monkeypatch.setattr(slurm, "REFUSED", 3)
    monkeypatch.setattr(slurm, "SQUEUE_SECONDS", 0.0)
    said, cluster.busy, cluster.refusal = [], 12, line
    launcher = launch(said)
    launcher.submit(job(place, "quick"))
    assert ended(launcher).code == 0 and cluster.calls.count("sbatch") == 13
    assert len(said) == 1 and said[0].endswith("waiting, tried again every 0 s")


@pytest.mark.parametrize(("line", "tries"), [
    (f"QOSMaxWallDurationPerJobLimit sbatch: error: {POLICY}", 3), ("something that nobody knows", 3),
    ("Batch job submission failed: Invalid qos specification", 1)])
def test_a_refusal_that_no_waiting_mends_ends_the_driver(cluster, place, monkeypatch, line, tries):
    monkeypatch.setattr(slurm, "REFUSED", 3)
    monkeypatch.setattr(slurm, "SQUEUE_SECONDS", 0.0)
    cluster.busy, cluster.refusal = 12, line
    launcher = launch([])
    with pytest.raises(UserError, match=f"--slurm: sbatch found sbatch: error: {line.split()[0]}"):
        launcher.submit(job(place, "quick"))
        for _ in range(12):
            launcher.poll()
    assert cluster.calls.count("sbatch") == tries


def test_slurm_is_not_asked_more_often_where_it_does_not_answer(cluster, place, monkeypatch):
    """One sbatch for all slots, and a squeue that takes its whole minute is no reason to call it again at once."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(slurm.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(slurm, "SQUEUE_SECONDS", 30.0)
    launcher, cluster.busy = launch([], workers=3), 4
    for kind in ("long", "idle", "usr1"):
        launcher.submit(job(place, kind))
    looks = []
    for _ in range(9):  # of 10 s
        looks.append(cluster.calls.count("sbatch"))
        launcher.poll()
        clock.now += 10
    assert looks == [1, 1, 1, 1, 2, 2, 2, 3, 3] and not cluster.jobs
    clock.now += 30
    launcher.poll()
    clock.now += 30
    launcher.poll()
    assert len(cluster.jobs) == 3
    answer = cluster.__call__

    def slow(words, environment=None):
        clock.now += 60 if words[0] == "squeue" else 0
        return answer(words, environment)

    cluster.down = True
    monkeypatch.setattr(slurm, "command_of", slow)
    began, before = clock.now, cluster.calls.count("squeue")
    while clock.now < began + 600:
        launcher.poll()
        clock.now += 1
    assert 6 <= cluster.calls.count("squeue") - before <= 7  # 60 s and 30 s
    assert len(cluster.jobs) == 3  # and none was taken for gone meanwhile


def test_a_job_that_slurm_has_forgotten_goes_on(cluster, place):
    said = []
    launcher = launch(said)
    launcher.submit(job(place, "long"))
    begun(place, "long")
    cluster.forgets = True
    cluster.end(1, "NODE_FAIL", signal.SIGKILL)
    assert ended(launcher).code == 0 and "SLURM does not know how it ended; goes on" in said[0]


def test_a_new_driver_takes_over_what_runs_and_what_has_ended(cluster, place):
    first = launch([])
    handles = [first.submit(job(place, "long")), first.submit(job(place, "quick"))]
    begun(place, "long")
    cluster.jobs[2]["process"].wait(20)
    second = launch([])
    adopted = [second.adopt(job(place, kind), handle.identity()) for kind, handle in zip(("long", "quick"), handles)]
    assert None not in adopted and second.free() == 0
    assert ended(second).handle is adopted[1] and len(cluster.jobs) == 2
    second.close()
    assert cluster.jobs[1]["state"] == "CANCELLED" and not second.running()
    assert second.adopt(job(place, "quick"), {**handles[1].identity(), "host": "elsewhere"}) is None


def test_wrong_flags_end_the_driver(cluster, place, monkeypatch):
    with pytest.raises(UserError, match="invalid partition specified: none"):
        launch([], options="partition=none").submit(job(place, "quick"))
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="found no sbatch"):
        make_launcher("slurm")
    with pytest.raises(UserError, match="--slurm: found beside --launcher local"):
        make_launcher("local", slurm="partition=gpu")


@pytest.mark.parametrize(("text", "found"), [
    (None, {}), ("partition=gpu,gres=gpu:a100:2,time=4:00:00", {"partition": "gpu", "gres": "gpu:a100:2",
                                                                "time": "4:00:00"}),
    ("exclusive,nodelist=n[1,2],mem=8G", {"exclusive": "", "nodelist": "n[1,2]", "mem": "8G"})])
def test_flags_of_sbatch(text, found):
    assert parse_options(text) == found


@pytest.mark.parametrize("text", ["array=1-4", "output=x", "4:00:00", "partition=a\nb"])
def test_flags_that_are_none_or_the_launchers_own_are_refused(text):
    with pytest.raises(UserError, match="--slurm: found"):
        parse_options(text)


def test_gpus_and_minutes():
    assert [gpus_of(parse_options(text)) for text in ("", "gres=gpu", "gres=gpu:2", "gres=gpu:a100:4", "gpus=h100:2",
                                                      "gpus-per-node=3")] == [0, 1, 2, 4, 2, 3]
    assert [minutes_of(text) for text in ("", "90", "1:30", "4:00:00", "1-0", "1-2:30", "2-0:0:30", "UNLIMITED")] == [
        0, 90, 1.5, 240, 1440, 1590, 2880.5, 0]

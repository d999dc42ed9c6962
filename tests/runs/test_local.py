"""Jobs on this machine, with real processes: slots, exit codes, kills, and drivers that die."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from stand_in import FAMILY, LINUX, wait_for

from meshnet.machine import usable_cores
from meshnet.runs import local, processes
from meshnet.runs.jobs import Job
from meshnet.runs.launch import make_launcher


def test_jobs_share_the_slots_and_say_how_they_ended(job):
    launcher = make_launcher("local", workers=2)
    jobs = [
        job("good", "import os; print('threads', os.environ['OMP_NUM_THREADS'])"),
        job("bad", "import sys; print('words', file=sys.stderr); sys.exit(3)"),
        job("shot", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
    ]
    work, ended, most = list(jobs), {}, 0
    while work or launcher.running():
        while work and launcher.free():
            launcher.submit(work.pop(0))
        most = max(most, len(launcher.running()))
        ended |= {end.handle.job.run_dir.name: end for end in launcher.poll()}
        time.sleep(0.01)
    assert most == 2
    assert {name: (end.code, end.reason) for name, end in ended.items()} == {
        "good": (0, ""),
        "bad": (3, "exit code 3"),
        "shot": (-9, "killed by SIGKILL"),
    }
    assert jobs[0].log.read_text() == f"threads {max(1, usable_cores() // 2)}\n"
    assert jobs[1].log.read_text() == "words\n"
    assert launcher.free() == 2


def test_each_slot_has_gpus_of_its_own(job, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7,9,11")
    launcher = make_launcher("local", gpus_per_worker=2)
    assert launcher.free() == 2  # the fifth GPU is left over
    counts = []
    bare = lambda job, gpus, _: counts.append(gpus) or [sys.executable, job.script]
    monkeypatch.setattr(local, "job_command", bare)
    submitted = [job(name, "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])") for name in "ab"]
    for one in submitted:
        launcher.submit(one)
    wait_for(lambda: [launcher.poll(), launcher.running()][1] == [])
    assert [one.log.read_text().strip() for one in submitted] == ["3,5", "7,9"]
    assert counts == [2, 2]


@LINUX
@pytest.mark.parametrize("patience", [0.0, 2.0])
def test_kill_leaves_no_descendant_behind(job, patience):
    launcher = make_launcher("local", workers=1)
    handle = launcher.submit(job("family", FAMILY))
    wait_for(lambda: handle.job.log.read_text() == "born\n")
    wait_for(lambda: len(processes.members(handle.token)) == 2)
    child = launcher.children[handle.token]
    launcher.kill(handle, patience)
    assert processes.members(handle.token) == [] and child.returncode in (-signal.SIGTERM, -signal.SIGKILL)
    assert launcher.free() == 1
    assert launcher.poll() == []


@LINUX
def test_a_shot_leaders_children_are_gone_when_its_end_is_reported(job):
    """They would go on writing to the run folder beside the next attempt."""
    launcher = make_launcher("local", workers=1)
    handle = launcher.submit(job("family", FAMILY))
    wait_for(lambda: len(processes.members(handle.token)) == 2 and handle.job.log.read_text() == "born\n")
    os.kill(handle.pid, signal.SIGKILL)
    (end,) = wait_for(launcher.poll)
    assert (end.code, end.reason) == (-9, "killed by SIGKILL")
    assert processes.members(handle.token) == []


DRIVER = """
    import json, pathlib, sys, time
    from meshnet.runs.jobs import Job
    from meshnet.runs.launch import make_launcher
    script, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    launcher = make_launcher("local", workers=2)
    handle = launcher.submit(Job(script, (), folder, folder / "log.txt"))
    print(json.dumps(handle.identity()), flush=True)
    time.sleep(60)
"""


def dead_drivers_job(tmp_path, root, code: str) -> tuple[Job, dict]:
    """Start a job from a driver, then SIGKILL the driver."""
    script, driver = tmp_path / "job.py", tmp_path / "driver.py"
    script.write_text(textwrap.dedent(code))
    driver.write_text(textwrap.dedent(DRIVER))
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, driver, script, folder], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    identity = json.loads(process.stdout.readline())
    process.kill()
    process.wait()
    return Job(str(script), (), folder, folder / "log.txt"), identity


@LINUX
def test_a_job_outlives_its_driver_and_is_taken_up_by_the_next(tmp_path, root):
    code = "import time\nwhile not __import__('os').path.exists(__file__ + '.go'): time.sleep(0.02)\nprint('end')"
    job, identity = dead_drivers_job(tmp_path, root, code)
    launcher = make_launcher("local", workers=2)
    handle = launcher.adopt(job, identity)
    assert handle is not None
    assert launcher.free() == 1
    assert launcher.poll() == []
    (tmp_path / "job.py.go").touch()
    (end,) = wait_for(launcher.poll)
    assert (end.code, end.reason) == (None, "ended, exit code unknown")  # its exit code went to init
    assert job.log.read_text() == "end\n"


@LINUX
def test_a_forgotten_process_of_the_run_folder_is_ended_before_a_new_one_starts(tmp_path, root):
    """A driver may die between starting a process and noting it down."""
    job, identity = dead_drivers_job(tmp_path, root, FAMILY)
    before = wait_for(lambda: found if len(found := processes.members(identity["token"])) == 2 else None)
    wait_for(lambda: job.log.read_text() == "born\n")  # the leader writes it after its child is there
    launcher = make_launcher("local", workers=1)
    handle = launcher.submit(job)
    after = wait_for(lambda: found if len(found := processes.members(handle.token)) == 2 else None)
    assert not set(before) & set(after)
    assert handle.log_start == len("born\n")
    wait_for(lambda: handle.output() == "born\n")
    launcher.close()


@LINUX
@pytest.mark.parametrize("why", ["no slot", "leader dead", "another process has its id"])
def test_a_job_that_cannot_be_taken_up_is_ended_whole(tmp_path, root, why):
    job, identity = dead_drivers_job(tmp_path, root, FAMILY)
    wait_for(lambda: len(processes.members(identity["token"])) == 2)
    launcher = make_launcher("local", workers=1)
    if why == "no slot":
        identity["slot"] = 1
    elif why == "leader dead":
        os.kill(identity["pid"], signal.SIGKILL)
        wait_for(lambda: not processes.alive(identity["pid"], identity["started"]))
    else:
        identity["pid"] = os.getpid()  # must not be signalled: that is this test
    assert launcher.adopt(job, identity) is None
    assert processes.members(identity["token"]) == []
    assert launcher.free() == 1


def test_a_job_on_another_host_is_left_alone(tmp_path):
    launcher = make_launcher("local", workers=1)
    pid = os.getpid()
    identity = {"token": "t", "slot": 0, "host": "elsewhere", "pid": pid, "started": processes.start_time(pid)}
    assert launcher.adopt(Job("x.py", (), tmp_path, tmp_path / "log"), identity) is None


@pytest.mark.parametrize("cores, slots, threads", [(2, 1, 2), (4, 1, 4), (8, 2, 4), (11, 2, 5)])
def test_without_gpus_there_is_a_slot_for_each_four_cores(monkeypatch, cores, slots, threads):
    monkeypatch.setattr(local, "usable_cores", lambda: cores)
    launcher = make_launcher("local")
    assert (launcher.slots, launcher.threads, launcher.gpus) == (slots, threads, [[]] * slots)
    assert make_launcher("local", workers=3).threads == max(1, cores // 3)

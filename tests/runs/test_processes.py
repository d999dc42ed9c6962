"""The guard around a command on a node: nothing outlives its parent."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from stand_in import FAMILY, LINUX, wait_for

from meshnet.runs import processes

GUARDED = """
    import os, subprocess, sys
    from meshnet.runs.processes import TOKEN
    guard = [sys.executable, "-m", "meshnet.runs.processes", str(os.getpid()), *sys.argv[2:]]
    sys.exit(subprocess.call(guard, env={**os.environ, TOKEN: sys.argv[1]}))
"""


def guarded(tmp_path, root, token, *command) -> subprocess.Popen:
    """A process that runs ``command`` under a guard, as a Ray task does."""
    parent = tmp_path / "parent.py"
    parent.write_text(textwrap.dedent(GUARDED))
    files = (tmp_path / "lock", tmp_path / "log")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen([sys.executable, parent, token, *files, *command], env=environment)


@LINUX
def test_the_guard_ends_its_command_when_its_parent_is_gone(tmp_path, root):
    """As when a cluster's worker process is lost with its node."""
    family = tmp_path / "family.py"
    family.write_text(textwrap.dedent(FAMILY))
    process = guarded(tmp_path, root, "guard-a", sys.executable, family)
    wait_for(lambda: len(processes.members("guard-a")) == 3)  # guard, family, its child
    process.kill()
    process.wait()
    wait_for(lambda: processes.members("guard-a") == [])


@LINUX
def test_a_guard_that_is_shot_takes_its_command_with_it(tmp_path, root):
    """As Ray does to the children of a worker that it ends."""
    process = guarded(tmp_path, root, "guard-d", sys.executable, "-c", "import time; time.sleep(60)")
    wait_for(lambda: len(processes.members("guard-d")) == 2 and (tmp_path / "log").exists())
    time.sleep(0.3)
    (shot,) = [pid for pid in processes.members("guard-d") if b"meshnet.runs.processes" in command_line(pid)]
    os.kill(shot, signal.SIGKILL)
    wait_for(lambda: processes.members("guard-d") == [])
    assert process.wait() != 0


def command_line(pid: int) -> bytes:
    return (processes.PROC / str(pid) / "cmdline").read_bytes()


def test_the_guard_passes_the_exit_code_on_and_waits_for_the_one_before(tmp_path, root):
    code = "import time; time.sleep(1); print('first'); exit(7)"
    first = guarded(tmp_path, root, "guard-b", sys.executable, "-c", code)
    wait_for(lambda: (tmp_path / "log").exists())
    second = guarded(tmp_path, root, "guard-c", sys.executable, "-c", "print('second')")
    assert first.wait() == 7
    assert second.wait() == 0
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


@LINUX
def test_what_a_command_leaves_behind_ends_with_it(tmp_path, root):
    code = ("import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
            "start_new_session=True); sys.exit(5)")
    process = guarded(tmp_path, root, "guard-e", sys.executable, "-c", code)
    assert process.wait() == 5
    assert processes.members("guard-e") == []


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps here")
def test_processes_are_told_apart_where_there_is_no_proc(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "PROC", tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    started = processes.start_time(process.pid)
    assert started and processes.alive(process.pid, started) and not processes.alive(process.pid, "another time")
    process.kill()
    wait_for(lambda: processes.start_time(process.pid) == "")  # a zombie
    process.wait()
    assert processes.start_time(process.pid) == "" and not processes.alive(process.pid, started)

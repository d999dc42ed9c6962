"""Runs that are forked from a process that has imported everything: the same as runs that start alone."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from stand_in import LINUX, wait_for
from training_runs import SMALL, assert_same_run

from meshnet.errors import TOKEN
from meshnet.runs import local, processes
from meshnet.runs.jobs import Job
from meshnet.runs.launch import make_launcher

pytestmark = LINUX
SCRIPT = """
    import os, sys
    LOADED = os.getpid()

    def preload():
        global LOADED
        print("never seen: the server has no output")
        os.environ["PRELOADED"] = str(os.getpid())

    if __name__ == "__main__":
        {body}
"""


@pytest.fixture
def forked(tmp_path, monkeypatch):
    """``forked(name, body)`` is a job whose script is forked; the launcher closes at the end."""
    launchers = []

    def make(name, body):
        script = tmp_path / f"{name}.py"
        body = textwrap.indent(textwrap.dedent(body), "        ").strip()
        script.write_text(textwrap.dedent(SCRIPT).replace("{body}", body.replace("\n    ", "\n")))
        monkeypatch.setattr(local, "SCRIPTS", (*local.SCRIPTS, str(script)))
        return Job(str(script), ("one", "two words"), tmp_path / name, tmp_path / f"{name}.log")

    def launcher():
        launchers.append(make_launcher("local", workers=2))
        return launchers[-1]

    yield make, launcher
    for one in launchers:
        one.close()


def only_end(launcher):
    (end,) = wait_for(launcher.poll)
    return end


def test_a_forked_run_has_arguments_output_environment_and_group_of_its_own(forked):
    make, launcher = forked
    job = make("says", """
        print(sys.argv[1:], __name__, os.getpgid(0) == os.getpid(), os.environ['MESHNET_JOB'], os.getcwd())
        print("CUDA", repr(os.environ["CUDA_VISIBLE_DEVICES"]), file=sys.stderr, flush=True)
    """)
    job.log.write_text("before\n")
    one = launcher()
    handle = one.submit(job)
    assert isinstance(one.children[handle.token], local.Forked)
    end = only_end(one)
    assert (end.code, end.reason) == (0, "")
    before, said, cuda = job.log.read_text().splitlines()
    assert before == "before" and cuda == "CUDA ''"
    assert said == f"['one', 'two words'] __main__ True {handle.token} {os.getcwd()}"


def test_proc_shows_the_runs_own_token_and_command_line(forked):
    """By the token a later driver finds what an earlier one has left, by the command line a person does."""
    make, launcher = forked
    one = launcher()
    handle = one.submit(make("waits", "import time; time.sleep(60)"))
    assert processes.members(handle.token) == [handle.pid]
    shown = Path(f"/proc/{handle.pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")
    assert shown == [sys.executable, handle.job.script, "one", "two words"]
    environment = Path(f"/proc/{handle.pid}/environ").read_bytes().split(b"\0")
    assert [entry for entry in environment if entry.startswith(TOKEN.encode())] == [
        f"{TOKEN}={handle.token}".encode()]
    one.kill(handle)
    assert processes.members(handle.token) == []


@pytest.mark.parametrize(("body", "code"), [
    ("sys.exit(3)", 3), ("raise ValueError('a fault')", 1), ("os.kill(os.getpid(), 9)", -9), ("sys.exit('words')", 1)])
def test_exit_codes_are_those_of_a_run_that_starts_alone(forked, body, code):
    make, launcher = forked
    job, one = make("ends", body), launcher()
    one.submit(job)
    assert only_end(one).code == code
    alone = subprocess.run([sys.executable, job.script], capture_output=True, text=True, check=False)
    assert alone.returncode == code
    last = job.log.read_text().splitlines()[-1:]
    assert last == alone.stderr.splitlines()[-1:]


def test_a_killed_server_loses_no_run_and_the_next_run_gets_another(forked, tmp_path):
    make, launcher = forked
    one = launcher()
    handle = one.submit(make("long", "import time\nwhile not os.path.exists(__file__ + '.go'): time.sleep(0.02)"))
    server = one.server
    server.process.kill()
    server.process.wait()
    assert one.poll() == [] and processes.alive(handle.pid, handle.started)
    (tmp_path / "long.py.go").touch()
    end = only_end(one)
    assert (end.code, end.reason) == (None, "ended, exit code unknown")
    one.submit(make("next", "sys.exit(2)"))
    assert only_end(one).code == 2 and one.server is not server


def test_a_driver_that_closes_ends_its_server_and_its_runs(forked):
    make, launcher = forked
    one = launcher()
    handle = one.submit(make("long", "import time; time.sleep(60)"))
    server = one.server.process.pid
    one.close()
    assert processes.members(handle.token) == [] and processes.start_time(server) == ""


DRIVER = """
    import pathlib, sys, time
    from meshnet.runs import local
    from meshnet.runs.jobs import Job
    local.SCRIPTS = (sys.argv[1],)
    launcher, folder = local.LocalLauncher(1, 0, None), pathlib.Path(sys.argv[2])
    handle = launcher.submit(Job(sys.argv[1], (), folder, folder / "log.txt"))
    print(handle.pid, launcher.server.process.pid, flush=True)
    time.sleep(60)
"""


def test_a_run_outlives_a_killed_driver_and_the_server_does_not(forked, tmp_path, root):
    make, _ = forked
    job = make("long", "import time; time.sleep(60)")
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVER))
    driver = subprocess.Popen([sys.executable, tmp_path / "driver.py", job.script, tmp_path / "run"],
                              stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    run, server = map(int, driver.stdout.readline().split())
    driver.kill()
    driver.wait()
    wait_for(lambda: processes.start_time(server) == "")
    assert processes.start_time(run)
    os.killpg(run, signal.SIGKILL)


def test_a_forked_training_run_has_the_bits_of_one_that_starts_alone(tiny_data, tmp_path):
    flags = [str(one) for one in ("--data", tiny_data, *SMALL, "--training.max_epochs", 2, "--model.dropout", 0.2)]
    launcher = make_launcher("local", workers=1)
    forked, alone = tmp_path / "forked", tmp_path / "alone"
    launcher.submit(Job("train.py", (*flags, "--run_dir", str(forked)), forked, tmp_path / "log.txt"))
    end = only_end(launcher)
    assert end.code == 0, end.handle.output()
    environment = {**os.environ, "OMP_NUM_THREADS": str(launcher.threads), "CUDA_VISIBLE_DEVICES": ""}
    launcher.close()
    subprocess.run([sys.executable, "train.py", *flags, "--run_dir", alone], check=True, env=environment,
                   capture_output=True)
    assert_same_run(forked, alone)

"""Launchers with real processes: slots, exit codes, heartbeats, kills, and drivers that die."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from meshnet.errors import UserError
from meshnet.machine import usable_cores
from meshnet.runs import local, processes
from meshnet.runs.cluster import check_reachable, largest_share
from meshnet.runs.jobs import Job, describe, full_command
from meshnet.runs.launch import make_launcher

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="descendants are found in /proc")


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def job(tmp_path):
    """Makes a job out of a few lines of Python; its run folder is named for it."""

    def make(name: str, code: str, **options) -> Job:
        script = tmp_path / f"{name}.py"
        script.write_text(textwrap.dedent(code))
        return Job(str(script), (str(tmp_path),), tmp_path / name, tmp_path / name / "log.txt", **options)

    return make


def wait_for(condition, seconds: float = 10):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


FAMILY = """
    import os, subprocess, sys, time
    code = "import time; time.sleep(60)"
    # a session of its own, as torchrun starts its workers: signals to the leader's group do not reach it
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    print("born", flush=True)
    time.sleep(60)
"""


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


def test_describe():
    assert [describe(code) for code in (0, 2, 137, -15, None)] == [
        "", "exit code 2", "killed by SIGKILL", "killed by SIGTERM", "ended unseen",
    ]


def test_each_slot_has_gpus_of_its_own(job, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7,9,11")
    launcher = make_launcher("local", gpus_per_worker=2)
    assert launcher.free() == 2  # the fifth GPU is left over
    counts = []
    bare = lambda job, gpus, _: counts.append(gpus) or [sys.executable, job.script]
    monkeypatch.setattr(local, "full_command", bare)
    submitted = [job(name, "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])") for name in "ab"]
    for one in submitted:
        launcher.submit(one)
    wait_for(lambda: [launcher.poll(), launcher.running()][1] == [])
    assert [one.log.read_text().strip() for one in submitted] == ["3,5", "7,9"]
    assert counts == [2, 2]


def test_gpus_mean_accelerate_launch_and_ports_of_their_own(job):
    one = job("x", "")
    assert full_command(one, 0, None) == [sys.executable, one.script, *one.arguments]
    single = full_command(one, 1, "accelerate_configs/gpu.yaml")
    assert single[1:3] == ["-m", "accelerate.commands.launch"]
    assert single[single.index("--num_processes") + 1] == "1"
    assert single[single.index("--config_file") + 1] == "accelerate_configs/gpu.yaml"
    assert "--multi_gpu" not in single
    assert single[-2:] == [one.script, *one.arguments]
    many = [full_command(one, 2, None) for _ in range(2)]
    assert all("--multi_gpu" in command for command in many)
    port = [command[command.index("--main_process_port") + 1] for command in many]
    assert all(int(number) > 0 for number in port)


def test_accelerate_launch_takes_these_flags(job):
    """The flags are accelerate's own: its parser accepts them."""
    from accelerate.commands.launch import launch_command_parser

    parsed = launch_command_parser().parse_args(full_command(job("x", ""), 2, None)[3:])
    assert (parsed.num_processes, parsed.num_machines, parsed.multi_gpu) == (2, 1, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "slurm"}, "--launcher: found 'slurm'"),
        ({"name": "local", "workers": 0}, "--workers: found 0"),
        ({"name": "local", "gpus_per_worker": -1}, "--gpus_per_worker"),
        ({"name": "local", "workers": 3, "gpus_per_worker": 1}, "expected at most 2"),
        ({"name": "local", "gpus_per_worker": 3}, "offers 2 GPUs"),
    ],
)
def test_impossible_slots_are_refused(options, words, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match=words):
        make_launcher(**options)


@LINUX
@pytest.mark.parametrize("patience", [0.0, 2.0])
def test_kill_leaves_no_descendant_behind(job, patience):
    launcher = make_launcher("local", workers=1)
    handle = launcher.submit(job("family", FAMILY))
    wait_for(lambda: handle.job.log.read_text() == "born\n")
    wait_for(lambda: len(processes.members(handle.token)) == 2)
    launcher.kill(handle, patience)
    assert processes.members(handle.token) == []
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


def test_a_silent_job_is_killed_and_a_beating_one_is_not(job):
    beating = """
        import sys, pathlib, time
        for _ in range(12):
            pathlib.Path(sys.argv[1], "beating", "heartbeat").touch()
            time.sleep(0.1)
    """
    launcher = make_launcher("local", workers=2)
    launcher.submit(job("beating", beating, silent_after=0.6))
    launcher.submit(job("silent", "import time; time.sleep(60)", silent_after=0.6))
    ended = {}
    while launcher.running():
        ended |= {end.handle.job.run_dir.name: end for end in launcher.poll()}
        time.sleep(0.02)
    assert (ended["silent"].code, ended["silent"].reason) == (None, "silent for 0.6 s")
    assert ended["silent"].seconds < 5
    assert ended["beating"].code == 0


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
    assert (end.code, end.reason) == (None, "ended unseen")  # its exit code went to init
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
    wait_for(lambda: processes.members("guard-d") == [], 5)
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


@pytest.mark.parametrize(
    ("cores", "slots", "share"),
    [([8], 2, 4), ([4, 4], 2, 4), ([1, 3], 2, 1), ([6, 3], 3, 3), ([2], 5, 1), ([], 2, 1)],
)
def test_the_cores_that_each_ray_task_can_have(cores, slots, share):
    assert largest_share(cores, slots) == share


def test_an_address_without_a_ray_cluster_is_refused_at_once():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # bound, but nobody listens
        began = time.monotonic()
        with pytest.raises(UserError, match=rf"--ray_address: found 127.0.0.1:{port}, where no Ray cluster answers"):
            check_reachable(f"127.0.0.1:{port}")
        probe.listen()
        check_reachable(f"127.0.0.1:{port}")
    assert time.monotonic() - began < 3
    with pytest.raises(UserError, match="expected HOST:PORT"):
        check_reachable("head-node")


def test_ray_missing_or_without_a_cluster_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="requirements-ray"):
        make_launcher("ray")

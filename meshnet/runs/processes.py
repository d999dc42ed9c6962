"""Processes of a job: how to find them, whether they run, and how to end all of them.

A job's leader starts a process group of its own, but launchers such as torchrun put their children into further
groups. So each job carries a token in its environment, which all its descendants inherit: on Linux they are found by
it, even after their parents died. Elsewhere only the leader's group is reached.

Run as a program, ``python -m meshnet.runs.processes PARENT LOCK LOG command ...`` is a guard: it runs the command while
the process PARENT lives, and ends it and everything it started when PARENT is gone (as when a cluster's worker is
lost).
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from meshnet.errors import TOKEN
from meshnet.files import try_lock

PROC = Path("/proc")
GUARD_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # prctl(2)


def start_time(pid: int) -> str:
    """When the process started, to tell it from a later one with the same id; "" if it is gone or a zombie."""
    if PROC.joinpath("self", "stat").exists():
        try:
            fields = PROC.joinpath(str(pid), "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return ""
        if fields[0] in "ZX":
            return ""
        boot = PROC.joinpath("sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{fields[19]}"  # field 22 of proc(5), counted after the name: ticks since boot
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # no ps, as on Windows
        return ""
    state, _, started = listed.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else started.strip()


def alive(pid: int, started: str) -> bool:
    """Whether this very process is still running."""
    return bool(started) and start_time(pid) == started


def members(token: str) -> list[int]:
    """Every living process that carries the job's token (Linux; elsewhere none are found)."""
    wanted = f"{TOKEN}={token}".encode()
    found = []
    for folder in PROC.glob("[0-9]*"):
        try:
            environment = folder.joinpath("environ").read_bytes()
        except OSError:  # it has ended, or belongs to another user
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def end_job(token: str, pid: int | None = None, patience: float = 0.0) -> None:
    """End every process of a job: SIGTERM, up to ``patience`` seconds to finish, then SIGKILL until none is left.

    ``pid``: the leader, whose process group is signalled too. It must be the job's own (see ``alive``).
    """
    if patience > 0:
        signal_all(token, pid, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and (members(token) or (pid and start_time(pid))):
            time.sleep(0.05)
    signal_all(token, pid, signal.SIGKILL)
    while left := [one for one in members(token) if one != os.getpid()]:  # a child may be born between two looks
        for one in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        time.sleep(0.02)


def signal_all(token: str, pid: int | None, number: int) -> None:
    """Send a signal to every process of a job, and to the group of its leader ``pid``."""
    if pid is not None and start_time(pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)
    for one in members(token):
        if one != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)


def die_with_parent() -> None:
    """Have Linux send this process a SIGKILL when its parent dies, which even a killed guard's command cannot miss."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def guard(parent: int, lock: str, log: str, command: list[str]) -> int:
    """Run ``command`` with its output in ``log`` while ``parent`` lives; the exit code of the command, or 1.

    ``lock`` is held meanwhile, by the command too: a second guard of the same run folder waits until it is over, even
    where the first guard was killed.
    """
    token = os.environ[TOKEN]
    with open(lock, "w") as held, open(log, "ab") as output:
        while os.getppid() == parent:
            if try_lock(held):
                break
            time.sleep(GUARD_SECONDS)
        else:
            return 1
        end_job(token)  # of an earlier guard on this machine
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=(held.fileno(),),
            preexec_fn=die_with_parent,
        )
        while os.getppid() == parent:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(GUARD_SECONDS)
                end_job(token)
                return code
        end_job(token, process.pid)
        process.wait()
        return 1


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:]) & 0xFF)

"""Where runs are executed: a launcher starts scripts on free slots and reports how they ended.

    launcher = make_launcher("local", workers=2)
    while work or launcher.running():
        while work and launcher.free():
            handle = launcher.submit(work.pop())        # a Job
        for ended in launcher.poll():                   # list of Ended, never waits
            ... ended.handle.job, ended.code, ended.reason
        time.sleep(0.2)
    launcher.close()

``local``: every slot has its own GPUs (``CUDA_VISIBLE_DEVICES``, ``accelerate launch``) or its share of the CPU cores
(``OMP_NUM_THREADS``, one process). ``ray``: Ray tasks that ask the cluster for the same; project, data and run folders
must lie on storage that all nodes share, at the same path.

Each job is a process group of its own and does not see the terminal's Ctrl-C. ``kill`` ends it with all descendants.
A local job outlives a driver that is killed: keep ``handle.identity()`` (plain JSON) and pass it to ``adopt`` later.
"""

import abc
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from meshnet import ROOT
from meshnet.runs.folder import HEARTBEAT

USER_ERROR, DIVERGED = 2, 3  # exit codes of train.py: wrong flag, file or data set; loss became NaN or infinite
HOPELESS = (USER_ERROR, DIVERGED)  # another attempt would end the same way


@dataclass(frozen=True)
class Job:
    """One run of a script. Its output goes to ``log`` (appended), its ``heartbeat`` file lies in ``run_dir``.

    silent_after: seconds without a heartbeat after which the job is killed; 0: never.
    """

    script: str
    arguments: tuple[str, ...]
    run_dir: Path
    log: Path
    silent_after: float = 0.0


@dataclass
class Handle:
    """A started job. ``where`` says host and slot in words; ``since`` is the driver's monotonic clock.

    log_start: the size of the log in bytes when the job started.
    """

    job: Job
    token: str
    slot: int
    host: str
    pid: int = 0
    started: str = ""
    since: float = 0.0
    log_start: int = 0
    beat: float = 0.0
    beat_seen: float = 0.0

    @property
    def where(self) -> str:
        """Host and slot in words."""
        return f"{self.host} slot {self.slot}"

    def identity(self) -> dict:
        """What a later driver needs to find this very process again, as plain JSON."""
        return {name: getattr(self, name) for name in ("token", "slot", "host", "pid", "started", "log_start")}

    def output(self, most: int = 100_000) -> str:
        """The last ``most`` bytes that the job has printed since it started."""
        with contextlib.suppress(FileNotFoundError), open(self.job.log, "rb") as log:
            log.seek(max(self.log_start, log.seek(0, os.SEEK_END) - most))
            return log.read().decode("utf-8", "replace")
        return ""


@dataclass(frozen=True)
class Ended:
    """How a job ended. code: 0 or the exit code, negative for a signal, None where it is unknown (adopted, node lost).

    reason: "" for code 0, else in words, such as ``exit code 3``, ``killed by SIGKILL``, ``silent for 600 s``.
    """

    handle: Handle
    code: int | None
    reason: str
    seconds: float


def visible_gpus() -> list[str]:
    """GPU ids this process may use: ``CUDA_VISIBLE_DEVICES`` if set, else what nvidia-smi lists; [] without any."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() and gpu.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def token_of(run_dir: Path) -> str:
    """The token of every process that works in a run folder, so that forgotten ones can be found."""
    return hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:32]


def full_command(job: Job, gpus: int, accelerate_config: str | None) -> list[str]:
    """The script under ``accelerate launch`` where it has GPUs, else as one plain process."""
    script = [str(ROOT / job.script), *job.arguments]
    if not gpus:
        return [sys.executable, *script]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", str(gpus)]
    if accelerate_config:
        command += ["--config_file", accelerate_config]
    if gpus > 1:
        with socket.socket() as probe:  # its own port: two jobs on one machine must not meet
            probe.bind(("127.0.0.1", 0))
            command += ["--multi_gpu", "--main_process_port", str(probe.getsockname()[1])]
    return [*command, *script]


def is_retried(code: int | None, failures: int, retries: int, hopeless: tuple[int, ...] = HOPELESS) -> bool:
    """Whether a job that failed is started again.

    Args:
        code: its exit code, None where it is unknown.
        failures: how often it has failed so far, this time included.
        retries: how often it may be started again.
        hopeless: exit codes after which another attempt would end the same way.
    """
    return code not in hopeless and failures <= retries


def describe_exit(code: int | None) -> str:
    """An exit code in words."""
    if code == 0:
        return ""
    if code is None:
        return "ended, exit code unknown"
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(number).name}"
    return f"exit code {code}"


class Launcher(abc.ABC):
    """What all launchers share: slots, heartbeats and the list of running jobs."""

    def __init__(self, slots: int):
        self.slots = slots
        self.handles: dict[int, Handle] = {}

    def free(self) -> int:
        """The number of free slots."""
        return self.slots - len(self.handles)

    def running(self) -> list[Handle]:
        """The running jobs."""
        return list(self.handles.values())

    def submit(self, job: Job) -> Handle:
        """Start ``job`` on a free slot. Call only while ``free()``."""
        assert self.free() > 0, "submit without a free slot"
        slot = next(number for number in range(self.slots) if number not in self.handles)
        handle = Handle(job, token_of(job.run_dir), slot, socket.gethostname(), since=time.monotonic())
        handle.beat_seen = handle.since
        handle.log_start = job.log.stat().st_size if job.log.exists() else 0
        job.run_dir.mkdir(parents=True, exist_ok=True)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self._start(handle)
        self.handles[slot] = handle
        return handle

    def poll(self) -> list[Ended]:
        """The jobs that ended since the last call. Those without a heartbeat are killed first. Never waits."""
        ended = []
        for handle in self.running():
            code, over = self._look(handle)
            reason = describe_exit(code)
            if not over and self._silent(handle):
                self._stop(handle, 0)
                code, over, reason = None, True, f"silent for {handle.job.silent_after:g} s"
            if over:
                del self.handles[handle.slot]
                ended.append(Ended(handle, code, reason, time.monotonic() - handle.since))
        return ended

    def kill(self, handle: Handle, patience: float = 0.0) -> None:
        """End a job and all its descendants: SIGTERM, ``patience`` seconds to finish, then SIGKILL."""
        self._stop(handle, patience)
        self.handles.pop(handle.slot, None)

    def close(self, patience: float = 0.0) -> None:
        """End every running job."""
        for handle in self.running():
            self.kill(handle, patience)

    @abc.abstractmethod
    def adopt(self, job: Job, identity: dict) -> Handle | None:
        """Take over a job that an earlier driver started; None if it no longer runs (then no process of it is left)."""

    @abc.abstractmethod
    def _start(self, handle: Handle) -> None:
        """Start the job of a handle."""

    @abc.abstractmethod
    def _look(self, handle: Handle) -> tuple[int | None, bool]:
        """Exit code, and whether the job is over."""

    @abc.abstractmethod
    def _stop(self, handle: Handle, patience: float) -> None:
        """End every process of the job."""

    def _silent(self, handle: Handle) -> bool:
        """Whether the heartbeat has not changed for too long, by the driver's own clock: clocks of nodes may differ."""
        if not handle.job.silent_after:
            return False
        with contextlib.suppress(OSError):
            beat = (handle.job.run_dir / HEARTBEAT).stat().st_mtime
            if beat != handle.beat:
                handle.beat, handle.beat_seen = beat, time.monotonic()
        return time.monotonic() - handle.beat_seen > handle.job.silent_after


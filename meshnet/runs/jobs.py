"""Where runs are executed: a launcher starts scripts on free slots and reports how they ended.

    launcher = make_launcher("local", workers=2)
    while work or launcher.running():
        while work and launcher.free():
            handle = launcher.submit(work.pop())        # a Job
        for ended in launcher.poll():                   # list of Ended, never waits
            ... ended.handle.job, ended.code, ended.reason
        time.sleep(0.2)
    launcher.close()

``local``: every slot has its own GPUs (``CUDA_VISIBLE_DEVICES``) or its share of the CPU cores (``OMP_NUM_THREADS``),
with a process for each GPU, see ``command``. ``ray``: Ray tasks that ask the cluster for the same; project, data and
run folders must lie on storage that all nodes share, at the same path.

Each job is a process group of its own and does not see the terminal's Ctrl-C. ``kill`` ends it with all descendants.
A local job outlives a driver that is killed: keep ``handle.identity()`` (plain JSON) and pass it to ``adopt`` later.
"""

import abc
import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from meshnet.errors import DIVERGED, OUT_OF_MEMORY, SURROUNDINGS, USER_ERROR, Surroundings, explain
from meshnet.numbers import plain
from meshnet.runs.folder import HEARTBEAT, WORD_FILE

HOPELESS = (USER_ERROR, DIVERGED)  # another attempt would end the same way
PAUSES = (2.0, 8.0, 30.0)  # seconds before another try, after the surroundings ended one, two, three runs in a row
PROBE = 1 << 16  # bytes that are written to ask a disk whether it takes any
NO_SPACE = re.compile("No space left on device|Disk quota exceeded")
# How accelerate launch and torchrun print the exit code of the script, which theirs hides.
INNER = re.compile(r"returned non-zero exit status (\d+)|died with <Signals\.\w+: (\d+)>|exitcode\s*: (-?\d+) \(pid")


@dataclass(frozen=True)
class Job:
    """One run of a script. Its output goes to ``log`` (appended), its ``heartbeat`` file lies in ``run_dir``.

    silent_after: seconds without a heartbeat after which the job is killed; 0: never. alone: one process, however many
    GPUs its slot has. folder: where it starts, on every node; None: anywhere. variables: of its environment.
    """

    script: str
    arguments: tuple[str, ...]
    run_dir: Path
    log: Path
    silent_after: float = 0.0
    alone: bool = False
    folder: Path | None = None
    variables: tuple[tuple[str, str], ...] = ()


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
    line: the last thing it said, without ``error: ``; "" for code 0 and where it said nothing.
    """

    handle: Handle
    code: int | None
    reason: str
    seconds: float
    line: str = ""


def token_of(run_dir: Path) -> str:
    """The token of every process that works in a run folder, so that forgotten ones can be found."""
    return hashlib.sha256(str(run_dir.absolute()).encode()).hexdigest()[:32]


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


def printed_codes(output: str) -> list[int]:
    """The exit codes that ``accelerate launch`` or torchrun print of their processes, but for those they ended."""
    found = [int(ended or other) if ended or other else -int(by) for ended, by, other in INNER.findall(output)]
    return [code for code in found if code not in (-signal.SIGTERM, 128 + signal.SIGTERM)]


def inner_code(code: int | None, output: str) -> int | None:
    """The exit code of the script, where ``accelerate launch`` ends with 1 whatever its own was."""
    found = printed_codes(output) if code == 1 else []
    known = [number for number in (SURROUNDINGS, DIVERGED, USER_ERROR, OUT_OF_MEMORY) if number in found]
    return (known or found or [code])[0]


def cause_of(handle: Handle, code: int | None) -> tuple[int | None, str]:
    """Exit code and last line of the process of a job that failed first, where a launcher of several hides them.

    By what that process left in the run folder, else by what is printed. A process that a signal ended leaves nothing,
    but one that lost its connection to it may; then what the launcher printed counts.
    """
    if code == 0:
        return 0, ""
    output = handle.output(5000)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    left = {}
    with contextlib.suppress(OSError, ValueError):
        left = json.loads((handle.job.run_dir / WORD_FILE).read_text(encoding="utf-8"))
    if isinstance(left.get("code"), int) and code in (None, 1):
        shot = [number for number in printed_codes(output) if number < 0] if left["code"] == 1 else []
        code = shot[0] if shot else left["code"]
    else:
        code = inner_code(code, output)
    return code, str(left.get("line", said)).removeprefix("error: ")


def surroundings_of(ended: Ended) -> str:
    """What around a job ended it, in one line; "" where it may have been the job itself.

    Told by the exit code, by what it printed, by a fault in mapped memory, and by asking the disk: a job whose log lies
    on a full disk can say nothing.
    """
    if ended.code in (0, DIVERGED, OUT_OF_MEMORY):
        return ""
    lines = [line.strip() for line in ended.handle.output().splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), "").removeprefix("error: ")
    full = next((line for line in reversed(lines) if NO_SPACE.search(line)), "")
    if full or (said and ended.code == SURROUNDINGS):
        return full.removeprefix("error: ") or said
    if ended.code == USER_ERROR:
        return ""
    if asked := ask_folder(ended.handle.job.run_dir):
        return asked
    if ended.code == SURROUNDINGS:
        return f"{ended.handle.job.log}: exit code {SURROUNDINGS} without a word, as when a disk or share was away"
    if ended.code is not None and hasattr(signal, "SIGBUS") and ended.code in (-signal.SIGBUS, 128 + signal.SIGBUS):
        return (f"{ended.handle.job.log}: killed by SIGBUS, as when a data set's file or shared memory (/dev/shm) is "
                "gone or full while it is read; check both")
    return ""


def ask_folder(folder: Path) -> str:
    """What hinders writing into a folder, in one line; "" if nothing does."""
    probe = folder / f".tmp-{os.getpid()}-probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(probe, "wb") as file:
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno != errno.ENOENT:
            error.filename = str(folder)
        return explain(error) or f"{folder}: {os.strerror(error.errno)}; expected a folder to write into"
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return ""


class Trouble:
    """Ends in a row that the surroundings of the runs caused: no run's fault. Says when to try again and when to stop.

    Runs that were already running at the last one share its trouble and count once.
    """

    def __init__(self, pauses: tuple[float, ...] | None = None):
        self.pauses, self.count, self.seen, self.until = PAUSES if pauses is None else pauses, 0, -1.0, 0.0

    def waits(self) -> bool:
        """Whether it is too early to start another run."""
        return time.monotonic() < self.until

    def over(self) -> None:
        """A run got on: the surroundings are right again."""
        self.count = 0

    def add(self, since: float, line: str) -> float:
        """Note an end of a run that started at ``since``; the seconds until the next try.

        Raises:
            Surroundings: when enough of them came in a row.
        """
        now = time.monotonic()
        if since > self.seen:
            if self.count == len(self.pauses):
                raise Surroundings(f"{line}; found this {self.count + 1} times in a row, so nothing more is started; "
                                   "nothing is lost: the same command goes on once it is mended")
            self.until, self.seen = now + self.pauses[self.count], now
            self.count += 1
        return max(0.0, self.until - now)


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
        (job.run_dir / WORD_FILE).unlink(missing_ok=True)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self._start(handle)
        self.handles[slot] = handle
        return handle

    def poll(self) -> list[Ended]:
        """The jobs that ended since the last call. Those without a heartbeat are killed first. Never waits."""
        ended = []
        for handle in self.running():
            code, over = self._look(handle)
            code, line = cause_of(handle, code) if over else (code, "")
            reason = describe_exit(code)
            if not over and self._silent(handle):
                self._stop(handle, 0)
                code, over, reason = None, True, f"silent for {plain(handle.job.silent_after)} s"
            if over:
                del self.handles[handle.slot]
                ended.append(Ended(handle, code, reason, time.monotonic() - handle.since, line))
        return ended

    def kill(self, handle: Handle, patience: float = 0.0) -> None:
        """End a job and all its descendants: SIGTERM, ``patience`` seconds to finish, then SIGKILL."""
        self._stop(handle, patience)
        self.handles.pop(handle.slot, None)

    def close(self, patience: float = 0.0) -> None:
        """End every running job, in ``patience`` seconds all together where they listen."""
        if patience > 0:
            self.ask_all()
        for handle in self.running():
            self.kill(handle, patience)

    def waits_for(self, handle: Handle) -> bool:
        """Whether a job is not running yet, as in the queue of a cluster."""
        return False

    def ask_all(self) -> None:  # noqa: B027 - a launcher need not be able to
        """Ask every running job to end, before any is waited for; nothing where the launcher has no way to ask."""

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


"""One command as several jobs of a launcher, which share its list of items (see ``shares``).

Each job is the same command with its place in the environment. It adds a line to a file of its own for each item that
it has done, which says how far all of them are. A job that was killed is started again; what is about all items is
written by the last of the jobs, and printed here. The driver may be killed: the same command takes over jobs that run.
"""

import argparse
import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from meshnet.display import Live, minutes
from meshnet.errors import USER_ERROR, UserError
from meshnet.files import lock, write_json
from meshnet.runs.folder import LOCK, METRICS, WORD_FILE
from meshnet.runs.jobs import Ended, Handle, Job, Launcher, Trouble, is_retried, surroundings_of
from meshnet.runs.launch import LAUNCHERS, make_launcher
from meshnet.runs.place import SHARD, Place
from meshnet.runs.shares import FOLDER

RETRIES = 3  # of a job that ends without having done an item since it was started
AGAIN_SECONDS = 30.0  # between two tries to write what is about all items
LOOK_SECONDS = 5.0  # between two looks at what the jobs have done
STATE = "jobs.json"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that make jobs of a command."""
    g = parser.add_argument_group("as jobs of a cluster (docs/cohorts.md)")
    g.add_argument("--launcher", choices=LAUNCHERS, help="share the work among jobs of SLURM, of a Ray cluster, or of "
                   "this machine (default: this process does it)")
    g.add_argument("--jobs", type=int, metavar="N", help="how many (default: slurm 4; otherwise one for each GPU, else "
                   "for every four CPU cores)")
    g.add_argument("--slurm", metavar="FLAGS", help="flags of sbatch: partition=gpu,gres=gpu:1,time=4:00:00")
    g.add_argument("--ray_address", metavar="HOST:PORT", help="Ray cluster (default: the one of this machine)")


def drives(arguments: argparse.Namespace) -> bool:
    """Whether this process only starts jobs: ``--launcher`` is given, and it is none of these jobs itself.

    Raises:
        UserError: for the other flags without ``--launcher``.
    """
    if not arguments.launcher:
        for name in ("jobs", "slurm", "ray_address"):
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name}: found without --launcher; add it, or leave the flag out")
        return False
    return SHARD not in os.environ


def run_shards(script: str, out: Path, arguments: argparse.Namespace, *, gpus: int | None = None, merges: bool = True,
               thing: str = "scan") -> int:
    """Run this very command as jobs, to their end; its exit code.

    Args:
        script: of the project's root, whose flags are those of this process.
        out: the folder that the command writes to; the jobs' logs lie below it.
        arguments: with the flags of ``add_flags``, and where the logs must not lie there with ``jobs_folder``.
        gpus: of each job; None: 1 where there are GPUs.
        merges: whether the command writes something about all items at its end.
        thing: what an item is called.

    Raises:
        UserError: where every job ends with one, or fails.
    """
    folder = getattr(arguments, "jobs_folder", None) or out / FOLDER / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / LOCK, f"{out}: another command with --launcher is writing to it; wait for it or use another "
                             "folder"):
        live = Live()
        launcher = make_launcher(arguments.launcher, arguments.jobs, gpus, None, arguments.ray_address,
                                 arguments.slurm, live.say, flag="--jobs")
        shards = Shards(script, sys.argv[1:], folder, launcher, live, merges, thing)
        try:
            shards.adopt()
            while shards.step():
                shards.show()
                time.sleep(max(0.2, launcher.slots / 100))
        finally:
            live.clear()
            launcher.close(patience=5)
            shards.remember()
        return shards.end()


class Shards:
    """The jobs of a command: as many as the launcher has slots."""

    def __init__(self, script: str, flags: Sequence[str], folder: Path, launcher: Launcher, live: Live,
                 merges: bool = True, thing: str = "scan"):
        self.script, self.flags, self.folder, self.launcher, self.live = script, list(flags), folder, launcher, live
        self.merges, self.thing, self.count = merges, thing, launcher.slots
        self.command = uuid.uuid4().hex
        self.handles: dict[int, Handle] = {}
        self.codes: dict[int, int] = {}  # of the jobs that found nothing left to do
        self.given_up: dict[int, str] = {}
        self.attempts: dict[int, tuple[int, int]] = {}  # failures in a row, and the size of the lines at the last one
        self.read: dict[int, int] = {}  # bytes of each log whose errors were told
        self.told: set[str] = set()
        self.trouble = Trouble()
        self.looked, self.first, self.again = 0.0, None, -1e9

    def run_dir(self, index: int) -> Path:
        """The folder of a job: what launchers keep there, its lines and its log."""
        return self.folder / f"{index:04d}"

    def job(self, index: int) -> Job:
        """A job by its number."""
        folder = self.run_dir(index)
        where = Place(index, self.count, self.command, str((folder / METRICS).absolute()))
        return Job(self.script, tuple(self.flags), folder, folder / "output.log", alone=True, folder=Path.cwd(),
                   variables=((SHARD, json.dumps(asdict(where))),))

    # ---------------------------------------------------------------- an earlier driver's jobs
    def adopt(self) -> None:
        """Take over the jobs that an earlier driver of the same command left; those of another one are ended."""
        found = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        same = found.get("flags") == self.flags and found.get("count") == self.count and found.get(
            "folder") == os.getcwd()
        if same:
            self.command = found["command"]
        for index, identity in found.get("jobs", {}).items():
            handle = self.launcher.adopt(self.job(int(index)), identity)
            if handle is not None and same:
                self.handles[int(index)] = handle
                self.read[int(index)] = handle.log_start
            elif handle is not None:
                self.launcher.kill(handle)
            elif same:  # it ended while no driver looked
                self.read[int(index)] = identity["log_start"]
                self.tell_errors(int(index))
        if self.handles:
            self.live.say(f"{len(self.handles)} of {self.count} jobs of an earlier call are taken over")
            return
        self.command = uuid.uuid4().hex
        for path in self.folder.glob(f"*/{METRICS}"):
            path.unlink()

    def remember(self) -> None:
        """Record which jobs there are, for the next driver."""
        running = self.launcher.running()
        write_json(self.folder / STATE, {
            "command": self.command, "flags": self.flags, "count": self.count, "folder": os.getcwd(),
            "jobs": {str(index): handle.identity() for index, handle in self.handles.items() if handle in running}})

    # ---------------------------------------------------------------- the work
    def step(self) -> bool:
        """Handle jobs that ended, start what is to be started; False when all is over.

        Raises:
            UserError: for what is wrong with the command itself.
            Surroundings: when the disk or another of the jobs' surroundings failed several in a row.
        """
        for ended in self.launcher.poll():
            index = next(index for index, handle in self.handles.items() if handle is ended.handle)
            del self.handles[index]
            self.collect(index, ended)
            self.remember()
        wanted = [index for index in range(self.count) if index not in {*self.handles, *self.codes, *self.given_up}]
        if self.codes:  # a job ends when nothing is left to do
            for index in [i for i, handle in self.handles.items() if self.launcher.waits_for(handle)
                          or not size_of(self.run_dir(i) / METRICS)]:
                self.launcher.kill(self.handles.pop(index))  # it has not begun, and in a queue it may wait for days
            # Whoever wrote about all items may have been killed before the end, and its claim looks alive for a while.
            missing = self.merges and not self.handles and self.wrote() is None
            wanted = [min(self.codes)] if missing else []
            if missing and time.monotonic() - self.again < AGAIN_SECONDS:
                return True
            self.again = time.monotonic() if missing else self.again
        for index in wanted:
            if not self.launcher.free() or self.trouble.waits():
                break
            self.codes.pop(index, None)
            self.handles[index] = self.launcher.submit(self.job(index))
            self.read[index] = self.handles[index].log_start
            self.remember()
        return bool(self.handles or wanted)

    def collect(self, index: int, ended: Ended) -> None:
        """Note how a job ended."""
        crashed, folder = (self.run_dir(index) / WORD_FILE).exists(), self.run_dir(index)
        self.tell_errors(index)  # a job that is started again does not repeat them
        if ended.code == 0 or (ended.code == 1 and not crashed):
            self.codes[index] = ended.code
            self.trouble.over()
            return
        if ended.code == USER_ERROR:
            if not any(size_of(self.run_dir(other) / METRICS) for other in range(self.count)):
                raise UserError(ended.line)  # as it would be in every one of them
            self.give_up(index, ended.line)
            return
        if line := surroundings_of(ended):
            seconds = self.trouble.add(ended.handle.since, line)
            self.live.say(f"job {index} ended, not by its own fault: {line}; trying again in {seconds:.0f} s")
            return
        failures, size = self.attempts.get(index, (0, -1))
        now = size_of(folder / METRICS, items=True)
        failures = failures + 1 if now == size else 1
        self.attempts[index] = failures, now
        if is_retried(ended.code, failures, RETRIES):
            self.live.say(f"job {index} {ended.reason}; started again")
        else:
            self.give_up(index, f"{ended.reason}: {ended.line or 'it printed nothing'}")

    def give_up(self, index: int, reason: str) -> None:
        """A job is not started again; the others do its part."""
        self.given_up[index] = reason
        self.live.clear()
        print(f"warning: job {index} is given up: {reason}; the others do its part; see "
              f"{self.run_dir(index) / 'output.log'}", file=sys.stderr, flush=True)

    def wrote(self) -> tuple[int, int, int] | None:
        """The job that wrote what is about all items, where in its log that begins, and 1 where some have failed; None
        where none has."""
        for index in range(self.count):
            begins = -1
            for line in lines_of(self.run_dir(index) / METRICS):
                begins = line.get("merges", begins)
                if "wrote" in line:
                    return index, begins, line["wrote"]
        return None

    # ---------------------------------------------------------------- what is said
    def show(self) -> None:
        """Show how many items all jobs together have done, and how long the rest will take; print errors once."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return
        self.looked = now
        for index in self.handles:
            self.tell_errors(index)
        told = {index: list(lines_of(self.run_dir(index) / METRICS)) for index in range(self.count)}
        working = sum(bool(told[index]) for index in self.handles)
        begun = [line for lines in told.values() for line in lines if "total" in line]
        if not begun:
            self.live.show(f"{len(self.handles)} jobs are waiting or starting")
            return
        total, before = begun[0]["total"], min(line["done"] for line in begun)
        done = min(total, before + len({line["item"] for lines in told.values() for line in lines if "item" in line}))
        self.first = self.first or (now, done)
        since, first = self.first
        left = ""
        if first < done < total:
            left = f", about {minutes((now - since) / (done - first) * (total - done))} left"
        self.live.show(f"{done} of {total} {self.thing}s done, {working} of {self.count} jobs at work{left}")

    def tell_errors(self, index: int) -> None:
        """Print the errors of single items that a job has reported since they were last looked for."""
        with contextlib.suppress(OSError), open(self.job(index).log, "rb") as log:
            log.seek(self.read.get(index, 0))
            text = log.read()
            whole = text[:text.rfind(b"\n") + 1]
            self.read[index] = self.read.get(index, 0) + len(whole)
            for line in whole.decode("utf-8", "replace").splitlines():
                if line.startswith("error: ") and line not in self.told:
                    self.told.add(line)
                    self.live.clear()
                    print(line, file=sys.stderr, flush=True)

    def end(self) -> int:
        """Print what the last job said about all items; the exit code of the command."""
        if not self.codes:
            index = min(self.given_up)
            raise UserError(f"{self.folder}: all {self.count} jobs failed, job {index} with: {self.given_up[index]}; "
                            f"see {self.run_dir(index) / 'output.log'}")
        code = max(self.codes.values())
        if found := self.wrote():
            index, begins, failed = found
            code = max(code, failed)
            with contextlib.suppress(OSError), open(self.run_dir(index) / "output.log", "rb") as log:
                log.seek(begins if begins >= 0 else size_of(self.run_dir(index) / "output.log"))
                print(log.read().decode("utf-8", "replace"), end="", flush=True)
        elif self.merges:
            raise UserError(f"{self.folder}: found no job that wrote what is about all {self.thing}s, expected one; "
                            "run the same command again")
        return code


def size_of(path: Path, items: bool = False) -> int:
    """Bytes in a file, 0 where there is none; or only how many items its lines name."""
    if items:
        return sum("item" in line for line in lines_of(path))
    try:
        return path.stat().st_size
    except OSError:
        return 0


def lines_of(path: Path) -> Iterator[dict]:
    """The lines that a job has written whole."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        for text in file:
            with contextlib.suppress(ValueError):
                if isinstance(found := json.loads(text), dict):
                    yield found

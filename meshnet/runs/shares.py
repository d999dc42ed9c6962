"""Work that several processes share through a folder: each item is done once, however many processes there are.

Any number of processes with the same list, started by torchrun, as a SLURM array or as steps of a job, take one item
after the other. An item is taken by making its claim, a file that only one process can make, also on a network disk. A
process first takes its own part of the list, then what others left. It touches its claims while it lives: a claim that
nobody touches any more is of a process that was killed, and another process does that item. At worst, as after a
network disk was away, an item is done twice, and its files are written whole twice.
"""

import contextlib
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnet.files import hash_of, write_text
from meshnet.runs.place import Place
from meshnet.runs.processes import alive, start_time

BEAT = 5.0  # seconds between two touches of a claim
SILENT = 90.0  # seconds without a touch after which a claim is left, wherever its process was
POLL = 2.0  # seconds between two looks at what others do
CLOCK = 30.0  # seconds for which the clock of the disk, once asked, is reckoned on
LOOKS = 16  # items of others that are looked at between two pauses
PAUSE = 0.005  # seconds of pause for each process and each item looked at; but never more than LONGEST
LONGEST = 30.0
FOLDER = ".meshnet"
LAST = "last"  # the claim of the process that writes what is about all items, and the file that says that it has
BEGUN = "last.begun"  # the file that says about what it has begun to write


@dataclass(frozen=True)
class Left:
    """A claim whose process is gone, as it was when that was found: what tells it from one that was made since."""

    mark: tuple[int, int]
    killed: int  # processes that ended without a word while they had the item, that one included


class Claims:
    """The claims of this process in ``folder``, touched by a thread of its own until ``close``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.held: dict[str, str] = {}  # and what is in the file
        self.killed: dict[str, int] = {}  # of the items that were taken from processes that are gone
        self.own = {"host": socket.gethostname(), "processes": process_space(), "pid": os.getpid(),
                    "started": start_time(os.getpid())}
        self.clock: tuple[float, float] | None = None  # of the disk, less that of this process; and when it was asked
        self.over = threading.Event()
        self.beats: threading.Thread | None = None

    def path(self, name: str) -> Path:
        """The file of a claim."""
        return self.folder / f"{name}.claim"

    def take(self, name: str) -> bool:
        """Take an item. False where another process has it. ``killed`` then says how many processes it was the end of.
        """
        if self._make(name):
            return True
        left = self.left(name)
        return left is not None and self._clear(name, left) and self._make(name, left.killed)

    def release(self, name: str) -> None:
        """Give an item back, done or not; not where another process took this one for gone and has the item now."""
        text = self.held.pop(name, None)
        with contextlib.suppress(OSError):
            if text is not None and self._is_own(name, text):
                self.path(name).unlink(missing_ok=True)

    def keep(self, name: str) -> None:
        """Leave an item as a process does that is killed: it may be the reason why this one ends."""
        self.held.pop(name, None)

    def left(self, name: str) -> Left | None:
        """A claim whose process is gone: it is missing from the list of processes of this machine and container, or
        nobody touches the claim any more, by the clock of the disk that it lies on. None for any other.
        """
        try:
            with open(self.path(name), encoding="utf-8") as file:
                text, state = file.read(), os.fstat(file.fileno())
            age = self.disk_time() - state.st_mtime
        except (OSError, ValueError):
            return None
        try:
            found = json.loads(text)
            here = (found["host"], found["processes"]) == (socket.gethostname(), process_space())
            gone = here and bool(found["started"]) and not alive(found["pid"], found["started"])
            killed = int(found.get("killed", 0))
        except (ValueError, KeyError, TypeError, AttributeError):  # being written, or cut off
            gone, killed = False, 0
        return Left((state.st_ino, state.st_mtime_ns), killed + 1) if gone or age > SILENT else None

    def disk_time(self) -> float:
        """The time by the clock that stamps the claims: the file server's, where the folder is on one. It is asked
        twice a minute at most."""
        if self.clock is None or time.monotonic() - self.clock[1] > CLOCK:
            probe = self.folder / f".clock-{socket.gethostname()}-{os.getpid()}"
            try:
                probe.touch()
                now = time.monotonic()
                self.clock = probe.stat().st_mtime - now, now
            finally:
                probe.unlink(missing_ok=True)
        return self.clock[0] + time.monotonic()

    def close(self) -> None:
        """Give back what is still held, and end the thread."""
        self.over.set()
        if self.beats is not None:
            self.beats.join()
        for name in list(self.held):
            self.release(name)

    def _make(self, name: str, killed: int = 0) -> bool:
        text = json.dumps(self.own | ({"killed": killed} if killed else {}))
        try:
            descriptor = os.open(self.path(name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, text.encode())  # at once: who is killed here has the others wait for SILENT seconds
        finally:
            os.close(descriptor)
        self.held[name], self.killed[name] = text, killed
        if self.beats is None:
            self.beats = threading.Thread(target=self._beat, daemon=True)
            self.beats.start()
        return True

    def _clear(self, name: str, left: Left) -> bool:
        """Remove a left claim; only one process succeeds, and none removes a claim that was made meanwhile."""
        aside = self.folder / f".left-{name}-{socket.gethostname()}-{os.getpid()}"
        try:
            os.rename(self.path(name), aside)
        except OSError:
            return False
        try:
            moved = aside.stat()
            if (moved.st_ino, moved.st_mtime_ns) == left.mark:
                return True
            with contextlib.suppress(OSError):
                os.link(aside, self.path(name))  # somebody else's, back to its place
            return False
        finally:
            aside.unlink(missing_ok=True)

    def _is_own(self, name: str, text: str) -> bool:
        return self.path(name).read_text(encoding="utf-8") == text

    def _beat(self) -> None:
        while not self.over.wait(BEAT):
            for name, text in list(self.held.items()):
                with contextlib.suppress(OSError, ValueError):
                    if self._is_own(name, text):
                        os.utime(self.path(name))


def process_space() -> str:
    """What tells the processes that this one sees from those of another container; "" where there is no telling."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


class Share:
    """The items of a list that this process does.

    Args:
        names: of the items, each a short name that is a file name; the same list in every process.
        where: this process among the others.
        claims: of the folder that all processes write to; None: this process is alone.
        is_done: whether an item is finished, or has failed in this very command, by its name.
        recorded: names that are probably finished, by one look at a folder; asked before the parts of others are
            walked through, so that hundreds of processes do not each ask for every file.
    """

    def __init__(self, names: Sequence[str], where: Place, claims: Claims | None, is_done: Callable[[str], bool],
                 recorded: Callable[[], set[str]] = set):
        own = where.part(len(names))
        self.names, self.others = list(names[own]), [*names[own.stop:], *names[:own.start]]
        self.where, self.claims, self.is_done, self.recorded = where, claims, is_done, recorded
        self.left: list[str] = []  # taken by others when they were looked at
        self.position = 0
        if where.lines and not os.path.exists(where.lines):  # a job that is started again has told it
            where.tell(total=len(names), done=len(recorded() & set(names)))

    def take(self) -> str | None:
        """The next item that nobody does; None where there is none at the moment."""
        while True:
            while self.position < len(self.names):
                self.position += 1
                if self._takes(self.names[self.position - 1]):
                    return self.names[self.position - 1]
            if not self.others:
                return None
            found = self.recorded()
            self.names, self.others, self.position = [name for name in self.others if name not in found], [], 0

    def _takes(self, name: str) -> bool:
        if self.is_done(name):
            return False
        if self.claims is None:
            return True
        if not self.claims.take(name):
            self.left.append(name)
            return False
        if self.is_done(name):  # between the two looks
            self.claims.release(name)
            return False
        return True

    def finished(self, name: str) -> None:
        """An item that ``take`` gave is done, or has failed."""
        self.where.tell(item=name)
        if self.claims is not None:
            self.claims.release(name)

    def is_last(self, state: str) -> bool:
        """Whether this process is the one that writes what is about all items: asked when nothing is left to do.

        ``state`` says in words what there is now; where another process of the same command has written about just
        that, nobody does it again. Ends with ``wrote``, or with the process. Another process that writes just then is
        waited for, unless it began when this one had nothing left to do; and where the end of this process could be
        that of the others, always.
        """
        if self.claims is None or not self.where.shared:
            return True
        about, begun = f"{self.where.command}\n{state}\n", self.claims.folder / BEGUN
        before = stamp(begun)
        while not self.claims.take(LAST):
            if not self.where.together and (stamp(begun) != before or content(begun) == about):
                return False
            time.sleep(POLL)
        if content(self.claims.folder / LAST) == about:
            self.claims.release(LAST)
            return False
        write_text(begun, about)
        self.where.tell(merges=printed())
        return True

    def wrote(self, state: str, failed: bool = False) -> None:
        """What is about all items is written, as it was in the ``state`` that ``is_last`` got; ``failed``: not all of
        them are done."""
        if self.claims is not None and self.where.shared:
            write_text(self.claims.folder / LAST, f"{self.where.command}\n{state}\n")
            self.where.tell(wrote=int(failed))
            self.claims.release(LAST)

    def wait(self) -> bool:
        """Whether others still do some of the items; then it has waited a moment, and ``take`` looks at some of these
        again. The more items and processes there are, the longer it waits: all of them ask one disk.
        """
        self.names, self.position = [], 0
        while self.left and len(self.names) < LOOKS:
            name = self.left.pop(0)
            self.names += [] if self.is_done(name) else [name]
        if self.names:
            time.sleep(max(POLL, min(LONGEST, PAUSE * self.where.count * len(self.names))))
        return bool(self.names)


def stamp(path: Path) -> int:
    """When a file was written; 0 where there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def content(path: Path) -> str:
    """The text of a small file; "" where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8")
    return ""


def printed() -> int:
    """How many bytes are in the file that this process prints to; -1 where it is none."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        found = os.fstat(sys.stdout.fileno())
        return found.st_size if stat.S_ISREG(found.st_mode) else -1
    return -1


def key_of(path: str | Path, root: str | Path) -> str:
    """A short name for a file that is to be written, the same in every process."""
    return hash_of(os.path.relpath(path, root))[:24]

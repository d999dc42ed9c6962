"""What a command shows while it works: one line that is redrawn on a terminal, plain lines in a log file, time left.

Every command ends with ``Next:`` and the command to type, except where another program started it.
"""

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TextIO

from meshnet.errors import TOKEN

QUIET_SECONDS = 60.0  # in a log file, a line about what is going on at most this often
DRAW_SECONDS = 0.2


def minutes(seconds: float) -> str:
    """``1 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def count(number: int, thing: str, things: str | None = None) -> str:
    """``1 case``, ``2 cases``."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def command(*words: object) -> str:
    """A command as it is typed."""
    return shlex.join(str(word) for word in words)


def say_next(*commands: str) -> None:
    """Print what to type next, one command a line; nothing where a search or cross-validation started this process."""
    if not os.environ.get(TOKEN):
        for number, each in enumerate(commands):
            print(f"{'Next: ' if number == 0 else '      '}{each}", flush=True)


def shown_path(path: str | Path) -> str:
    """A path as it is typed here: relative to the working folder where it lies below it."""
    path = Path(path)
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path)


class Live:
    """One line that says what is going on, redrawn on a terminal; in a log file a line every minute.

    Args:
        active: False shows nothing, for all but one of several processes.
        stream: what is written to; None: standard output.
    """

    def __init__(self, active: bool = True, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self.active, self.terminal = active, self.stream.isatty()
        self.line, self.drawn, self.said = "", 0.0, time.monotonic()

    def show(self, line: str) -> None:
        """Replace the line."""
        now = time.monotonic()
        if not self.active:
            return
        if self.terminal and (now - self.drawn >= DRAW_SECONDS or not self.line):
            self.line, self.drawn = line[:shutil.get_terminal_size().columns - 1], now
            print(f"\r\x1b[K{self.line}", end="", flush=True, file=self.stream)
        elif not self.terminal and now - self.said >= QUIET_SECONDS:
            self.said = now
            print(line, flush=True, file=self.stream)

    def say(self, line: str) -> None:
        """Print a line that stays, above the one that is redrawn."""
        if not self.active:
            return
        self.clear()
        self.said = time.monotonic()
        print(line, flush=True, file=self.stream)

    def clear(self) -> None:
        """Remove the line that is redrawn."""
        if self.terminal and self.line:
            print("\r\x1b[K", end="", flush=True, file=self.stream)
            self.line = ""


def bar(done: int, total: int, width: int = 20) -> str:
    """``[#####-----]``, how much of ``total`` is done."""
    full = width * done // max(total, 1)
    return f"[{'#' * full}{'-' * (width - full)}]"

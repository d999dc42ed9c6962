"""Colour of the first word of a line on a terminal: errors red, warnings and notes yellow, ``Next:`` bold.

Files, pipes and logs never hold any; nor does a terminal under NO_COLOR or TERM=dumb.
"""

import os
import re
import sys
from typing import TextIO

RED, YELLOW, BOLD, PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
WORDS = {"error:": RED, "warning:": YELLOW, "note:": YELLOW, "Next:": BOLD}
ERASED = "\r\x1b[K"  # what display.Live leaves before a line that stays


def open_streams() -> None:
    """Make standard output and error ready: none of them None, and coloured where a person looks at it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the script
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif takes_colour(getattr(sys, name)):
            colour(getattr(sys, name))


def takes_colour(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours, and nobody asked for none (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def colour(stream: TextIO) -> None:
    """Have ``stream`` colour ``WORDS`` where they begin a line, whoever prints them; once, if called again."""
    plain_write = stream.write
    if getattr(plain_write, "coloured", False):
        return
    pattern = re.compile(rf"(?m)(?:^|(?<=\r)|(?<=\x1b\[K))({'|'.join(WORDS)})")
    begins = True

    def write(text: str) -> int:
        nonlocal begins
        shown = pattern.sub(lambda found: WORDS[found[1]] + found[1] + PLAIN
                            if begins or found.start() else found[1], text)
        if text:
            begins = text.endswith(("\n", "\r", ERASED))
        plain_write(shown)
        return len(text)

    write.coloured = True
    stream.write = write

"""Colours are for terminals: there alone, and only of the first word of a line."""

import os
import subprocess
import sys

import pytest

pty = pytest.importorskip("pty")  # Windows has none

SAYS = """
import sys
from meshnet.display import Live, say_next
from meshnet.errors import UserError, run_script

def main():
    live = Live()
    live.show("at work")
    live.say("warning: no error: here")
    print("a warning: in a line", "error: two")
    say_next("python a.py", "python b.py")
    raise UserError("scan.nii: found a, expected b")

run_script(main)
"""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "MESHNET_JOB")}


def on_a_terminal(root, words=(sys.executable, "-c", SAYS), **environment) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, cwd=root, stdin=theirs, stdout=theirs, stderr=theirs,
                          env=ENVIRONMENT | {"TERM": "xterm"} | environment):
        os.close(theirs)
        said = b""
        try:
            while more := os.read(ours, 4096):
                said += more
        except OSError:  # how Linux says that the other end has closed
            pass
    os.close(ours)
    return said.decode().replace("\r\n", "\n")


def test_a_terminal_shows_the_first_word_in_colour(root):
    said = on_a_terminal(root)
    assert "\x1b[33mwarning:\x1b[0m no error: here\n" in said
    assert "\na warning: in a line error: two\n" in said
    assert "\x1b[1mNext:\x1b[0m python a.py\n      python b.py\n" in said
    assert said.endswith("\x1b[31merror:\x1b[0m scan.nii: found a, expected b\n")


@pytest.mark.parametrize("asked", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(root, asked):
    said = on_a_terminal(root, **asked)
    assert "error: scan.nii: found a" in said
    assert not any(f"\x1b[{code}m" in said for code in (0, 1, 31, 33))


def test_no_colour_in_a_file(root):
    ended = subprocess.run([sys.executable, "-c", SAYS], cwd=root, capture_output=True, text=True,
                           env=ENVIRONMENT | {"TERM": "xterm"})
    assert "\x1b" not in ended.stdout + ended.stderr
    assert ended.returncode == 2


def test_a_wrong_verb_in_colour(root):
    said = on_a_terminal(root, (sys.executable, "-m", "meshnet", "segmnt"))
    assert said.startswith("\x1b[31merror:\x1b[0m found verb")

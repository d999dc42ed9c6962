"""What makes flags pleasant: the version, and a guess at what was meant by one that is nearly right."""

import argparse
import re


def add_version(parser: argparse.ArgumentParser) -> None:
    """``--version`` for a script."""
    from meshnet import __version__

    if parser.prog.endswith(".py"):
        parser.add_argument("--version", action="version", version=f"meshnet {__version__}",
                            help="print the version of the program")


def meant(parser: argparse.ArgumentParser, message: str) -> str:
    """``; did you mean --threshold?`` for the first flag or value that argparse does not know; "" where none is like
    it."""
    from difflib import get_close_matches

    if found := re.search(r"unrecognized arguments:.*?(--[\w.]+)", message):
        known = [flag for action in parser._actions for flag in action.option_strings]
    elif found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
        known = [word.strip(" '") for word in found[2].split(",")]
    else:
        return ""
    like = get_close_matches(found[1], known, 1)
    return f"; did you mean {like[0]}?" if like else ""

"""Numbers as people write them: the same in files and in every flag."""

import argparse
import re

NUMBERS = {int: "a whole number", float: "a number"}


def read_number(text: str, kind: type) -> int | float:
    """A text as a finite ``int`` or ``float`` in plain decimal digits; ``1e2`` is a whole number as well.

    Raises:
        ArgumentTypeError: for anything else, also for what Python takes besides: ``1_0``, ``inf``, digits of Arabic.
    """
    number = float(text) if re.fullmatch(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*", text) else None
    if number is None or abs(number) == float("inf") or (kind is int and number != int(number)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {NUMBERS[kind]}")
    return int(text) if kind is int and text.strip().lstrip("+-").isdigit() else kind(number)

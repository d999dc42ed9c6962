"""Numbers as people write them: the same in files and in every flag."""

import argparse
import contextlib
import functools
import re
from decimal import Decimal

NUMBERS = {int: "a whole number", float: "a number"}
MOST = 1e18  # in size: seeds of PyTorch and numpy take it, and what lies beyond is a slip
LONG = 1e16  # from which a number is shown with an exponent


def read_number(text: str, kind: type) -> int | float:
    """A text as an ``int`` or ``float`` of at most ``MOST`` in plain decimal digits; ``1e2`` is a whole number as well.

    Raises:
        ArgumentTypeError: for anything else, also for what Python takes besides: ``1_0``, ``inf``, digits of Arabic.
    """
    number = float(text) if re.fullmatch(r"\s*[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*", text) else None
    if number is None or abs(number) > MOST or (kind is int and number != int(number)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected(text)[kind]}")
    return int(text) if kind is int and text.strip().lstrip("+-").isdigit() else kind(number)


def plain(value: float, digits: int = 6) -> str:
    """A number as people write it, with so many significant digits: 100000 and 0.00001, not 1e+05 and 1e-05."""
    text = f"{value:.{digits}g}"
    if "e" not in text or abs(value) >= LONG:
        return text.replace("e+", "e")
    return f"{value:.0f}" if abs(value) >= 1 else format(Decimal(text), "f")


def in_ml(ml: float) -> str:
    """``1.20 mL``; ``less than 0.01 mL`` where there is something, but two decimals would say that there is nothing."""
    text = f"{ml:.2f}"
    return "less than 0.01 mL" if ml > 0 and text == "0.00" else f"{text} mL"


def expected(value: object) -> dict[type, str]:
    """What is expected in place of ``value``, a number or its text, in words by type."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):  # OverflowError: an int of hundreds of digits
        if MOST < abs(float(value)) < float("inf"):
            return {kind: f"{name} up to {plain(MOST)}" for kind, name in NUMBERS.items()}
    return NUMBERS


def add_numbers(parser: argparse.ArgumentParser) -> None:
    """Let the numbers of a parser be those of ``read_number``, and take ``-1e3`` for one rather than for a flag."""
    for kind in NUMBERS:
        parser.register("type", kind, functools.partial(read_number, kind=kind))
    parser._negative_number_matcher = re.compile(r"-([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$")

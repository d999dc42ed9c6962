"""Printing the result of one scan, in whatever a terminal can show."""

import json
import sys


def report(result: dict, volumes: dict[str, float], as_json: bool, told: set) -> None:
    """Print the result of one scan; what is doubtful about it goes to standard error, and once for each contrast, if it
    is not among those ``told``, what to expect of the model there."""
    from meshnet.cohort.lines import result_line  # imports numpy and the networks: not for --help

    for warning in result["warnings"]:
        print(printable(f"warning: {result['scan'][0]}: {warning}"), file=sys.stderr)
    if as_json:
        print(json.dumps(result), flush=True)  # in ASCII
        return
    print(printable(result_line(result, volumes)), flush=True)
    if result["expect"] and result["contrast"] not in told:
        print(printable(f"{result['contrast']}: {result['expect']}"), file=sys.stderr, flush=True)
        told.add(result["contrast"])


def printable(text: str) -> str:
    """``text`` with what a terminal's encoding cannot show, such as the bytes of a foreign file name, as escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)

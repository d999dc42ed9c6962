"""Printing the result of one scan, in whatever a terminal can show."""

import json
import sys
from collections.abc import Sequence

MOST_LINES = 50  # scans, above which the table alone tells of each


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


def report_all(head: str, done: Sequence[dict], failed: int, command: str, name: str) -> None:
    """Print of a short list what one process would have: the last of a launcher's jobs does, as their own lines lie in
    logs. Errors are not repeated.

    Args:
        head: what is being done, ``lines.header``.
        done: the records of the scans with a mask; ``failed``: how many others there are.
        command: of the jobs; a mask of another command was skipped.
        name: of the class that is marked, where a record has no volumes by class.
    """
    if len(done) + failed > MOST_LINES:
        return
    print(printable(head), flush=True)
    told: set[str] = set()
    for record in done:
        if record.get("command") == command:
            report(record, record.get("classes_ml") or {name: record["volume_ml"]}, False, told)
        else:
            print(printable(f"{record['mask']}: exists, skipped; --overwrite replaces it"), flush=True)


def printable(text: str) -> str:
    """``text`` with what a terminal's encoding cannot show, such as the bytes of a foreign file name, as escapes."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)

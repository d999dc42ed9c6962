"""What of a BIDS tree is not segmented, and why: counted by kind, and rows for the scans that could not be decided."""

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from meshnet.cohort.bids import BidsCase, Found
from meshnet.cohort.records import Records
from meshnet.data.sources.bids import BidsFile
from meshnet.display import count
from meshnet.runs.shares import key_of


def say_omissions(found: Found) -> None:
    """A line on standard error for each kind of what is left out, with how many there are and one of them."""
    lines = [*found.notes, *[f"{words}, such as {Path(paths[0]).name}" for words, paths in kinds_of(found.left_out)]]
    if found.without:
        lines.append(f"{count(len(found.without), 'subject or session', 'subjects or sessions')} without a "
                     f"{found.suffix} scan, such as {found.without[0]}")
    for line in lines:
        print(f"note: {line}", file=sys.stderr)


def kinds_of(left_out: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """How many scans are left out for each reason, in words, and their paths; the most frequent first."""
    kinds = defaultdict(list)
    for path, reason in left_out:
        kinds[reason].append(path)
    return [(f"{count(len(paths), 'scan')} left out: {reason}", paths)
            for reason, paths in sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))]


def note_undecided(records: Records, arguments: argparse.Namespace, root: Path) -> None:
    """Keep a record of every scan of ``arguments.found`` that could not be decided, for the table, and none of those
    that an earlier command could not decide, among the scans that this command has looked at."""
    found: Found = arguments.found
    wanted = {}
    for path, reason in found.failed:
        entities = BidsFile.parse(path).entities
        case = BidsCase((Path(path),), entities)
        mask = records.out / case.folder() / f"{case.name(desc=arguments.desc)}.nii.gz"
        wanted[key_of(mask, records.out)] = {
            "scan": [path], "subject": f"sub-{entities['sub']}", "source": Path(path).relative_to(root).as_posix(),
            "session": f"ses-{entities['ses']}" if "ses" in entities else None, "error": reason,
            "suffix": found.suffix}
    people = {f"sub-{label.removeprefix('sub-')}" for label in arguments.participant_label}
    sessions = {f"ses-{label.removeprefix('ses-')}" for label in arguments.session_label}
    for record in records.undecided():
        looked_at = record["suffix"] == found.suffix and record["subject"] in (people or {record["subject"]}) and (
            not sessions or record["session"] in sessions)
        if looked_at and record["key"] not in wanted:
            records.write_undecided(record["key"], None)
    for key, record in wanted.items():
        records.write_undecided(key, record)


def not_done(records: Records, root: Path) -> list[dict]:
    """The records of all scans in a data set that failed or could not be decided, in whichever command."""
    undecided = records.undecided()
    known = {record["key"] for record in undecided}
    return [record for record in [*undecided, *[one for one in records.failures() if one["key"] not in known]]
            if (root / record["source"]).is_file()]

"""The lists of scans of an array whose tasks each have one of their own, for one table of all of them."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from meshnet.cohort.records import Records, read_json
from meshnet.errors import UserError
from meshnet.files import hash_of, write_json


def tell(records: Records, path: Path, cases: Sequence[dict], lost: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """Keep the list of this process: its cases, and records of exports and studies that gave none.

    A list that has no case and no lost one which this list lacks is an earlier one of the same scans, and is removed.
    A case whose mask would be that of another scan, of a list that was told before, is lost.

    Args:
        path: the file of the list, from ``path_of``.

    Returns:
        The cases and the records of what is lost that are left.
    """
    if not path.exists():
        write(path, records, cases, lost)
        own, mine = {(case["key"], what(case)) for case in cases}, tried(cases, lost)
        for earlier, told in others(records, path):
            if {(one["key"], what(one)) for one in told["cases"]} <= own and tried((), told["lost"]) <= mine:
                earlier.unlink(missing_ok=True)
    before = age((path, {}))
    taken = {one["key"]: one["scans"][0] for other, told in others(records, path) for one in told["cases"]
             if (age((other, {})), other) < (before, path)}
    twice = [case for case in cases if (other := taken.get(case["key"])) and os.path.exists(other)
             and not os.path.samefile(other, case["scans"][0])]
    if not twice:
        return list(cases), list(lost)
    left = [case for case in cases if case not in twice]
    lost = [*lost, *(refused(case, taken[case["key"]]) for case in twice)]
    write(path, records, left, lost)
    os.utime(path, ns=(before, before))
    return left, lost


def refused(case: dict, other: str) -> dict:
    """The record of a case whose mask is that of another scan."""
    scan = str(case["scans"][0])
    error = UserError(f"{scan}: its mask would be {case['mask']}, which is that of {other}, of another task; expected "
                      "a name for each; give all scans to one command, or each task an -o of its own")
    print(f"error: {error}", file=sys.stderr, flush=True)
    return {"scan": [scan], "error": str(error), "key": hash_of([scan, case["key"]])[:24], "case": {
        "scans": [Path(scan)]}}


def write(path: Path, records: Records, cases: Sequence[dict], lost: Sequence[dict]) -> None:
    write_json(path, {
        "cases": [{"key": case["key"], "mask": os.path.relpath(case["mask"], records.out), "name": case.get("name"),
                   "shown": case.get("shown"), "export": case.get("export"),
                   "scans": [os.path.abspath(scan) for scan in case["scans"]]}
                  for case in cases],
        "lost": [{name: record.get(name) for name in ("scan", "error", "key", "export")} for record in lost]})


def of_others(records: Records, path: Path, cases: Sequence[dict], lost: Sequence[dict],
              command: str) -> tuple[list[dict], list[dict]]:
    """The cases, and the records of what gave none, of the lists that others have told and this process does not have.

    A case whose scan and mask are both gone is none, but where it failed in this very ``command``. What gave none
    counts until this process, or one with a later list, has tried the same again.
    """
    own, found, gone = {case["key"] for case in cases}, {}, {}
    later = tried(cases, lost)
    for _, told in sorted(others(records, path), key=age, reverse=True):
        for one in told["cases"]:
            mask, scans = records.out / one["mask"], [Path(scan) for scan in one["scans"]]
            is_there = mask.exists() or scans[0].exists() or (
                records.read_failure(one["key"]) or {}).get("command") == command
            if one["key"] not in own and is_there:
                named = {name: one[name] for name in ("name", "shown") if one.get(name)}
                found[one["key"]] = {"key": one["key"], "mask": mask, "scans": scans} | named
        gone |= {record["key"]: record | {"case": {"scans": [Path(record["scan"][0])]}}
                 for record in told["lost"] if not tried((), [record]) <= later}
        later |= tried(told["cases"], told["lost"])
    return list(found.values()), list(gone.values())


def tried(cases: Sequence[dict], lost: Sequence[dict]) -> set[str]:
    """What a list is of: exports, by the hash of each, and paths of scans."""
    return {what(one) for one in (*cases, *lost)}


def what(one: dict) -> str:
    return one.get("export") or os.path.abspath((one.get("scans") or one["scan"])[0])


def age(told: tuple[Path, dict]) -> int:
    """When a list was told, in nanoseconds; later than all others where a newer one has just taken its place."""
    try:
        return told[0].stat().st_mtime_ns
    except OSError:
        return sys.maxsize


def others(records: Records, own: Path) -> Iterator[tuple[Path, dict]]:
    """The lists that were told, but for the process's ``own``."""
    for path in sorted(records.folder.glob("list-*.json")):
        if path != own and (told := read_json(path)):
            yield path, told


def path_of(records: Records, cases: Sequence[dict], lost: Sequence[dict]) -> Path:
    """The file of a list; processes with the same list have the same."""
    found = hash_of([[one["key"], what(one)] for one in (*cases, *lost)])
    return records.folder / f"list-{found[:24]}.json"

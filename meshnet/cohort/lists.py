"""The lists of scans of an array whose tasks each have one of their own, for one table of all of them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from meshnet.cohort.records import Records, read_json
from meshnet.files import hash_of, write_json


def tell(records: Records, cases: Sequence[dict], lost: Sequence[dict]) -> None:
    """Keep the list of this process: its cases, and records of exports and studies that gave none.

    A list that has no case and no lost export which this one lacks is an earlier one of the same scans, and is removed.
    """
    path, own = path_of(records, cases, lost), {case["key"] for case in cases}
    tried = {one.get("export") for one in (*cases, *lost)}
    if path.exists():
        return
    write_json(path, {
        "cases": [{"key": case["key"], "mask": os.path.relpath(case["mask"], records.out), "name": case.get("name"),
                   "shown": case.get("shown"), "export": case.get("export"),
                   "scans": [os.path.abspath(scan) for scan in case["scans"]]}
                  for case in cases],
        "lost": [{name: record.get(name) for name in ("scan", "error", "key", "export")} for record in lost]})
    for earlier, told in others(records, path):
        if (all(one["key"] in own for one in told["cases"])
                and all(one.get("export") in tried for one in told["lost"])):
            earlier.unlink(missing_ok=True)


def of_others(records: Records, cases: Sequence[dict], lost: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """The cases, and the records of what gave none, of the lists that others have told and this process does not have.

    A case whose scan and mask are both gone is none. What gave none counts until this process, or one with a later
    list, has tried the same export again.
    """
    own, found, gone = {case["key"] for case in cases}, {}, {}
    tried = {one.get("export") for one in (*cases, *lost)} - {None}
    for _, told in sorted(others(records, path_of(records, cases, lost)), key=age, reverse=True):
        for one in told["cases"]:
            mask, scans = records.out / one["mask"], [Path(scan) for scan in one["scans"]]
            if one["key"] not in own and (mask.exists() or scans[0].exists()):
                named = {name: one[name] for name in ("name", "shown") if one.get(name)}
                found[one["key"]] = {"key": one["key"], "mask": mask, "scans": scans} | named
        gone |= {record["key"]: record | {"case": {"scans": [Path(record["scan"][0])]}}
                 for record in told["lost"] if record.get("export") not in tried}
        tried |= {one.get("export") for one in (*told["cases"], *told["lost"])} - {None}
    return list(found.values()), list(gone.values())


def age(told: tuple[Path, dict]) -> int:
    """When a list was told, in nanoseconds."""
    return told[0].stat().st_mtime_ns


def others(records: Records, own: Path) -> Iterator[tuple[Path, dict]]:
    """The lists that were told, but for the process's ``own``."""
    for path in sorted(records.folder.glob("list-*.json")):
        if path != own and (told := read_json(path)):
            yield path, told


def path_of(records: Records, cases: Sequence[dict], lost: Sequence[dict]) -> Path:
    """The file of a list; processes with the same list have the same."""
    keys = [one["key"] for one in (*cases, *lost)]
    return records.folder / f"list-{hash_of(keys)[:24]}.json"

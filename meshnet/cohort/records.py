"""What is kept of each scan of a command, so that any process can write the table and the page of all of them."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import csv_text, write_json, write_text
from meshnet.runs.place import Place, place
from meshnet.runs.shares import FOLDER, Claims, Share, key_of

TABLE = "lesions.csv"
COLUMNS = ("scan", "mask", "volume_ml", "lesions", "largest_ml", "side", "quality", "agreement", "warnings", "error")
PROGRESS_SECONDS = 30.0


class Work:
    """The scans of one command: which of them this process does, and what became of each.

    Args:
        cases: each with ``scans`` and ``mask``; a ``key`` is added.
        out: the folder that everything is written to; None: files beside the scans, and nothing is recorded.
        overwrite: do what is finished again, once.
        where: this process among others (default: by the environment).
    """

    def __init__(self, cases: Sequence[dict], out: Path | None, overwrite: bool = False, where: Place | None = None):
        self.cases, self.out, self.overwrite = cases, out, overwrite
        self.where = place() if where is None else where
        if self.where.shared and out is None:
            raise UserError("-o: missing, expected the folder that all processes of this command write to")
        self.records = None if out is None else Records(out)
        self.by_key = {}
        for case in cases:
            case["key"] = key_of(case["mask"], out or Path("/"))
            self.by_key[case["key"]] = case
        self.claims = Claims(self.records.folder) if self.where.shared else None
        self.share = Share(list(self.by_key), self.where, self.claims, self._is_over,
                           lambda: set() if overwrite else self.records.names() if self.records else set())
        self.skipped: list[dict] = []  # finished before this command looked at them
        self.did, self.failed = 0, 0
        self.began, self.told = time.monotonic(), time.monotonic()
        self.begun = len(self.records.names()) if self.claims else 0

    def take(self) -> dict | None:
        """The next scan to segment; None where others do all that are left."""
        key = self.share.take()
        return None if key is None else self.by_key[key]

    def wait(self) -> bool:
        """Whether others still work; then it has waited a moment, and ``take`` may give what a killed process left."""
        self.say_progress()
        return self.share.wait()

    def done(self, case: dict, result: dict) -> None:
        """A scan is segmented, and all its files are written."""
        self.did += 1
        if self.records is not None:
            self.records.write(case["key"], result | {"command": self.where.command})
        self.share.finished(case["key"])
        self.say_progress()

    def fail(self, case: dict, error: Exception) -> None:
        """A scan cannot be segmented. The other processes of the same command do not try it again."""
        self.failed += 1
        if self.records is not None:
            self.records.write_failure(case["key"], self.shown(case) | {
                "error": str(error), "command": self.where.command})
        self.share.finished(case["key"])

    def shown(self, case: dict) -> dict:
        """How a record names a case."""
        names = {"scan": [case["name"]] if "name" in case else [str(path) for path in case["scans"]]}
        if "bids" in case:
            entities = case["bids"].entities
            names |= {"subject": f"sub-{entities['sub']}", "source": case["source"],
                      "session": f"ses-{entities['ses']}" if "ses" in entities else None}
        return names

    def close(self) -> None:
        """Give back what was taken."""
        if self.claims is not None:
            self.claims.close()

    def merges(self) -> bool:
        """Whether this process is the one that writes what is about all scans. Asked when nothing is left to do."""
        return self.records is not None and self.share.is_last(self._state())

    def merged(self, failed: bool) -> None:
        """What is about all scans is written; ``failed``: some of them are not segmented."""
        self.share.wrote(self._state(), failed)

    def _state(self) -> str:
        return f"{len(self.records.names())} done, {len(self.records.failures())} failed" if self.claims else ""

    def results(self) -> tuple[list[dict], list[dict]]:
        """The records of all scans of this command that are finished, and of those that failed, in the cases' order."""
        done, failed = [], []
        for case in self.cases:
            record, failure = self.records.read(case["key"]), self.records.read_failure(case["key"])
            if failure:  # the last try: a mask that is there all the same is of an earlier one
                failed.append(failure | {"key": case["key"], "case": case})
            elif case["mask"].exists():
                found = record or self.shown(case)
                done.append(found | {"mask": str(case["mask"]), "key": case["key"], "case": case})
        return done, failed

    def _is_over(self, key: str) -> bool:
        case = self.by_key[key]
        if case["mask"].exists():
            if not self.overwrite:
                self.skipped.append(case) if self.claims is None else None
                return True
            record = self.records and self.claims and self.records.read(key)
            return bool(record) and record.get("command") == self.where.command
        failure = self.records and self.claims and self.records.read_failure(key)
        return bool(failure) and failure.get("command") == self.where.command

    def say_progress(self) -> None:
        """A line about all processes together, from the first of them, twice a minute at most."""
        if self.claims is None or self.where.index or time.monotonic() - self.told < PROGRESS_SECONDS:
            return
        self.told = time.monotonic()
        print(progress(len(self.records.names()), len(self.cases), self.begun, self.told - self.began), file=sys.stderr,
              flush=True)


def progress(done: int, total: int, begun: int, seconds: float) -> str:
    """How far all processes are, and how long it will take: ``begun`` scans were done ``seconds`` ago."""
    left = ""
    if done > begun and done < total:
        rest = (total - done) * seconds / (done - begun)
        left = f", about {rest / 3600:.1f} h left" if rest > 5400 else f", about {max(1, round(rest / 60))} min left"
    return f"{done} of {total} scans done{left}"


class Records:
    """A file for each scan in a hidden folder of the output, named by the scan's key."""

    def __init__(self, out: Path):
        self.out, self.folder = out, out / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> set[str]:
        """The keys of the scans that are finished."""
        return {path.stem for path in self.folder.iterdir() if path.suffix == ".json" and path.stem.isalnum()}

    def write(self, key: str, record: dict) -> None:
        write_json(self.folder / f"{key}.json", record)
        (self.folder / f"{key}.failed.json").unlink(missing_ok=True)

    def read(self, key: str) -> dict | None:
        """The record of a finished scan; None where there is none that can be read."""
        return read_json(self.folder / f"{key}.json")

    def write_failure(self, key: str, record: dict) -> None:
        write_json(self.folder / f"{key}.failed.json", record)

    def read_failure(self, key: str) -> dict | None:
        """Why a scan failed; None where it did not."""
        return read_json(self.folder / f"{key}.failed.json")

    def failures(self) -> list[dict]:
        """Every failure that an earlier or this command left, with the key of its scan."""
        found = {path.name.split(".")[0]: read_json(path) for path in sorted(self.folder.glob("*.failed.json"))}
        return [record | {"key": key} for key, record in found.items() if record]


def read_json(path: Path) -> dict | None:
    """A JSON object; None where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_table(out: Path, done: Sequence[dict], failed: Sequence[dict]) -> Path:
    """``lesions.csv``: a line for each scan of a command."""
    rows = [COLUMNS]
    for record in [*done, *failed]:
        values = record | {"scan": ", ".join(record["scan"]), "mask": record.get("mask"), "warnings": "; ".join(
            [*record.get("warnings", []), *record.get("remarks", [])])}
        rows.append([values.get(column) for column in COLUMNS])
    write_text(out / TABLE, csv_text(rows), errors="backslashreplace")  # names in foreign bytes
    return out / TABLE

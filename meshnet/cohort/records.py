"""What is kept of each scan of a command, so that any process can write the table and the page of all of them."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from meshnet.cohort.kept import Refused, is_out_of_date, names
from meshnet.errors import UserError
from meshnet.files import csv_text, hash_of, write_json, write_text
from meshnet.runs.place import Place, place
from meshnet.runs.shares import FOLDER, Claims, Share, key_of

TABLE = "lesions.csv"
COLUMNS = ("scan", "mask", "volume_ml", "lesions", "largest_ml", "side", "quality", "agreement", "warnings", "error")
PROGRESS_SECONDS = 30.0
FAILED, UNDECIDED = ".failed", ".undecided"  # before .json, in the name of the record of what is not done
AGAIN = ".again"  # ends the name of an empty file that says that this command did a scan that had a record
FOLDERS = 200  # of masks, up to which a process looks at each of them
CHANGED = "the mask was changed after it was written; its numbers here are those of the file"
KILLS = 3  # processes that were killed while they had a scan, after which it is given up


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
        # A process alone claims as well: of a scan that it was killed at the next one knows.
        self.claims = Claims(self.records.folder) if self.records else None
        self.share = Share(list(self.by_key), self.where, self.claims, self._is_over, self._recorded)
        self.suspect = False  # the last scan taken was the end of a process before
        self.skipped: list[dict] = []  # finished before this command looked at them
        self.did, self.failed = 0, 0
        self.began, self.told = time.monotonic(), time.monotonic()
        self.state = ""
        self.begun = self._finished() if self.where.shared else 0

    def take(self) -> dict | None:
        """The next scan to segment; None where others do all that are left. A scan that was the end of several
        processes has failed."""
        while (key := self.share.take()) is not None:
            killed = self.claims.killed[key] if self.claims else 0
            self.suspect = killed > 0
            if killed < KILLS:
                return self.by_key[key]
            self.fail(self.by_key[key], UserError(
                f"{label(self.by_key[key])}: found {killed} processes killed while they segmented it, expected enough "
                "memory for it; give each more, or --max_memory, then run the same command again"))
        return None

    def wait(self) -> bool:
        """Whether others still work; then it has waited a moment, and ``take`` may give what a killed process left."""
        self.say_progress()
        return self.share.wait()

    def done(self, case: dict, result: dict) -> None:
        """A scan is segmented, and all its files are written."""
        self.did += 1
        if self.records is not None:
            again = self.records.has(case["key"]) or self.records.read_failure(case["key"])
            self.records.write(case["key"], result | {"command": self.where.command})
            self.records.note_again(case["key"], self.where) if again else None
        self.share.finished(case["key"])
        self.say_progress()

    def fail(self, case: dict, error: Exception) -> None:
        """A scan cannot be segmented. The other processes of the same command do not try it again."""
        print(f"error: {error}", file=sys.stderr, flush=True)
        self.failed += 1
        if self.records is not None:
            again = self.records.read_failure(case["key"])
            self.records.write_failure(case["key"], self.shown(case) | {
                "error": str(error), "command": self.where.command, "refused": isinstance(error, Refused)})
            self.records.note_again(case["key"], self.where) if again else None
        self.share.finished(case["key"])

    def keep(self, case: dict) -> None:
        """A scan may be the reason why this process ends: it counts as if the process were killed."""
        if self.claims is not None:
            self.claims.keep(case["key"])

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
        self.state = self._state()
        return self.records is not None and self.share.is_last(self.state)

    def merged(self, failed: bool) -> None:
        """What is about all scans is written; ``failed``: some of them are not segmented."""
        self.share.wrote(self.state, failed)
        self.records.forget_again(self.where)

    def _state(self) -> str:
        """What there is, in words that are other ones as soon as the table would be another one."""
        if not self.where.shared:
            return ""
        lists = hash_of(sorted(path.name for path in self.records.folder.glob("list-*.json")))[:12]
        return (f"{len(self.records.names())} done, {len(self.records.failures())} failed, "
                f"{self.records.count_again(self.where)} again, lists {lists}")

    def _finished(self) -> int:
        return len(self.records.names() & self.by_key.keys())

    def results(self, others: Sequence[dict] = ()) -> tuple[list[dict], list[dict]]:
        """The records of all scans of this command that are finished, and of those that failed, in the cases' order;
        and of ``others``, cases of other lists. A mask that was not replaced is there still, ``kept``, of its scan."""
        done, failed = [], []
        for case in [*self.cases, *others]:
            record, failure = self.records.read(case["key"]), self.records.read_failure(case["key"])
            if failure:  # the last try: a mask that is there all the same is of an earlier one
                failed.append(failure | {"key": case["key"], "case": case})
                if record and failure.get("refused") and case["mask"].exists():
                    of = case if names(record, case["scans"]) else {"scans": [Path(name) for name in record["scan"]]}
                    done.append(self._there(case, record, of) | {"kept": True})
            elif case["mask"].exists():
                done.append(self._there(case, record, case))
        return done, failed

    def _there(self, case: dict, record: dict | None, of: dict) -> dict:
        """The record of the mask of ``case``, which is that of the case ``of``."""
        found = record or self.shown(of)
        if record and self.records.changed_since(case["key"], case["mask"]):
            found = self.shown(of) | {"warnings": [CHANGED]}
        return found | {"mask": str(case["mask"]), "key": case["key"], "case": of}

    def _is_over(self, key: str) -> bool:
        """Whether a scan is finished, or failed in this very command."""
        case, shared = self.by_key[key], self.where.shared
        if self.records is not None:
            if failure := self.records.read_failure(key):  # the last try, whatever mask is there of an earlier one
                return shared and failure.get("command") == self.where.command
            if self.overwrite and shared:
                return (self.records.read(key) or {}).get("command") == self.where.command
        if self.overwrite or not case["mask"].exists():
            return False
        if "source" in case and case["mask"].stat().st_mtime_ns < case["scans"][0].stat().st_mtime_ns:
            return False  # converted again since, of other files: on another grid, perhaps
        # A claimed mask without a record is of a process that is still at it, or was killed before it had said all.
        if self.records is not None and not self.records.has(key):
            from meshnet.scans.ours import is_ours

            if self.claims.path(key).exists() or not is_ours(case["mask"]):  # nor does one that somebody drew count
                return False
        if is_out_of_date(case, self.records.read(key) if self.records else None):
            return False  # and, where it is another scan's, refused when its turn comes
        self.skipped.append(case) if not shared else None
        return True

    def _recorded(self) -> set[str]:
        """The keys of scans that are probably finished: with a record and a mask, by one look at each folder of masks.
        Where these are very many the records alone are believed: whoever has a scan in its own part asks for its mask.
        """
        if self.overwrite or self.records is None or any("seg" in case for case in self.cases):
            return set()
        names, folders = self.records.names(), {case["mask"].parent for case in self.cases}
        if len(folders) > FOLDERS:
            return names
        there = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
        masks = {key: case["mask"] for key, case in self.by_key.items()}
        return {key for key in names & masks.keys() if masks[key].name in there[masks[key].parent]}

    def say_progress(self) -> None:
        """A line about all processes together, from the first of them, twice a minute at most."""
        if not self.where.shared or self.where.index or time.monotonic() - self.told < PROGRESS_SECONDS:
            return
        self.told = time.monotonic()
        print(progress(self._finished(), len(self.cases), self.begun, self.told - self.began), file=sys.stderr,
              flush=True)


def progress(done: int, total: int, begun: int, seconds: float) -> str:
    """How far all processes are, and how long it will take: ``begun`` scans were done ``seconds`` ago."""
    left = ""
    if done > begun and done < total:
        rest = (total - done) * seconds / (done - begun)
        left = f", about {rest / 3600:.1f} h left" if rest > 5400 else f", about {max(1, round(rest / 60))} min left"
    return f"{done} of {total} scans done{left}"


def label(case: dict) -> str:
    """What messages call a scan: its path, or of DICOM files a name that holds nothing of the patient's."""
    return case.get("name") or str(case["scans"][0])


class Records:
    """A file for each scan in a hidden folder of the output, named by the scan's key."""

    def __init__(self, out: Path):
        self.out, self.folder = out, out / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> set[str]:
        """The keys of the scans that are finished, and have not failed since."""
        found = [name.removesuffix(".json") for name in os.listdir(self.folder) if name.endswith(".json")]
        failed = {name.removesuffix(FAILED) for name in found if name.endswith(FAILED)}
        return {name for name in found if name.isalnum()} - failed

    def has(self, key: str) -> bool:
        """Whether a scan was finished at some time."""
        return (self.folder / f"{key}.json").is_file()

    def write(self, key: str, record: dict) -> None:
        write_json(self.folder / f"{key}.json", record)
        (self.folder / f"{key}{FAILED}.json").unlink(missing_ok=True)

    def read(self, key: str) -> dict | None:
        """The record of a finished scan; None where there is none that can be read."""
        return read_json(self.folder / f"{key}.json")

    def changed_since(self, key: str, mask: Path) -> bool:
        """Whether a mask is not the one that its record tells of: it is newer, and another one by its checksum."""
        from meshnet.scans.ours import is_ours

        written = (self.folder / f"{key}.json").stat().st_mtime
        return mask.stat().st_mtime > written and not is_ours(mask)

    def note_again(self, key: str, where: Place) -> None:
        """A scan that had a record has another one: what was written about all scans is out of date."""
        if where.shared:
            (self.folder / f"{key}{self._again(where)}").touch()

    def count_again(self, where: Place) -> int:
        """How many scans with a record this command did again."""
        return sum(name.endswith(self._again(where)) for name in os.listdir(self.folder))

    def forget_again(self, where: Place) -> None:
        """Remove what earlier commands noted."""
        for name in os.listdir(self.folder) if where.shared else ():
            if name.endswith(AGAIN) and not name.endswith(self._again(where)):
                (self.folder / name).unlink(missing_ok=True)

    def _again(self, where: Place) -> str:
        return f".{hash_of(where.command)[:8]}{AGAIN}"

    def write_failure(self, key: str, record: dict) -> None:
        write_json(self.folder / f"{key}{FAILED}.json", record)

    def read_failure(self, key: str) -> dict | None:
        """Why a scan failed; None where it did not."""
        return read_json(self.folder / f"{key}{FAILED}.json")

    def failures(self) -> list[dict]:
        """Every failure that an earlier or this command left, with the key of its scan."""
        return self._all(FAILED)

    def write_undecided(self, key: str, record: dict | None) -> None:
        """Why it could not be decided what a scan is; None: it can now."""
        path = self.folder / f"{key}{UNDECIDED}.json"
        path.unlink(missing_ok=True) if record is None else write_json(path, record)

    def undecided(self) -> list[dict]:
        """Every scan that an earlier or this command could not decide about, with its key."""
        return self._all(UNDECIDED)

    def _all(self, kind: str) -> list[dict]:
        found = {path.name.split(".")[0]: read_json(path) for path in sorted(self.folder.glob(f"*{kind}.json"))}
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

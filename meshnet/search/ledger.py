"""What a study remembers: SQLite in WAL mode with one writer, and ``status.json`` for everyone else.

WAL mode needs shared memory and so works on one host only: the database lies on the driver's own disk, and a lock file
beside it keeps a second driver out. Others read ``status.json`` in the study folder, which is replaced whole.

Every change is one transaction with ``synchronous=FULL``: a driver killed at any moment leaves either all of it or
nothing. ``events`` keeps the order of decisions, from which ``asha.Asha`` is rebuilt exactly; ``scores`` has one row
for a trial, inner fold, schedule and epoch, so that no score can be counted twice.
"""

import contextlib
import csv
import fcntl
import io
import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import write_text
from meshnet.search.asha import Asha, Job

TABLES = """
CREATE TABLE IF NOT EXISTS study (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trials (
    trial INTEGER PRIMARY KEY, parameters TEXT NOT NULL, bracket INTEGER NOT NULL, rung INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'paused', 'failed')), reason TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL CHECK (kind IN ('start', 'promote', 'end')),
    trial INTEGER NOT NULL REFERENCES trials, rung INTEGER NOT NULL, score REAL, reason TEXT NOT NULL DEFAULT '',
    time REAL NOT NULL, UNIQUE (kind, trial, rung));
CREATE TABLE IF NOT EXISTS scores (
    trial INTEGER NOT NULL REFERENCES trials, fold INTEGER NOT NULL, horizon INTEGER NOT NULL, epoch INTEGER NOT NULL,
    score REAL, seconds REAL, PRIMARY KEY (trial, fold, horizon, epoch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (
    number INTEGER PRIMARY KEY AUTOINCREMENT, trial INTEGER NOT NULL REFERENCES trials, rung INTEGER NOT NULL,
    fold INTEGER NOT NULL, place TEXT NOT NULL, identity TEXT NOT NULL, started REAL NOT NULL,
    ended REAL, reason TEXT);
CREATE INDEX IF NOT EXISTS open_attempts ON attempts (trial, rung, fold);
"""


NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.sshfs", "9p")


def network_file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that ``path`` lies on if it is shared over a network (Linux), else ""."""
    path, best, kind = path.absolute(), "", ""
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            _, point, found, *_ = line.split(" ")
            if path.is_relative_to(point) and len(point) >= len(best):
                best, kind = point, found
    return kind if kind.startswith(NETWORK_FILE_SYSTEMS) else ""


@contextlib.contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Have SQLite's complaints about the file or its disk end in one line; a broken rule of the tables is our fault."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: {error}; expected the ledger of a study on a writable disk with room; mend that, then the same "
            "command goes on"
        ) from None


class Ledger:
    """One study's memory, opened for writing. Use as a context manager.

    path: the database. lock: the file that keeps a second driver out, by default beside the database.

    Raises:
        UserError: if another driver has it open (naming which), the study was begun with other settings, the file is no
            ledger, or its disk is full.
    """

    def __init__(self, path: str | Path, lock: str | Path | None = None):
        self.path = Path(path)
        shared = network_file_system(self.path)
        if shared:
            raise UserError(
                f"{self.path}: lies on a network file system ({shared}), where SQLite's WAL mode is unsafe; "
                "put the ledger on this machine's own disk with --ledger"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = open(lock or self.path.with_suffix(".lock"), "a+")  # noqa: SIM115 - held as long as the ledger
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; expected a folder for the ledger") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise UserError(
                f"{self.path}: this study is being run by {holder}; look at it with --status, or stop that one first"
            ) from None
        self._lock.seek(0)
        self._lock.truncate()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        self._lock.flush()
        with one_line(self.path):
            self.database = sqlite3.connect(self.path, isolation_level=None)
            self.database.execute("PRAGMA journal_mode=WAL")
            self.database.execute("PRAGMA synchronous=FULL")
            self.database.execute("PRAGMA foreign_keys=ON")
            self.database.executescript(TABLES)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Close the database and let the next driver in."""
        self.database.close()
        self._lock.close()

    @contextlib.contextmanager
    def _transaction(self):
        with one_line(self.path):
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield self.database
                self.database.execute("COMMIT")
            except BaseException:
                if self.database.in_transaction:  # SQLite may have rolled it back itself, as on a full disk
                    self.database.execute("ROLLBACK")
                raise

    # ---------------------------------------------------------------- the study
    def settings(self, wanted: dict) -> dict:
        """Record the settings of a new study, or check that they are those it was begun with."""
        with one_line(self.path):
            found = dict(self.database.execute("SELECT key, value FROM study"))
        text = {key: json.dumps(value, sort_keys=True) for key, value in wanted.items()}
        if not found:
            with self._transaction() as database:
                database.executemany("INSERT INTO study VALUES (?, ?)", text.items())
            return wanted
        for key in sorted(set(text) | set(found)):
            if text.get(key) != found.get(key):
                raise UserError(
                    f"{self.path}: the study was begun with {key} {found.get(key)}, found {text.get(key)}; "
                    "give the same command again, or another --study"
                )
        return wanted

    def rebuild(self, study: Asha) -> None:
        """Bring a fresh ``study`` to where the ledger says it stands."""
        with one_line(self.path):
            known = self.database.execute("SELECT trial, parameters, bracket FROM trials").fetchall()
            rows = self.database.execute("SELECT kind, trial, rung, score, reason FROM events ORDER BY number")
            rows = rows.fetchall()
        trials = {trial: (json.loads(parameters), bracket) for trial, parameters, bracket in known}
        for kind, trial, rung, score, reason in rows:
            if kind == "start":
                study.restore(*trials[trial], rung)
            elif kind == "promote":
                study.promote(trial)
            elif reason:
                study.fail(trial, reason)
            else:
                study.report(trial, score)

    # ---------------------------------------------------------------- decisions
    def started(self, job: Job, study: Asha) -> None:
        """A new trial or a promotion was decided."""
        trial = study.trials[job.trial]
        fresh = trial.rung == trial.bracket
        with self._transaction() as database:
            if fresh:
                database.execute(
                    "INSERT INTO trials (trial, parameters, bracket, rung, state) VALUES (?, ?, ?, ?, 'running')",
                    (trial.number, json.dumps(trial.parameters), trial.bracket, job.rung),
                )
            else:
                database.execute(
                    "UPDATE trials SET rung = ?, state = 'running' WHERE trial = ?", (job.rung, job.trial)
                )
            database.execute(
                "INSERT INTO events (kind, trial, rung, time) VALUES (?, ?, ?, ?)",
                ("start" if fresh else "promote", job.trial, job.rung, time.time()),
            )

    def ended(self, job: Job, score: float | None, reason: str = "") -> None:
        """A job ended with a score, or failed for good with a reason."""
        assert (score is None) == bool(reason), "a job ends with a score or with a reason"
        with self._transaction() as database:
            state = "failed" if reason else "paused"
            database.execute("UPDATE trials SET state = ?, reason = ? WHERE trial = ?", (state, reason, job.trial))
            database.execute(
                "INSERT INTO events (kind, trial, rung, score, reason, time) VALUES ('end', ?, ?, ?, ?, ?)",
                (job.trial, job.rung, score, reason, time.time()),
            )

    # ---------------------------------------------------------------- runs
    def attempt(self, job: Job, fold: int, place: str, identity: dict) -> int:
        """A process was started for one inner fold of a job; its number."""
        with self._transaction() as database:
            cursor = database.execute(
                "INSERT INTO attempts (trial, rung, fold, place, identity, started) VALUES (?, ?, ?, ?, ?, ?)",
                (job.trial, job.rung, fold, place, json.dumps(identity), time.time()),
            )
            return cursor.lastrowid

    def attempt_ended(self, number: int, reason: str, place: str | None = None) -> None:
        """It is over. "" means that it did what it was started for. ``place``: where it ran, if known only now."""
        with self._transaction() as database:
            change = "UPDATE attempts SET ended = ?, reason = ?, place = COALESCE(?, place) WHERE number = ?"
            database.execute(change, (time.time(), reason, place, number))

    def open_attempts(self) -> list[tuple[int, int, int, int, dict]]:
        """(number, trial, rung, fold, identity) of those without an end: they ran when the last driver died."""
        rows = self.database.execute(
            "SELECT number, trial, rung, fold, identity FROM attempts WHERE ended IS NULL ORDER BY number"
        )
        return [(*row[:4], json.loads(row[4])) for row in rows]

    def failures(self, job: Job, fold: int, forgiven: tuple[str, ...]) -> int:
        """How many attempts at this job and fold ended badly, leaving out those whose reason is ``forgiven``."""
        rows = self.database.execute(
            "SELECT reason FROM attempts WHERE trial = ? AND rung = ? AND fold = ? AND ended IS NOT NULL",
            (job.trial, job.rung, fold),
        )
        return sum(bool(reason) and reason not in forgiven for (reason,) in rows)

    def record_scores(
        self, trial: int, fold: int, horizon: int, rows: list[tuple[int, float | None, float]]
    ) -> dict[int, float | None]:
        """(epoch, score, seconds) of one run folder. What is known already must be the same to the last bit, or gone:
        a score between two validations, which a rung called for, leaves the run folder when the trial goes on.

        Returns:
            The score of every epoch that is known now, those included that have left the run folder.

        Raises:
            UserError: if an epoch comes back with another score: the run folder is not the one that was begun.
        """
        known = dict(
            self.database.execute(
                "SELECT epoch, score FROM scores WHERE trial = ? AND fold = ? AND horizon = ?", (trial, fold, horizon)
            )
        )
        for epoch, score, _ in rows:
            if score is not None and known.get(epoch, score) != score:
                raise UserError(
                    f"{self.path}: trial {trial}, inner fold {fold}, epoch {epoch}: found score {score}, recorded was "
                    f"{known[epoch]}; its run folder was changed or replaced: remove the study or restore the folder"
                )
        fresh = [row for row in rows if row[0] not in known]
        if fresh:
            with self._transaction() as database:
                database.executemany(
                    "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)", [(trial, fold, horizon, *row) for row in fresh]
                )
        return known | {epoch: score for epoch, score, _ in fresh}

    # ---------------------------------------------------------------- for people
    def export(self) -> str:
        """The study as CSV: one line a trial, its parameters and the score at each rung it finished."""
        trials = self.database.execute(
            "SELECT trial, parameters, bracket, rung, state, reason FROM trials ORDER BY trial"
        ).fetchall()
        scores: dict[int, dict[int, float]] = {}
        for trial, rung, score in self.database.execute("SELECT trial, rung, score FROM events WHERE kind = 'end'"):
            scores.setdefault(trial, {})[rung] = score
        attempts = dict(self.database.execute("SELECT trial, COUNT(*) FROM attempts GROUP BY trial"))
        where = dict(self.database.execute("SELECT trial, GROUP_CONCAT(DISTINCT place) FROM attempts GROUP BY trial"))
        rungs = sorted({rung for by_rung in scores.values() for rung in by_rung})
        names = list(dict.fromkeys(name for row in trials for name in json.loads(row[1])))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["trial", *names, "bracket", "rung", "state", *(f"score_rung_{rung}" for rung in rungs),
             "attempts", "where", "reason"]
        )
        for trial, parameters, bracket, rung, state, reason in trials:
            values = json.loads(parameters)
            at_rungs = [scores.get(trial, {}).get(number) for number in rungs]
            writer.writerow(
                [trial, *(values.get(name) for name in names), bracket, rung, state, *at_rungs,
                 attempts.get(trial, 0), where.get(trial, ""), reason]
            )
        return text.getvalue()

    def curves(self) -> list[tuple[int, int, int, int, float | None]]:
        """(trial, fold, horizon, epoch, score) of every epoch, in order."""
        return self.database.execute(
            "SELECT trial, fold, horizon, epoch, score FROM scores ORDER BY trial, fold, horizon, epoch"
        ).fetchall()

    def write_export(self, path: Path) -> None:
        """The CSV, whole or not at all."""
        write_text(path, self.export())

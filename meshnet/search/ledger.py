"""The record of a study: SQLite in WAL mode with one writer, and ``status.json`` for everyone else.

WAL mode needs shared memory and so works on one host only: the database lies on a local disk of the driver, and a lock
file beside it keeps a second driver out. Others read ``status.json`` in the study folder, which is replaced whole.

Every change is one transaction with ``synchronous=FULL``: a driver killed at any moment leaves either all of it or
nothing. ``events`` keeps the order of decisions, from which ``asha.Asha`` is rebuilt exactly; ``scores`` has one row
for a trial, inner fold, schedule and epoch, so that no score can be counted twice.
"""

import contextlib
import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import csv_text, try_lock, write_text
from meshnet.runs.folder import differences
from meshnet.search.asha import Asha, Decision

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
    """Turn SQLite's errors about the file or its disk into one line; a violated constraint is a bug and stays."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path}: {error}; expected the ledger of a study on a writable disk with free space; fix that, then run "
            "the same command again"
        ) from None


def recorded_settings(path: str | Path) -> dict:
    """The settings that a study was started with, without opening it for writing; {} where there is none to be read.
    Without a trial no number of brackets counts, and without a score no metric: they may have been slips."""
    path = Path(path)
    if not path.is_file():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            found = {key: json.loads(value) for key, value in database.execute("SELECT key, value FROM study")}
            for key, table in (("brackets", "trials"), ("metric", "scores")):
                if not database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]:
                    found.pop(key, None)
            return found
    except (sqlite3.DatabaseError, ValueError):
        return {}  # opening it says what is wrong


class Ledger:
    """One study's record, opened for writing. Use as a context manager.

    path: the database. lock: the file that keeps a second driver out, by default beside the database.

    Raises:
        UserError: if another driver has it open (naming which), the study was started with other settings, the file is
            no ledger, or its disk is full.
    """

    def __init__(self, path: str | Path, lock: str | Path | None = None):
        self.path = Path(path)
        shared = network_file_system(self.path)
        if shared:
            raise UserError(
                f"{self.path}: lies on a network file system ({shared}), where SQLite's WAL mode is unsafe; "
                "put the ledger on a local disk with --ledger"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = open(lock or self.path.with_suffix(".lock"), "a+")  # noqa: SIM115 - held as long as the ledger
        except OSError as error:
            raise UserError(f"{error.filename}: {error.strerror}; expected a folder for the ledger") from None
        if not try_lock(self._lock):
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise UserError(
                f"{self.path}: this study is being run by {holder}; watch it with --status, or stop that process first"
            )
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
            except BaseException:  # Ctrl-C too; raised again
                if self.database.in_transaction:  # SQLite may have rolled it back itself, as on a full disk
                    self.database.execute("ROLLBACK")
                raise

    # ---------------------------------------------------------------- the study
    def settings(
        self, wanted: dict, renew: Callable[[dict], dict] = dict,
        changes: Callable[[dict, dict], list[str]] = lambda old, new: list(differences(old, new).values()),
    ) -> dict:
        """Record the settings of a new study, or check that they are those it was started with. Before the first trial
        begins all of them may change, and before the first score its metric: a slip must not bind a study.

        renew: brings what an earlier version recorded to the form of ``wanted``. changes: what differs, in words.
        """
        with one_line(self.path):
            recorded = dict(self.database.execute("SELECT key, value FROM study"))
        if recorded and not self.is_empty():
            known = renew({key: json.loads(value) for key, value in recorded.items()})
            if not self._has_scores():
                known |= {key: wanted[key] for key in ("metric", "direction") if key in wanted}
            changed = changes(known, wanted)
            if changed:
                raise UserError(f"{self.path}: the study was started with other settings: {'; '.join(changed)}; use "
                                "the same settings, or another --study")
        text = {key: json.dumps(value, sort_keys=True) for key, value in wanted.items()}
        if text != recorded:
            with self._transaction() as database:
                database.execute("DELETE FROM study")
                database.executemany("INSERT INTO study VALUES (?, ?)", text.items())
        return wanted

    def is_empty(self) -> bool:
        """Whether no trial was ever started."""
        with one_line(self.path):
            return not self.database.execute("SELECT COUNT(*) FROM trials").fetchone()[0]

    def _has_scores(self) -> bool:
        with one_line(self.path):
            return any(self.database.execute(f"SELECT COUNT(*) FROM {table} WHERE score IS NOT NULL").fetchone()[0]
                       for table in ("events", "scores"))  # folds that are done, of trials that are not

    def rebuild(self, study: Asha) -> None:
        """Bring a new ``study`` to the recorded state."""
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
        for trial in study.trials:
            trial.pace = self.pace(trial.number)

    # ---------------------------------------------------------------- decisions
    def started(self, decision: Decision, study: Asha) -> None:
        """A new trial or a promotion was decided."""
        trial = study.trials[decision.trial]
        fresh = trial.rung == trial.bracket
        with self._transaction() as database:
            if fresh:
                database.execute(
                    "INSERT INTO trials (trial, parameters, bracket, rung, state) VALUES (?, ?, ?, ?, 'running')",
                    (trial.number, json.dumps(trial.parameters), trial.bracket, decision.rung),
                )
            else:
                database.execute(
                    "UPDATE trials SET rung = ?, state = 'running' WHERE trial = ?", (decision.rung, decision.trial)
                )
            database.execute(
                "INSERT INTO events (kind, trial, rung, time) VALUES (?, ?, ?, ?)",
                ("start" if fresh else "promote", decision.trial, decision.rung, time.time()),
            )

    def ended(self, decision: Decision, score: float | None, reason: str = "") -> None:
        """A decision was carried out with a score, or failed for good with a reason."""
        assert (score is None) == bool(reason), "a decision ends with a score or with a reason"
        with self._transaction() as database:
            state = "failed" if reason else "paused"
            database.execute("UPDATE trials SET state = ?, reason = ? WHERE trial = ?", (state, reason, decision.trial))
            database.execute(
                "INSERT INTO events (kind, trial, rung, score, reason, time) VALUES ('end', ?, ?, ?, ?, ?)",
                (decision.trial, decision.rung, score, reason, time.time()),
            )

    # ---------------------------------------------------------------- runs
    def attempt(self, decision: Decision, fold: int, place: str, identity: dict) -> int:
        """A process was started for one inner fold of a decision; returns its number."""
        with self._transaction() as database:
            cursor = database.execute(
                "INSERT INTO attempts (trial, rung, fold, place, identity, started) VALUES (?, ?, ?, ?, ?, ?)",
                (decision.trial, decision.rung, fold, place, json.dumps(identity), time.time()),
            )
            return cursor.lastrowid

    def attempt_ended(self, number: int, reason: str, place: str | None = None) -> None:
        """It ended. An empty reason means success. ``place``: where it ran, if only known now."""
        with self._transaction() as database:
            change = "UPDATE attempts SET ended = ?, reason = ?, place = COALESCE(?, place) WHERE number = ?"
            database.execute(change, (time.time(), reason, place, number))

    def open_attempts(self) -> list[tuple[int, int, int, int, dict]]:
        """(number, trial, rung, fold, identity) of attempts without an end: running when the last driver died."""
        rows = self.database.execute(
            "SELECT number, trial, rung, fold, identity FROM attempts WHERE ended IS NULL ORDER BY number"
        )
        return [(*row[:4], json.loads(row[4])) for row in rows]

    def failures(self, decision: Decision, fold: int, forgiven: tuple[str, ...]) -> int:
        """How many attempts at this decision and fold failed, without those whose reason is in ``forgiven``."""
        rows = self.database.execute(
            "SELECT reason FROM attempts WHERE trial = ? AND rung = ? AND fold = ? AND ended IS NOT NULL",
            (decision.trial, decision.rung, fold),
        )
        return sum(bool(reason) and reason not in forgiven for (reason,) in rows)

    def record_scores(
        self, trial: int, fold: int, horizon: int, rows: list[tuple[int, float | None, float]]
    ) -> dict[int, float | None]:
        """Record (epoch, score, seconds) of one run folder. A score that is already known must be identical or missing:
        one that only a rung asked for, between two validations, leaves the run folder when the trial continues.

        Returns:
            The scores of all known epochs, including those that have left the run folder.

        Raises:
            UserError: if the score of an epoch has changed: the run folder was replaced.
        """
        known = dict(
            self.database.execute(
                "SELECT epoch, score FROM scores WHERE trial = ? AND fold = ? AND horizon = ?", (trial, fold, horizon)
            )
        )
        for epoch, score, _ in rows:
            if score is not None and known.get(epoch, score) != score:
                raise UserError(
                    f"{self.path}: trial {trial}, inner fold {fold}, epoch {epoch}: found score {score}, expected "
                    f"{known[epoch]} as recorded; its run folder was changed: restore it, or start another study"
                )
        fresh = [row for row in rows if row[0] not in known]
        if fresh:
            with self._transaction() as database:
                database.executemany(
                    "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)", [(trial, fold, horizon, *row) for row in fresh]
                )
        return known | {epoch: score for epoch, score, _ in fresh}

    def pace(self, trial: int) -> float | None:
        """The mean seconds of an epoch of a trial's runs; None before any score."""
        query = "SELECT AVG(seconds) FROM scores WHERE trial = ? AND seconds > 0"
        return self.database.execute(query, (trial,)).fetchone()[0]

    # ---------------------------------------------------------------- for people
    def export(self, over: bool = False) -> str:
        """The study as CSV: one line for each trial, with its parameters and the score of each finished rung. A trial
        that waits between rungs is paused, and finished once the study is ``over``."""
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
        lines = [["trial", *names, "bracket", "rung", "state", *(f"score_rung_{rung}" for rung in rungs),
                  "attempts", "where", "reason"]]
        for trial, parameters, bracket, rung, kept, reason in trials:
            values, state = json.loads(parameters), "finished" if over and kept == "paused" else kept
            at_rungs = [scores.get(trial, {}).get(number) for number in rungs]
            lines.append([trial, *(values.get(name) for name in names), bracket, rung, state, *at_rungs,
                          attempts.get(trial, 0), where.get(trial, ""), reason])
        return csv_text(lines)

    def seconds_per_epoch(self) -> float | None:
        """The mean seconds of an epoch of one run, start-up and failed attempts included; None before any score."""
        query = "SELECT (SELECT SUM(ended - started) FROM attempts), (SELECT COUNT(*) FROM scores)"
        spent, scored = self.database.execute(query).fetchone()
        return spent / scored if spent and scored else None

    def curves(self) -> list[tuple[int, int, int, int, float | None]]:
        """(trial, fold, horizon, epoch, score) of every epoch, in order."""
        return self.database.execute(
            "SELECT trial, fold, horizon, epoch, score FROM scores ORDER BY trial, fold, horizon, epoch"
        ).fetchall()

    def write_export(self, path: Path, over: bool = False) -> None:
        """The CSV, whole or not at all."""
        write_text(path, self.export(over))

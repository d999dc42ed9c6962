"""A run folder: what lies in it, what makes it the same run, and its lines of metrics.

=================== ==================================================================================
config.yaml         the run: fold, seed, splits, versions, and the whole configuration
config.json         the model (see meshnet.networks.folder)
model.safetensors   the weights with the best validation score
last.safetensors    the weights of the last epoch; model_ema.safetensors the averaged ones
metrics.jsonl       a line for each epoch
cases.csv           the validation cases of the best epoch; test_cases.csv those of the test fold
state/              resume points; .lock while a process trains in the folder
heartbeat           touched while the run is training
failed.json         why a run failed; DONE when it is finished
=================== ==================================================================================
"""

import functools
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from meshnet import ROOT
from meshnet.errors import UserError
from meshnet.files import named, write_csv, write_text

CONFIG_YAML, METRICS, CASES, TEST_CASES = "config.yaml", "metrics.jsonl", "cases.csv", "test_cases.csv"
LAST, AVERAGED, CURVES, TRACKING = "last.safetensors", "model_ema.safetensors", "curves.png", "tracking.json"
STATES, HEARTBEAT, LOCK, DONE, FAILED = "state", "heartbeat", ".lock", "DONE", "failed.json"
WORD_FILE = ".word"  # while a driver waits for the run: exit code and last line of the first process that failed
PACKAGES = ("torch", "accelerate", "datasets", "monai", "nibabel", "numpy", "safetensors")
UNSCHEDULED = "unscheduled"  # in a line of metrics.jsonl: validated because the run stopped here, not by validate_every
STOP_KEYS = (UNSCHEDULED, "collapsed")


@functools.cache
def git_commit() -> str | None:
    """The commit of this program, with ``+`` where files differ from it; None outside a checkout."""
    if not (ROOT / ".git").exists():  # installed: a repository around it would be another one
        return None
    try:
        found = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"],
                               capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on, without importing them."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# What a resume point depends on: a change would be ignored or break it, so not even --allow_changed permits one.
BUILT_IN = ("optimizer.", "scheduler.", "model.", "ema.", "training.max_epochs", "training.warmup_epochs",
            "training.batch_size", "training.accumulation", "training.precision", "cases_per_step", "precision", "fold",
            "inner_fold", "seed", "split_hash", "data")


def check_same(path: Path, old: dict, new: dict, allow: bool) -> None:
    """Refuse to continue a run whose configuration changed, naming every difference.

    Args:
        path: the run's config.yaml, for the message.
        old, new: flat identities; a key that ``old`` lacks came with a later version and is not compared.
        allow: continue anyway, unless something in ``BUILT_IN`` changed.

    Raises:
        UserError: if they differ and ``allow`` is False, or not enough.
    """
    old, new = without_places(old, new), {key: value for key, value in without_places(new, old).items() if key in old}
    changed = differences(old, new)
    built_in = [key for key in changed if key in BUILT_IN or key.startswith(BUILT_IN[:4])]
    if built_in and allow:
        raise UserError(f"{path}: {', '.join(built_in)} cannot change in a run that has begun, even with "
                        "--allow_changed; start a new run from its weights with --init")
    if changed and not allow:
        way = (f"and --init {path.parent} to start from its weights" if built_in
               else "or --allow_changed to continue anyway")
        raise UserError(f"{path}: this run was started with other settings: {'; '.join(changed.values())}; use another "
                        f"--run_dir, {way}")


def without_places(one: Mapping, other: Mapping) -> dict:
    """The identity ``one`` as it is compared with ``other``: weights to start from by their content, or by the name of
    their folder where an earlier version recorded no more; a precision asked for gives way to the one in use.
    """
    kept = dict(one)
    if one.get("init_sha256") and other.get("init_sha256"):
        kept.pop("init", None)
    elif one.get("init"):
        kept["init"] = os.path.basename(os.path.normpath(one["init"]))
        kept.pop("init_sha256", None)
    if one.get("precision") and other.get("precision"):
        kept.pop("training.precision", None)
    return kept


def differences(old: Mapping, new: Mapping) -> dict[str, str]:
    """Every key whose value changed, in words: ``optimizer.lr was 0.001 and is now 0.01``. Values as JSON has them."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    return {key: f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
            for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)}


def append_metrics(folder: Path, row: dict) -> None:
    """Append a line to metrics.jsonl. A line cut off by a kill is dropped when the run is resumed."""
    path = folder / METRICS
    with named(path), open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def read_metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl, one a finished epoch; a last line that was cut off is left out."""
    path = folder / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def keep_metrics(folder: Path, epochs: int, going_on: bool) -> None:
    """Drop the lines after the first ``epochs``, which a resumed run is about to write again.

    With ``going_on`` the scores are dropped as well that were only computed because the run stopped there.
    """
    rows = read_metrics(folder)[:epochs]
    if going_on:
        rows = [{key: value for key, value in row.items() if not key.startswith("val_") and key not in STOP_KEYS}
                if row.get(UNSCHEDULED) else row for row in rows]
    write_text(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows))


def write_cases(path: Path, rows: list[dict]) -> None:
    """Per-case rows as CSV, whole or not at all; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(path, [columns] + [[row.get(key) for key in columns] for row in rows])


class Heartbeat:
    """Touches ``heartbeat`` in a run folder, at most once a second, so that a watcher notices a run that hangs."""

    def __init__(self, folder: Path, active: bool = True):
        self.path, self.active, self.last = folder / HEARTBEAT, active, 0.0

    def beat(self) -> None:
        now = time.monotonic()
        if self.active and now - self.last >= 1:
            self.path.touch()
            self.last = now

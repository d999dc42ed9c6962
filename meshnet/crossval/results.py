"""The scores of finished runs, read and checked, and everything that a report shows about them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from meshnet.config import identity
from meshnet.crossval import stats, tables
from meshnet.crossval.plan import (
    PLAN,
    Planned,
    check_splits,
    ensemble_folder,
    is_scored,
    load_matching_splits,
    load_plan,
    missing_runs,
    planned_runs,
    progress_of,
    run_folder,
    validation_dice,
)
from meshnet.crossval.stats import Comparison, ScoredRun, Summary
from meshnet.data.schema import SPLITS
from meshnet.data.splits import fold_subjects
from meshnet.errors import UserError
from meshnet.recipe import read_begun, read_mapping
from meshnet.runs.folder import CONFIG_YAML, TEST_CASES, differences

INCOMPLETE = "†"  # after the name of a model with unfinished folds
TEXT_COLUMNS = ("case", "subject", "session")


def read_test_cases(path: Path) -> tuple[dict, ...]:
    """The rows of a test_cases.csv with scores as numbers; an empty field is NaN.

    Raises:
        UserError: if ``case`` or ``subject`` is missing, or a score is not a number.
    """
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    if not rows or not {"case", "subject"} <= rows[0].keys():
        raise UserError(f"{path}: found no rows with case and subject, expected scores of train.py --test; remove the "
                        "file and run crossval.py again")
    try:
        return tuple({key: value if key in TEXT_COLUMNS or key.startswith("group_") else float(value or "nan")
                      for key, value in row.items()} for row in rows)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: found a score that is not a number ({error}); remove the file and run crossval.py "
                        "again") from None


def check_run(folder: Path, run: Planned, plan: Mapping, splits: Mapping, cases: tuple[dict, ...]) -> None:
    """Refuse a run that differs from the plan, or whose scores are not those of its test subjects.

    Raises:
        UserError: for another configuration, fold, seed, data set or splits, or for a leak.
    """
    path = folder / CONFIG_YAML
    recorded = read_mapping(path).get("run", {})
    if recorded.get("split_hash") != plan["split_hash"]:
        raise UserError(f"{path}: trained with splits {str(recorded.get('split_hash'))[:12]}, the others with "
                        f"{plan['split_hash'][:12]}: the two cannot be compared; remove {folder} and run crossval.py "
                        "again")
    expected = {"data": plan["fingerprint"], "fold": run.fold, "inner_fold": run.inner_fold, "seed": run.seed}
    changed = differences(expected, {key: recorded.get(key) for key in expected})
    changed = changed or differences(plan["models"][run.model]["config"], identity(read_begun(path)))
    if changed:
        raise UserError(f"{path}: not the run that {PLAN} plans: {'; '.join(changed.values())}; remove {folder} and "
                        "run crossval.py again")
    check_subjects(folder / TEST_CASES, run.fold, run.inner_fold, splits, cases)


def check_subjects(path: Path, fold: int, inner_fold: int, splits: Mapping, cases: tuple[dict, ...]) -> None:
    """Refuse test scores that are not those of exactly the test subjects of ``fold``."""
    parts = fold_subjects(splits, fold, inner_fold)
    found = {row["subject"] for row in cases}
    leaked = sorted(found & {*parts["train"], *parts["val"]})
    if leaked:
        raise UserError(f"{path}: subject {leaked[0]} was trained or validated on in fold {fold}, so its score is not "
                        "a test; remove the file and run crossval.py again")
    odd = sorted(found ^ set(parts["test"]))
    if odd:
        what = "is not among" if odd[0] in found else "is missing among"
        raise UserError(f"{path}: subject {odd[0]} {what} the test subjects of fold {fold}; remove the file and run "
                        "crossval.py again")


def read_runs(out: str | Path) -> tuple[list[ScoredRun], list[str], dict]:
    """The finished runs of a folder with their test scores, the missing ones in words, and the plan.

    Ensembles are models of their own, ``NAME (ensemble)``, with restart 0.

    Raises:
        UserError: for a run that must not be compared with the others (see ``check_run``).
    """
    out, plan = Path(out), load_plan(out)
    splits = load_matching_splits(out / SPLITS, plan["split_hash"], PLAN, f"copy the data set's {SPLITS} here again")
    check_splits(splits, out / SPLITS)
    runs = []
    for planned in planned_runs(plan):
        folder = run_folder(out, planned)
        if progress_of(folder):
            continue
        cases = read_test_cases(folder / TEST_CASES)
        check_run(folder, planned, plan, splits, cases)
        runs.append(ScoredRun(planned.model, planned.fold, planned.restart, validation_dice(folder), cases))
    for model, entry in plan["models"].items():
        for fold in range(plan["folds"]):
            folder = ensemble_folder(out, model, fold, entry["restarts"])
            if is_scored(folder):
                cases = read_test_cases(folder / TEST_CASES)
                check_subjects(folder / TEST_CASES, fold, plan["inner_fold"], splits, cases)
                runs.append(ScoredRun(f"{model} (ensemble)", fold, 0, math.nan, cases))
    return runs, missing_runs(out, plan), plan


GRIDS = {"conformed": "conformed_", "native": ""}  # grid -> prefix of its scores' names
TESTED = tuple(name for name, *_ in tables.COLUMNS)
DETAILS = ("dice", "dice_macro", "avd", "mcc", "precision", "sensitivity", "hd95_mm", "asd_mm", "nsd", "lesion_f1")
RESAMPLES = 9999


class Results:
    """Everything that tables and charts show, computed once.

    Attributes: ``runs``, ``models`` (in the plan's order), ``chosen`` (by (model, fold)), ``reference``,
    ``summaries[grid][score][model]`` and ``tests[grid][score][model]``.
    """

    def __init__(self, runs: Sequence[ScoredRun], reference: str | None = None, folds: int | None = None):
        if not runs:
            raise UserError("no run is finished and scored yet, so there is nothing to report; run crossval.py again")
        self.runs = list(runs)
        self.models = list(dict.fromkeys(run.model for run in runs))
        self.reference = reference or next((m for m in self.models if m == "meshnet26"), self.models[0])
        if self.reference not in self.models:
            raise UserError(f"--reference: found {reference}, expected one of {', '.join(self.models)}")
        self.chosen = stats.choose_restarts(runs)
        folds = folds or len({run.fold for run in runs})
        self.incomplete = [m for m in self.models if sum(model == m for model, _ in self.chosen) < folds]
        self.pooled = {m: stats.pooled_cases([run for (name, _), run in self.chosen.items() if name == m])
                       for m in self.models}
        self.summaries, self.tests = {}, {}
        for grid, prefix in GRIDS.items():
            present = [name for name in DETAILS if all(prefix + name in run.cases[0] for run in runs)]
            self.summaries[grid] = {name: self._summaries(prefix + name) for name in present}
            self.tests[grid] = {name: self._tests(prefix + name) for name in TESTED if name in present}

    def _summaries(self, score: str) -> dict[str, Summary]:
        return {m: stats.summarise([run for run in self.runs if run.model == m], score, np.random.default_rng(0),
                                   RESAMPLES) for m in self.models}

    def _tests(self, score: str) -> dict[str, Comparison]:
        scores = {m: stats.by_subject(rows, score) for m, rows in self.pooled.items()}
        found = stats.compare(scores, self.reference, np.random.default_rng(0), RESAMPLES)
        return {m: replace(one, stars="") if self.silent(m) else one for m, one in found.items()}

    def rows(self, grid: str, parameters: Mapping[str, int | None]) -> list[tables.Row]:
        """The paper's table: chosen restarts over folds, stars where a model differs from the reference."""
        return [tables.Row(m, parameters.get(m), {name: self.summaries[grid][name][m].folds
                                                  for name, *_ in tables.COLUMNS},
                           {name: self.tests[grid][name][m].stars for name, *_ in tables.COLUMNS
                            if m != self.reference}, INCOMPLETE if m in self.incomplete else "",
                           self.silent(m))
                for m in self.models]

    def empty(self, model: str) -> int:
        """In how many of its test cases a model marked nothing."""
        return sum(row["volume_ml"] == 0 for row in self.pooled[model])

    def silent(self, model: str) -> bool:
        """Whether a model marked nothing in any of its test cases."""
        return self.empty(model) == len(self.pooled[model])

    def column(self, model: str, score: str) -> list[float]:
        """A native-grid score of every test case of a model's chosen restarts."""
        return [row[score] for row in self.pooled[model]]

    def shown(self, model: str, each: int) -> list[tuple[str, ScoredRun, Mapping]]:
        """The test cases of a model that a report shows, with the run each is from: the best, the middle and the worst
        ones by lesion Dice in the scan's own grid, ``each`` as many as there are cases for."""
        found = [(run, row) for (name, _), run in self.chosen.items() if name == model for row in run.cases]
        found.sort(key=lambda item: (-item[1]["dice"], item[1]["case"]))
        each = max(1, min(each, len(found) // 3))
        middle = (len(found) - each) // 2
        ranks = ["best", "median", "worst"] if len(found) > 2 else ["worst"] * len(found)
        starts = [0, middle, len(found) - each] if len(found) > 2 else range(len(found))
        return [(rank, *found[at]) for rank, start in zip(ranks, starts) for at in range(start, start + each)]

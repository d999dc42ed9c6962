"""The folder of a cross-validation: its plan, where each run lies, how far it is, and which runs may be compared.

=============================== =======================================================================================
crossval.json                   the plan: data set, splits, recipes with their full configuration, restarts
splits.json                     copied from the data set, so that a report can be checked without it
recipes/NAME.yaml               copied at each call, so that a call without --recipes needs no other file
runs/NAME/foldF_restartR/       a run folder (see meshnet.runs.folder) with test_cases.csv
runs/NAME/foldF_ensembleN/      test_cases.csv of the averaged probabilities of N restarts
logs/                           output of the runs
report/                         see meshnet.crossval.report
=============================== =======================================================================================
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from meshnet.config import EARLIER
from meshnet.crossval.stats import ScoredRun
from meshnet.data.splits import fold_subjects, load_splits
from meshnet.errors import UserError
from meshnet.files import write_json
from meshnet.recipe import fill_defaults
from meshnet.runs.folder import DONE, FAILED, TEST_CASES, differences, read_metrics

PLAN, FORMAT = "crossval.json", 1


@dataclass(frozen=True)
class Planned:
    """One run of the plan. Restarts of a fold differ only in their seed."""

    model: str
    fold: int
    restart: int
    inner_fold: int
    seed: int

    @property
    def name(self) -> str:
        """``meshnet26/fold0_restart1``, also its place under ``runs/``."""
        return f"{self.model}/fold{self.fold}_restart{self.restart}"


def planned_runs(plan: Mapping) -> list[Planned]:
    """Every run of a plan: first restarts first, so that an early report has every fold of every model."""
    most = max((entry["restarts"] for entry in plan["models"].values()), default=0)
    return [Planned(model, fold, restart, plan["inner_fold"], plan["seed"] + restart)
            for restart in range(most) for model, entry in plan["models"].items() if restart < entry["restarts"]
            for fold in range(plan["folds"])]


def find_planned(plan: Mapping, run: ScoredRun) -> Planned:
    """The plan's entry of a finished run."""
    return Planned(run.model, run.fold, run.restart, plan["inner_fold"], plan["seed"] + run.restart)


def load_plan(out: str | Path) -> dict:
    """``crossval.json`` of a folder; a UserError where there is none."""
    path = Path(out) / PLAN
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{out}: found no {PLAN}, expected the --out of an earlier crossval.py; give --data and "
                        "--recipes to start one") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); start again in another --out") from None
    if not isinstance(plan, dict) or plan.get("format") != FORMAT:
        raise UserError(f"{path}: found another format, expected {FORMAT}; start again in another --out")
    return relocate(plan, Path(out))


def relocate(plan: dict, out: Path) -> dict:
    """A plan as this version writes it in this place: its recipes lie in the folder, wherever that was moved, and
    fields of the configuration that came later mean what they did then."""
    models = {}
    for name, entry in plan["models"].items():
        late = [word for key, value in EARLIER.items() if key not in entry["config"] for word in (f"--{key}", value)]
        models[name] = {**entry, "recipe": str(out / "recipes" / PurePath(entry["recipe"]).name),
                        "config": fill_defaults(entry["config"]), "flags": [*entry["flags"], *late]}
    return {**plan, "models": models}


def refuse_lost_plan(out: Path) -> None:
    """Refuse to take the runs that an earlier cross-validation left in the folder for those of a new plan."""
    left = sorted(path for path in out.glob("runs/*/*") if path.is_dir())
    if left:
        raise UserError(f"{out / 'runs'}: found {len(left)} runs of an earlier cross-validation, but no {PLAN}, "
                        "expected the plan they belong to; bring it back, or begin anew in another --out")


def extend_plan(old: Mapping | None, new: Mapping, path: Path) -> dict:
    """The plan to continue with: recipes may be added and restarts raised, nothing else may change.

    Raises:
        UserError: naming what changed.
    """
    if old is None:
        return dict(new)
    if not begun(path.parent):  # a slip must not bind the folder
        same = all(old[key] == new[key] for key in ("split_hash", "fingerprint", "inner_fold", "seed", "folds"))
        kept = {name: entry for name, entry in old["models"].items() if same and name not in new["models"]}
        return {**new, "models": {**kept, **new["models"]}}
    for key, what in (("split_hash", "splits"), ("fingerprint", "data set"), ("inner_fold", "--inner_fold"),
                      ("seed", "--seed"), ("folds", "number of folds")):
        if old[key] != new[key]:
            raise UserError(f"{path}: started with {what} {str(old[key])[:12]}, found {str(new[key])[:12]}; earlier "
                            "runs cannot be compared with that, use another --out")
    models = dict(old["models"])
    for name, entry in new["models"].items():
        before = models.get(name, entry)
        changed = "; ".join(differences(before["config"], entry["config"]).values())
        if changed:
            raise UserError(f"{path}: {name} was started with other settings: {changed}; use another --out, or "
                            "another name for the recipe")
        models[name] = {**entry, "restarts": max(entry["restarts"], before["restarts"])}
    return {**old, **{key: new[key] for key in new if key != "models"}, "models": models}


def check_splits(splits: Mapping, path: Path) -> None:
    """Refuse splits that test a subject they also train on, or test a subject twice.

    Raises:
        UserError: naming the subject and the fold.
    """
    tested: dict[str, int] = {}
    for fold in range(splits["outer"]):
        if not splits["folds"][fold]["test"]:
            raise UserError(f"{path}: found no test subjects in fold {fold}; prepare with --outer 2 or more")
        for inner in range(splits["inner"]):
            parts = {name: set(members) for name, members in fold_subjects(splits, fold, inner).items()}
            for one, two in (("test", "train"), ("test", "val"), ("train", "val")):
                shared = sorted(parts[one] & parts[two])
                # A single inner fold validates on the training subjects, on purpose.
                if shared and (one == "test" or splits["inner"] > 1):
                    raise UserError(f"{path}: subject {shared[0]} is in both {one} and {two} of fold {fold}, inner "
                                    f"fold {inner}: its score would not be a test; run prepare.py again")
        for subject in splits["folds"][fold]["test"]:
            if subject in tested:
                raise UserError(f"{path}: subject {subject} is a test subject of folds {tested[subject]} and {fold}; "
                                "run prepare.py again")
            tested[subject] = fold


def load_matching_splits(path: Path, expected: str, source: str | Path, remedy: str) -> dict:
    """The splits in the file ``path``.

    Raises:
        UserError: if their hash is not the one ``expected`` by ``source``; ends with the ``remedy``.
    """
    splits = load_splits(path)
    if splits["hash"] != expected:
        raise UserError(f"{path}: found splits {splits['hash'][:12]}, expected {expected[:12]} as in {source}; "
                        f"{remedy}")
    return splits


# ---------------------------------------------------------------------------------------------------------------------
# Runs

def run_folder(out: str | Path, run: Planned) -> Path:
    """The folder of a run."""
    return Path(out) / "runs" / run.name


def ensemble_folder(out: str | Path, model: str, fold: int, restarts: int) -> Path:
    """The folder with the scores of ``restarts`` averaged restarts of a fold; another number is another ensemble."""
    return Path(out) / "runs" / model / f"fold{fold}_ensemble{restarts}"


def planned_ensembles(plan: Mapping) -> list[tuple[str, int, int]]:
    """Model, fold and restarts of every ensemble that ``--ensemble`` asked for."""
    return [(model, fold, entry["restarts"]) for model, entry in plan["models"].items()
            for fold in range(plan["folds"]) if plan.get("ensemble") and entry["restarts"] > 1]


def is_trained(folder: Path) -> bool:
    """Whether a run is finished."""
    return (folder / DONE).is_file()


def is_scored(folder: Path) -> bool:
    """Whether a run or an ensemble has its test scores, which are computed only once."""
    return (folder / TEST_CASES).is_file()


def progress_of(folder: Path) -> str:
    """The progress of a run in words; "" if it is finished and scored."""
    if is_trained(folder):
        return "" if is_scored(folder) else "trained, not scored"
    failed = folder / FAILED
    if failed.is_file():
        return f"failed: {json.loads(failed.read_text(encoding='utf-8'))['reason']}"
    epochs = len(read_metrics(folder))
    return f"in training, {epochs} epoch{'s' * (epochs != 1)} done" if epochs else "not started"


def validation_dice(folder: Path) -> float:
    """The best validation Dice of a finished run, which chose its checkpoint; NaN if it has none."""
    done = json.loads((folder / DONE).read_text(encoding="utf-8"))
    value = done.get("score", done["val_dice"])
    return math.nan if value is None else float(value)


def missing_runs(out: Path, plan: Mapping) -> list[str]:
    """Every run and ensemble of the plan that is not finished and scored, in words."""
    runs = [f"{run.model}, fold {run.fold}, restart {run.restart}: {progress}" for run in planned_runs(plan)
            if (progress := progress_of(run_folder(out, run)))]
    return runs + [f"{model}, fold {fold}, ensemble of {restarts}: not scored"
                   for model, fold, restarts in planned_ensembles(plan)
                   if not is_scored(ensemble_folder(out, model, fold, restarts))]


def write_plan(out: Path, plan: Mapping) -> None:
    """Write ``crossval.json``, whole or not at all."""
    write_json(out / PLAN, plan)


def begun(folder: Path) -> bool:
    """Whether anything of a cross-validation's folder is more than its plan."""
    if any(folder.glob("runs/*/*")) or (folder / "runs").is_symlink():
        return True
    return any(path.name not in (PLAN, "splits.json", "recipes", "runs") and not path.name.startswith((".", "report"))
               for path in folder.iterdir())

"""A cross-validation's folder with made-up scores, for tests of the report and of crossval.py."""

import json
import math
from pathlib import Path

import made_up

from meshnet.config import Config, identity, resolve, to_dict
from meshnet.crossval.plan import FORMAT, Planned, planned_runs, run_folder, write_plan
from meshnet.data.schema import SPLITS
from meshnet.data.splits import content_hash
from meshnet.files import write_json, write_text
from meshnet.mapping import dump
from meshnet.runs.folder import write_cases
from meshnet.scans.metrics import LESION_KEYS, OVERLAP_KEYS, SURFACE_KEYS

FINGERPRINT = "f" * 64
SCORES = OVERLAP_KEYS + SURFACE_KEYS + LESION_KEYS


def splits_of(folds: int = 3, each: int = 4) -> dict:
    """Subjects s00, s01 …, dealt in order: ``each`` to every outer fold; the first of the others validates."""
    names = [f"s{i:02d}" for i in range(folds * each)]
    parts = []
    for fold in range(folds):
        test = names[fold * each:(fold + 1) * each]
        rest = [name for name in names if name not in test]
        parts.append({"test": test, "inner": [{"train": rest[1:], "val": rest[:1]}]})
    return hashed({"outer": folds, "inner": 1, "seed": 0, "stratify": {}, "folds": parts})


def hashed(splits: dict) -> dict:
    """``splits`` with the hash of what is in it now."""
    return {**splits, "hash": content_hash(splits)}


def config_of(channels: int) -> Config:
    """A MeshNet's configuration."""
    config = Config()
    config.model.channels = channels
    return resolve(config)


def case_row(subject: str, dice: float, **scores: float) -> dict:
    """A line of test_cases.csv: every score is ``dice`` unless given, the same in both grids."""
    values = {name: dice for name in SCORES} | {"truth_ml": 10.0, "volume_ml": 10.0 * dice} | scores
    return {"case": f"{subject}_T2w", "subject": subject, "session": "", "group_acq": "a", **values,
            **{f"conformed_{name}": value for name, value in values.items()}}


def make_plan(out: Path, models: dict[str, int], restarts: int, splits: dict | None = None) -> dict:
    """Write plan and splits of ``models`` (name: channels)."""
    splits = splits or splits_of()
    plan = {"format": FORMAT, "data": str(out / "no_data"), "fingerprint": FINGERPRINT,
            "folds": splits["outer"], "split_hash": splits["hash"], "inner_fold": 0, "seed": 0,
            "versions": {"python": "3.11"},
            "models": {name: {"recipe": f"{name}.yaml", "flags": [], "config": identity(config_of(channels)),
                              "restarts": restarts} for name, channels in models.items()}}
    write_json(out / SPLITS, splits)
    write_plan(out, plan)
    return plan


def make_run(out: Path, plan: dict, run: Planned, val_dice: float, rows: list[dict]) -> Path:
    """A finished run's folder, as train.py and train.py --test leave it, but for the weights."""
    folder = run_folder(out, run)
    channels = plan["models"][run.model]["config"]["model.channels"]
    recorded = {"fold": run.fold, "inner_fold": run.inner_fold, "seed": run.seed, "split_hash": plan["split_hash"],
                "data": plan["fingerprint"]}
    write_text(folder / "config.yaml", dump({"run": recorded, **to_dict(config_of(channels))}))
    write_json(folder / "config.json", {
        "format": 1, "name": "meshnet", "channels": ["T2w"], "classes": ["background", "lesion"],
        "arguments": {"channels": channels, "in_channels": 1, "classes": 2}})
    write_json(folder / "DONE", {"epochs": 1, "best_epoch": 1, "val_dice": None if math.isnan(val_dice) else val_dice})
    write_cases(folder / "test_cases.csv", rows)
    return folder


def fill(out: Path, plan: dict, score, val_dice) -> None:
    """Every run of the plan: ``score(run, subject)`` is a Dice or a row, ``val_dice(run)`` its validation Dice."""
    splits = json.loads((out / SPLITS).read_text())
    for run in planned_runs(plan):
        found = [(subject, score(run, subject)) for subject in splits["folds"][run.fold]["test"]]
        rows = [value if isinstance(value, dict) else case_row(subject, value) for subject, value in found]
        make_run(out, plan, run, val_dice(run), rows)


MODELS = {"meshnet26": 26, "meshnet5": 5}


def score(run, subject):
    """meshnet26 scores 0.6 + i/100 on subject i with restart 1 (chosen), 0.9 otherwise; meshnet5 is 0.1 below."""
    value = 0.6 + int(subject[1:]) / 100 if run.restart == 1 else 0.9
    return value - (0.1 if run.model == "meshnet5" else 0.0)


def by_validation(run):
    return 0.5 + 0.1 * run.restart


def make_folder(folder):
    plan = made_up.make_plan(folder, MODELS, 2)
    made_up.fill(folder, plan, score, by_validation)
    return folder

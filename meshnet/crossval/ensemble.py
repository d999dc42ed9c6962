"""Scores of the restarts of a fold together: their probabilities averaged, then decided as one network's."""

from pathlib import Path

import numpy as np

from meshnet.crossval.plan import ensemble_folder, is_trained, load_plan, planned_runs, run_folder
from meshnet.crossval.scoring import score_probabilities
from meshnet.data.reader import PreparedData
from meshnet.data.splits import fold_subjects, load_splits
from meshnet.errors import UserError
from meshnet.inference import predict
from meshnet.networks import build
from meshnet.runs.folder import write_cases


def score_ensemble(out: Path, model: str, fold: int) -> int:
    """Write ``test_cases.csv`` of the averaged restarts of ``model`` on ``fold``; returns the exit code.

    Raises:
        UserError: if a restart is not finished, or the data set is not the plan's.
    """
    plan = load_plan(out)
    members = [run for run in planned_runs(plan) if (run.model, run.fold) == (model, fold)]
    folders = [run_folder(out, run) for run in members]
    late = [folder for folder in folders if not is_trained(folder)]
    if late or not folders:
        raise UserError(f"{late[0] if late else out / 'runs' / model}: not a finished run; an ensemble needs every "
                        "restart of its fold")
    data = PreparedData(plan["data"])
    splits = load_splits(data.path / "splits.json")
    if splits["hash"] != plan["split_hash"]:
        raise UserError(f"{data.path / 'splits.json'}: found splits {splits['hash'][:12]}, expected "
                        f"{plan['split_hash'][:12]}; use another --out")
    networks = [build.load_model(folder) for folder in folders]
    rows = []
    for index in data.indices(fold_subjects(splits, fold, plan["inner_fold"])["test"]):
        image = data.image(index)
        mean = np.mean([predict.predict(network, image) for network, _ in networks], axis=0, dtype=np.float32)
        rows.append(score_probabilities(mean, networks[0][1], data, index))
    write_cases(ensemble_folder(out, model, fold, len(members)) / "test_cases.csv", rows)
    return 0

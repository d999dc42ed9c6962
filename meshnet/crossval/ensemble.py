"""Scores of an ensemble: the probabilities of all restarts of a fold are averaged and scored like one network's."""

from pathlib import Path

import numpy as np

from meshnet.crossval.plan import (
    PLAN,
    ensemble_folder,
    is_trained,
    load_matching_splits,
    load_plan,
    planned_runs,
    run_folder,
)
from meshnet.crossval.scoring import Place, score_probabilities
from meshnet.data.reader import PreparedData
from meshnet.data.schema import SPLITS
from meshnet.data.splits import fold_subjects
from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks.card import common_threshold
from meshnet.recipe import read_mapping
from meshnet.runs.folder import CONFIG_YAML, TEST_CASES, write_cases


def score_ensemble(out: Path, model: str, fold: int) -> int:
    """Score the averaged restarts of ``model`` on the test cases of ``fold`` and write ``test_cases.csv``; returns the
    exit code.

    Raises:
        UserError: if a restart is not finished, or the data set has other splits than the plan.
    """
    plan = load_plan(out)
    members = [run for run in planned_runs(plan) if (run.model, run.fold) == (model, fold)]
    folders = [run_folder(out, run) for run in members]
    late = [folder for folder in folders if not is_trained(folder)]
    if late or not folders:
        raise UserError(f"{late[0] if late else out / 'runs' / model}: found no finished run, expected one; an "
                        "ensemble needs every restart of its fold")
    data = PreparedData(plan["data"])
    splits = load_matching_splits(data.path / SPLITS, plan["split_hash"], out / PLAN, "use another --out")
    networks = [build.load_model(folder) for folder in folders]
    precisions = [read_mapping(folder / CONFIG_YAML)["run"].get("precision") for folder in folders]
    card = networks[0][1].changed(threshold=common_threshold([card for _, card in networks]))
    rows, place = [], Place()
    for index in data.indices(fold_subjects(splits, fold, plan["inner_fold"])["test"]):
        image = data.image(index)
        each = [place.probabilities(network, image, precision) for (network, _), precision in zip(networks, precisions)]
        mean = np.mean(each, axis=0, dtype=np.float32)
        rows.append(score_probabilities(mean, card, data, index))
    write_cases(ensemble_folder(out, model, fold, len(members)) / TEST_CASES, rows)
    return 0

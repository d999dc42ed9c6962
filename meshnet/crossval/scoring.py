"""Scores of a finished run on its test fold: the only place where test cases are read."""

from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.data.reader import PreparedData
from meshnet.data.splits import fold_subjects, load_splits
from meshnet.errors import UserError
from meshnet.inference import predict
from meshnet.networks import build
from meshnet.networks.card import Card
from meshnet.recipe import read_mapping
from meshnet.runs.folder import write_cases
from meshnet.scans import metrics
from meshnet.scans.grid import to_native


def test_run(folder: Path, data_path: str | None = None) -> int:
    """Segment the test cases of a finished run and write ``test_cases.csv``; returns the exit code.

    Scores in the scan's own grid have plain names (``dice``), those in the conformed grid begin with ``conformed_``.

    Args:
        folder: a run folder with ``DONE``.
        data_path: the prepared data set where it has moved; otherwise where the run found it.

    Raises:
        UserError: if the run is not finished, or the data set or its splits are not the ones that it was trained on.
    """
    if not (folder / "DONE").is_file():
        raise UserError(f"{folder}: not a finished run (no DONE in it), expected one; train it to its end first")
    run = read_mapping(folder / "config.yaml")["run"]
    data = PreparedData(data_path or run["data_path"])
    splits = load_splits(data.path / "splits.json")
    if splits["hash"] != run["split_hash"]:
        raise UserError(f"{data.path / 'splits.json'}: found splits {splits['hash'][:12]}, expected "
                        f"{run['split_hash'][:12]} as in {folder}; test cases could have been trained on")
    if data.info["fingerprint"] != run["data"]:
        raise UserError(f"{data.path}: not the data set that {folder} was trained on (cases, grid or scaling "
                        "differ); give that one with --data")
    subjects = fold_subjects(splits, run["fold"], run["inner_fold"])
    leaked = set(subjects["test"]) & (set(subjects["train"]) | set(subjects["val"]))
    if leaked:
        raise UserError(f"{data.path / 'splits.json'}: subject {sorted(leaked)[0]} is in the test and the training "
                        "part of a fold; run prepare.py again")
    if not subjects["test"]:
        raise UserError(f"{data.path}: has no test cases, expected some; prepare.py --outer 3 makes test folds")
    network, card = build.load_model(folder)
    rows = []
    for index in data.indices(subjects["test"]):
        rows.append(score_case(network, card, data, index))
        print(f"{rows[-1]['case']}  Dice {rows[-1]['dice']:.4f}", flush=True)
    write_cases(folder / "test_cases.csv", rows)
    print(f"{folder / 'test_cases.csv'}: mean lesion Dice {np.mean([row['dice'] for row in rows]):.4f} "
          f"over {len(rows)} test cases")
    return 0


def score_case(network, card: Card, data: PreparedData, index: int) -> dict:
    """One case's scores in both grids, segmented as infer.py does with the card's threshold, on the one grid that the
    case was prepared on and with no lesion dropped for its size."""
    return score_probabilities(predict.predict(network, data.image(index)), card, data, index)


def score_probabilities(probabilities: np.ndarray, card: Card, data: PreparedData, index: int) -> dict:
    """As ``score_case``, from probabilities (K, X, Y, Z) in the conformed grid."""
    row = data.rows[index]
    native_affine = np.array(row["native_affine"]).reshape(4, 4)
    like = nib.Nifti1Image(np.zeros(row["native_shape"], np.uint8), native_affine)
    marks = card.mask
    probabilities, classes = marks.of(probabilities), marks.count
    truth = marks.truth(data.read(index, "mask_native"))
    native = marks.labels(to_native(probabilities, np.array(row["conformed_affine"]).reshape(4, 4), like))
    conformed = marks.labels(probabilities)
    spacing_mm = nib.affines.voxel_sizes(native_affine)
    scores = metrics.case_metrics(native, truth, spacing_mm, classes=classes)
    voxel = [data.info["voxel_mm"]] * 3
    truth = marks.truth(data.read(index, "mask"))
    in_conformed = metrics.case_metrics(conformed, truth, voxel, classes=classes)
    groups = {key: value for key, value in row.items() if key.startswith("group_")}
    return {"case": row["case"], "subject": row["subject"], "session": row["session"], **groups, **scores,
            **{f"conformed_{key}": value for key, value in in_conformed.items()}}

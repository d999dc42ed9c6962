"""Scores of a finished run on its test fold. Test cases are read only here and in ``ensemble``."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from meshnet.crossval.plan import load_matching_splits
from meshnet.data.reader import PreparedData
from meshnet.data.schema import SPLITS
from meshnet.data.splits import fold_subjects
from meshnet.errors import UserError
from meshnet.files import near
from meshnet.inference import predict
from meshnet.machine import cpu_wanted
from meshnet.networks import build
from meshnet.networks.card import Card
from meshnet.recipe import read_mapping
from meshnet.runs.folder import CONFIG_YAML, DONE, TEST_CASES, write_cases
from meshnet.scans import metrics
from meshnet.scans.grid import to_native


class Place:
    """Where networks are applied to test cases: on the GPU of this process while its memory suffices, else on the CPU.

    On a GPU they run under the autocast of their training, as validation does; without one a MeshNet has half maps.
    """

    def __init__(self):
        self.device = torch.device("cuda" if torch.cuda.is_available() and not cpu_wanted() else "cpu")

    def probabilities(self, network: torch.nn.Module, image: np.ndarray, precision: str | None) -> np.ndarray:
        """(K, X, Y, Z) of an image (C, X, Y, Z); ``precision`` is that of the network's training."""
        if self.device.type == "cpu":
            return predict.predict(network, image, device=self.device)
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        try:
            with torch.autocast(self.device.type, half, enabled=half is not None):
                return predict.predict(network, image, device=self.device)
        except torch.OutOfMemoryError:
            print(f"warning: {self.device}: too little memory for the test cases; they are scored on the CPU, which "
                  "takes longer", file=sys.stderr, flush=True)
        self.device = torch.device("cpu")
        torch.cuda.empty_cache()
        return predict.predict(network, image, device=self.device)


def test_run(folder: Path, data_path: str | None = None) -> int:
    """Segment the test cases of a finished run and write ``test_cases.csv``; returns the exit code.

    Scores in the scan's own grid have plain names (``dice``), those in the conformed grid begin with ``conformed_``.

    Args:
        folder: a run folder with ``DONE``.
        data_path: the prepared data set, if it has moved since the run was trained.

    Raises:
        UserError: if the run is not finished, or was trained on another data set or other splits.
    """
    if not (folder / DONE).is_file():
        raise UserError(f"{folder}: found no {DONE}, expected a finished run; train it to its end first"
                        f"{near(folder)}")
    run = read_mapping(folder / CONFIG_YAML)["run"]
    data = PreparedData(data_path or run["data_path"])
    splits = load_matching_splits(data.path / SPLITS, run["split_hash"], folder,
                                  "with other splits it may have been trained on test cases; give its own --data")
    if data.info["fingerprint"] != run["data"]:
        raise UserError(f"{data.path}: not the data set that {folder} was trained on (cases, grid or scaling "
                        "differ); give that one with --data")
    subjects = fold_subjects(splits, run["fold"], run["inner_fold"])
    leaked = set(subjects["test"]) & (set(subjects["train"]) | set(subjects["val"]))
    if leaked:
        raise UserError(f"{data.path / 'splits.json'}: subject {sorted(leaked)[0]} is in the test and the training "
                        "part of a fold; run prepare.py again")
    if not subjects["test"]:
        raise UserError(f"{data.path}: has no test cases, expected some; prepare with --outer 2 or more")
    network, card = build.load_model(folder)
    rows, place, other = [], Place(), other_threshold(card)
    for index in data.indices(subjects["test"]):
        probabilities = place.probabilities(network, data.image(index), run.get("precision"))
        rows.append(score_probabilities(probabilities, card, data, index, *other))
        print(f"{rows[-1]['case']}  Dice {rows[-1]['dice']:.4f}", flush=True)
    write_cases(folder / TEST_CASES, rows)
    mean = lambda name: f"{np.mean([row[name] for row in rows]):.4f}"
    print(f"{folder / 'test_cases.csv'}: mean lesion Dice {mean('dice')} over {len(rows)} test case"
          f"{'s' * (len(rows) != 1)}" + (f" ({mean(other[0])} at threshold {other[1]:g})" if other else ""))
    return 0


def other_threshold(card: Card) -> tuple[str, float] | tuple[()]:
    """The threshold that the model does not use, by the name of its column: ``dice_swept`` at the one that is best for
    the validation cases, or ``dice_half`` at 0.5; nothing where both are the same or one is not known."""
    best = card.metrics.get("val_threshold")
    if best is None or (len(card.classes) > 2 and card.marks is None):
        return ()
    found = ("dice_swept", best) if card.threshold == 0.5 else ("dice_half", 0.5)
    return found if found[1] != card.threshold else ()


def score_probabilities(probabilities: np.ndarray, card: Card, data: PreparedData, index: int, also: str = "",
                        threshold: float = 0.5) -> dict:
    """One case's scores in both grids, from probabilities (K, X, Y, Z) in the conformed one: segmented as infer.py does
    with the card's threshold, on the one grid that the case was prepared on and with no lesion dropped for its size.

    ``also`` names a column for the Dice at another ``threshold``, in the scan's own grid.
    """
    row = data.rows[index]
    native_affine = np.array(row["native_affine"]).reshape(4, 4)
    like = nib.Nifti1Image(np.zeros(row["native_shape"], np.uint8), native_affine)
    marks = card.marking
    probabilities, classes = marks.of(probabilities), marks.count
    truth = marks.truth(data.read(index, "mask_native"))
    seen = to_native(probabilities, np.array(row["conformed_affine"]).reshape(4, 4), like, seen_only=True)
    native = marks.labels(seen)
    conformed = marks.labels(probabilities)
    spacing_mm = nib.affines.voxel_sizes(native_affine)
    scores = metrics.case_metrics(native, truth, spacing_mm, classes=classes)
    if also:
        found = marks.labels(seen, threshold)
        scores[also] = metrics.overlap_metrics(found, truth, spacing_mm, classes)["dice"]
    voxel = [data.info["voxel_mm"]] * 3
    truth = marks.truth(data.read(index, "mask"))
    in_conformed = metrics.case_metrics(conformed, truth, voxel, classes=classes)
    groups = {key: value for key, value in row.items() if key.startswith("group_")}
    return {"case": row["case"], "subject": row["subject"], "session": row["session"], **groups, **scores,
            **{f"conformed_{key}": value for key, value in in_conformed.items()}}

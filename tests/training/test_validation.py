"""Validation: every case once, and of several classes the one that is the lesion."""

import csv
import json

import pytest
from conftest import GLOO, run_script_file, torchrun
from training_runs import train

from meshnet.data.reader import PreparedData
from meshnet.inference import predict
from meshnet.networks import build


def test_two_processes_validate_each_case_once(tiny_data, tmp_path):
    """The same weights give the same validation table on one process and on two (an uneven share of the cases)."""
    source = tmp_path / "source"
    train(tiny_data, source, "--model.norm", "none", "--training.max_epochs", 1)
    frozen = ["--init", source, "--optimizer.lr", 1e-30, "--optimizer.weight_decay", 0, "--training.max_epochs", 1,
              "--model.norm", "none"]
    train(tiny_data, tmp_path / "one", *frozen)
    train(tiny_data, tmp_path / "two", *frozen, launcher=torchrun(), env=GLOO)
    assert (tmp_path / "one" / "cases.csv").read_text() == (tmp_path / "two" / "cases.csv").read_text()
    with open(tmp_path / "two" / "cases.csv") as handle:
        found = [row["case"] for row in csv.DictReader(handle)]
    assert len(found) == len(set(found)) > 0


def test_where_one_class_is_the_lesion_scores_are_of_that_one(tmp_path):
    """Fluid is learned beside the lesion and counts in no score: worked again from the network's own probabilities."""
    data, folder = tmp_path / "data", tmp_path / "run"
    run_script_file("prepare.py", "--format", "synthetic", "--cases", 8, "--synthetic_preset", "bright_fluid",
                    "--allow_empty", "--voxel_mm", 8, "--outer", 2, "--inner", 2, "--out", data)
    train(data, folder, "--training.max_epochs", 6, "--loss.background_weight", 0.02, "--loss.lesion_weight", 1,
          "--model.norm", "instance", "--tracking.pictures", "true")
    card = json.loads((folder / "config.json").read_text())
    assert (card["classes"], card["marks"]) == (["background", "lesion", "fluid"], "lesion")
    prepared, network = PreparedData(data), build.load_model(folder)[0]

    def dice(row, threshold):
        index = next(i for i, known in enumerate(prepared.rows) if known["case"] == row["case"])
        marked = predict.predict(network, prepared.image(index))[1] >= threshold
        truth = prepared.read(index, "mask") == 1
        return 2 * (marked & truth).sum() / max(1, marked.sum() + truth.sum()), marked.sum(), truth.sum()

    card["threshold"] = 0.4
    (folder / "config.json").write_text(json.dumps(card))
    run_script_file("train.py", "--test", "--run_dir", folder)
    for name, column, threshold in (("cases.csv", "dice", 0.5), ("test_cases.csv", "conformed_dice", 0.4)):
        with open(folder / name) as handle:
            rows = list(csv.DictReader(handle))
        found = [dice(row, threshold) for row in rows]
        assert sum(one[0] > 0 for one in found) > 0, found  # else the test would show nothing
        for row, (expected, marked, truth) in zip(rows, found):
            assert float(row[column]) == pytest.approx(expected if marked + truth else 1.0, abs=2e-3)
            assert "dice_class2" not in row

"""The run folder: what ran beside what came out, and a changed configuration by name."""

import csv
import json

import pytest
import torch
import yaml
from training_runs import RICH, lines, train


def test_the_run_folder_holds_what_ran_beside_what_came_out(undisturbed, tiny_data):
    names = {path.name for path in undisturbed.iterdir()}
    assert {"config.yaml", "config.json", "model.safetensors", "last.safetensors", "model_ema.safetensors",
            "metrics.jsonl", "cases.csv", "state", "DONE", "heartbeat", "curves.png"} <= names
    config = yaml.safe_load((undisturbed / "config.yaml").read_text())
    splits = json.loads((tiny_data / "splits.json").read_text())
    assert config["run"]["split_hash"] == splits["hash"] and config["run"]["seed"] == 0
    assert config["run"]["versions"]["torch"] == torch.__version__.split("+")[0] or config["run"]["versions"]["torch"]
    assert config["optimizer"]["lr"] == 0.01
    card = json.loads((undisturbed / "config.json").read_text())
    assert (card["orientation"], card["scaling"], card["voxel_mm"]) == ("LIA", "conform_uint8", 8)
    rows = lines(undisturbed)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert all(isinstance(row[name], float) for row in rows
               for name in ("learning_rate", "train_loss", "val_loss", "val_dice", "val_dice_macro", "val_mcc"))
    with open(undisturbed / "cases.csv") as handle:
        cases = list(csv.DictReader(handle))
    val = splits["folds"][0]["inner"][0]["val"]
    assert sorted(case["subject"] for case in cases) == sorted(val)
    best = max(rows, key=lambda row: row["val_dice"])
    mean = sum(float(case["dice"]) for case in cases) / len(cases)
    assert mean == pytest.approx(best["val_dice"])


def test_a_changed_configuration_is_refused_by_name(undisturbed, tiny_data):
    found = train(tiny_data, undisturbed, *RICH, "--optimizer.weight_decay", 0.5, "--seed", 3, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert "optimizer.weight_decay was 0.01 and is now 0.5" in found.stderr
    assert "seed was 0 and is now 3" in found.stderr

"""The run folder: what ran beside what came out, and a changed configuration by name."""

import csv
import json

import pytest
import torch
import yaml
from PIL import Image
from training_runs import RICH, lines, train

from meshnet.errors import UserError
from meshnet.runs.folder import check_same


def test_the_run_folder_holds_what_ran_beside_what_came_out(undisturbed, tiny_data):
    names = {path.name for path in undisturbed.iterdir()}
    assert {"config.yaml", "config.json", "model.safetensors", "last.safetensors", "model_ema.safetensors",
            "metrics.jsonl", "cases.csv", "state", "DONE", "heartbeat", "curves.png"} <= names
    with Image.open(undisturbed / "curves.png") as curves:
        assert curves.width == 1050  # 7 inches
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
    best = max(rows, key=lambda row: (row["val_dice"], row["val_dice_swept"]))
    for name in ("dice", "dice_swept"):
        mean = sum(float(case[name]) for case in cases) / len(cases)
        assert mean == pytest.approx(best[f"val_{name}"])


def test_a_changed_configuration_is_refused_by_name(undisturbed, tiny_data):
    found = train(tiny_data, undisturbed, *RICH, "--optimizer.weight_decay", 0.5, "--seed", 3, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert "optimizer.weight_decay was 0.01 and is now 0.5" in found.stderr
    assert "seed was 0 and is now 3" in found.stderr


RUN = {"optimizer.lr": 0.1, "init": "models/one/", "init_sha256": "aa", "training.precision": None, "precision": "no",
       "data": "f1"}


@pytest.mark.parametrize(("old", "new"), [
    ({}, {"init": "/another/disk/two"}),  # the same weights elsewhere
    ({"init": None, "init_sha256": None}, {"init": None, "init_sha256": None}),
    ({}, {"training.precision": "no"}),  # asked for what was in use
    ({}, {"a.field_that_came_later": 3}),
])
def test_what_does_not_decide_the_result_may_change(tmp_path, old, new):
    check_same(tmp_path, RUN | old, RUN | new, False)


def test_what_an_earlier_version_did_not_record_is_not_compared(tmp_path):
    earlier = {key: value for key, value in RUN.items() if key not in ("init_sha256", "precision")}
    check_same(tmp_path, earlier, RUN | {"init": "moved/one"}, False)
    with pytest.raises(UserError, match=r"init was 'one' and is now 'two'; use another --run_dir"):
        check_same(tmp_path, earlier, RUN | {"init": "moved/two"}, False)


@pytest.mark.parametrize(("new", "words"), [
    ({"init_sha256": "bb"}, "init_sha256 was 'aa' and is now 'bb'"),
    ({"precision": "bf16"}, "precision was 'no' and is now 'bf16'"), ({"data": "f2"}, "data was 'f1' and is now 'f2'"),
])
def test_what_decides_the_result_may_not(tmp_path, new, words):
    with pytest.raises(UserError, match=words):
        check_same(tmp_path, RUN, RUN | new, False)

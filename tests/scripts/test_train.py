"""train.py as a user runs it: exact resume after real kills, tests of finished runs, refusals."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, run_script_file
from training_runs import RICH, SMALL, assert_same_run, lines, train


def test_the_same_command_on_a_finished_run_changes_nothing(undisturbed, tiny_data):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("model*.safetensors")}
    train(tiny_data, undisturbed, *RICH)
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("model*.safetensors")} == before
    assert len(lines(undisturbed)) == 4


def kill_and_finish(data, folder, generator, span, kills=1):
    """Start the run and SIGKILL it ``kills`` times at random moments, then let it finish."""
    command = [sys.executable, "train.py", "--data", data, "--run_dir", folder, *SMALL, *RICH]
    for _ in range(kills):
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
                                   cwd=ROOT, start_new_session=True)
        # From the moment that training begins: the folder appears after the imports.
        while not (folder / "config.yaml").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, span))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    train(data, folder, *RICH)


def training_seconds(folder):
    return sum(row["seconds"] for row in lines(folder)) + 1


@pytest.mark.kills
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_killed_run_ends_with_the_same_weights(undisturbed, tiny_data, tmp_path, seed):
    kill_and_finish(tiny_data, tmp_path / "run", random.Random(seed), training_seconds(undisturbed))
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.kills
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 30))
def test_a_run_killed_twice_ends_with_the_same_weights(undisturbed, tiny_data, tmp_path, seed):
    kill_and_finish(tiny_data, tmp_path / "run", random.Random(seed), training_seconds(undisturbed), kills=2)
    assert_same_run(undisturbed, tmp_path / "run")


def test_stopping_and_going_on_is_the_same_run(undisturbed, tiny_data, tmp_path):
    folder = tmp_path / "run"
    train(tiny_data, folder, *RICH, "--stop_epoch", 2)
    assert len(lines(folder)) == 2 and not (folder / "DONE").exists()
    for stray in (folder / ".tmp-1-metrics.jsonl", folder / "state" / ".tmp-1-step-00000009.pt"):
        stray.write_bytes(b"half")  # as a kill leaves it
    train(tiny_data, folder, *RICH, "--data.workers", 1)  # where cases are read may change
    assert_same_run(undisturbed, folder)
    assert not list(folder.rglob(".tmp-*"))
    assert len(list((folder / "state").glob("*.pt"))) == 2  # training.keep_states


def test_a_finished_run_is_scored_on_its_own_data_alone(undisturbed, tiny_data, tmp_path):
    other = tmp_path / "other"
    run_script_file("prepare.py", "--format", "synthetic", "--cases", 9, "--voxel_mm", 8, "--scaling", "minmax",
                    "--out", other)
    found = run_script_file("train.py", "--test", "--run_dir", undisturbed, "--data", other, check=False)
    assert found.returncode == 2 and "not the data set" in found.stderr


def test_dry_run_says_what_would_happen_and_writes_nothing(tiny_data, tmp_path):
    found = run_script_file("train.py", "--recipe", "recipes/meshnet5.yaml", "--data", tiny_data, "--dry_run",
                            "--run_dir", tmp_path / "run")
    splits = json.loads((tiny_data / "splits.json").read_text())
    train_cases = len(splits["folds"][0]["inner"][0]["train"])
    assert "parameters  5,682" in found.stdout
    assert f"{train_cases} per epoch, {50 * train_cases} in all" in found.stdout
    settings = yaml.safe_load(found.stdout.split("---")[0])
    assert settings["optimizer"]["eps"] == 1e-4
    assert not (tmp_path / "run").exists()


def test_dry_run_without_data_prints_what_it_can(root):
    out = run_script_file("train.py", "--dry_run", "--recipe", root / "recipes/meshnet5.yaml").stdout
    assert yaml.safe_load(out.partition("---")[0])["model"]["channels"] == 5
    assert "parameters  5,682 for 1 channel, 2 classes" in out
    assert "not known   cases, steps and memory: they depend on the data set; give --data" in out


@pytest.mark.parametrize(("flags", "words"), [
    ([], ["--data", "missing"]),
    (["--data", "/nowhere"], ["/nowhere", "prepare.py"]),
    (["--fold", 9], ["--fold", "9", "0 to 2"]),
    (["--stop_epoch", 99], ["--stop_epoch", "99"]),
    (["--optimizer.lr", "x"], ["--optimizer.lr", "'x'"]),
    (["--init", "/nowhere/model"], ["/nowhere/model"]),
])
def test_a_mistake_is_one_line(tiny_data, tmp_path, flags, words):
    data = [] if not flags or "--data" in flags else ["--data", tiny_data]
    found = run_script_file("train.py", *data, "--run_dir", tmp_path / "run", *flags, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert all(word in found.stderr for word in words), found.stderr
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_scored_on_its_test_fold_once_each(undisturbed, tiny_data):
    run_script_file("train.py", "--test", "--run_dir", undisturbed)
    with open(undisturbed / "test_cases.csv") as handle:
        rows = list(csv.DictReader(handle))
    splits = json.loads((tiny_data / "splits.json").read_text())
    assert sorted(row["subject"] for row in rows) == sorted(splits["folds"][0]["test"])
    assert "dice_swept" in rows[0]  # at the threshold that is best for the validation cases; "dice" is at 0.5
    assert all(0 <= float(row["dice"]) <= 1 and 0 <= float(row["conformed_dice"]) <= 1 for row in rows)


def test_init_takes_the_architecture_from_the_model_and_flags_win(tmp_path):
    """Without a recipe that names it; the model is no more than its config.json here."""
    import train
    from meshnet.recipe import parse

    (tmp_path / "config.json").write_text(json.dumps(
        {"format": 1, "name": "meshnet", "arguments": {"channels": 7, "dilations": [1, 2], "norm": "instance"},
         "channels": ["T2w"], "classes": ["background", "lesion"]}))
    recipe = tmp_path / "wide.yaml"
    recipe.write_text("model: {channels: 9}\n")
    read = lambda *given: parse("train.py", "", train.add_flags, ["--init", str(tmp_path), *given],
                                below=train.architecture)[1].model
    found = read()
    assert (found.channels, list(found.dilations), found.norm) == (7, [1, 2], "instance")
    assert read("--recipe", str(recipe)).channels == 9 and read("--model.channels", "11").channels == 11
    assert read("--model.channels", "11").norm == "instance"

"""train.py as a user runs it: run folders, exact resume after real kills, processes, refusals."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from conftest import GLOO, ROOT, run_script_file, torchrun
from safetensors.torch import load_file

from meshnet.data.reader import PreparedData
from meshnet.inference import predict
from meshnet.networks import build

SMALL = ["--model.channels", 3, "--model.dilations", 1, 2, 1, "--data.workers", 0, "--optimizer.lr", 0.01]


def train(data, folder, *flags, **options):
    return run_script_file("train.py", "--data", data, "--run_dir", folder, *SMALL, *flags, **options)


def weights(folder, name="last.safetensors"):
    return load_file(folder / name)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def comparable(folder):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines(folder)]


def assert_same_run(one, two):
    for name in ("model.safetensors", "last.safetensors", "model_ema.safetensors"):
        assert (one / name).exists() == (two / name).exists()
        if (one / name).exists():
            a, b = weights(one, name), weights(two, name)
            assert all(torch.equal(a[key], b[key]) for key in a), f"{name} differs"
    assert comparable(one) == comparable(two)
    assert (one / "cases.csv").read_text() == (two / "cases.csv").read_text()


RICH = ["--training.max_epochs", 4, "--ema.enabled", "true", "--model.dropout", 0.2, "--training.accumulation", 2,
        "--training.save_every_steps", 1, "--scheduler.pct_start", 0.3, "--training.gradient_clipping", "true"]


@pytest.fixture(scope="module")
def undisturbed(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_data, folder, *RICH, "--training.keep_states", 50)
    return folder


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


@pytest.mark.parametrize("nth", range(7))
def test_a_run_cut_after_any_resume_point_ends_the_same(undisturbed, tiny_data, tmp_path, monkeypatch, nth):
    """Each resume point of the run in turn, inside epochs and between them, is where it goes on from."""
    from meshnet.training import loop

    saved, save = [], loop.save

    def cut(run):
        save(run)
        saved.append(run.progress.step)
        if len(saved) == nth + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save", cut)
    found = train(tiny_data, tmp_path / "run", *RICH, check=False)
    assert found.returncode == 130 and len(saved) == nth + 1
    monkeypatch.setattr(loop, "save", save)
    train(tiny_data, tmp_path / "run", *RICH)
    assert_same_run(undisturbed, tmp_path / "run")


def training_seconds(folder):
    return sum(row["seconds"] for row in lines(folder)) + 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_run_ends_with_the_same_weights(undisturbed, tiny_data, tmp_path, seed):
    kill_and_finish(tiny_data, tmp_path / "run", random.Random(seed), training_seconds(undisturbed))
    assert_same_run(undisturbed, tmp_path / "run")


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


def test_a_stop_between_validations_is_scored_and_decides_nothing(tiny_data, tmp_path):
    """Stopped (and scored) after epochs 1, 3 and 5 of a run that validates every second one: the same run."""
    flags = ["--training.max_epochs", 6, "--training.validate_every", 2, "--ema.enabled", "true", "--ema.decay", 0.5,
             "--training.early_stopping", "true", "--training.early_stopping_patience", 5, "--optimizer.lr", 0.02,
             "--scheduler.name", "ReduceLROnPlateau", "--scheduler.patience", 0, "--scheduler.factor", 0.5]
    train(tiny_data, tmp_path / "whole", *flags)
    best_ema = max(row.get("val_dice_ema", 0) for row in lines(tmp_path / "whole"))
    tempting = 0
    for stop in (1, 3, 5):
        train(tiny_data, tmp_path / "cut", *flags, "--stop_epoch", stop)
        row = lines(tmp_path / "cut")[-1]
        assert row["epoch"] == stop and row["unscheduled"] and isinstance(row["val_dice"], float)
        assert (tmp_path / "cut" / "model.safetensors").exists()
        tempting += row["val_dice_ema"] > best_ema
        assert [("val_dice" in row) for row in lines(tmp_path / "cut")[:-1]] == [False, True, False, True][:stop - 1]
    train(tiny_data, tmp_path / "cut", *flags, "--stop_epoch", 5)  # the same again keeps the score
    assert lines(tmp_path / "cut")[-1] == row
    train(tiny_data, tmp_path / "cut", *flags)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    # The plateau did act, and a stop had the best score.
    assert lines(tmp_path / "whole")[-1]["learning_rate"] < 0.02 and tempting


def test_a_changed_configuration_is_refused_by_name(undisturbed, tiny_data):
    found = train(tiny_data, undisturbed, *RICH, "--optimizer.weight_decay", 0.5, "--seed", 3, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert "optimizer.weight_decay was 0.01 and is now 0.5" in found.stderr
    assert "seed was 0 and is now 3" in found.stderr


@pytest.mark.parametrize("flags", [
    ["--model.norm", "none"],
    # These norms take a convolution's bias out again: its gradient is rounding noise, which Adam scales up (to full
    # steps with torch's own eps). Without such biases everything is compared.
    # A larger eps leaves tiny gradients as tiny steps, and lets a gradient of twice the size be seen.
    ["--model.norm", "group", "--model.bias", "false", "--optimizer.eps", "1e-6"],
    ["--model.norm", "batch", "--model.bias", "false"],
    pytest.param(["--model.norm", "batch", "--optimizer.eps", "1e-4"], marks=pytest.mark.slow),
], ids=" ".join)
def test_two_processes_train_as_one_with_twice_the_batch(tiny_data, tmp_path, flags):
    """A batch of 2, two processes (batch norm synchronised) and, without batch norm, accumulation over 2 agree."""
    one, two, summed = (tmp_path / name for name in ("one", "two", "summed"))
    flags = [*flags, "--training.max_epochs", 2]
    batch_norm = "batch" in flags
    train(tiny_data, one, *flags, "--training.batch_size", 2)
    train(tiny_data, two, *flags, launcher=torchrun(), env=GLOO)
    if not batch_norm:
        train(tiny_data, summed, *flags, "--training.accumulation", 2)
    for run in (two,) if batch_norm else (two, summed):
        for key, value in weights(one).items():
            if "--optimizer.eps" in flags and key.endswith(("conv.bias", "running_mean")):
                continue
            torch.testing.assert_close(weights(run)[key], value, rtol=1e-5, atol=2e-6)
        for a, b in zip(lines(one), lines(run), strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
            assert a["learning_rate"] == b["learning_rate"]
            assert a["val_dice"] == pytest.approx(b["val_dice"], abs=5e-3)


@pytest.mark.slow
def test_accumulation_with_batch_norm_is_something_else(tiny_data, tmp_path):
    """As the README says: the statistics are those of each batch alone."""
    one, summed = tmp_path / "one", tmp_path / "summed"
    for run, flag in ((one, "--training.batch_size"), (summed, "--training.accumulation")):
        train(tiny_data, run, "--training.max_epochs", 2, "--model.bias", "false", flag, 2)
    assert any(not torch.allclose(value, weights(one)[key], rtol=1e-3, atol=1e-4)
               for key, value in weights(summed).items())


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


def test_a_nan_stops_the_run_where_it_happens_and_keeps_the_last_state(tiny_data, tmp_path):
    folder = tmp_path / "run"
    # Without norm a learning rate of 1e18 throws the weights so far that the next loss is no number.
    flags = ["--model.norm", "none", "--training.max_epochs", 3, "--training.warmup_epochs", 1, "--optimizer.lr", 1e18,
             "--training.save_every_steps", 1]
    found = train(tiny_data, folder, *flags, check=False)
    assert found.returncode == 3, found.stderr
    assert "epoch 1, step 2" in found.stderr and "case synthetic-" in found.stderr
    assert "--training.gradient_clipping true" in found.stderr and found.stderr.count("error:") == 1
    assert json.loads((folder / "failed.json").read_text())["reason"] in found.stderr
    state = torch.load(folder / "state" / "step-00000001.pt", weights_only=True)
    assert state["ranks"][0]["progress"]["step"] == 1 and not (folder / "DONE").exists()


def test_early_stopping_waits_as_told(tiny_data, tmp_path):
    folder = tmp_path / "run"
    train(tiny_data, folder, "--optimizer.lr", "1e-12", "--training.max_epochs", 30, "--training.early_stopping",
          "true", "--training.early_stopping_patience", 2)
    rows = lines(folder)
    assert rows[-1]["stopped_early"] and (folder / "DONE").exists()
    best = max(range(len(rows)), key=lambda i: (rows[i]["val_dice"], -i))
    assert len(rows) == best + 1 + 2


def test_early_stopping_waits_for_a_validation(tiny_data, tmp_path):
    folder = tmp_path / "run"
    train(tiny_data, folder, "--training.max_epochs", 4, "--training.validate_every", 3, "--training.early_stopping",
          "true", "--training.early_stopping_patience", 1)
    rows = lines(folder)
    assert len(rows) >= 3 and "val_dice" in rows[2] and (folder / "model.safetensors").exists()


def test_what_a_resume_point_has_built_in_cannot_change(tiny_data, tmp_path):
    folder = tmp_path / "run"
    train(tiny_data, folder, "--training.max_epochs", 3, "--stop_epoch", 1)
    found = train(tiny_data, folder, "--training.max_epochs", 3, "--optimizer.eps", 1e-3, "--allow_changed",
                  check=False)
    assert found.returncode == 2 and "optimizer.eps cannot change" in found.stderr and "--init" in found.stderr
    train(tiny_data, folder, "--training.max_epochs", 3, "--loss.background_weight", 0.3, "--allow_changed")
    assert len(lines(folder)) == 3


def test_a_run_begins_anew_when_told_to(tiny_data, tmp_path):
    folder, fresh = tmp_path / "run", tmp_path / "fresh"
    train(tiny_data, folder, "--training.max_epochs", 2, "--ema.enabled", "true")
    (folder / "notes.txt").write_text("mine")
    for run in (folder, fresh):
        train(tiny_data, run, "--training.max_epochs", 1, "--seed", 3, "--no-resume")
    assert_same_run(folder, fresh)
    assert not (folder / "model_ema.safetensors").exists() and (folder / "notes.txt").read_text() == "mine"


def test_a_finished_run_is_scored_on_its_own_data_alone(undisturbed, tiny_data, tmp_path):
    other = tmp_path / "other"
    run_script_file("prepare.py", "--format", "synthetic", "--cases", 9, "--voxel_mm", 8, "--scaling", "minmax",
                    "--out", other)
    found = run_script_file("train.py", "--test", "--run_dir", undisturbed, "--data", other, check=False)
    assert found.returncode == 2 and "not the data set" in found.stderr


def test_fp16_without_a_gpu_is_refused(tiny_data, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    for options in ({"env": {"ACCELERATE_MIXED_PRECISION": "fp16"}}, {}):
        flags = [] if options else ["--training.precision", "fp16"]
        found = train(tiny_data, tmp_path / "run", *flags, check=False, **options)
        assert found.returncode == 2 and "fp16 on a CPU" in found.stderr and found.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_bf16_trains_here(tiny_data, tmp_path):
    train(tiny_data, tmp_path / "run", "--training.precision", "bf16", "--training.max_epochs", 1)
    assert weights(tmp_path / "run")["head.weight"].dtype == torch.float32
    assert lines(tmp_path / "run")[0]["train_loss"] > 0


def test_dry_run_says_what_would_happen_and_writes_nothing(tiny_data, tmp_path):
    found = run_script_file("train.py", "--recipe", "recipes/meshnet5.yaml", "--data", tiny_data, "--dry_run",
                            "--run_dir", tmp_path / "run")
    splits = json.loads((tiny_data / "splits.json").read_text())
    train_cases = len(splits["folds"][0]["inner"][0]["train"])
    assert "parameters  5,682" in found.stdout
    assert f"{train_cases} an epoch, {50 * train_cases} in all" in found.stdout
    settings = yaml.safe_load(found.stdout.split("---")[0])
    assert settings["optimizer"]["eps"] == 1e-4
    assert not (tmp_path / "run").exists()


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


def test_a_second_process_in_the_same_run_folder_is_refused(tiny_data, tmp_path):
    import fcntl

    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = train(tiny_data, folder, check=False)
    assert found.returncode == 2 and "another process" in found.stderr
    assert sorted(path.name for path in folder.iterdir()) == [".lock"]


def test_a_finished_run_is_scored_on_its_test_fold_once_each(undisturbed, tiny_data):
    run_script_file("train.py", "--test", "--run_dir", undisturbed)
    with open(undisturbed / "test_cases.csv") as handle:
        rows = list(csv.DictReader(handle))
    splits = json.loads((tiny_data / "splits.json").read_text())
    assert sorted(row["subject"] for row in rows) == sorted(splits["folds"][0]["test"])
    assert all(0 <= float(row["dice"]) <= 1 and 0 <= float(row["conformed_dice"]) <= 1 for row in rows)


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_weights(undisturbed, tiny_data, tmp_path):
    """Fine-tuning on few cases: what a step sees is what evaluation sees."""
    train(tiny_data, tmp_path / "tuned", "--init", undisturbed, "--training.max_epochs", 1,
          "--training.freeze_batch_norm", "true")
    before, after = weights(undisturbed, "model.safetensors"), weights(tmp_path / "tuned")
    buffers = [key for key in before if "running" in key or "batches" in key]
    assert buffers and all(torch.equal(before[key], after[key]) for key in buffers)
    assert not torch.equal(before["blocks.0.norm.weight"], after["blocks.0.norm.weight"])


def test_seconds_of_an_epoch_are_counted_once(undisturbed):
    """Resume points inside an epoch keep what it took so far; the epoch's line must not add that again."""
    rows = lines(undisturbed)
    ended = [(undisturbed / f"state/step-{row['step']:08}.pt").stat().st_mtime for row in rows]
    for row, since, until in zip(rows[1:], ended, ended[1:]):
        assert 0 < row["seconds"] <= until - since + 0.005  # seconds are rounded to two places


def test_profile_says_where_time_and_memory_go_and_keeps_nothing(tiny_data, tmp_path):
    before = set(tmp_path.iterdir())
    out = run_script_file("train.py", "--data", tiny_data, "--profile", *SMALL, "--training.memory_budget",
                          "1MB").stdout
    phases = {line.split()[0]: line.split() for line in out.splitlines() if line}
    seconds = {name: float(phases[name][1]) for name in ("read", "forward", "loss", "backward", "optimizer", "step")}
    assert sum(seconds.values()) == pytest.approx(2 * seconds["step"], abs=0.01)
    assert seconds["backward"] > 0 and "convolution, again" in out, "what a budget computes twice has its own line"
    assert "gradient of the weights" in out or "aten::convolution_backward" in out
    assert "GB foretold" in out
    assert set(tmp_path.iterdir()) == before


def test_the_memory_of_a_step_is_said_before_training(tiny_data, tmp_path):
    out = train(tiny_data, tmp_path / "run", "--training.max_epochs", 1).stdout
    assert out.splitlines()[0].startswith("memory: about") and "epoch 1/1" in out.splitlines()[1]


def test_early_stopping_by_the_training_loss_leaves_a_validated_model(tiny_data, tmp_path):
    """train_loss is there every epoch; a run that it ends must still leave a validated model."""
    train(tiny_data, tmp_path / "run", "--optimizer.lr", 1e-12, "--scheduler.monitor", "train_loss",
          "--training.max_epochs", 9, "--training.validate_every", 4, "--training.early_stopping", "true",
          "--training.early_stopping_patience", 1)
    last = lines(tmp_path / "run")[-1]
    assert last["epoch"] in (4, 8, 9) and "val_dice" in last
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_one_validation_case_without_a_number_is_named(tiny_data, tmp_path, monkeypatch):
    """The mean leaves undefined scores out; a loss that is NaN in one case alone must not vanish with them."""
    from meshnet.training import loop

    validate = loop.validate

    def overflow(*arguments):
        rows = validate(*arguments)
        rows[-1]["loss"] = float("nan")
        return rows

    monkeypatch.setattr(loop, "validate", overflow)
    found = train(tiny_data, tmp_path / "run", "--training.max_epochs", 1, check=False)
    assert found.returncode == 3 and "loss of case synthetic-" in found.stderr


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

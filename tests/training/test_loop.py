"""The training loop against a plain one, fp16's loss scale, the collapse, and processes that die."""

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import GLOO, ROOT, torchrun
from safetensors.torch import load_file
from training_runs import RICH, SMALL, TWO, assert_same_run, children, lines, train, weights

from meshnet.config import LossConfig
from meshnet.data.batches import epoch_order
from meshnet.data.reader import PreparedData
from meshnet.errors import Diverged
from meshnet.networks.build import load_model
from meshnet.networks.meshnet import MeshNet
from meshnet.training import agree, assemble
from meshnet.training.keep import is_better, rank_of
from meshnet.training.loss import SegmentationLoss
from meshnet.training.run import Progress
from meshnet.training.said import better_threshold, faint_line, judged, segmenting


def scale_losses(monkeypatch, scale, limit=math.inf):
    """Give runs fp16's loss scale, on the CPU in float32; above ``limit`` gradients overflow. Returns the runs made."""
    make, whole, runs = assemble.make_accelerator, assemble.assemble, []

    def with_scaler(*given):
        accelerator = make(*given)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        monkeypatch.setattr(type(accelerator), "autocast", lambda self: contextlib.nullcontext())
        return accelerator

    def as_fp16(*arguments):
        run = whole(*arguments)
        run.accelerator.native_amp, run.accelerator.state._mixed_precision = True, "fp16"
        scaler = run.accelerator.scaler
        run.network.head.weight.register_hook(lambda grad: grad * (math.inf if scaler.get_scale() > limit else 1))
        runs.append(run)
        return run

    monkeypatch.setattr(assemble, "make_accelerator", with_scaler)
    monkeypatch.setattr(assemble, "assemble", as_fp16)
    return runs


@pytest.mark.parametrize(("clipping", "scale"), [
    (False, 1), pytest.param(True, 1, marks=pytest.mark.slow), (True, 1024)])
def test_the_loop_is_a_plain_one(tiny_data, tmp_path, monkeypatch, clipping, scale):
    """Two epochs of torch's own classes, written out: accumulation, clipping, AdamW, OneCycleLR, the order of cases.

    The same with a loss scale: gradients are unscaled before they are clipped.
    """
    folder, epochs = tmp_path / "run", 2
    if scale > 1:
        scale_losses(monkeypatch, scale)
    train(tiny_data, folder, "--training.max_epochs", epochs, "--training.accumulation", 2, "--optimizer.eps", 0.1,
          "--optimizer.weight_decay", 0.3, "--scheduler.pct_start", 0.5, "--data.crop", "none",
          "--training.gradient_clipping", str(clipping).lower(), "--training.max_grad_norm", 0.02)

    data, splits = PreparedData(tiny_data), json.loads((tiny_data / "splits.json").read_text())
    cases = data.indices(splits["folds"][0]["inner"][0]["train"])
    torch.manual_seed(0)
    model = MeshNet(3, dilations=[1, 2, 1])
    criterion = SegmentationLoss(LossConfig(), 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=0.1, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.01, total_steps=epochs * len(cases) // 2, pct_start=0.5, div_factor=100, cycle_momentum=False)
    norms, rows = [], lines(folder)
    for epoch in range(epochs):
        order, total = epoch_order(cases, 0, epoch, 2), 0.0
        for step in range(0, len(order), 2):
            for index in order[step:step + 2]:
                image, mask = (torch.from_numpy(part)[None] for part in (data.image(index), data.read(index, "mask")))
                loss = criterion(model(image), mask)
                (loss / 2).backward()
                total += loss.item()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.02 if clipping else 1e9).item())
            rate = optimizer.param_groups[0]["lr"]
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        assert rows[epoch]["train_loss"] == pytest.approx(total / len(order), rel=1e-5)
        assert rows[epoch]["learning_rate"] == pytest.approx(rate, rel=1e-9)
    assert min(norms) > 0.02  # clipping has something to do
    found = load_file(folder / "last.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_a_loss_scale_that_falls(tiny_data, tmp_path, monkeypatch, recwarn):
    """Steps whose gradients overflow are skipped; the schedule ends at its minimum all the same, a run cut likewise."""
    runs = scale_losses(monkeypatch, 2.0 ** 17, limit=1024)
    whole, cut, flags = tmp_path / "whole", tmp_path / "cut", ["--training.max_epochs", 3]
    train(tiny_data, whole, *flags)
    assert runs[-1].accelerator.scaler.get_scale() == 1024
    assert runs[-1].optimizer.state_dict()["state"][0]["step"] == lines(whole)[-1]["step"] - 7
    assert [row["skipped_steps"] for row in lines(whole)] == [4, 3, 0]
    assert not [one for one in recwarn if "lr_scheduler" in str(one.message)]
    assert lines(whole)[-1]["learning_rate"] == pytest.approx(0.01 / 100 / 1e4)
    train(tiny_data, cut, *flags, "--stop_epoch", 1)
    assert runs[-1].accelerator.scaler.get_scale() == 2.0 ** 13  # after four steps
    train(tiny_data, cut, *flags)
    ends = [load_file(run / "last.safetensors") for run in (whole, cut)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_run_that_only_skips_its_steps_ends(tiny_data, tmp_path, monkeypatch):
    """The loss stays finite and the weights stand still, for as many epochs as there are. Cut or not."""
    runs = scale_losses(monkeypatch, 2.0 ** 16, limit=0)
    flags = ["--training.max_epochs", 9]
    train(tiny_data, tmp_path, *flags, "--stop_epoch", 3)
    assert [row["skipped_steps"] for row in lines(tmp_path)] == [4, 4, 4]
    found = train(tiny_data, tmp_path, *flags, check=False)
    assert found.returncode == 3 and runs[-1].progress.step == 20 and runs[-1].progress.skipped_in_row == 20
    assert "20 optimizer steps in a row were skipped, up to epoch 5, step 20" in found.stderr
    assert "loss scale, now 0.0625; try --training.precision bf16 or no" in found.stderr
    assert "20 optimizer steps" in (tmp_path / "failed.json").read_text()


def test_the_threshold_that_a_network_needs_is_named_where_half_is_far_off():
    row = {"val_dice": 0.0, "val_dice_swept": 0.226, "val_threshold": 0.15}
    assert better_threshold(row) == (0.15, 0.226) and "--threshold of 0.15 gives Dice 0.226" in faint_line(0.15, 0.226)
    assert better_threshold(row | {"val_dice": 0.2}) is None
    assert segmenting(Path("runs/a"), (0.15, 0.226)).endswith("SCAN.nii.gz --model runs/a --threshold 0.15")
    assert segmenting(Path("runs/a"), None).endswith("--model runs/a")
    assert better_threshold(row | {"val_threshold": 0.5}) is None and better_threshold({}) is None


def test_a_collapse_is_said_once(tiny_data, tmp_path):
    found = train(tiny_data, tmp_path / "run", "--training.max_epochs", 6, "--loss.lesion_weight", 0,
                  "--model.norm", "none", "--loss.label_smoothing", 0, "--optimizer.lr", 0.05)
    assert found.stdout.count("collapsed to 'no lesion anywhere'") == 1
    assert "--loss.background_weight" in found.stdout and "the validation loss is flat" in found.stdout
    assert [row.get("collapsed", False) for row in lines(tmp_path / "run")][:2] == [False, False]
    assert lines(tmp_path / "run")[-1]["collapsed"]


@pytest.mark.parametrize(("losses", "nothing", "flat", "warned", "learning"), [
    ([1.4, 1.2, 1.0, 0.9, 0.8], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], 0, 1),  # falls: said once, after three
    ([1.4, 1.4, 1.4, 1.4, 1.4], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1], 1, 0),  # flat from the third on: warned of once
    ([1.4, 1.0, 0.8, 0.8, 0.799, 0.8], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1], 1, 1),  # first the one, then the other
    ([1.4, 1.4, 1.4, 1.4, 1.4], [1, 1, 0, 1, 1], [0, 0, 0, 0, 0], 0, 0),  # something was marked in between
])
def test_what_marks_nothing_has_collapsed_only_where_its_loss_is_flat(losses, nothing, flat, warned, learning):
    progress, said, found = Progress(), [], []
    for loss, none in zip(losses, nothing):
        line, collapsed = judged(progress, {"val_loss": loss, "val_highest": 0.3}, bool(none), 4)
        said.append(line)
        found.append(int(collapsed))
    assert found == flat
    assert sum("collapsed" in line for line in said) == warned
    assert sum("keep training" in line and "highest is 0.3" in line for line in said) == learning


def test_a_run_of_an_earlier_version_goes_on_by_the_dice_at_a_half(tiny_data, tmp_path):
    """Its config.yaml knows no training.score_at, its resume point none of the new counts."""
    whole, cut, flags = tmp_path / "whole", tmp_path / "cut", ["--training.max_epochs", 3]
    train(tiny_data, whole, *flags, "--training.score_at", "half")
    train(tiny_data, cut, *flags, "--training.score_at", "half", "--stop_epoch", 1)
    config = (cut / "config.yaml").read_text()
    assert " score_at: half," in config
    (cut / "config.yaml").write_text(config.replace(" score_at: half,", ""))
    (point,) = (cut / "state").glob("*.pt")
    state = torch.load(point, weights_only=True)
    for rank in state["ranks"]:
        for name in ("losses", "warned", "best_rank", "best_rank_ema", "best_half", "threshold", "threshold_ema",
                     "threshold_last"):
            del rank["progress"][name]
    torch.save(state, point)
    train(tiny_data, cut, *flags)
    assert_same_run(whole, cut)
    card = json.loads((cut / "config.json").read_text())
    assert card["threshold"] == 0.5 and json.loads((cut / "DONE").read_text())["score_at"] == "half"
    train(tiny_data, tmp_path / "new", *flags, "--training.score_at", "best")
    done, card = (json.loads((tmp_path / "new" / name).read_text()) for name in ("DONE", "config.json"))
    best = lines(tmp_path / "new")[done["best_epoch"] - 1]
    assert done["score"] == best["val_dice_swept"] == max(row["val_dice_swept"] for row in lines(tmp_path / "new"))
    assert card["threshold"] == done["threshold"] == best["val_threshold"]
    last = lines(tmp_path / "new")[-1]["val_threshold"]
    assert load_model(tmp_path / "new", "last.safetensors").card.threshold == last


def test_of_equal_dice_the_best_at_its_threshold_is_kept_and_then_the_lowest_loss(tiny_data, tmp_path):
    """As long as nothing, or everything, is marked all Dice are equal: the weights of the first epoch are not the best.
    """
    steps = [(0.0, 0.2, 1.0), (0.0, 0.3, 1.1), (0.0, 0.3, 1.2), (0.0, 0.3, 1.05), (0.4, 0.4, 2.0), (0.3, 0.9, 0.1)]
    best, kept = None, []
    for dice, swept, loss in steps:
        rank = rank_of({"val_dice": dice, "val_dice_swept": swept, "val_loss": loss}, "val_dice")
        if is_better(rank, -1.0 if best is None else best[0], best):
            best = rank
            kept.append(steps.index((dice, swept, loss)))
    assert kept == [0, 1, 3, 4]
    assert not is_better([0.0, 0.9, -1.0], 0.0, None) and is_better([0.1, 0.0, -1.0], 0.0, None)  # earlier versions'
    train(tiny_data, tmp_path, "--training.max_epochs", 6, "--stop_epoch", 2, "--optimizer.lr", 0.005,
          "--model.norm", "none", "--loss.lesion_weight", 0.3, "--loss.label_smoothing", 0)
    one, two = lines(tmp_path)  # everything is marked after both
    assert one["val_dice"] == two["val_dice"] and one["val_dice_swept"] < two["val_dice_swept"]
    assert json.loads((tmp_path / "config.json").read_text())["metrics"]["epoch"] == 2


def kill_one_process(data, folder, after):
    """Two processes train; the second is killed when ``after`` resume points were seen. The launcher's exit code."""
    command = [*torchrun(), ROOT / "train.py", "--data", data, "--run_dir", folder, *SMALL, *TWO]
    launcher = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **GLOO})
    seen = set()
    while len(seen) < after and launcher.poll() is None:
        seen |= set(folder.glob("state/step-*.pt"))
        time.sleep(0.01)
    ranks = {rank(pid): pid for pid in children(launcher.pid)}
    os.kill(ranks["1"], signal.SIGKILL)
    launcher.communicate(timeout=60)
    assert not os.path.exists(f"/proc/{ranks['0']}")
    return launcher.returncode


def rank(pid):
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((item[5:].decode() for item in environment if item.startswith(b"RANK=")), None)


@pytest.mark.kills
def test_a_process_that_dies_ends_the_others(tiny_data, tmp_path):
    assert kill_one_process(tiny_data, tmp_path / "run", 1) not in (0, None)
    assert list((tmp_path / "run" / "state").glob("step-*.pt")) and not (tmp_path / "run" / "DONE").exists()


@pytest.mark.kills
@pytest.mark.slow
def test_two_processes_go_on_bit_for_bit(tiny_data, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(tiny_data, whole, *TWO, launcher=torchrun(), env=GLOO)
    for after in (2, 3):
        kill_one_process(tiny_data, cut, after)
    train(tiny_data, cut, *TWO, launcher=torchrun(), env=GLOO)
    for name in ("model.safetensors", "last.safetensors", "model_ema.safetensors"):
        ends = [load_file(run / name) for run in (whole, cut)]
        assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items()), name
    rows = [[{**row, "seconds": 0} for row in lines(run)] for run in (whole, cut)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("nth", [0, *[pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 5)], 2, 3, 6])
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


@pytest.mark.parametrize("flags", [
    pytest.param(["--model.norm", "none"], marks=pytest.mark.slow),
    # These norms take a convolution's bias out again: its gradient is rounding noise, which Adam scales up (to full
    # steps with torch's own eps). Without such biases everything is compared.
    # A larger eps leaves tiny gradients as tiny steps, and lets a gradient of twice the size be seen.
    pytest.param(["--model.norm", "group", "--model.bias", "false", "--optimizer.eps", "1e-6"], marks=pytest.mark.slow),
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


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_weights(undisturbed, tiny_data, tmp_path):
    """Fine-tuning on few cases: what a step sees is what evaluation sees."""
    train(tiny_data, tmp_path / "tuned", "--init", undisturbed, "--training.max_epochs", 1,
          "--training.freeze_batch_norm", "true")
    before, after = weights(undisturbed, "model.safetensors"), weights(tmp_path / "tuned")
    buffers = [key for key in before if "running" in key or "batches" in key]
    assert buffers and all(torch.equal(before[key], after[key]) for key in buffers)
    assert not torch.equal(before["blocks.0.norm.weight"], after["blocks.0.norm.weight"])


def test_seconds_of_an_epoch_are_counted_once(tiny_data, tmp_path, monkeypatch):
    """Resume points inside an epoch keep what it took so far; the epoch's line must not add that again."""
    from meshnet.training import loop

    clock, train_batch, save = [0], loop.train_batch, loop.save

    def one_second(*given):
        clock[0] += 1
        return train_batch(*given)

    def cut(run):
        save(run)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(loop, "train_batch", one_second)
    flags = ["--training.max_epochs", 2, "--training.save_every_steps", 2]
    monkeypatch.setattr(loop, "save", cut)
    assert train(tiny_data, tmp_path / "run", *flags, check=False).returncode == 130 and clock == [2]
    monkeypatch.setattr(loop, "save", save)
    clock[0] += 1000  # until the same command is given again
    train(tiny_data, tmp_path / "run", *flags)
    steps = [row["step"] for row in lines(tmp_path / "run")]
    assert [row["seconds"] for row in lines(tmp_path / "run")] == [steps[0], steps[1] - steps[0]] and steps[0] > 2


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
    from meshnet.training import keep

    validate = keep.validate

    def overflow(*arguments):
        found = validate(*arguments)
        found.rows[-1]["loss"] = float("nan")
        return found

    monkeypatch.setattr(keep, "validate", overflow)
    found = train(tiny_data, tmp_path / "run", "--training.max_epochs", 1, check=False)
    assert found.returncode == 3 and "loss of case synthetic-" in found.stderr


def test_a_resume_point_of_an_earlier_version_is_taken_up(tiny_data, tmp_path):
    """Its ``progress`` calls ``without_lesion`` by the name ``silent``."""
    flags = ["--training.max_epochs", 2]
    train(tiny_data, tmp_path / "whole", *flags)
    train(tiny_data, tmp_path / "cut", *flags, "--stop_epoch", 1)
    (path,) = (tmp_path / "cut" / "state").glob("*.pt")
    state = torch.load(path, weights_only=True)
    for rank in state["ranks"]:
        rank["progress"]["silent"] = rank["progress"].pop("without_lesion")
    torch.save(state, path)
    out = train(tiny_data, tmp_path / "cut", *flags).stdout
    assert "continuing after epoch 1" in out
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_loss_that_is_nan_on_another_process_ends_this_one_with_its_words(monkeypatch):
    from meshnet.training import loop

    state = SimpleNamespace(num_processes=2, reduce=lambda wrong, how: wrong + 1)
    monkeypatch.setattr(agree, "gather_object", lambda mine: [*mine, "the loss is nan at case b"])
    value, wrong = agree.with_others(state, torch.tensor(0.25)).tolist()
    assert (value, wrong) == (0.25, 1)
    with pytest.raises(Diverged, match=r"^the loss is nan at case b$"):
        loop.check_loss(SimpleNamespace(accelerator=state), {}, value, wrong)
    alone = SimpleNamespace(num_processes=1)
    assert agree.with_others(alone, torch.tensor(0.25)).tolist() == [0.25, 0]
    assert agree.with_others(alone, torch.tensor(float("inf"))).tolist() == [float("inf"), 1]

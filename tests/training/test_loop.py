"""The training loop against a plain one, fp16's loss scale, the collapse, and processes that die."""

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import GLOO, ROOT, run_script_file, torchrun
from safetensors.torch import load_file

from meshnet.config import LossConfig
from meshnet.data.batches import epoch_order
from meshnet.data.reader import PreparedData
from meshnet.networks.meshnet import MeshNet
from meshnet.training import assemble
from meshnet.training.loss import SegmentationLoss

SMALL = ["--model.channels", 3, "--model.dilations", 1, 2, 1, "--data.workers", 0, "--optimizer.lr", 0.01]


def train(data, folder, *flags, **options):
    return run_script_file("train.py", "--data", data, "--run_dir", folder, *SMALL, *flags, **options)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scale_losses(monkeypatch, scale, limit=math.inf):
    """Give runs fp16's loss scale, on the CPU in float32; above ``limit`` gradients overflow. Returns the runs made."""
    make, whole, runs = assemble.make_accelerator, assemble.assemble, []

    def with_scaler(config, folder):
        accelerator = make(config, folder)
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


@pytest.mark.parametrize(("clipping", "scale"), [(False, 1), (True, 1), (True, 1024)])
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


def test_a_loss_scale_that_falls(tiny_data, tmp_path, monkeypatch):
    """Steps whose gradients overflow are skipped; the schedule ends at its minimum all the same, a run cut likewise."""
    runs = scale_losses(monkeypatch, 2.0 ** 17, limit=1024)
    whole, cut, flags = tmp_path / "whole", tmp_path / "cut", ["--training.max_epochs", 3]
    train(tiny_data, whole, *flags)
    assert runs[-1].accelerator.scaler.get_scale() == 1024
    assert runs[-1].optimizer.state_dict()["state"][0]["step"] == lines(whole)[-1]["step"] - 7
    assert lines(whole)[-1]["learning_rate"] == pytest.approx(0.01 / 100 / 1e4)
    train(tiny_data, cut, *flags, "--stop_epoch", 1)
    assert runs[-1].accelerator.scaler.get_scale() == 2.0 ** 13  # after four steps
    train(tiny_data, cut, *flags)
    ends = [load_file(run / "last.safetensors") for run in (whole, cut)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_collapse_is_said_once(tiny_data, tmp_path):
    found = train(tiny_data, tmp_path / "run", "--training.max_epochs", 6, "--loss.lesion_weight", 0,
                  "--model.norm", "none", "--loss.label_smoothing", 0, "--optimizer.lr", 0.05)
    assert found.stdout.count("collapsed to 'no lesion anywhere'") == 1
    assert "--loss.background_weight" in found.stdout and "for 3 validations" in found.stdout
    assert all(row["collapsed"] for row in lines(tmp_path / "run")[-3:])


TWO = ["--training.max_epochs", 6, "--training.save_every_steps", 1, "--model.dropout", 0.2, "--ema.enabled", "true"]


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


def children(pid):
    return [int(part) for part in (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()]


def rank(pid):
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((item[5:].decode() for item in environment if item.startswith(b"RANK=")), None)


def test_a_process_that_dies_ends_the_others(tiny_data, tmp_path):
    assert kill_one_process(tiny_data, tmp_path / "run", 1) not in (0, None)
    assert list((tmp_path / "run" / "state").glob("step-*.pt")) and not (tmp_path / "run" / "DONE").exists()


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

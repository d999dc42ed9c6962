"""Short runs of train.py, and whether two of them are the same."""

import json
from pathlib import Path

import torch
from conftest import run_script_file
from safetensors.torch import load_file

SMALL = ["--model.channels", 3, "--model.dilations", 1, 2, 1, "--data.workers", 0, "--optimizer.lr", 0.01]


def train(data, folder, *flags, **options):
    return run_script_file("train.py", "--data", data, "--run_dir", folder, *SMALL, *flags, **options)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder, name="last.safetensors"):
    return load_file(folder / name)


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
TWO = ["--training.max_epochs", 6, "--training.save_every_steps", 1, "--model.dropout", 0.2, "--ema.enabled", "true"]


def children(pid):
    return [int(part) for part in (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()]

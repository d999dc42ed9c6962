"""The profile of a step."""

import pytest
from conftest import run_script_file
from training_runs import SMALL

from meshnet.training import profiling


def test_profile_says_where_time_and_memory_go_and_keeps_nothing(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "OPERATIONS", 100)  # all: which ones take longest depends on the machine
    before = set(tmp_path.iterdir())
    out = run_script_file("train.py", "--data", tiny_data, "--profile", *SMALL, "--training.memory_budget",
                          "1MB").stdout
    phases = {line.split()[0]: line.split() for line in out.splitlines() if line}
    seconds = {name: float(phases[name][1]) for name in ("read", "forward", "loss", "backward", "optimizer", "step")}
    assert sum(seconds.values()) == pytest.approx(2 * seconds["step"], abs=0.01)
    assert seconds["backward"] > 0 and "convolution, again" in out, "what a budget computes twice has its own line"
    assert "gradient of the weights" in out or "aten::convolution_backward" in out
    assert "GB estimated" in out
    assert set(tmp_path.iterdir()) == before

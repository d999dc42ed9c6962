"""The switches of a step on a GPU: asked for, measured, kept."""

import json

import pytest
import torch

from meshnet.networks import gpu_tuning
from meshnet.networks.gpu_tuning import Tuning, choose_tuning

ASKED = {"fold_bias": "auto", "pad_channels": "auto", "cudnn_benchmark": "auto"}
GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU by name, on which 32 channels are quicker than 26 and cuDNN's trying changes nothing; what is measured."""
    calls = []
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    monkeypatch.setattr(gpu_tuning, "seconds", lambda width, *a: calls.append(width) or (0.5 if width == 32 else 1.0))
    return calls


def test_auto_is_measured_once(gpu, tmp_path):
    expected = Tuning(fold_bias=True, pad_channels=True, benchmark=False)
    assert choose_tuning(ASKED, 26, torch.float16, GPU, None) == expected
    assert gpu == [26, 26, 32]
    assert choose_tuning(ASKED, 26, torch.float16, GPU, None) == expected and len(gpu) == 3
    (tmp_path / "gpu-tuning.json").write_text("[1,")
    assert choose_tuning(ASKED, 26, torch.float16, GPU, None) == expected and len(gpu) == 6
    assert json.loads((tmp_path / "gpu-tuning.json").read_text())


def test_a_budget_and_a_cpu_measure_nothing(gpu):
    for device, budget in ((GPU, 8 * 10**9), (CPU, None)):
        assert choose_tuning(ASKED, 26, torch.float16, device, budget) == Tuning()
    said = {"fold_bias": "false", "pad_channels": "true", "cudnn_benchmark": "true"}
    assert choose_tuning(said, 26, torch.float16, GPU, None) == Tuning(False, True, True) and not gpu


@pytest.mark.parametrize("times, expected", [
    ({(26, False): 1.0, (26, True): 0.8, (32, True): 0.75}, (True, False)),
    ({(26, False): 1.0, (26, True): 0.8, (32, True): 0.7}, (True, True)),
    ({(26, False): 1.0, (26, True): 0.96, (32, False): 0.87}, (False, False)),
    ({(26, False): 1.0, (26, True): 1.5, (32, False): 0.89}, (False, True)),
])
def test_what_is_quicker_decides(times, expected):
    found = gpu_tuning.decide(lambda width, tries: times[width, tries], 26)
    assert (found["cudnn_benchmark"], found["pad_channels"]) == expected
    assert not gpu_tuning.decide(lambda width, tries: 1.0, 32)["pad_channels"]

"""Where test cases are scored, with a GPU that is not here."""

import numpy as np
import pytest
import torch

from meshnet.crossval import scoring


@pytest.fixture
def asked(monkeypatch):
    """The device and the precision of every prediction; a GPU's memory is too small for images that hold a 9."""
    seen = []

    def predict(network, image, device):
        half = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
        seen.append((device.type, half))
        if device.type == "cuda" and 9 in image:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return image

    monkeypatch.setattr(scoring.predict, "predict", predict)
    return seen


def test_without_a_gpu_the_cpu_scores_as_it_did(asked):
    scoring.Place().probabilities(None, np.zeros(1), "bf16")
    assert asked == [("cpu", False)]


def test_the_gpu_of_the_slot_scores_in_the_precision_of_training_until_its_memory_is_too_small(
        asked, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *given: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    place = scoring.Place()
    for image, precision in ((1, "no"), (1, "fp16"), (1, None), (9, "bf16"), (1, "bf16")):
        assert place.probabilities(None, np.full(1, image), precision) == image
    assert asked == [("cuda", False), ("cuda", torch.float16), ("cuda", False), ("cuda", torch.bfloat16),
                     ("cpu", False), ("cpu", False)]
    assert capsys.readouterr().err.count("scored on the CPU") == 1
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert scoring.Place().device.type == "cpu"

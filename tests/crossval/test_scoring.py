"""Where test cases are scored, with a GPU that is not here."""

import numpy as np
import pytest
import torch

from meshnet.crossval import scoring
from meshnet.crossval.scoring import other_threshold
from meshnet.networks.card import Card


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


def test_a_models_other_threshold_is_scored_as_well():
    card = Card(["T2w"], ["background", "lesion"], metrics={"val_threshold": 0.3})
    assert other_threshold(card) == ("dice_swept", 0.3)
    assert other_threshold(card.changed(threshold=0.3)) == ("dice_half", 0.5)
    assert not other_threshold(card.changed(metrics={"val_threshold": 0.5}))
    assert not other_threshold(card.changed(metrics={}))
    assert not other_threshold(card.changed(classes=["background", "a", "b"]))  # the most probable class is marked

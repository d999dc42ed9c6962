"""Inference as it runs on GPUs, computed here on a CPU: the same answers, tiles, what is not finite."""

import numpy as np
import pytest
import torch
from cuda_on_cpu import steps_of_a_gpu
from small import by_model, network, scan

from meshnet.errors import UserError
from meshnet.inference import on_gpu
from meshnet.inference.boxes import Pass, whole_box
from meshnet.networks import fuse

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def card(monkeypatch):
    """A card of 1 GB, all of it free, that computes on the CPU."""
    monkeypatch.setattr(on_gpu, "free_bytes", lambda device: 1_000_000_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 0)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # it has no float16 here


def compute(model, volume, output="logits", max_memory=None):
    shape = volume.shape[1:]
    result = np.empty(shape if output == "labels" else (2, *shape), np.uint8 if output == "labels" else np.float32)
    task = Pass(fuse.fuse(model), volume, result, output, max_memory, device=CPU)
    with torch.no_grad(), steps_of_a_gpu():
        on_gpu.make_compute(task)(whole_box(shape))
    return result


@pytest.mark.parametrize("arguments", [{}, {"norm": "instance"}, {"norm": "group", "norm_groups": 2}])
def test_half_maps_give_the_answer(arguments):
    model, volume = network(4, (1, 2, 4), **arguments), scan(1, (20, 17, 15))
    expected = by_model(model, volume)
    assert np.abs(compute(model, volume) - expected).max() < 0.02 * np.abs(expected).max()


def test_tiles_that_fit_change_nothing():
    model, volume = network(4, (1, 2, 4)), scan(1, (40, 33, 35))
    whole = compute(model, volume)
    need = on_gpu.gpu_bytes(fuse.fuse(model), [whole_box(volume.shape[1:])] * 5, volume.shape[1:], 2)
    tiles = compute(model, volume, max_memory=int(0.6 * need))
    assert np.abs(tiles - whole).max() < 0.01 * np.abs(whole).max()
    with pytest.raises(UserError, match="max_memory"):
        compute(model, volume, max_memory=1000)


def test_whole_maps_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="group and instance norm need whole maps"):
        compute(network(4, (1, 2), norm="instance"), scan(1, (20, 17, 15)), max_memory=50_000)


def test_what_overflows_is_computed_again_in_single_precision():
    model, volume = network(4, (1, 2)), scan(1, (12, 11, 10))
    with torch.no_grad():
        model.blocks[0].conv.weight *= 1e4
        model.blocks[0].conv.bias *= 1e4
        model.blocks[0].norm.running_var.fill_(1)
        model.blocks[1].conv.weight *= 1e4
    expected = by_model(model, volume)
    found = compute(model, volume)
    assert np.isfinite(found).all() and np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.array_equal(compute(model, volume, "labels"), found.argmax(0))

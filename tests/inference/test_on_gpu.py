"""Inference as it runs on GPUs, computed here on a CPU: the same answers, tiles, what is not finite."""

import numpy as np
import pytest
import torch
from cuda_on_cpu import steps_of_a_gpu
from small import by_model, network, scan, smearing

from meshnet.errors import UserError
from meshnet.inference import crop, on_gpu, predict
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


def on_card(model, volume, box, air):
    """What validation asks of a card: the box, its logits and what is beside it."""
    result = torch.full((2, *volume.shape[1:]), float("nan"))
    task = Pass(fuse.fuse(model), volume, result, "logits", device=CPU, filled=False)
    with torch.no_grad(), steps_of_a_gpu():
        box, fill = on_gpu.compute_on_card(task, box, air, True)
    return box, result[(slice(None), *crop.slices(box))], fill


@pytest.mark.parametrize(("model", "grows"), [
    (network(4, (1, 2)), False), (network(4, (1, 2), activation="gelu"), False), (smearing((1, 0, 0)), True),
    (network(4, (1, 2), norm="instance"), False)])
def test_the_box_of_a_card_grows_as_that_of_a_cpu(model, grows):
    volume = np.zeros((1, 60, 20, 24), np.float32)
    volume[:, 22:35, 5:15, 6:17] = 1
    seen, expected = predict.seen_by(model, volume), predict.answer(model, volume)
    assert (seen is None) == isinstance(getattr(model.blocks[0], "norm", None), torch.nn.InstanceNorm3d)
    if not grows:
        model.head.bias.data[0] += 30
        expected = predict.answer(model, volume)
    box, logits, fill = on_card(model, volume, *((seen.head, seen.air) if seen else (expected.box, None)))
    assert box == expected.box and (seen is None or (box != seen.head) == grows)
    assert (logits - expected.logits).abs().max() < 0.02 * expected.logits.abs().max()
    assert (fill - expected.fill).abs().max() < 1e-5


def test_a_card_is_waited_for_once(monkeypatch):
    """Also where the box has to grow or what is not finite is computed again: once for each of these."""
    model, volume = network(4, (1, 2)), scan(1, (60, 20, 24), ((22, 35), (5, 15), (6, 17)), 0.25)
    seen, waits = predict.seen_by(model, volume), []
    model.head.bias.data[0] += 30

    def waited() -> tuple[int, torch.Tensor]:
        waits.clear()
        with monkeypatch.context() as patch:
            read = torch.Tensor.tolist
            patch.setattr(torch.Tensor, "tolist", lambda self: waits.append(1) or read(self))
            for forbidden in ("item", "__bool__", "cpu", "numpy"):
                patch.setattr(torch.Tensor, forbidden, lambda self: pytest.fail("the host waits"))
            return len(waits), on_card(model, volume, seen.head, seen.air)[1]

    waited()
    assert len(waits) == 1
    with torch.no_grad():
        model.blocks[1].conv.weight *= 1e6
        model.head.bias[0] += 1e9
    _, logits = waited()
    assert len(waits) == 2 and torch.isfinite(logits).all()

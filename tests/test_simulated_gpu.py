"""The code for GPUs on a simulated one: devices, types, layouts, peaks, kernels and waits, on a machine without any.

In process without autograd's engine, about a second a case; whole steps at 256³, in a process of their own, are in the
slow suite. Neither shows a speed or a number: see docs/log/gpu.md.
"""


import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.simulated import device, library
from meshnet.inference import on_gpu
from meshnet.inference.boxes import layer_boxes as boxes_of
from meshnet.networks import fuse, gpu_memory, gpu_step, memory
from meshnet.networks.meshnet import MeshNet
from meshnet.scans.mask import Marks
from meshnet.training import validation

SIZE = 256
MAP = 26 * SIZE**3 * 2  # bytes of a map in half precision


@pytest.fixture(scope="module")
def gpu():
    if not library.load(hooks=False):
        pytest.skip("no C++ compiler here, so no simulated GPU")


def shape_of(tensor):
    assert isinstance(tensor, FakeTensor) and tensor.fake_device.type == "cuda"
    return tuple(tensor.shape), tensor.dtype


@pytest.mark.parametrize("arguments, budget", [
    ({}, None), ({"norm": "group", "norm_groups": 2, "activation": "gelu"}, 8),
    pytest.param({"norm": "instance", "dropout": 0.1}, 6, marks=pytest.mark.slow),
])
def test_both_passes_of_a_step(gpu, arguments, budget):
    with device.simulated_gpu(), torch.no_grad():
        model = MeshNet(26, **arguments).to("cuda:0", memory_format=torch.channels_last_3d)
        model.memory_budget = budget and int(budget * 1e9)
        x = torch.empty(1, 1, SIZE, SIZE, SIZE, device="cuda:0")
        plan = memory.plan_on_gpu(model, x.shape, 2)
        with device.Account() as account:
            step = gpu_step.Step(list(model.blocks), model.head, plan, model.tuning, torch.float16)
            with account.watch("forward"):
                logits = step.forward(x)
            assert shape_of(logits) == ((1, 2, SIZE, SIZE, SIZE), torch.float16)
            gradient = torch.empty_like(logits)
            del logits
            with account.watch("backward"):
                below, found = step.backward(x, gradient)
        assert below is None or below.numel() == 0 or x.requires_grad is False
        for parameter in model.parameters():
            assert shape_of(found[parameter]) == (tuple(parameter.shape), torch.float32)
        expected = gpu_memory.peak(gpu_memory.sizes_of(model, x.shape, 2, model.tuning), plan)
        assert abs(account.peak / expected - 1) < 0.05
        assert budget is None or account.peak <= (budget - 0.5) * 1e9
        assert not account.copies and not account.small and not account.waits
        assert account.kernels["backward"] <= 30 * 9


CASES = [  # a budget in GB, what differs, processes; None: a plain step, of at most 17.7 GB
    (None, "", 1), (None, "", 2), (None, "model.norm=group", 1), (None, "model.dropout=0.1", 1),
    (6, "", 1), (8, "", 1), (12, "", 1), (16, "", 1), (6, "", 2), (8, "model.norm=group model.norm_groups=2", 1),
    (8, "model.activation=gelu model.dropout=0.1", 2), (12, "training.batch_size=2 model.norm=instance", 1),
]


@pytest.mark.slow
def test_whole_steps_keep_their_budgets(root):
    """The project's own assembly and step, with autograd's engine, as GPU and as one of two."""
    lines = [f"--processes {processes} --set model.channels=26 training.precision=fp16 {more} "
             + (f"training.memory_budget={budget}GB" if budget else "") for budget, more, processes in CASES]
    ran = subprocess.run([sys.executable, "-m", "benchmarks.simulated.whole_step", "--lines"], cwd=root, text=True,
                         input="\n".join(lines), capture_output=True, timeout=900, check=False)
    if ran.returncode == 3:
        pytest.skip("no C++ compiler here, so no simulated GPU")
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(found) == len(CASES), ran.stderr
    for (budget, *_), one in zip(CASES, found):
        assert one["peak"] <= (17.7e9 if budget is None else (budget - 0.5) * 1e9)
        assert abs(one["foretold"] / one["peak"] - 1) < 0.05
        assert sum(one["waits"].values()) <= 1 and not one["copies"] and not one["small"]
        assert one["kernels"]["backward"] <= 30 * one["blocks"]
    assert found[1]["peak"] <= 1.1 * found[0]["peak"] and found[2]["peak"] <= 1.25 * found[0]["peak"]


@pytest.mark.parametrize("norm", ["batch", pytest.param("group", marks=pytest.mark.slow)])
def test_a_network_on_a_volume(gpu, norm):
    """Inference at 256³: half maps, logits in float32 on the card, no copy into another layout, no more memory than was
    foretold, also of a tile inside, which convolutions with padding have to cut."""
    with device.simulated_gpu(), torch.no_grad():
        model = MeshNet(26, norm=norm, **({"norm_groups": 2} if norm == "group" else {})).eval()
        layers = [on_gpu.in_type(layer, torch.float16, torch.device("cuda:0")) for layer in fuse.fuse(model)]
        volume = torch.empty(1, SIZE, SIZE, SIZE, device="cuda:0", dtype=torch.float16)
        for box in [((0, SIZE),) * 3, ((30, 120), (0, 100), (90, 200))][:1 if norm == "group" else 2]:
            with device.Account() as account:
                account.add_all([volume])
                logits = on_gpu.run_box(layers, volume, box)
            assert shape_of(logits) == ((2, *(b - a for a, b in box)), torch.float32)
            boxes = boxes_of(layers, box, (SIZE,) * 3) if norm == "batch" else [box] * (len(layers) + 1)
            foretold = on_gpu.gpu_bytes(layers, boxes, (SIZE,) * 3, 2)
            assert 0.9 < account.peak / foretold <= 1.01
            assert not account.small and not account.waits
            del logits


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_validation_waits_once_a_case(gpu, norm, classes, monkeypatch):
    """For whether the head's box is large enough; and once for what all cases have counted. No copy is waited for."""
    monkeypatch.setattr(validation, "row_of", lambda run, case, numbers: case.position)
    marks = Marks(("background", "lesion", "fluid")[:classes], None)
    generator, shape, cases = np.random.default_rng(0), (48, 40, 44), 4
    volumes = np.zeros((cases, 1, *shape), np.float32)
    volumes[:, :, 12:30, 10:25, 9:30] = generator.random((cases, 1, 18, 15, 21), np.float32)
    with device.simulated_gpu(), torch.no_grad():
        network = MeshNet(26, classes=classes, norm=norm).eval().to("cuda:0", memory_format=torch.channels_last_3d)
        accelerator = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cuda:0"),
                                      autocast=lambda: torch.autocast("cuda", torch.float16))
        data = SimpleNamespace(image=lambda i: volumes[i], read=lambda i, name: np.zeros(shape, np.uint8),
                               marking=marks)
        run = SimpleNamespace(accelerator=accelerator, val=list(range(cases)), data=data, seen={},
                              config=SimpleNamespace(loss=SimpleNamespace(name="dice_ce")))
        with device.Account() as account:
            found = validation.score_share(run, network, SimpleNamespace(beat=lambda: None))
        with monkeypatch.context() as patch:
            patch.setattr(validation.predict, "seen_by", lambda *given: pytest.fail("looked at again"))
            validation.score_share(run, network, SimpleNamespace(beat=lambda: None))
    assert [position for position, _ in found] == list(range(cases))
    assert (run.seen[0] is None) == (norm == "instance")
    assert sum(account.waits.values()) == cases
    assert sum(account.transfers.values()) == 1

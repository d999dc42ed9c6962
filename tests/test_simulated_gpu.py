"""The code for GPUs on a simulated one: devices, types, layouts, peaks, kernels and waits, on a machine without any.

In process without autograd's engine, about a second a case; whole steps at 256³, in a process of their own, are in the
slow suite. Neither shows a speed or a number: see docs/log/gpu.md.
"""


import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.simulated import device, library
from meshnet.networks import gpu_memory, gpu_step, memory
from meshnet.networks.meshnet import MeshNet

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
    ({"norm": "instance", "dropout": 0.1}, 6),
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

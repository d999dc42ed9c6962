"""Which maps a training step keeps, and the memory that was estimated."""

import itertools
import subprocess
import sys

import pytest
import torch

from meshnet.kernels import calls
from meshnet.networks import gpu_memory, memory
from meshnet.networks.meshnet import MeshNet


def test_plans_by_hand():
    sizes = (1, 10, 10, 10, 0)  # input, three maps, logits of no size
    # Everything kept, at the top: y1, y2, the gradient of y3, and z2 or the gradient of z2; PyTorch makes both at once.
    assert memory.plan_peak(sizes, (0, 1, 2), True) == 40
    assert memory.plan_peak(sizes, (0, 1, 2), False) == 50
    # Only y2 kept: y2, then y3 from it (and the activation between them), and y1 from the input beside y2's gradient.
    assert memory.plan_peak(sizes, (1,), True) == 30
    assert memory.second_convolutions(sizes, (1,)) == 1 + 10


def test_the_loss_takes_copies_of_the_logits_beside_the_maps():
    without, logits = (1, 10, 20, 10, 0), (1, 10, 20, 10, 7)
    for peak in (lambda sizes: memory.plan_peak(sizes, (1,), True), lambda sizes: memory.plain_peak(sizes, 2),
                 lambda sizes: memory.blocks_peak(sizes, False)):
        assert peak(logits) == peak(without) + 4 * 7
    assert memory.plain_peak(without, 2) == 2 * 40 + 3 * 20 and memory.plain_peak(without, 1) == 40 + 3 * 20
    assert [memory.blocks_peak(without, compiled) for compiled in (True, False)] == [40 + 3 * 20, 40 + 5 * 20]


def test_more_room_means_fewer_second_convolutions():
    model = MeshNet(26)
    shape = (1, 1, 96, 96, 96)
    sizes = memory.map_sizes(model, shape, 4)
    work = []
    for budget in range(500, 2300, 50):
        plan = memory.plan_checkpoints(model, shape, 4, budget * 10**6)
        if plan is None:
            work.append(-1)
            continue
        work.append(memory.second_convolutions(sizes, plan))
        if budget > 600:
            assert memory.plan_peak(sizes, plan, calls.available()) <= budget * 10**6
    assert work == sorted(work, reverse=True) and work[-1] == -1 and 0 in work
    assert memory.plan_checkpoints(model, shape, 4, 1) == memory.plan_checkpoints(model, shape, 4, None)


def test_plans_know_where_the_step_runs():
    model, shape = MeshNet(6, dilations=(1, 2, 4)), (1, 1, 24, 24, 24)
    sizes, gpu = memory.map_sizes(model, shape, 4), torch.device("cuda")
    assert memory.goes_by_kernels(model, 4) == calls.available()
    assert not memory.goes_by_kernels(model, 2) and not memory.goes_by_kernels(model, 4, gpu)
    model.checkpointing = True
    assert memory.plan_checkpoints(model, shape, 4, None, gpu) == memory.choose_plan(sizes, None, False)
    on_gpu = gpu_memory.sizes_of(model, shape, 4, model.tuning)
    expected = gpu_memory.peak(on_gpu, gpu_memory.choose(on_gpu, None))
    assert memory.estimate_training_memory(model, 1, shape[2:], device=gpu) == expected


def test_many_blocks_get_evenly_spaced_plans():
    model = MeshNet(4, dilations=(1,) * 20)
    plan = memory.plan_checkpoints(model, (1, 1, 32, 32, 32), 4, None)
    assert 2 < len(plan) < 12 and len({b - a for a, b in itertools.pairwise(plan)}) == 1


MEASURE = """
import sys, torch
from torch.nn import functional
from meshnet import kernels, memory
from meshnet.networks.meshnet import MeshNet

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

def step(model, n):
    x = torch.rand(1, 1, n, n, n)
    functional.cross_entropy(model(x), (x[:, 0] > 0.9).long()).backward()

kernels.available()
step(MeshNet(2, dilations=(1,)), 8)
model, n = MeshNet(26), 96
model.checkpointing = sys.argv[1] == "least"
model.memory_budget = None if sys.argv[1] in ("least", "plain") else int(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
start = status("VmRSS")
step(model, n)
print(status("VmHWM") - start, memory.estimate_training_memory(model, 1, (n, n, n)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system's peak is read from /proc")
def test_memory_as_the_system_sees_it(root):
    def measure(mode: str) -> tuple[int, int]:
        command = [sys.executable, "-c", MEASURE, mode]
        out = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
        return tuple(map(int, out.stdout.split()))

    plain, least, budget = measure("plain"), measure("least"), measure("800000000")
    assert least[0] < 0.55 * plain[0]
    assert budget[0] < 800_000_000
    for used, estimated in (plain, least, budget):
        assert abs(estimated / used - 1) < 0.15

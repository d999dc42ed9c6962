"""A training step as it runs on GPUs gives what PyTorch's modules give, computed here on a CPU by stand-ins."""

import copy
import itertools

import pytest
import torch
from cuda_on_cpu import steps_of_a_gpu
from torch.nn import functional

from meshnet.kernels import calls
from meshnet.networks import gpu_memory, memory, norms
from meshnet.networks.gpu_tuning import Tuning
from meshnet.networks.meshnet import MeshNet

DILATIONS = (1, 2, 1, 1)
VARIANTS = [
    {}, {"activation": "gelu"}, {"norm": "instance", "activation": "elu"}, {"norm": "group", "norm_groups": 2},
    {"norm": "group", "norm_groups": 3, "norm_affine": False, "activation": "gelu", "classes": 3, "in_channels": 2},
    {"norm": "none", "activation": "elu", "dropout": 0.3}, {"dropout": 0.3, "bias": False, "final_bias": False},
    {"norm": "group", "activation": "elu", "dropout": 0.3},
]
PLANS = [gpu_memory.everything(4), gpu_memory.Plan((0, 1, 2, 3), (0, 1)), gpu_memory.Plan((0, 1, 2, 3)),
         gpu_memory.Plan((1, 3)), gpu_memory.Plan((0,), (), False), gpu_memory.Plan((), (), False)]


def step(model, x, target):
    model = copy.deepcopy(model)
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    loss = functional.cross_entropy(model(x).float(), target)
    loss.backward()
    return loss.item(), {"x": x.grad, **{n: p.grad for n, p in model.named_parameters()}}, dict(model.named_buffers())


def differ(ours, theirs):
    floor = 1e-2 * max(g.norm() for g in theirs.values())
    return max(((ours[n] - g).norm() / g.norm().clamp(min=floor)).item() for n, g in theirs.items())


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # a volume this small is not worth more
    yield
    torch.set_num_threads(before)


def with_plan(monkeypatch, plan):
    monkeypatch.setattr(memory, "plan_on_gpu", lambda *a: plan)


def compare(arguments, training, plans, tunings, monkeypatch):
    """Loss, gradients and running statistics of the modules, and of every plan and tuning."""
    torch.manual_seed(0)
    model = MeshNet(6, dilations=DILATIONS, **arguments).train(training)
    for name, parameter in model.named_parameters():
        if ".norm." in name or name.endswith("conv.bias"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    x = torch.rand(2, arguments.get("in_channels", 1), 7, 6, 5)
    target = (x[:, 0] > 0.8).long()
    with calls.switched_off():
        loss, gradients, buffers = step(model, x, target)
    with steps_of_a_gpu():
        for plan, tuning in itertools.product(plans, tunings):
            with_plan(monkeypatch, plan)
            model.tuning = tuning
            found, ours, others = step(model, x, target)
            assert abs(found - loss) < 1e-5
            assert differ(ours, gradients) < 1e-4, (plan, tuning)
            for name, buffer in buffers.items():
                assert torch.allclose(others[name].float(), buffer.float(), rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("arguments", VARIANTS[:3] + VARIANTS[4:5])
def test_a_step_is_that_of_the_modules(arguments, monkeypatch):
    compare(arguments, True, PLANS[::3], [Tuning(), Tuning(pad_channels=True)], monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", VARIANTS)
def test_every_step_is_that_of_the_modules(arguments, training, monkeypatch):
    compare(arguments, training, PLANS, [Tuning(), Tuning(fold_bias=False), Tuning(pad_channels=True)], monkeypatch)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_half_precision_is_near_single(norm):
    torch.manual_seed(0)
    model = MeshNet(6, dilations=DILATIONS, norm=norm)
    x = torch.rand(1, 1, 9, 8, 7)
    target = (x[:, 0] > 0.8).long()
    with steps_of_a_gpu():
        _, single, _ = step(model, x, target)
        # torch.autocast itself refuses without a GPU.
        before = torch.get_autocast_dtype("cuda")
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)
        try:
            _, half, _ = step(model, x, target)
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", before)
    assert all(half[name].dtype == torch.float32 for name in half)
    for name in ("blocks.0.conv.weight", "blocks.3.conv.weight", "head.weight"):
        assert functional.cosine_similarity(half[name].flatten(), single[name].flatten(), 0) > 0.97


def test_two_processes_are_one_with_both_batches(monkeypatch):
    """The other process is made up: it holds the same case, so that the sums are twice as large."""
    torch.manual_seed(0)
    model = MeshNet(6, dilations=DILATIONS)
    x = torch.rand(1, 1, 7, 6, 5)
    target = (x[:, 0] > 0.8).long()
    with calls.switched_off():
        loss, expected, buffers = step(model, torch.cat([x, x]), torch.cat([target, target]))
    model = norms.synchronise(model, torch.device("cpu"))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", lambda out, mine: [one.copy_(mine) for one in out])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: sums.mul_(2))
    with steps_of_a_gpu():
        found, gradients, others = step(model, x, target)
    assert abs(found - loss) < 1e-5
    # Each process has the gradient of its own mean, and both are the same here.
    del gradients["x"], expected["x"]
    assert differ(gradients, expected) < 1e-4
    assert all(torch.allclose(others[name], buffer, rtol=1e-5, atol=1e-6) for name, buffer in buffers.items())


def test_a_second_backward_pass_says_why_it_cannot():
    with steps_of_a_gpu():
        logits = MeshNet(3, dilations=(1,))(torch.rand(1, 1, 4, 4, 4))
        logits.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="second time"):
            logits.sum().backward()


def test_more_room_means_less_work():
    sizes = gpu_memory.sizes_of(MeshNet(26), (1, 1, 256, 256, 256), 2, Tuning())
    work = []
    for budget in range(5_200, 19_000, 400):
        plan = gpu_memory.choose(sizes, budget * 10**6)
        assert gpu_memory.peak(sizes, plan) + gpu_memory.RESERVE <= budget * 10**6
        work.append(gpu_memory.work(sizes, plan))
    assert work == sorted(work, reverse=True) and work[-1] == 0
    assert gpu_memory.choose(sizes, 18_000 * 10**6) == gpu_memory.everything(9)
    least = gpu_memory.choose(sizes, None)
    assert gpu_memory.choose(sizes, 1) == least and not least.reuse


def test_channels_are_padded_to_what_tensor_cores_take():
    assert [Tuning(pad_channels=True).width(n) for n in (1, 5, 8, 16, 26)] == [8, 8, 8, 16, 32]
    assert Tuning().width(26) == 26

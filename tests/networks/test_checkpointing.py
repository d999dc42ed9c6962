"""A training step that recomputes gives what one that keeps everything gives."""

import contextlib
import copy

import pytest
import torch
from torch.nn import functional

from meshnet.kernels import calls
from meshnet.networks import memory
from meshnet.networks.meshnet import MeshNet

VARIANTS = [
    {"activation": "gelu"}, {"norm": "instance"}, {"activation": "elu", "norm": "none"},
    {"activation": "gelu", "norm": "group"},
    {"activation": "elu", "norm": "instance", "bias": False}, {"activation": "elu", "dropout": 0.2},
    {"activation": "gelu", "in_channels": 2, "classes": 3, "norm_affine": False, "final_bias": False},
]


def step(model: MeshNet, x: torch.Tensor, target: torch.Tensor):
    """Loss, gradients and buffers of one training step of a copy of ``model``."""
    model = copy.deepcopy(model)
    torch.manual_seed(3)
    loss = functional.cross_entropy(model(x).float(), target)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters()}, dict(model.named_buffers())


def batch(arguments: dict, shape=(9, 14, 11)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((2, arguments.get("in_channels", 1), *shape), generator=generator)
    return x, (x[:, 0] > 0.8).long()


def differ(ours: dict, theirs: dict) -> float:
    """The largest relative difference of a parameter's gradient. Those of biases before a batch norm are zero but for
    rounding, so nothing counts below a hundredth of the largest gradient."""
    floor = 1e-2 * max(g.norm() for g in theirs.values())
    return max(((ours[n] - g).norm() / g.norm().clamp(min=floor)).item() for n, g in theirs.items())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("arguments", VARIANTS)
def test_recomputing_changes_no_gradient_and_no_statistic(way, arguments, training):
    torch.manual_seed(0)
    model = MeshNet(5, dilations=(1, 2, 3, 1), **arguments).train(training)
    for name, parameter in model.named_parameters():
        if ".norm." in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    x, target = batch(arguments)
    with calls.switched_off():
        loss, gradients, buffers = step(model, x, target)
    kept = copy.deepcopy(model)
    least = copy.deepcopy(model)
    least.checkpointing = True
    some = copy.deepcopy(model)
    some.memory_budget = memory.plan_peak(memory.map_sizes(model, x.shape, 4), (0, 1, 3), way == "compiled")
    for other in (kept, least, some):
        other_loss, other_gradients, other_buffers = step(other, x, target)
        assert abs(loss - other_loss) < 1e-6
        assert differ(other_gradients, gradients) < 1e-4
        for name, buffer in buffers.items():
            assert torch.allclose(other_buffers[name].float(), buffer.float(), atol=1e-6), name


def test_relu_without_kernels_is_the_same_to_the_last_digits():
    torch.manual_seed(0)
    model = MeshNet(6)
    x, target = batch({})
    with calls.switched_off():
        _, gradients, buffers = step(model, x, target)
        model.checkpointing = True
        _, other_gradients, other_buffers = step(model, x, target)
    assert differ(other_gradients, gradients) < 1e-4
    assert all(torch.equal(buffer, other_buffers[name]) for name, buffer in buffers.items())


@pytest.mark.parametrize("checkpointing", [True, False])
def test_twice_the_same_bits(checkpointing):
    model = MeshNet(6, checkpointing=checkpointing)
    x, target = batch({})
    (_, one, _), (_, two, _) = step(model, x, target), step(model, x, target)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_gradient_of_the_input():
    torch.manual_seed(0)
    model = MeshNet(4, dilations=(1, 2), activation="gelu")
    x = batch({})[0].requires_grad_()
    expected, = torch.autograd.grad(model(x).square().sum(), x)
    model.checkpointing = True
    found, = torch.autograd.grad(model(x).square().sum(), x)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_bfloat16():
    model = MeshNet(6, dilations=(1, 2, 1), activation="gelu", bias=False)
    x, target = batch({})
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients, _ = step(model, x, target)
        model.checkpointing = True
        other_loss, other, _ = step(model, x, target)
    assert abs(loss - other_loss) < 1e-2
    assert all(g.dtype == torch.float32 for g in other.values())
    assert differ(other, gradients) < 0.1  # eight bits


def test_a_second_backward_pass_says_why_it_cannot():
    logits = MeshNet(3, dilations=(1,), checkpointing=True)(torch.rand(1, 1, 4, 4, 4))
    logits.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        logits.sum().backward()


@pytest.mark.parametrize("cases", [1, 2])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_a_statistic_of_one_value_is_refused_where_pytorch_refuses_it(way, norm, cases):
    model, x = MeshNet(3, dilations=(1,), norm=norm), torch.rand(cases, 1, 1, 1, 1)
    refused = norm == "instance" or cases == 1
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        with pytest.raises(ValueError, match="Expected more than 1") if refused else contextlib.nullcontext():
            model(x)


def test_dropout_is_recomputed_block_by_block():
    model, shape = MeshNet(6, dilations=(1, 2, 4), dropout=0.1, checkpointing=True), (1, 1, 24, 24, 24)
    beside = memory.working_bytes(model, shape[2:]) if calls.available() else 0
    found = memory.estimate_training_memory(model, 1, shape[2:]) - beside
    sizes = memory.map_sizes(model, shape, 4)
    assert found == memory.blocks_peak(sizes, calls.available())
    model.checkpointing = False
    for device, kept in ((torch.device("cuda"), 3), (None, 2 if calls.available() else 3)):  # a third in PyTorch
        enough = memory.plain_peak(sizes, kept) + (beside if device is None else 0)
        for budget, expected in ((enough / 0.95 + 1, None), (enough / 0.95 - 10, ())):
            model.memory_budget = int(budget)
            assert model.checkpoint_plan(shape, 4, device) == expected
    assert not model.recomputes_exactly and MeshNet(6).recomputes_exactly

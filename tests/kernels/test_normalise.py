"""Norm and activation in one pass are those of PyTorch, and a NaN stays one."""

import pytest
import torch
from small import draw, needs_kernels
from torch import nn
from torch.nn import functional

from meshnet.kernels import convolution, normalise
from meshnet.networks.meshnet import Block


@needs_kernels
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("norm", "affine"), [("batch", True), ("batch", False), ("none", False), ("instance", True),
                                              ("instance", False), ("group", True)])
@pytest.mark.parametrize("activation", ["relu", "elu", "gelu"])
def test_norm_and_activation_are_those_of_pytorch(activation, norm, affine, training):
    block = Block(3, 3, 1, norm, affine, 0, activation, True, 0.0).train(training).double()
    y, gradient = draw((2, 3, 5, 41, 90), (2, 3, 5, 41, 90))
    y = y * 0.3 + torch.tensor([5.0, -1.0, 0.2])[:, None, None, None]  # a mean far from zero loses no digits
    if affine:
        nn.init.uniform_(block.norm.weight, 0.5, 1.5)
        nn.init.uniform_(block.norm.bias)
    leaf = y.double().requires_grad_()
    before = leaf if norm == "none" else block.norm(leaf)
    if activation == "relu":
        gradient *= before.abs() > 1e-4  # at its kink rounding decides
    expected = functional.relu(before) if activation == "relu" else block.act(before)
    expected.backward(gradient.double())
    expected_buffers = {name: buffer.clone() for name, buffer in block.named_buffers()}
    expected_parameters = {} if norm == "none" else {n: p.grad for n, p in block.norm.named_parameters()}

    block = block.float()
    if norm == "batch":
        block.norm.reset_running_stats()
    z, statistics = normalise.normalise(block, y, None)
    of_y, found = normalise.normalise_backward(block, y, statistics, gradient)
    assert (z - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (of_y - leaf.grad).abs().max() < 2e-5 * leaf.grad.abs().max()
    for name, value in expected_parameters.items():
        assert (found[dict(block.norm.named_parameters())[name]] - value).norm() < 1e-5 * value.norm()
    for name, buffer in block.named_buffers():
        assert torch.allclose(buffer.double(), expected_buffers[name].double(), rtol=1e-5, atol=1e-6)


@needs_kernels
def test_a_nan_stays_a_nan():
    """A ReLU that turned it into 0 would let training go on with weights that are no numbers."""
    x = torch.full((1, 1, 6, 6, 20), float("nan"))
    out = convolution.convolve(x, torch.ones(2, 1, 3, 3, 3), None, 1)
    block = Block(1, 2, 1, "none", True, 0, "relu", True, 0.0)
    assert torch.isnan(out).all() and torch.isnan(normalise.normalise(block, out, None)[0]).all()


@needs_kernels
@pytest.mark.parametrize("momentum", [None, 0.3])
def test_running_statistics_move_as_those_of_pytorch(momentum):
    """Without a momentum they are the mean of all batches so far."""
    block, theirs = Block(3, 3, 1, "batch", True, 0, "relu", True, 0.0), nn.BatchNorm3d(3, momentum=momentum)
    block.norm.momentum = momentum
    for y in draw(*[(2, 3, 4, 5, 6)] * 3):
        normalise.normalise(block, y, None)
        theirs(y)
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(getattr(block.norm, name), buffer, rtol=1e-5, atol=1e-6)

"""The convolution that training uses: its gradients are those of PyTorch."""

import pytest
from small import CONVOLUTIONS, draw, needs_kernels

from meshnet.kernels import convolution


@needs_kernels
@pytest.mark.parametrize(("inputs", "outputs", "dilation", "shape"), CONVOLUTIONS)
def test_gradients_are_those_of_pytorch(inputs, outputs, dilation, shape):
    x, weight, gradient = draw((2, inputs, *shape), (outputs, inputs, 3, 3, 3), (2, outputs, *shape))
    ours = convolution.gradients(x, weight, dilation, gradient, (True, True, True))
    theirs = convolution.torch_gradients(x.double(), weight.double(), dilation, gradient.double(), (True, True, True))
    for one, other in zip(ours, theirs):
        assert (one - other).abs().max() < 2e-5 * other.abs().max()

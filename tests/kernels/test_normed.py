"""Group and instance norm by the kernels, against PyTorch and by hand."""

import numpy as np
import pytest
import torch
from small import network

from meshnet.errors import UserError
from meshnet.inference.predict import predict_logits
from meshnet.kernels import calls, normed

pytestmark = pytest.mark.skipif(not calls.available(), reason="no C++ compiler here")


@pytest.mark.parametrize("arguments", [
    dict(norm="instance"), dict(norm="instance", norm_affine=False, dilations=(3,)),
    dict(norm="group", norm_groups=2, activation="gelu"), dict(norm="group", dilations=(1, 2))])
def test_logits_are_those_of_pytorch(arguments):
    model = network(**{"channels": 6, "in_channels": 2, "classes": 3, "dilations": (1, 2, 5, 1), **arguments})
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    volume = np.random.default_rng(0).normal(3, 1, (2, 11, 19, 17)).astype(np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(volume)[None])[0].numpy()
    found = predict_logits(model, volume)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    with pytest.raises(UserError, match="whole maps"):
        predict_logits(model, volume, max_memory=1000)


def test_scale_and_shift_of_two_groups_by_hand():
    norm = calls.MapNorm(np.array([1, 2, 1, 1], np.float32), np.array([0, 0, 0, 5], np.float32), groups=2, eps=0.0)
    # First group: means 0 and 2, variances 3 and 3, so mean 1 and variance 4. Second: 3 and 3, variances 1 and 1.
    scale, shift = normed.scale_and_shift(norm, np.array([0.0, 2, 3, 3]), np.array([3.0, 3, 1, 1]))
    np.testing.assert_allclose(scale, [0.5, 1, 1, 1])
    np.testing.assert_allclose(shift, [-0.5, -1, -3, 2])

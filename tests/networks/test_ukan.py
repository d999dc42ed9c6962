"""KAN's splines and its layers under checkpointing."""

import numpy as np
import torch

from meshnet.networks import baselines, ukan


def test_checkpointing_moves_running_statistics_once():
    x = torch.randn(1, 2, 6, 5, 4)
    results = []
    for stages in ((), ("DoubleConv", "KANBlock")):
        torch.manual_seed(0)
        network = torch.nn.Sequential(ukan.DoubleConv(2, 4, 4), ukan.KANBlock(4), torch.nn.BatchNorm3d(4))
        baselines.add_checkpointing(network, stages)
        network(x).square().mean().backward()
        results.append(network)
    for (key, a), b in zip(results[0].named_buffers(), results[1].buffers()):
        assert torch.equal(a, b), key
    assert int(results[1].state_dict()["0.1.num_batches_tracked"]) == 1


def test_splines_are_scipys():
    from scipy.interpolate import BSpline

    layer = ukan.KANLinear(2, 3)
    knots = layer.knots.double()
    x = torch.linspace(-0.999, 0.999, 101, dtype=torch.float64)
    basis = ukan.spline_basis(x, knots)
    for i in range(basis.shape[-1]):
        expected = BSpline.basis_element(knots[i : i + 5].numpy(), extrapolate=False)(x.numpy())
        assert np.allclose(basis[:, i].numpy(), np.nan_to_num(expected), atol=1e-9)
    assert torch.allclose(basis.sum(-1), torch.ones_like(x))

"""Norms: which there are, and batch norm over processes."""

import pytest
import torch

from meshnet.networks import norms
from meshnet.networks.norms import SyncedBatchNorm3d, make_norm, synchronise


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_over_two_processes_is_that_of_both_batches(monkeypatch, affine):
    """The other process is made up: it holds the same batch, so sums are twice as large."""
    from torch.distributed.nn import functional

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(functional, "all_reduce", lambda tensor: 2 * tensor)
    torch.manual_seed(0)
    one, both = SyncedBatchNorm3d(3, affine=affine), torch.nn.BatchNorm3d(3, affine=affine)
    x = torch.randn(1, 3, 2, 2, 2) * 3 + 100
    for _ in range(3):
        torch.testing.assert_close(one(x), both(torch.cat([x, x]))[:1], rtol=1e-4, atol=1e-4)
    for name, expected in both.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], expected, rtol=1e-5, atol=1e-5, msg=name)
    torch.testing.assert_close(one.eval()(x), both.eval()(x), rtol=1e-4, atol=1e-4)


def test_synchronised_norms_keep_what_they_had():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.Sequential(
        torch.nn.BatchNorm3d(2, eps=0.1, momentum=0.3), torch.nn.BatchNorm3d(2, affine=False).eval()))
    model[1][0].running_mean.fill_(3)
    before, weight = model.state_dict(), model[1][0].weight
    norms.synchronise(model, torch.device("cpu"))
    first, second = model[1]
    assert isinstance(first, SyncedBatchNorm3d) and isinstance(second, SyncedBatchNorm3d)
    assert first.weight is weight and (first.eps, first.momentum) == (0.1, 0.3)
    assert first.training and not second.training and second.weight is None
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert synchronise(torch.nn.ReLU(), torch.device("cpu")) is not None


def test_norms_by_name():
    kinds = {"batch": torch.nn.BatchNorm3d, "instance": torch.nn.InstanceNorm3d, "group": torch.nn.GroupNorm}
    for name, kind in kinds.items():
        assert all(isinstance(make_norm(name, 4, affine, 0), kind) for affine in (True, False))
        assert make_norm(name, 4, False, 0).weight is None and make_norm(name, 4, True, 0).weight.numel() == 4
    assert make_norm("group", 4, True, 0).num_groups == 4 and make_norm("group", 4, True, 2).num_groups == 2
    assert make_norm("none", 4, True, 0) is None
    with pytest.raises(ValueError, match="norm 'layer' is not one of"):
        make_norm("layer", 4, True, 0)

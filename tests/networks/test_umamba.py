"""The selective scan and Mamba's layer, against the recurrence as the paper writes it."""

import sys
import types

import pytest
import torch

from meshnet.networks import umamba
from meshnet.networks.memory import count_parameters


def naive_scan(u, step, decay_rates, into, out):
    """The recurrence as the paper writes it, one token after the other, in float64."""
    u, step, decay_rates, into, out = (x.double() for x in (u, step, decay_rates, into, out))
    state, outputs = torch.zeros(u.shape[0], u.shape[2], decay_rates.shape[1], dtype=torch.float64), []
    for t in range(u.shape[1]):
        decay = torch.exp(step[:, t, :, None] * decay_rates)
        state = decay * state + (step[:, t] * u[:, t])[..., None] * into[:, t, None]
        outputs.append((state * out[:, t, None]).sum(-1))
    return torch.stack(outputs, 1)


def scan_inputs(length):
    generator = torch.Generator().manual_seed(length)
    u, raw = (torch.randn(2, length, 3, generator=generator) for _ in range(2))
    into, out = (torch.randn(2, length, 4, generator=generator) for _ in range(2))
    decay_rates = -torch.rand(3, 4, generator=generator) * 8
    return [x.requires_grad_() for x in (u, torch.nn.functional.softplus(raw).detach(), decay_rates, into, out)]


@pytest.mark.parametrize("length", [1, 2, 3, 50, 131])
def test_the_scan_is_the_sequential_one(length, monkeypatch):
    monkeypatch.setattr(umamba, "SCAN_BLOCK", 37)  # so that states pass from block to block
    ours, reference = scan_inputs(length), scan_inputs(length)
    y, expected = umamba.selective_scan(*ours), naive_scan(*reference)
    assert torch.allclose(y.double(), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(umamba.selective_scan(*ours), y)
    weights = torch.randn_like(y)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()
    for a, b in zip(ours, reference):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5)


def test_the_scan_stays_finite_where_decays_vanish():
    u, step, decay_rates, into, out = scan_inputs(300)
    y = umamba.selective_scan(u, step * 0 + 50.0, decay_rates, into, out)
    expected = naive_scan(u, step * 0 + 50.0, decay_rates, into, out)
    assert torch.allclose(y.double(), expected, rtol=1e-5, atol=1e-3) and torch.isfinite(y).all()


def test_the_kernel_is_called_in_its_own_layout(monkeypatch):
    """``mamba_ssm`` wants (B, D, L) and (B, N, L); a stand-in with that interface must give the same numbers."""
    def selective_scan_fn(u, delta, A, B, C):
        assert u.is_contiguous() and u.shape[1] == A.shape[0]
        return naive_scan(*(x.transpose(1, 2) for x in (u, delta)), A, B.transpose(1, 2), C.transpose(1, 2)).mT

    names = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[names[-1]].selective_scan_fn = selective_scan_fn
    inputs = scan_inputs(20)
    assert torch.allclose(umamba.kernel_scan(*inputs).float(), umamba.selective_scan(*inputs), atol=1e-5)


def test_a_mamba_layer_sees_only_the_past():
    torch.manual_seed(0)
    layer = umamba.Mamba(8)
    tokens = torch.randn(1, 40, 8)
    changed = tokens.clone()
    changed[:, 25:] += 1
    with torch.no_grad():
        before, after = layer(tokens), layer(changed)
    assert torch.allclose(before[:, :25], after[:, :25], atol=1e-6)
    assert not torch.allclose(before[:, 25:], after[:, 25:], atol=1e-3)
    assert count_parameters(layer) == 6 * 8**2 + 110 * 8 + 4 * 8  # arXiv 2312.00752, d_state 16, d_conv 4, rank 1


def test_step_sizes_begin_between_a_thousandth_and_a_tenth_on_a_logarithmic_scale():
    torch.manual_seed(0)
    steps = torch.nn.functional.softplus(umamba.Mamba(2000).dt_proj.bias.detach())
    assert 0.001 <= steps.min() < 0.00102 and 0.098 < steps.max() <= 0.1001
    assert steps.log().mean().exp().item() == pytest.approx(0.01, rel=0.1)

"""Every network: the paper's count, any size, checkpointing without a difference; scans and splines by reference."""

import json
import re
import sys
import types

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import run_script_file
from safetensors.torch import load_file

from meshnet.config import OptimizerConfig
from meshnet.errors import UserError
from meshnet.networks import __main__, baselines, build, ukan, umamba
from meshnet.networks.folder import save_model
from meshnet.networks.memory import count_parameters
from meshnet.training.optim import group_parameters

HEADS_OF_DEEP_SUPERVISION = sum(2 * c + 2 for c in (32, 64, 128))  # unused 1x1x1 layers to 2 classes
SMALL = {"segresnet": {}, "unet": {}, "umamba_bot": {"features": (4, 4, 8, 8, 8)},
         "umamba_enc": {"features": (4, 4, 8, 8, 8)},
         "unetr": {"image_size": [32, 32, 32], "feature_size": 4, "hidden_size": 24, "mlp_dim": 8}}


def test_counts_are_the_papers():
    rows = __main__.table()
    found = {row["name"]: row["parameters"] for row in rows}
    assert found == {
        "meshnet (channels 5)": 5_682, "meshnet (channels 16)": 56_194, "meshnet (channels 26)": 147_474,
        "umamba_bot": 7_351_400 - HEADS_OF_DEEP_SUPERVISION, "umamba_enc": 7_514_280 - HEADS_OF_DEEP_SUPERVISION,
        "mednext_s": 5_201_315 - 1, "mednext_b": 10_526_307 - 1, "mednext_m": 17_548_963 - 1,
        "segresnet": 1_176_186, "swin_unetr": 18_346_844, "unetr": 95_763_682, "unet": 1_979_610, "vnet": 45_597_898,
        "ukan": 44_070_082, "residual_unet": 4_806_481}
    for row in rows:
        assert (row["parameters"] == row["paper"]) == (row["why"] == ""), row


def test_the_command_prints_every_network(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["baselines"])
    monkeypatch.setattr(__main__, "table", lambda: [
        {"name": name, "parameters": 6, "paper": 460, "why": row.why} for name, row in baselines.NETWORKS.items()])
    __main__.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in baselines.NETWORKS) and "-454  the authors' code" in printed


@pytest.mark.parametrize("name", ["segresnet", "unet", "unetr", pytest.param("umamba_enc", marks=pytest.mark.slow)])
def test_any_size_and_padding_changes_nothing_where_none_is_needed(name):
    torch.manual_seed(0)
    model = baselines.build(name, in_channels=2, classes=3, **SMALL[name]).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 2, 17, 9, 32)).shape == (1, 3, 17, 9, 32)
        x = torch.randn(1, 2, *[2 * model.multiple if name != "unetr" else 32] * 3)
        assert torch.equal(model(x), model.network(x))


def test_the_pad_is_zeros_at_the_far_end():
    torch.manual_seed(0)
    model = baselines.build("segresnet", init_filters=8).eval()
    x = torch.randn(1, 1, 16, 16, 24)
    x[:, :, :, 13:] = 0
    with torch.no_grad():
        assert torch.equal(model(x[:, :, :, :13]), model.network(x)[:, :, :, :13])


@pytest.mark.parametrize("name", ["segresnet", "unet", pytest.param("umamba_bot", marks=pytest.mark.slow)])
def test_checkpointing_changes_no_number(name):
    check_checkpointing(name, SMALL[name], (1, 1, 12, 20, 16))


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


def check_checkpointing(name, options, shape):
    x = torch.randn(shape)
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = baselines.build(name, checkpointing=checkpointing, **options)
        torch.manual_seed(0)
        loss = model(x).square().mean()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters()), "a weight that nothing uses"
        results.append((model, loss))
    (plain, loss), (lean, same) = results
    assert list(plain.state_dict()) == list(lean.state_dict()) and torch.allclose(loss, same, rtol=1e-6)
    for (key, p), q in zip(plain.named_parameters(), lean.parameters()):
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-7), key
    for (key, p), q in zip(plain.named_buffers(), lean.buffers()):
        assert torch.allclose(p.float(), q.float()), key


def test_checkpointing_keeps_less():
    """Bytes saved for the backward pass, counted as torch saves them."""
    def saved(checkpointing):
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        model = baselines.build("segresnet", checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.zeros(1, 1, 16, 16, 16))
        return total

    assert saved(True) < 0.5 * saved(False)


def test_what_cannot_be_is_one_line():
    model = baselines.build("unetr", **SMALL["unetr"])
    with pytest.raises(ValueError, match=r"at most \(32, 32, 32\)"):
        model(torch.zeros(1, 1, 48, 16, 16))
    with pytest.raises(UserError, match="model vnet: found 3 input channels, expected 1, 2, 4, 8 or 16"):
        build.build("vnet", {"in_channels": 3})
    with pytest.raises(UserError, match=r"model segresnet: .*colour"):
        build.build("segresnet", {"colour": 3})


def test_learning_rates_by_name_in_any_network():
    for name, pattern in (("segresnet", r"network\.convInit"), ("unetr", r"network\.vit\."), ("ukan", r"\.kan_up\.")):
        with torch.device("meta"):
            model = baselines.build(name, **SMALL.get(name, {}))
        config = OptimizerConfig(lr=1e-3, param_groups=[{"match": pattern, "lr": 1e-5}])
        slow = sum(p.numel() for group in group_parameters(model, config) if group["lr"] == 1e-5
                   for p in group["params"])
        assert slow == sum(p.numel() for key, p in model.named_parameters() if re.search(pattern, key)) > 0
        config.param_groups[0]["match"] = "encoder99"
        with pytest.raises(UserError, match=r"matches no parameter; names begin with network\.\w+, network\.\w+"):
            group_parameters(model, config)


def test_a_baseline_comes_back_from_its_folder(tmp_path):
    model = build.build("unet", {"in_channels": 1, "classes": 2, "checkpointing": True, "act": "relu"})
    save_model(tmp_path, model, {"channels": ["T2w"], "classes": ["background", "lesion"]})
    loaded, card = build.load_model(tmp_path)
    x = torch.randn(1, 1, 20, 20, 20)
    assert torch.equal(loaded(x), model.eval()(x)) and card["name"] == "unet" and card["arguments"]["act"] == "relu"


@pytest.mark.slow
def test_larger_volumes_go_through_windows(tmp_path):
    from monai.inferers import sliding_window_inference

    from meshnet.inference import predict

    card = {"channels": ["T2w"], "classes": ["background", "lesion"]}
    volume = np.random.default_rng(0).random((1, 40, 33, 20)).astype(np.float32)
    for name, options, patch in (("unetr", SMALL["unetr"], None), ("segresnet", {"init_filters": 8}, [16, 24, 16])):
        model = build.build(name, {"in_channels": 1, "classes": 2, **options})
        save_model(tmp_path / name, model, {**card, "patch": patch})
        model, _ = build.load_model(tmp_path / name)
        with torch.inference_mode():
            expected = sliding_window_inference(torch.from_numpy(volume)[None], patch or [32, 32, 32], 1, model.network,
                                                overlap=0.5, mode="gaussian")[0].softmax(0)
        assert np.allclose(predict.predict(model, volume, crop="none"), expected.numpy(), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- Mamba

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


# ---------------------------------------------------------------------------------------------------------- KAN

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


# ---------------------------------------------------------------------------------------------------------- slow

@pytest.mark.slow
@pytest.mark.parametrize("name", baselines.NETWORKS)
def test_every_network_in_full_size(name):
    options = {"image_size": [32, 32, 32]} if name == "unetr" else {}
    check_checkpointing(name, options, (1, 1, 20, 32, 18))


@pytest.mark.slow
@pytest.mark.parametrize("name", baselines.NETWORKS)
def test_every_network_trains_resumes_and_segments(name, tiny_data, tmp_path, root):
    recipe = root / "recipes" / f"{name}.yaml"
    common = ("--recipe", recipe, "--data", tiny_data, "--data.workers", 0, "--training.max_epochs", 2)
    halves, whole = tmp_path / "halves", tmp_path / "whole"
    run_script_file("train.py", *common, "--run_dir", halves, "--stop_epoch", 1)
    run_script_file("train.py", *common, "--run_dir", halves)
    rows = [json.loads(line) for line in (halves / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and rows[0]["step"] >= 2
    if name in ("segresnet", "umamba_bot", "ukan"):
        run_script_file("train.py", *common, "--run_dir", whole)
        one, two = (load_file(folder / "last.safetensors") for folder in (halves, whole))
        assert all(torch.equal(one[key], two[key]) for key in one), "resumed, it is another network"
    scan = tmp_path / "scan.nii.gz"
    values = np.random.default_rng(0).random((24, 26, 22)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([8.0, 8.0, 8.0, 1.0])), scan)
    run_script_file("infer.py", scan, "-o", tmp_path / "mask.nii.gz", "--model", halves, "--no-picture")
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == values.shape and mask.get_data_dtype() == np.uint8

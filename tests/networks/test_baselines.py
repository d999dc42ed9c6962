"""Networks of other authors: any size, checkpointing without a difference, and their folders."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import run_script_file
from safetensors.torch import load_file

from meshnet.config import OptimizerConfig
from meshnet.errors import UserError
from meshnet.networks import baselines, build
from meshnet.networks.card import Card
from meshnet.networks.folder import save_model
from meshnet.training.optim import group_parameters

SMALL = {"segresnet": {}, "unet": {}, "umamba_bot": {"features": (4, 4, 8, 8, 8)},
         "umamba_enc": {"features": (4, 4, 8, 8, 8)},
         "unetr": {"image_size": [32, 32, 32], "feature_size": 4, "hidden_size": 24, "mlp_dim": 8}}


@pytest.mark.parametrize("name", ["segresnet", "unet", "unetr", pytest.param("umamba_enc", marks=pytest.mark.slow)])
def test_any_size_and_padding_changes_nothing_where_none_is_needed(name):
    torch.manual_seed(0)
    model = baselines.build_baseline(name, in_channels=2, classes=3, **SMALL[name]).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 2, 17, 9, 32)).shape == (1, 3, 17, 9, 32)
        x = torch.randn(1, 2, *[2 * model.multiple if name != "unetr" else 32] * 3)
        assert torch.equal(model(x), model.network(x))


def test_the_pad_is_zeros_at_the_far_end():
    torch.manual_seed(0)
    model = baselines.build_baseline("segresnet", init_filters=8).eval()
    x = torch.randn(1, 1, 16, 16, 24)
    x[:, :, :, 13:] = 0
    with torch.no_grad():
        assert torch.equal(model(x[:, :, :, :13]), model.network(x)[:, :, :, :13])


@pytest.mark.parametrize("name", ["segresnet", "unet", pytest.param("umamba_bot", marks=pytest.mark.slow)])
def test_checkpointing_changes_no_number(name):
    check_checkpointing(name, SMALL[name], (1, 1, 12, 20, 16))


def check_checkpointing(name, options, shape):
    x = torch.randn(shape)
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = baselines.build_baseline(name, checkpointing=checkpointing, **options)
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

        model = baselines.build_baseline("segresnet", checkpointing=checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.zeros(1, 1, 16, 16, 16))
        return total

    assert saved(True) < 0.5 * saved(False)


def test_what_cannot_be_is_one_line():
    model = baselines.build_baseline("unetr", **SMALL["unetr"])
    with pytest.raises(ValueError, match=r"at most \(32, 32, 32\)"):
        model(torch.zeros(1, 1, 48, 16, 16))
    with pytest.raises(UserError, match="model vnet: found 3 input channels, expected 1, 2, 4, 8 or 16"):
        build.build("vnet", {"in_channels": 3})
    with pytest.raises(UserError, match=r"model segresnet: .*colour"):
        build.build("segresnet", {"colour": 3})


def test_learning_rates_by_name_in_any_network():
    for name, pattern in (("segresnet", r"network\.convInit"), ("unetr", r"network\.vit\."), ("ukan", r"\.kan_up\.")):
        with torch.device("meta"):
            model = baselines.build_baseline(name, **SMALL.get(name, {}))
        config = OptimizerConfig(lr=1e-3, param_groups=[{"match": pattern, "lr": 1e-5}])
        slow = sum(p.numel() for group in group_parameters(model, config) if group["lr"] == 1e-5
                   for p in group["params"])
        assert slow == sum(p.numel() for key, p in model.named_parameters() if re.search(pattern, key)) > 0
        config.param_groups[0]["match"] = "encoder99"
        with pytest.raises(UserError, match=r"matches no parameter; names begin with network\.\w+, network\.\w+"):
            group_parameters(model, config)


def test_a_baseline_comes_back_from_its_folder(tmp_path):
    model = build.build("unet", {"in_channels": 1, "classes": 2, "checkpointing": True, "act": "relu"})
    save_model(tmp_path, model, Card(**{"channels": ["T2w"], "classes": ["background", "lesion"]}))
    loaded, card = build.load_model(tmp_path)
    x = torch.randn(1, 1, 20, 20, 20)
    assert torch.equal(loaded(x), model.eval()(x)) and card.name == "unet" and card.arguments["act"] == "relu"


@pytest.mark.slow
def test_larger_volumes_go_through_windows(tmp_path):
    from monai.inferers import sliding_window_inference

    from meshnet.inference import predict

    card = {"channels": ["T2w"], "classes": ["background", "lesion"]}
    volume = np.random.default_rng(0).random((1, 40, 33, 20)).astype(np.float32)
    for name, options, patch in (("unetr", SMALL["unetr"], None), ("segresnet", {"init_filters": 8}, [16, 24, 16])):
        model = build.build(name, {"in_channels": 1, "classes": 2, **options})
        save_model(tmp_path / name, model, Card(**{**card, "patch": patch}))
        model, _ = build.load_model(tmp_path / name)
        with torch.inference_mode():
            expected = sliding_window_inference(torch.from_numpy(volume)[None], patch or [32, 32, 32], 1, model.network,
                                                overlap=0.5, mode="gaussian")[0].softmax(0)
        assert np.allclose(predict.predict(model, volume, crop="none"), expected.numpy(), atol=1e-5)


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

""".pth files: plain tensors with a layout beside them or by flags, and no code."""

from pathlib import Path

import pytest
import torch
from as_published import DILATIONS, Published, made_up, run_command, save_published
from small import randomise
from torch import nn

from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks.folder import save_weights

PTH = {
    "batch norm": ((nn.ReLU, lambda: nn.BatchNorm3d(5)), {}, {"bnorm": True}),
    "folded": ((nn.ReLU,), {}, {"bnorm": False}),
    "folded, ELU": ((nn.ELU,), {}, {"bnorm": False, "elu": True}),
    "group norm without weights, GELU, no bias": (
        (nn.GELU, lambda: nn.GroupNorm(5, 5, affine=False)), {"bias": False, "final_bias": False},
        {"bnorm": True, "gelu": True}),
    "group norm with weights": ((nn.GELU, lambda: nn.GroupNorm(5, 5)), {"bias": False}, {"bnorm": True, "gelu": True}),
}


def test_a_pth_beside_its_tfjs_layers(tmp_path):
    """Some are published with the TensorFlow.js model.json beside them, which says dilations, activation and norm."""
    torch.manual_seed(0)
    made_up(tmp_path, activation="gelu", norm="by name", bias=False, affine=False)
    blocks = [nn.Sequential(nn.Conv3d(width, 6, 3, padding=d, dilation=d, bias=False), nn.GroupNorm(6, 6, affine=False),
                            nn.GELU()) for width, d in zip((1, 6, 6), DILATIONS)]
    reference = nn.Sequential(*blocks, nn.Conv3d(6, 2, 1))
    torch.save(reference.state_dict(), tmp_path / "model.pth")
    run_command("import", tmp_path / "model.pth", tmp_path / "m")
    x = torch.randn(1, 1, 9, 8, 7)
    assert torch.allclose(build.load_model(tmp_path / "m")[0](x), reference(x), atol=1e-5)


def test_a_layout_that_leaves_the_norm_open_is_asked_about(tmp_path):
    torch.manual_seed(0)
    reference = Published(nn.ELU).eval()  # batch norm folded in: biases, no weights of a norm
    path = save_published(tmp_path, reference, {"bnorm": True, "elu": True})
    with pytest.raises(UserError, match="--norm none if batch norm was fused"):
        run_command("import", path, tmp_path / "m")
    run_command("import", path, tmp_path / "m", "--norm", "none")
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(build.load_model(tmp_path / "m")[0](x), reference(x), atol=1e-6)
    with pytest.raises(UserError, match=r"is the architecture of a \.pth file"):
        run_command("import", tmp_path / "model.json", tmp_path / "n")


@pytest.mark.parametrize("what", PTH)
@pytest.mark.parametrize("file", ["plain", "nested", "safetensors"])
def test_pth_forms_compute_the_same(tmp_path, what, file):
    torch.manual_seed(0)
    parts, options, layout = PTH[what]
    reference = randomise(Published(*parts, **options))
    state = reference.state_dict()
    save_published(tmp_path, reference, layout)
    if file == "safetensors":  # as some are published, under the name .pth
        save_weights(tmp_path / "model.pth", state)
    elif file == "nested":
        torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pth")
    run_command("import", tmp_path / "model.pth", tmp_path / "m")
    network, card = build.load_model(tmp_path / "m")
    x = torch.randn(1, 1, 9, 8, 7)
    assert torch.allclose(network(x), reference(x), rtol=1e-4, atol=1e-5)
    assert network.arguments["norm"] == ("batch" if what == "batch norm" else "none" if "folded" in what else "group")
    assert card.scaling == "minmax" and card.orientation == "LIA"


def test_pth_by_flags(tmp_path):
    torch.manual_seed(0)
    reference = Published(nn.ELU).eval()
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"12 blocks of unknown dilation.*--dilations"):
        run_command("import", tmp_path / "w.pth", tmp_path / "m")
    with pytest.raises(UserError, match="found 12 blocks, expected 2"):
        run_command("import", tmp_path / "w.pth", tmp_path / "m", "--dilations", "1,2")
    dilations = ",".join(map(str, DILATIONS * 4))
    run_command("import", tmp_path / "w.pth", tmp_path / "m", "--dilations", dilations, "--activation", "elu")
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(build.load_model(tmp_path / "m")[0](x), reference(x), atol=1e-6)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("names", ["{kind}{i}", "blocks.{i}.{kind}"])
def test_layers_come_in_the_networks_order_whatever_their_names(tmp_path, kind, names):
    """``conv10`` after ``conv9``, and a norm called ``bn`` after its ``conv``; a safetensors file is sorted by name."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    if kind == "safetensors" and names.startswith("{"):
        pytest.skip("norms and convolutions apart from each other: nothing tells which belongs where")
    reference = randomise(Published(nn.ReLU, lambda: nn.BatchNorm3d(5))).eval()
    state = {}
    for key, tensor in reference.state_dict().items():
        _, i, *part, leaf = key.split(".")
        name = names.format(kind={"0": "conv", "1": "bn"}[part[0]], i=i) if part else "head"
        state[f"{name}.{leaf}"] = tensor
    path = tmp_path / "w.pth"
    torch.save(state, path) if kind == "pth" else save_file(state, path)
    dilations = ",".join(map(str, DILATIONS * 4))
    run_command("import", path, tmp_path / "m", "--dilations", dilations)
    x = torch.randn(1, 1, 8, 8, 8)
    assert torch.allclose(build.load_model(tmp_path / "m")[0](x), reference(x), rtol=1e-4, atol=1e-5)


def test_flags_go_before_the_file_beside_a_pth_and_the_rest_stays(tmp_path):
    torch.manual_seed(0)
    made_up(tmp_path, activation="gelu", norm="by name", bias=False, affine=False,
            _normalize={"type": "quantile", "min": 5, "max": 95})
    blocks = [nn.Sequential(nn.Conv3d(width, 6, 3, padding=d, dilation=d, bias=False), nn.GroupNorm(6, 6, affine=False),
                            nn.GELU()) for width, d in zip((1, 6, 6), (4, 2, 1))]
    reference = nn.Sequential(*blocks, nn.Conv3d(6, 2, 1))
    torch.save(reference.state_dict(), tmp_path / "model.pth")
    run_command("import", tmp_path / "model.pth", tmp_path / "m", "--dilations", "4,2,1")
    network, card = build.load_model(tmp_path / "m")
    x = torch.randn(1, 1, 9, 8, 7)
    assert torch.allclose(network(x), reference(x), atol=1e-5)
    assert card.scaling == "brainchop_quantile" and card.shape is None  # of 12 mm: no head


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="cannot be opened as plain weights"):
        run_command("import", tmp_path / "w.pth", tmp_path / "m", "--dilations", "1")
    assert not (tmp_path / "ran").exists()

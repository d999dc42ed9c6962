"""ONNX: parity with PyTorch of trained networks, at sizes that were not traced; needs requirements-export.txt."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cascades import head_file, write_cascade
from conftest import run_script_file
from small import CARD, randomise
from torch import nn
from torch.nn import functional

from meshnet import segment_scan
from meshnet.errors import UserError
from meshnet.inference.scan import conformed_scan
from meshnet.networks import build, folder
from meshnet.networks.card import Card, read_card
from meshnet.networks.meshnet import MeshNet
from meshnet.sharing import to_onnx


def train_a_little(model: nn.Module, size: int = 14, steps: int = 20) -> nn.Module:
    """Teach ``model`` to mark bright blobs, so that its statistics and its answers are a trained network's."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    for _ in range(steps):
        smooth = functional.avg_pool3d(torch.rand(1, 1, *[size] * 3), 5, 1, 2)
        x = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        loss = functional.cross_entropy(model(x), (x[:, 0] > 0.6).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("channels", [5, pytest.param(16, marks=pytest.mark.slow)])
def test_onnx_of_a_trained_meshnet(tmp_path, channels):
    from meshnet.sharing.to_onnx import compare, trial_volumes, write_onnx

    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    model = train_a_little(MeshNet(channels))
    folder.save_model(tmp_path / "m", model, Card(**CARD))
    model, card = build.load_model(tmp_path / "m")
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 1e-1)):
        write_onnx(model, card, tmp_path / "m.onnx", precision)
        parity = compare(model, tmp_path / "m.onnx", trial_volumes(1))
        assert parity["relative_difference"] <= tolerance and parity["dice"] >= 0.999, (precision, parity)
    card_inside = json.loads(read_metadata(tmp_path / "m.onnx")["meshnet"])
    assert card_inside["orientation"] == "LIA" and card_inside["precision"] == "fp16"


def read_metadata(path: Path) -> dict:
    import onnx

    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def test_the_card_inside_has_the_threshold_of_the_exported_weights(tmp_path):
    """Of averaged weights theirs, and none that belongs to another file of the folder."""
    from meshnet.sharing.to_onnx import write_onnx

    pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
    thresholds = {"model_ema.safetensors": 0.52, "last.safetensors": 0.7}
    card = Card(**{**CARD, "threshold": 0.3, "sure": 0.6, "thresholds": thresholds})
    folder.save_model(tmp_path / "m", MeshNet(3), card)
    shutil.copyfile(tmp_path / "m/model.safetensors", tmp_path / "m/model_ema.safetensors")
    for weights, threshold, sure in (("model.safetensors", 0.3, 0.6), ("model_ema.safetensors", 0.52, 0)):
        write_onnx(*build.load_model(tmp_path / "m" / weights), tmp_path / "m.onnx")
        inside = json.loads(read_metadata(tmp_path / "m.onnx")["meshnet"])
        assert (inside["threshold"], inside.get("sure", 0), inside.get("thresholds") or {}) == (threshold, sure, {})


def test_half_precision_rounds_each_weight_once(tmp_path):
    """Batch norm is fused before weights are halved: the file has fused weights, rounded, and biases as they are."""
    onnx = pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
    from onnx.numpy_helper import to_array

    from meshnet.networks.fuse import fuse
    from meshnet.sharing.to_onnx import write_onnx

    torch.manual_seed(0)
    model = randomise(MeshNet(4, dilations=(1, 2)))
    write_onnx(model, Card(**{"name": "meshnet", **CARD}), tmp_path / "m.onnx", "fp16")
    found = [to_array(tensor) for tensor in onnx.load(str(tmp_path / "m.onnx")).graph.initializer]
    for layer in fuse(model):
        assert any(np.array_equal(array, layer.weight.half().numpy()) for array in found)
        assert any(np.array_equal(array.ravel(), layer.bias.numpy()) for array in found)


def test_no_number_is_no_agreement(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    from meshnet.sharing.to_onnx import compare

    class Broken:
        def __init__(self, *_, **__):
            pass

        def run(self, _, given):
            return [np.full((1, 2, *given["volume"].shape[2:]), np.nan, np.float32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Broken)
    volumes = [np.zeros((1, 4, 4, 4), np.float32)]
    assert compare(MeshNet(4, dilations=(1,)).eval(), tmp_path, volumes)["relative_difference"] == float("inf")


def test_the_comparison_sees_a_difference(tmp_path):
    from meshnet.sharing.to_onnx import compare, trial_volumes, write_onnx

    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    model = train_a_little(MeshNet(4, dilations=(1, 2)))
    folder.save_model(tmp_path / "m", model, Card(**CARD))
    model, card = build.load_model(tmp_path / "m")
    write_onnx(model, card, tmp_path / "m.onnx")
    with torch.no_grad():
        model.head.bias[1] += 1
    parity = compare(model, tmp_path / "m.onnx", trial_volumes(1))
    assert parity["relative_difference"] > 1e-2 and parity["dice"] < 0.99


@pytest.mark.slow
def test_onnx_of_segresnet_at_open_sizes(tmp_path, monkeypatch):
    from meshnet.sharing import to_onnx

    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    torch.manual_seed(0)
    model = train_a_little(build.build("segresnet", {"in_channels": 1, "classes": 2}), size=16)
    card = Card(**CARD, name="segresnet")
    volumes = [volume[:, :27] for volume in to_onnx.trial_volumes(1)]  # 27 is padded to 32
    for precision, tolerance in (("fp16", 1e-1), ("fp32", 1e-4)):
        to_onnx.write_onnx(model, card, tmp_path / "s.onnx", precision)
        parity = to_onnx.compare(model, tmp_path / "s.onnx", volumes)
        assert parity["relative_difference"] <= tolerance and parity["dice"] >= 0.999, (precision, parity)
    assert json.loads(read_metadata(tmp_path / "s.onnx")["meshnet"])["size_multiple"] == 8
    with pytest.raises(UserError, match="expected meshnet or a convolutional baseline"):
        to_onnx.write_onnx(model, Card(**{"name": "ukan", **CARD}), tmp_path / "u.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime: not installed; pip install -r requirements-export\.txt"):
        to_onnx.compare(model, tmp_path / "s.onnx", volumes)


@pytest.mark.slow
def test_onnx_of_the_published_model_on_its_scan(published, shared_data, tmp_path):
    from meshnet.sharing.to_onnx import compare, write_onnx

    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    network, card = build.load_model(published)
    volume = conformed_scan([shared_data / "brainchop" / "t1_256.nii.gz"], card)
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 1e-1)):
        write_onnx(network, card, tmp_path / "p.onnx", precision)
        parity = compare(network, tmp_path / "p.onnx", [volume])
        assert parity["relative_difference"] <= tolerance and parity["dice"] >= 0.999, (precision, parity)


def test_only_a_batch_norm_is_folded():
    torch.manual_seed(0)
    for network in (MeshNet(4, dilations=(1, 2), norm="group").eval(), MeshNet(4, dilations=(1,), norm="none").eval(),
                    nn.Conv3d(1, 2, 1)):
        assert to_onnx.fused(network) is network
    network = randomise(MeshNet(4, dilations=(1, 2), bias=False, final_bias=False, dropout=0.5))
    plain, x = to_onnx.fused(network).eval(), torch.randn(1, 1, 7, 6, 5)
    assert not [m for m in plain.modules() if isinstance(m, nn.BatchNorm3d | nn.Dropout3d)]
    torch.testing.assert_close(plain(x), network(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_half_precision_is_that_of_the_weights_alone():
    torch.manual_seed(0)
    network, x = randomise(MeshNet(4, dilations=(1, 2))), torch.randn(1, 1, 7, 6, 5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    whole, half = (to_onnx.served(network, precision) for precision in ("fp32", "fp16"))
    torch.testing.assert_close(whole(x), network(x), rtol=1e-4, atol=1e-5)
    assert 0 < (half(x) - network(x)).abs().max() < 0.02 * network(x).abs().max()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name, arguments", [("ukan", {}), ("segresnet", {"image_size": [32, 32, 32]})])
def test_networks_of_one_size_are_refused(tmp_path, name, arguments):
    network = nn.Conv3d(1, 2, 1)
    network.arguments = arguments
    with pytest.raises(UserError, match=f"{name}: cannot be exported"):
        to_onnx.write_onnx(network, Card(**{**CARD, "name": name}), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_an_exported_meshnet_comes_back_with_the_same_labels(tmp_path, norm):
    pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
    from meshnet.sharing.from_onnx import read_onnx
    from meshnet.sharing.importing import import_model

    before = randomise(MeshNet(4, dilations=(1, 2), norm=norm)).eval()
    card = Card(**CARD, threshold=0.31, voxel_mm=4.0, arguments=before.arguments)
    to_onnx.write_onnx(before, card.changed(name="meshnet"), tmp_path / "m.onnx")
    import_model(tmp_path / "m.onnx", tmp_path / "back")
    after, card = build.load_model(tmp_path / "back")
    assert (card.threshold, card.voxel_mm) == (0.31, 4.0) and card.training_data["imported_from"] == "m.onnx"
    for volume in to_onnx.trial_volumes(1):
        with torch.inference_mode():
            old, new = (network(torch.from_numpy(volume[None])) for network in (before, after))
        assert (old - new).abs().max() <= 1e-5 * old.abs().max() and torch.equal(old.argmax(1), new.argmax(1))
    for spoil, words in ((lambda text: text[:100], "not a whole ONNX file|found no MeshNet"),
                         (lambda text: text.replace(b"meshnet", b"meshnot"), "found no MeshNet that share.py onnx")):
        (tmp_path / "bad.onnx").write_bytes(spoil((tmp_path / "m.onnx").read_bytes()))
        with pytest.raises(UserError, match=words):
            read_onnx(tmp_path / "bad.onnx")


@pytest.mark.parametrize("norm, precision, words", [("group", "fp32", "found group norm"),
                                                    ("batch", "fp16", "found half precision")])
def test_what_cannot_be_read_back_says_so(tmp_path, norm, precision, words):
    pytest.importorskip("onnx", reason="pip install -r requirements-export.txt")
    from meshnet.sharing.from_onnx import read_onnx

    network = MeshNet(4, dilations=(1, 2), norm=norm, norm_groups=2 if norm == "group" else 0)
    card = Card(**CARD, name="meshnet", arguments=network.arguments)
    to_onnx.write_onnx(network, card, tmp_path / "m.onnx", precision)
    with pytest.raises(UserError, match=words):
        read_onnx(tmp_path / "m.onnx")


def test_weights_for_some_contrasts_become_a_file_of_their_own_and_are_read_back(tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    folder = write_cascade(tmp_path / "two", own=["FLAIR or DWI", "T1w"])
    said = to_onnx.export(folder, tmp_path / "m.onnx").splitlines()
    names = [tmp_path / f"m{end}.onnx" for end in ("_first", "_for_flair_or_dwi", "_for_t1w", "")]
    assert all(line.startswith(f"{path}, and its card") for line, path in zip(said, names, strict=True))
    assert max(float(line.partition("difference ")[2].split()[0]) for line in said) < 1e-4
    inside = [json.loads(read_metadata(path)["meshnet"])["contrasts"] for path in names[1:]]
    assert inside == [{"FLAIR or DWI": {}}, {"T1w": {}}, read_card(folder).contrasts]
    back, images = tmp_path / "back", [head_file(tmp_path / f"{seed}.nii.gz", seed) for seed in range(2)]
    run_script_file("share.py", "import", names[3], back)
    (ours, _), (theirs, card) = (build.load_model(each) for each in (folder, back))
    volume = torch.rand(1, 3, 12, 12, 12)
    for contrast in (None, *card.own_weights):
        with torch.no_grad():
            first, second = (build.network_for(each, contrast)(volume) for each in (ours, theirs))
        np.testing.assert_allclose(first, second, atol=1e-3)  # its batch norm was fused
    for image in images:
        found = [np.asarray(segment_scan(image, each, probabilities=True).probabilities.dataobj)
                 for each in (folder, back)]
        assert np.abs(found[0] - found[1]).max() < 0.01 < 0.1 < np.ptp(found[0])
    to_onnx.export(write_cascade(tmp_path / "other", own=["FLAIR or DWI", "T1w"], mirror=True), tmp_path / "o.onnx")
    for spoil, given, line in (
            (lambda: shutil.copyfile(tmp_path / "o_for_t1w.onnx", names[2]), names[3],
             f"{names[2]}: does not belong to m.onnx, expected the weights for T1w of the same export"),
            (names[2].unlink, names[3],
             f"{names[2]}: not found, expected the weights for T1w of the cascade in m.onnx"),
            (lambda: None, names[1], f"{names[1]}: holds the weights of a cascade's second network for FLAIR or DWI")):
        spoil()
        refused = run_script_file("share.py", "import", given, tmp_path / "x", check=False)
        assert refused.returncode == 2 and line in refused.stderr and refused.stderr.count("\n") == 1
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("mirror", [False, True])
def test_a_cascade_becomes_two_files_and_a_cascade_again(tmp_path, mirror):
    pytest.importorskip("onnxruntime", reason="pip install -r requirements-export.txt")
    two, scan = write_cascade(tmp_path / "two", mirror=mirror), head_file(tmp_path / "a.nii.gz")
    said = run_script_file("share.py", "onnx", two, tmp_path / "m.onnx", "--scan", scan).stdout.splitlines()
    names = (tmp_path / "m_first.onnx", tmp_path / "m.onnx")
    for line, path in zip(said, names):
        assert line.startswith(f"{path}, and its card {path.with_suffix('.card.json')}") and "on the scan: " in line
        assert float(line.partition("difference ")[2].split()[0]) < 1e-4
    assert json.loads(read_metadata(names[1])["meshnet"])["first"] == ["lesion", "fluid"]
    assert "first" not in {key for key, value in json.loads(read_metadata(names[0])["meshnet"]).items() if value}
    back = tmp_path / "back"
    said = run_script_file("share.py", "import", names[1], back).stdout
    assert "MeshNet (the second of a cascade)" in said
    assert read_card(back).mirror == mirror
    masks = [np.asarray(segment_scan(scan, folder).mask.dataobj) for folder in (two, back)]
    assert masks[0].any() and (masks[0] != masks[1]).mean() < 1e-4  # its batch norm was fused
    run_script_file("share.py", "import", names[0], back)  # a single network in its place
    assert not (back / "first").exists()
    refused = run_script_file("share.py", "import", names[1], tmp_path / "x", "--channels", "T2w", check=False)
    assert refused.returncode == 2 and "found flags beside a cascade" in refused.stderr
    names[0].unlink()
    refused = run_script_file("share.py", "import", names[1], tmp_path / "x", check=False)
    assert refused.returncode == 2 and "m_first.onnx: not found, expected the first network" in refused.stderr
    assert refused.stderr.count("\n") == 1 and not (tmp_path / "x").exists()

"""MeshNets read and run without PyTorch: the same as with it, and PyTorch's way for whatever is not plain."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small import VARIANTS, network, scan

from meshnet.inference import light
from meshnet.inference.predict import predict, predict_labels, predict_logits
from meshnet.kernels import calls
from meshnet.networks.card import CONFIG, WEIGHTS, Card
from meshnet.networks.folder import save_model
from meshnet.networks.fuse import fuse_tensors
from meshnet.networks.meshnet import MeshNet

pytestmark = pytest.mark.skipif(not calls.available(), reason="no C++ compiler here: PyTorch does the work")


def saved(folder, **arguments):
    model = network(**arguments)
    names = [str(i) for i in range(max(model.arguments["in_channels"], model.arguments["classes"]))]
    save_model(folder, model, Card(**{"channels": names[:model.arguments["in_channels"]],
                               "classes": names[:model.arguments["classes"]]}))
    return model


@pytest.mark.parametrize("arguments", VARIANTS)
def test_it_is_the_network_that_pytorch_runs(tmp_path, arguments):
    model = saved(tmp_path, **arguments)
    found = light.load(tmp_path, device="cpu")
    volume = scan(arguments.get("in_channels", 1), (40, 30, 20), ((9, 15), (8, 12), (7, 12)), air=0.1)
    for run in (predict, predict_labels, predict_logits):
        for crop in ("head", "none"):
            one, two = run(found[0], volume, crop, threads=2), run(model, volume, crop)
            assert one.dtype == two.dtype and np.abs(one - two.astype(float)).max() < 1e-5


@pytest.mark.parametrize("spoil", ["lacks", "unknown", "shape", "half", "damaged"])
def test_weights_that_are_not_plain_are_left_to_pytorch(tmp_path, spoil):
    saved(tmp_path)
    path = tmp_path / WEIGHTS
    state = load_file(path)
    if spoil == "lacks":
        del state["blocks.1.norm.running_var"]
    elif spoil == "unknown":
        state["more"] = torch.zeros(1)
    elif spoil == "shape":
        state["head.bias"] = torch.zeros(3)
    elif spoil == "half":
        state["head.bias"] = state["head.bias"].half()
    save_file(state, path)
    if spoil == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    assert light.load(tmp_path, device="cpu") is None


@pytest.mark.parametrize("dilations", [8, [1, 0], ["1"]])
def test_dilations_that_are_none_are_left_to_pytorch(dilations):
    tensors = {name: value.numpy() for name, value in MeshNet(channels=2, dilations=[1, 1]).state_dict().items()}
    assert fuse_tensors(tensors, MeshNet(channels=2, dilations=[1, 1]).arguments | {"dilations": dilations}) is None


def test_gpus_are_left_to_pytorch(tmp_path, monkeypatch):
    saved(tmp_path)
    monkeypatch.setattr(light, "GPUS", (str(tmp_path),))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert light.load(tmp_path) is None and light.load(tmp_path, device="cuda") is None
    assert light.load(tmp_path, device="cpu") is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a GPU that is hidden is none
    assert light.load(tmp_path) is not None and light.load(tmp_path, device="cuda") is None


def test_the_command_does_not_import_pytorch(tmp_path, root):
    import nibabel as nib

    saved(tmp_path / "model")
    card = json.loads((tmp_path / "model" / CONFIG).read_text())
    (tmp_path / "model" / CONFIG).write_text(json.dumps(card | {"shape": [24, 24, 24]}))
    nib.save(nib.Nifti1Image(scan(1, (20, 18, 16))[0] * 100, np.eye(4)), tmp_path / "scan.nii.gz")
    code = "import sys, infer; status = infer.main(); assert 'torch' not in sys.modules; sys.exit(status)"
    command = [sys.executable, "-c", code, tmp_path / "scan.nii.gz", "--model", tmp_path / "model", "--device", "cpu"]
    subprocess.run(command, cwd=root, check=True)
    assert (tmp_path / "scan_lesion.nii.gz").is_file()

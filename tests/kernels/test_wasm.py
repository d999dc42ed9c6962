"""The kernels in WebAssembly: what is committed is what the source gives, and computes what the network does."""

import hashlib
import importlib.util

import numpy as np
import pytest
import torch
from page_steps import Page

from meshnet.inference.predict import predict
from meshnet.kernels import wasm
from meshnet.networks.build import load_model
from meshnet.networks.card import Card
from meshnet.networks.folder import default_model, save_model
from meshnet.networks.meshnet import MeshNet


@pytest.fixture(scope="module")
def page():
    with Page() as page:
        yield page


def test_the_committed_module_is_of_this_source():
    record = wasm.record()
    assert record["source"] == wasm.source_hash(), "the kernels changed: run python -m meshnet.kernels.wasm"
    module = wasm.MODULE.read_bytes()
    assert hashlib.sha256(module).hexdigest() == record["module"] and len(module) == record["bytes"] <= 150_000


@pytest.mark.slow
def test_compiling_gives_the_same_bytes():
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed: pip install -r requirements-web.txt")
    assert wasm.compile_module() == wasm.MODULE.read_bytes()


def made_up(channels, shape, seed=0):
    """A volume with something in its middle and air around it."""
    volume = np.zeros((channels, *shape), np.float32)
    inner = tuple(slice(n // 5, n - n // 6) for n in shape)
    volume[(slice(None), *inner)] = np.random.default_rng(seed).random(volume[(slice(None), *inner)].shape)
    return volume


@pytest.mark.parametrize("norm, activation, inputs, groups, affine", [
    ("batch", "gelu", 1, 0, True), ("batch", "elu", 2, 0, False), ("none", "relu", 3, 0, True),
    ("group", "elu", 2, 2, True), ("instance", "gelu", 1, 0, False)])
def test_every_norm_and_activation(page, tmp_path, norm, activation, inputs, groups, affine):
    torch.manual_seed(1)
    network = MeshNet(in_channels=inputs, classes=3, channels=6, dilations=[1, 2, 4, 8, 1], norm=norm,
                      norm_groups=groups, norm_affine=affine, activation=activation)
    for block in network.modules():
        if isinstance(block, torch.nn.BatchNorm3d):
            block.running_mean.uniform_(-0.2, 0.2)
            block.running_var.uniform_(0.5, 2)
    save_model(tmp_path, network, Card([str(c) for c in range(inputs)], ["background", "lesion", "other"]))
    volume = made_up(inputs, (31, 40, 37))
    found, answer = page.network(tmp_path, volume)
    assert np.abs(found - predict(network.eval(), volume)).max() < 1e-4
    assert answer["plan"] > volume.nbytes


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 2), (5, 1, 33)])
def test_every_size(page, tmp_path, shape):
    torch.manual_seed(1)
    network = MeshNet(channels=4, dilations=[1, 2, 4], norm="instance" if min(shape) > 1 else "batch").eval()
    save_model(tmp_path, network, Card(["T2w"], ["background", "lesion"]))
    volume = np.random.default_rng(0).random((1, *shape), np.float32)
    assert np.abs(page.network(tmp_path, volume)[0] - predict(network, volume)).max() < 1e-4


def test_the_built_in_network(page):
    network, _ = load_model(default_model())
    volume = made_up(1, (40, 33, 36))
    assert np.abs(page.network(default_model(), volume)[0] - predict(network, volume)).max() < 1e-4

"""The kernels in WebAssembly: what is committed is what the source gives, and computes what the network does."""

import hashlib
import importlib.util

import nibabel as nib
import numpy as np
import pytest
import torch
from page_steps import Page

from meshnet.inference.predict import predict
from meshnet.kernels import wasm
from meshnet.networks.build import load_model
from meshnet.networks.card import Card
from meshnet.networks.folder import BUILT_IN, save_model
from meshnet.networks.meshnet import MeshNet


@pytest.fixture(scope="module")
def page():
    with Page() as page:
        yield page


def test_the_committed_module_is_of_this_source():
    record = wasm.record()
    assert record["source"] == wasm.source_hash(), "the kernels changed: run python -m meshnet.kernels.wasm"
    for path, flags in wasm.BUILDS.items():
        module, known = path.read_bytes(), record["modules"][path.name]
        assert hashlib.sha256(module).hexdigest() == known["sha256"] and len(module) == known["bytes"] <= 150_000
        assert known["flags"] == list(flags)


@pytest.mark.slow
@pytest.mark.parametrize("path", wasm.BUILDS, ids=lambda path: path.stem)
def test_compiling_gives_the_same_bytes(path):
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed: pip install -r requirements-web.txt")
    assert wasm.compile_module(wasm.BUILDS[path]) == path.read_bytes()


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
    assert volume.nbytes < answer["plan"] < answer["bytes"] < answer["plan"] + 22e6  # of which the module takes 17


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 2), (5, 1, 33)])
def test_every_size(page, tmp_path, shape):
    torch.manual_seed(1)
    network = MeshNet(channels=4, dilations=[1, 2, 4], norm="instance" if min(shape) > 1 else "batch").eval()
    save_model(tmp_path, network, Card(["T2w"], ["background", "lesion"]))
    volume = np.random.default_rng(0).random((1, *shape), np.float32)
    assert np.abs(page.network(tmp_path, volume)[0] - predict(network, volume)).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_the_published_network_gives_the_reference_labels(page, published, shared_data, whole):
    """A real head of 256³, its box alone and every voxel: all 16.8 million labels as TensorFlow.js gives them."""
    scan = np.asarray(nib.load(shared_data / "brainchop/t1_256.nii.gz").dataobj, np.float32)
    reference = np.asarray(nib.load(shared_data / "brainchop/labels_reference.nii.gz").dataobj)
    volume = (scan - scan.min()) / (scan.max() - scan.min())
    found, answer = page.network(published, volume[None], whole=whole)
    print(answer)
    assert np.count_nonzero(found.argmax(0) != reference) == 0
    assert answer["bytes"] < 1.1 * answer["plan"] < 0.6e9


@pytest.mark.slow
def test_the_largest_network_fits(page, tmp_path, shared_data):
    """MeshNet-26 on a real head of 256³ takes less than 2 GB, and about what was planned."""
    torch.manual_seed(0)
    network = MeshNet(channels=26).eval()
    save_model(tmp_path, network, Card(["T2w"], ["background", "lesion"]))
    scan = np.asarray(nib.load(shared_data / "t2_stroke/M2265_T2w.nii.gz").dataobj, np.float32)
    found, answer = page.network(tmp_path, scan[None] / 255)
    print(answer)
    assert found.shape == (2, 256, 256, 256) and np.isfinite(found).all()
    assert answer["bytes"] < 1.1 * answer["plan"] and answer["bytes"] < 2.1e9  # 2 GB, and what the module itself takes


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_threads_change_nothing(page, tmp_path, norm):
    """One, two and three threads on shared memory give the same bits, cropped and whole, again and again."""
    torch.manual_seed(1)
    network = MeshNet(channels=6, classes=3, dilations=[1, 2, 4, 1], norm=norm, norm_groups=2)
    save_model(tmp_path, network, Card(["T2w"], ["background", "lesion", "other"]))
    volume = made_up(1, (31, 40, 37))
    expected, _ = page.network(tmp_path, volume)
    for threads in (2, 3):
        found, _ = page.network(tmp_path, volume, threads=threads)
        assert np.array_equal(found, expected)


def test_the_built_in_network(page):
    network, _ = load_model(BUILT_IN / "meshnet16-synthetic")
    volume = made_up(1, (40, 33, 36))
    assert np.abs(page.network(BUILT_IN / "meshnet16-synthetic", volume)[0] - predict(network, volume)).max() < 1e-4

"""The network that tells contrasts apart, against loops."""

import numpy as np
import pytest

from meshnet.scans import contrast_network as network


@pytest.mark.parametrize("shape", [(4, 6, 8), (5, 7, 3), (1, 2, 9)])
def test_a_convolution_at_every_second_voxel_is_the_loops(shape):
    rng = np.random.default_rng(0)
    maps, kernel = rng.standard_normal((2, *shape)), rng.standard_normal((3, 2, 3, 3, 3)).astype(np.float32)
    padded = np.pad(maps, [(0, 0), *[(1, 1)] * 3])
    expected = np.array([[[[(padded[:, i:i + 3, j:j + 3, k:k + 3] * one).sum() for k in range(0, shape[2], 2)]
                           for j in range(0, shape[1], 2)] for i in range(0, shape[0], 2)] for one in kernel])
    assert np.allclose(network.halved(maps.astype(np.float32), kernel), expected, atol=1e-5)


def test_blocks_of_the_head_are_those_of_which_more_than_half_is_bright():
    volume = np.zeros((16, 8, 12))
    volume[:8, :4] = 1  # half of the first block, and of the part of one beside it
    volume[0, 4, :8] = 1
    assert network.of_head(volume, 0.1).tolist() == [[[True, False]], [[False, False]]]
    assert network.of_head(np.zeros((9, 9, 9)), 0.1).all()


def test_the_weights_are_whole_and_give_probabilities():
    convolutions, (weight, bias) = network.layers()
    assert [kernel.shape[:2] for kernel, _ in convolutions] == [(12, 1), (20, 12), (28, 20)]
    assert weight.shape == (4, 28) and bias.shape == (4,)
    parameters = sum(one.size for pair in [*convolutions, (weight, bias)] for one in pair)
    assert parameters == 22100
    found = network.class_probabilities(np.random.default_rng(0).random((20, 24, 22)), 0.1)
    assert found.shape == (4,) and found.sum() == pytest.approx(1) and (found > 0).all()


def test_a_packed_network_gives_what_pytorch_does(root, monkeypatch, tmp_path):
    import torch

    monkeypatch.syspath_prepend(str(root / "benchmarks/trust"))
    import contrast_network as script

    torch.manual_seed(0)
    net = script.network().eval()
    for norm in (layer[1] for layer in net["layers"]):
        for name, (low, high) in (("running_mean", (-0.2, 0.2)), ("running_var", (0.5, 2)), ("weight", (0.5, 2)),
                                  ("bias", (-0.3, 0.3))):
            getattr(norm, name).data.uniform_(low, high)
    script.pack(net, tmp_path / "w.safetensors", install=False)
    scan = (255 * np.random.default_rng(0).random((43, 51, 50))).astype(np.uint8)
    monkeypatch.setattr(network, "WEIGHTS", tmp_path / "w.safetensors")
    network.layers.cache_clear()
    with torch.no_grad():
        expected = script.classify(net, script.scaled(scan[None]).float()).softmax(1)[0]
    found = network.class_probabilities(scan / 255, 0.1)
    network.layers.cache_clear()
    assert found == pytest.approx(expected.numpy(), abs=2e-3) and np.ptp(found) > 0.02

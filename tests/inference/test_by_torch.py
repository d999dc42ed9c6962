"""Networks run by PyTorch: in slabs, as they are, and in windows."""

import numpy as np
import pytest
from small import by_model, network, scan
from torch import nn

from meshnet.inference import by_torch, predict
from meshnet.inference.boxes import layer_boxes, voxels
from meshnet.kernels import calls
from meshnet.networks import fuse
from meshnet.networks.build import build


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("shape", [(20, 9, 11), (3, 8, 8), (9, 7, 6)])
def test_slabs_change_nothing(shape, planes, monkeypatch):
    model, volume = network(5, (1, 4, 2, 5)), scan(1, shape)
    monkeypatch.setattr(by_torch, "SLAB", 4 * 5 * planes * shape[1] * shape[2])
    with calls.switched_off():
        logits = predict.predict_logits(model, volume, crop="none")
    assert np.abs(logits - by_model(model, volume)).max() < 1e-5
    want = ((0, shape[0]), (0, shape[1]), (0, shape[2]))
    parts = by_torch.slabs(want, want, 4, 4 * 5)
    assert [plane for (a, b), *_ in parts for plane in range(a, b)] == list(range(shape[0]))
    assert max(b - a for (a, b), *_ in parts) <= planes


def test_other_networks_run_as_they_are():
    model, volume = nn.Conv3d(1, 3, 1).eval(), scan(1, (9, 8, 7))
    assert np.allclose(predict.predict_logits(model, volume), by_model(model, volume), atol=1e-6)
    mirrored = predict.predict_logits(model, volume[:, ::-1])
    assert np.allclose(mirrored[:, ::-1], by_model(model, volume), atol=1e-6)


@pytest.mark.slow
def test_patch_networks_slide():
    model, volume = nn.Conv3d(1, 3, 1).eval(), scan(1, (20, 18, 17))
    model.patch = 8
    assert np.allclose(predict.predict_logits(model, volume), by_model(model, volume), atol=1e-4)


@pytest.mark.slow
def test_a_network_built_for_one_size_slides_over_a_grid_that_was_enlarged():
    """UNETR knows a position for every patch of its image_size and takes nothing larger at once."""
    small = {"feature_size": 2, "hidden_size": 12, "mlp_dim": 12, "num_heads": 2}
    model = build("unetr", {"in_channels": 1, "classes": 2, "image_size": [32, 32, 32], **small}).eval()
    with pytest.raises(ValueError, match="expected at most"):
        by_model(model, scan(1, (32, 32, 48)))
    found = predict.predict_logits(model, scan(1, (32, 32, 48)))
    assert found.shape == (2, 32, 32, 48) and np.isfinite(found).all()


def test_working_memory_by_hand():
    """Four channels on a box of 10³ that a reach of 1 and then 2 widens: input, two maps in turn, slabs, the answer."""
    folded = fuse.fuse(network(4, (1, 2)))
    boxes = layer_boxes(folded, ((10, 20),) * 3, (40, 40, 40))
    assert [voxels(box) for box in boxes] == [16**3, 14**3, 10**3, 10**3]
    maps, answer = 4 * 4 * 14**3, 4 * 2 * 10**3
    assert by_torch.torch_bytes(folded, boxes, (40, 40, 40)) == 4 * 16**3 + 2 * maps + 2 * maps + answer
    two = fuse.fuse(network(4, (1, 2), in_channels=3))
    assert by_torch.torch_bytes(two, boxes, (40, 40, 40)) == 3 * 4 * 16**3 + 2 * maps + 2 * maps + answer

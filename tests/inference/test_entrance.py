"""The public ``predict`` refuses a volume that is not prepared for its network, and gives what the inner one gives."""

import numpy as np
import pytest
import torch
from small import CARD, network

from meshnet import Card, MeshNet, UserError, load_model, predict
from meshnet.inference import predict as inside


@pytest.fixture
def loaded(tmp_path):
    network().save_pretrained(tmp_path, Card(**CARD, voxel_mm=16.0))  # a grid of 16 voxels
    return load_model(tmp_path).network


def test_what_is_not_prepared_is_refused_in_one_line(loaded):
    raw = np.full((1, 16, 16, 16), 255, np.float32)
    for volume in (raw, torch.from_numpy(raw), -raw / 255):
        with pytest.raises(UserError, match=r"^volume: found values from .* expected 0 to 1, .*; segment_scan"):
            predict(loaded, volume)
    with pytest.raises(UserError, match=r"^volume: found 64 x 64 x 64 voxels, .* 16 x 16 x 16 voxels of 16 mm"):
        predict(loaded, np.zeros((1, 64, 64, 64), np.float32))
    with pytest.raises(UserError, match="NaN"):
        predict(loaded, raw * np.nan)
    with pytest.raises(UserError, match="expected \\(C, X, Y, Z\\)"):
        predict(loaded, raw[0])


def test_what_is_prepared_is_computed_as_inside(loaded, tmp_path):
    volume = np.random.default_rng(0).random((1, 16, 16, 16), np.float32)
    assert np.array_equal(predict(loaded, volume, crop="none"), inside.predict(loaded, volume, crop="none"))
    again = MeshNet.from_pretrained(tmp_path)
    assert predict(again, volume[:, 4:9], crop="none").shape[1:] == (5, 16, 16)  # a part
    assert predict(network(), 255 * volume, crop="none").shape[1:] == (16, 16, 16)  # without a card nothing is known


def test_a_network_is_taken_with_its_card(tmp_path):
    network().save_pretrained(tmp_path, Card(**CARD, voxel_mm=16.0))
    model, volume = load_model(tmp_path), np.random.default_rng(0).random((1, 16, 16, 16), np.float32)
    assert np.array_equal(predict(model, volume, "none"), predict(model.network, volume, "none"))
    with pytest.raises(UserError, match=r"volume: found values from 0 to 255"):
        predict(model, np.float32(255) * np.indices((1, 16, 16, 16))[1] / 15)

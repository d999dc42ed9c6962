"""From probabilities to a mask."""

import zlib
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from model_folders import CARD, edit
from scipy import ndimage

from meshnet.errors import UserError
from meshnet.networks import build
from meshnet.networks import folder as model_folder
from meshnet.networks.card import Card, read_card
from meshnet.scans.mask import Decision, clean, kept, label_lesions, lesion_volumes_mm3, peaks_of
from meshnet.scans.ours import SIGNATURE, signature


def test_of_several_classes_one_alone_may_be_marked(tmp_path):
    network = build.build("meshnet", {"channels": 4, "dilations": [1], "classes": 3})
    names = ["background", "fluid", "lesion"]
    model_folder.save_model(tmp_path, network, Card(**{**CARD, "classes": names, "marks": "lesion", "threshold": 0.4}))
    card = read_card(tmp_path)
    probabilities = np.array([[0.1, 0.5, 0.4], [0.3, 0.1, 0.6], [0.0, 0.7, 0.3]], np.float32).T[..., None, None]
    marked = card.marking.labels(card.marking.of(probabilities))
    assert marked.ravel().tolist() == [1, 1, 0]  # by the threshold, though fluid is likelier in the first
    several = card.changed(marks=None).marking
    every = several.labels(several.of(probabilities))
    assert every.ravel().tolist() == [1, 2, 1]
    edit(tmp_path / "config.json", marks="rim")
    with pytest.raises(UserError, match="found marks = 'rim', expected one of fluid, lesion"):
        read_card(tmp_path)


def test_small_lesions_are_dropped_by_volume_and_26_connected():
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1  # one lesion, joined at a corner: 2 voxels
    mask[4, 4, 4] = 1
    spacing = np.array([2.0, 1.0, 1.5])
    assert sorted(lesion_volumes_mm3(mask, float(np.prod(spacing)))) == [3.0, 6.0]
    assert clean(mask, float(np.prod(spacing)), 6.0).sum() == 2 and clean(mask, float(np.prod(spacing)), 6.1).sum() == 0
    assert np.array_equal(clean(mask, float(np.prod(spacing)), 0), mask)


def test_a_lesion_needs_a_sure_voxel_and_a_size_by_hand():
    probability = np.zeros((9, 4, 4), np.float32)
    probability[0, 0, 0], probability[1, 1, 1] = 0.3, 0.7  # one lesion: weak voxels touch a sure one by a corner
    probability[3:6, 3, 3] = 0.5  # three voxels that are nowhere sure
    probability[8, 0, 0] = 0.9  # sure, but one voxel
    mask = (probability >= 0.3).astype(np.uint8)
    found, unsure, small = kept(mask, probability, 2.0, Decision(0.3, 0.7, 4.0))
    assert np.argwhere(found).tolist() == [[0, 0, 0], [1, 1, 1]] and (unsure, small) == (6.0, 2.0)
    found, unsure, small = kept(mask, probability, 2.0, Decision(0.3, 0.0, 4.0))
    assert found.sum() == 5 and (unsure, small) == (0.0, 2.0)
    assert kept(mask, probability, 2.0, Decision(0.3, 0.95, 0.0))[0].sum() == 0
    assert kept(mask, probability, 2.0, Decision(0.3, 0.2, 0.0))[0] is mask  # sure of every voxel


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_peaks_of_parts_are_those_of_scipy(order):
    rng = np.random.default_rng(0)
    values = np.asarray(rng.random((12, 9, 11), np.float32), order=order)
    labels, count = label_lesions(values[1:] > 0.8)
    assert count > 3
    expected = ndimage.maximum(values[1:], labels, np.arange(1, count + 1))
    assert np.array_equal(peaks_of(values[1:], labels, count), expected)
    assert peaks_of(values, np.zeros(values.shape, int), 0).shape == (0,)


@pytest.mark.parametrize("kind", [np.uint8, bool, np.uint16, np.float32, np.int16])
@pytest.mark.parametrize("empty", [True, False])
def test_the_checksum_of_a_mask_is_that_of_its_voxels_whatever_their_order_in_memory(kind, empty):
    voxels = np.zeros((7, 5, 6), kind)
    if not empty:
        lowest = -2 if kind in (np.float32, np.int16) else 0
        voxels[2:4, 1:3, 2:5] = np.random.default_rng(0).integers(lowest, 3, (2, 2, 3))
        voxels[0, 0, 0] = lowest  # beyond the box of what is above 0
    expected = SIGNATURE + b" %08x" % zlib.crc32(voxels.tobytes())
    for data in (voxels, np.asfortranarray(voxels), voxels[::-1].copy()[::-1]):
        assert signature(SimpleNamespace(dataobj=data)) == expected
    if kind is np.uint8:
        assert signature(nib.Nifti1Image(np.asfortranarray(voxels), np.eye(4))) == expected

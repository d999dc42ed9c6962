"""Scans that look like T1w, and turning them round."""

import numpy as np
import pytest

from meshnet.data.synthetic.case import make_case
from meshnet.scans.contrast import features, inside_head, lesions_bright, looks_like_t1w, moment
from meshnet.scans.grid import Grid, conform

GRID = Grid(4.0, None, "LIA", "middle", averaged=True)


def scan(seed, contrast, voxel_mm=4.0):
    image = make_case(seed, voxel_mm, "train", contrasts={contrast: 1.0}, artefacts=0.0, extracted=0.0)[0]
    return np.asarray(conform(image, GRID, exact=False).dataobj)


@pytest.mark.parametrize("contrast", ["T1w", "T2w", "DWI"])
def test_most_synthetic_scans_are_told_apart(contrast):
    right = [looks_like_t1w(scan(seed, contrast), 4.0) == (contrast == "T1w") for seed in range(5)]
    assert sum(right) >= 3


def test_what_is_turned_round_is_the_head_alone_and_turning_is_its_own_inverse():
    volume = next(found for seed in range(8) if looks_like_t1w(found := scan(seed, "T1w"), 4.0))
    bright = lesions_bright(volume, 4.0)
    inside = inside_head(volume / np.float32(255))
    assert np.array_equal(bright[~inside], volume[~inside]) and np.array_equal(255 - bright[inside], volume[inside])
    other = next(found for seed in range(8) if not looks_like_t1w(found := scan(seed, "T2w"), 4.0))
    assert lesions_bright(other, 4.0) is other


def test_inside_is_between_bright_voxels_on_every_axis():
    volume = np.zeros((5, 5, 5), np.float32)
    volume[1:4, 1:4, 1:4] = 1
    volume[2, 2, 2] = 0  # a hole is inside
    volume[0, 0, 0] = 1  # a speck is, alone on its three lines
    expected = np.zeros((5, 5, 5), bool)
    expected[1:4, 1:4, 1:4] = expected[0, 0, 0] = True
    assert np.array_equal(inside_head(volume), expected)


def test_nothing_is_said_of_what_is_no_head():
    assert features(np.zeros((20, 20, 20), np.uint8), 4.0) is None
    assert not looks_like_t1w(np.zeros((9, 9, 9), np.uint8), 1.0)
    assert moment(np.array([-1.0, 1.0]), 4) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_real_scans_are_told_apart(shared_data):
    import nibabel as nib

    names = {"t1_stroke/M2051_T1w": True, "healthy/T1w": True, "t2_stroke/M2265_T2w": False,
             "acute_stroke/case0009_dwi": False, "acute_stroke/case0009_flair": False, "healthy/FLAIR_1mm": False}
    for name, expected in names.items():
        image = nib.load(shared_data / f"{name}.nii.gz")
        assert looks_like_t1w(np.asarray(conform(image, GRID, exact=False).dataobj), 4.0) == expected, name

"""Scans that look like T1w, and turning them round."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from meshnet.data.synthetic.case import make_case
from meshnet.scans.contrast import OTHER, T1W, T2W, features, inside_head, looks_like, moment, turned_round
from meshnet.scans.grid import Grid, conform, target_affine

GRID = Grid(4.0, None, "LIA", "middle", averaged=True)


def scan(seed, contrast, voxel_mm=4.0):
    image = make_case(seed, voxel_mm, "train", contrasts={contrast: 1.0}, artefacts=0.0, extracted=0.0)[0]
    return np.asarray(conform(image, GRID, exact=False).dataobj)


def conformed(volume, scaling):
    image = nib.Nifti1Image(volume, target_affine(nib.Nifti1Image(volume, np.eye(4)), GRID))
    return np.asarray(conform(image, replace(GRID, shape=volume.shape), scaling, exact=False).dataobj)


@pytest.mark.parametrize("contrast, name", [("T1w", T1W), ("T2w", T2W), ("DWI", OTHER)])
def test_most_synthetic_scans_are_told_apart(contrast, name):
    right = [looks_like(scan(seed, contrast), 4.0) == name for seed in range(5)]
    assert sum(right) >= 3


def test_what_is_turned_round_is_the_head_alone_and_turning_is_its_own_inverse():
    volume = next(found for seed in range(8) if looks_like(found := scan(seed, "T1w"), 4.0) == T1W)
    bright = turned_round(volume)
    inside = inside_head(volume / np.float32(255))
    assert np.array_equal(bright[~inside], volume[~inside]) and np.array_equal(255 - bright[inside], volume[inside])
    assert np.array_equal(conformed(volume, "lesions_bright"), bright)
    other = next(found for seed in range(8) if looks_like(found := scan(seed, "T2w"), 4.0) != T1W)
    assert np.array_equal(conformed(other, "lesions_bright"), other)


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
    assert looks_like(np.zeros((9, 9, 9), np.uint8), 1.0) is None
    assert moment(np.array([-1.0, 1.0]), 4) == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_real_scans_are_told_apart(shared_data):
    names = {"t1_stroke/M2051_T1w": T1W, "healthy/T1w": T1W, "t2_stroke/M2265_T2w": T2W, "ms/sub-07/T2w": T2W,
             "acute_stroke/case0009_dwi": OTHER, "acute_stroke/case0009_flair": OTHER, "healthy/FLAIR_1mm": OTHER}
    for name, expected in names.items():
        image = nib.load(shared_data / f"{name}.nii.gz")
        assert looks_like(np.asarray(conform(image, GRID, exact=False).dataobj), 4.0) == expected, name


def test_noise_in_the_air_does_not_hide_a_head():
    volume = next(found for seed in range(8) if looks_like(found := scan(seed, "T2w"), 4.0) == T2W)
    noisy = np.maximum(volume, 35).astype(np.uint8)  # air of 0.14, more than what counts as air
    assert features(noisy, 4.0) is None and looks_like(noisy, 4.0) in (T2W, OTHER)

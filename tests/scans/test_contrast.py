"""Scans that look like T1w, and turning them round."""

import functools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from meshnet.data.synthetic.case import make_case
from meshnet.scans.checks import contrast_remarks
from meshnet.scans.contrast import OTHER, T1W, T2W, inside_head, is_head, likelihoods, most_likely, turned_round
from meshnet.scans.grid import LIKELY, LOOKS, Grid, conform, target_affine

GRID = Grid(4.0, None, "LIA", "middle", averaged=True)


@functools.cache
def made(seed, contrast, voxel_mm=4.0):
    return make_case(seed, voxel_mm, "train", contrasts={contrast: 1.0}, artefacts=0.0, extracted=0.0)[0]


@functools.cache
def scan(seed, contrast):
    return np.asarray(conform(made(seed, contrast), GRID, exact=False).dataobj)


def look(volume):
    return most_likely(likelihoods(volume, 4.0))


def conformed(volume, scaling):
    image = nib.Nifti1Image(volume, target_affine(nib.Nifti1Image(volume, np.eye(4)), GRID))
    return np.asarray(conform(image, replace(GRID, shape=volume.shape), scaling, exact=False).dataobj)


@pytest.mark.parametrize("contrast, name", [("T1w", T1W), ("T2w", T2W), ("DWI", OTHER)])
def test_most_synthetic_scans_are_told_apart(contrast, name):
    right = [look(scan(seed, contrast)) == name for seed in range(5)]
    assert sum(right) >= 4


def test_what_is_turned_round_is_the_head_alone_and_turning_is_its_own_inverse():
    volume = next(found for seed in range(8) if look(found := scan(seed, "T1w")) == T1W)
    bright = turned_round(volume)
    inside = inside_head(volume / np.float32(255))
    assert np.array_equal(bright[~inside], volume[~inside]) and np.array_equal(255 - bright[inside], volume[inside])
    assert np.array_equal(conformed(volume, "lesions_bright"), bright)
    other = next(found for seed in range(8) if look(found := scan(seed, "T2w")) != T1W)
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
    assert not is_head(np.zeros((20, 20, 20)), 0.1)
    assert look(np.zeros((9, 9, 9), np.uint8)) is None


@pytest.mark.slow
def test_real_scans_are_told_apart(shared_data):
    names = {"t1_stroke/M2051_T1w": T1W, "healthy/T1w": T1W, "t2_stroke/M2265_T2w": T2W, "ms/sub-07/T2w": T2W,
             "acute_stroke/case0009_dwi": OTHER, "acute_stroke/case0009_flair": OTHER, "healthy/FLAIR_1mm": OTHER}
    for name, expected in names.items():
        image = nib.load(shared_data / f"{name}.nii.gz")
        assert look(np.asarray(conform(image, GRID, exact=False).dataobj)) == expected, name


def test_noise_in_the_air_does_not_hide_a_head():
    volume = next(found for seed in range(8) if look(found := scan(seed, "T2w")) == T2W)
    noisy = np.maximum(volume, 35).astype(np.uint8)  # air of 0.14, more than what counts as air
    assert not is_head(noisy / 255, 0.1) and look(noisy) in (T2W, OTHER)


@pytest.mark.parametrize("orientation", ["RAS", "PIL", "SRA"])
def test_the_contrast_does_not_depend_on_the_orientation_of_the_grid(orientation):
    image = made(3, "T1w")
    grids = [replace(GRID, orientation=one) for one in ("LIA", orientation)]
    found = [conform(image, grid, "lesions_bright", exact=False).extra[LIKELY] for grid in grids]
    assert found[0] == pytest.approx(found[1], abs=1e-6) and found[0][T1W] > 0.5


@pytest.mark.parametrize("voxel_mm", [2.0, 6.0, 8.0])
def test_the_contrast_is_told_on_grids_of_other_voxels(voxel_mm):
    for contrast, name in (("T1w", T1W), ("T2w", T2W)):
        found = conform(made(3, contrast, 2.0), replace(GRID, voxel_mm=voxel_mm), "lesions_bright", exact=False).extra
        assert found[LOOKS] == name, found


def test_a_doubtful_contrast_is_said():
    sure, doubtful = ({T1W: p, T2W: 0.9 - p, OTHER: 0.1} for p in (0.61, 0.59))
    turned = "looks like T1w, where lesions are dark: its grey"
    assert contrast_remarks({LOOKS: T1W, LIKELY: sure}, "a")[0].startswith(f"a: {turned}")
    said = "looks most like {} (59 %) and then {} (31 %), which is doubtful; "
    found, = contrast_remarks({LOOKS: T1W, LIKELY: doubtful})
    assert found.startswith(said.format("T1w", "T2w") + "its grey values were turned round")
    other, = contrast_remarks({LOOKS: T2W, LIKELY: {T1W: 0.31, T2W: 0.59, OTHER: 0.1}})
    assert other == said.format("T2w", "T1w") + "if its contrast is not T2w, do not trust the mask"
    assert contrast_remarks({LOOKS: T2W, LIKELY: {T1W: 0.3, T2W: 0.61, OTHER: 0.09}}) == []
    assert contrast_remarks({}) == []
    none, = contrast_remarks({LOOKS: None, LIKELY: None}, "b")
    assert none.startswith("b: its contrast could not be told, since no head was found in it")

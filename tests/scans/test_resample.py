"""Interpolation and means over large voxels, against nibabel and against sums by hand."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import affine_transform, map_coordinates
from small import affine_of, array, image_of

from meshnet.scans.grid import Grid, conform, target_affine
from meshnet.scans.resample import covering_reach, resample


@pytest.mark.parametrize(
    "affine",
    [
        affine_of((1, 1, 1), origin=(-7, 3, 5)),
        affine_of((-1, 1, 1), origin=(4.5, 0, 0)),
        affine_of((0.45, 0.45, 5), origin=(10, -20, 30)),
        affine_of((2.5, 1.1, 0.9), (np.pi / 2, 0, np.pi), origin=(1, 2, 3)),
        affine_of((0.8, 0.9, 3), (0.2, -0.1, 0.4), origin=(1, 2, 3)),
    ],
    ids=["same", "mirrored", "thick", "turned", "oblique"],
)
@pytest.mark.parametrize("orientation", ["LIA", "RAS", "PSR"])
def test_conform_interpolates_as_nibabel_on_the_target_grid(affine, orientation):
    from nibabel.processing import resample_from_to

    data = np.random.default_rng(0).random((21, 24, 11)).astype(np.float32) + 1
    scan = image_of(data, affine)
    grid = Grid(1.3, (25, 30, 28), orientation)
    ours = conform(scan, grid, scaling="window", window=(0, 2))
    expected = array(resample_from_to(scan, (grid.size, target_affine(scan, grid)), order=1, cval=0)) / 2
    assert nib.aff2axcodes(ours.affine) == tuple(orientation)
    # Points on the very edge of the scan may fall on either side of it.
    assert (np.abs(array(ours) - expected) > 1e-4).mean() < 1e-3
    assert (array(ours) > 0).mean() > 0.05


@pytest.mark.parametrize(("spacing", "angles"), [
    ((1, 1, 1), (0, 0, 0)), ((-0.6, 1.9, 5), (0, 0, 0)), ((1, 0.9, 3), (0.2, -0.1, 0.4))
], ids=["blocks", "thick", "oblique"])
def test_an_averaged_voxel_is_the_mean_of_samples_spread_over_it(spacing, angles, monkeypatch):
    data = np.random.default_rng(0).random((25, 22, 19)).astype(np.float32)
    scan = image_of(data, affine_of(spacing, angles, origin=(3, -4, 5)))
    grid = Grid(4.0, (7, 5, 9), averaged=True)
    affine = target_affine(scan, grid)
    # Every sample by hand: four on an axis of 4 mm over 1 mm, two over 1.9 mm, one over 5 mm.
    along = np.linalg.norm((np.linalg.inv(scan.affine) @ affine)[:3, :3], axis=0)
    counts = [int(np.clip(np.rint(n), 1, 4)) for n in along]
    if angles == (0, 0, 0):
        assert sorted(counts) == ([4, 4, 4] if spacing[0] == 1 else [1, 2, 4])
    expected = np.zeros(grid.size)
    for sample in np.ndindex(*counts):
        shift = np.eye(4)
        shift[:3, 3] = [(s + 0.5) / n - 0.5 for s, n in zip(sample, counts)]
        expected += resample(data, np.linalg.inv(scan.affine) @ affine @ shift, grid.size, 1) / np.prod(counts)
    found = array(conform(scan, grid, "window", (0, 1)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - array(conform(scan, replace(grid, averaged=False), "window", (0, 1)))).max() > 0.1
    monkeypatch.setattr("meshnet.scans.resample.SAMPLES", 5000)  # a few planes at once
    np.testing.assert_allclose(array(conform(scan, grid, "window", (0, 1))), found, atol=1e-6)


def test_averaging_changes_nothing_where_voxels_are_not_larger_than_the_scans():
    scan = image_of(np.random.default_rng(0).random((9, 8, 7)), affine_of((2, 1.5, 3), (0.1, 0, 0.2)))
    for voxel_mm in (1.0, 2.0):
        one, other = (array(conform(scan, Grid(voxel_mm, (12, 13, 14), averaged=on))) for on in (False, True))
        assert (one == other).all()


def test_the_rim_of_an_oblique_volume_is_scipys_nearest_to_the_last_bit():
    """The whole of it by scipy's mode "nearest", and the fill beyond the reach; also with a single slice."""
    rng, rim = np.random.default_rng(0), 0
    for _ in range(60):
        source, shape = (tuple(rng.integers(1, most, 3)) for most in (9, 16))
        data = rng.random(source).astype(np.float32)
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        matrix = turn @ np.diag(rng.uniform(0.3, 3, 3))
        offset = np.array(source) / 2 - matrix @ (np.array(shape) / 2)
        to_source = np.vstack([np.column_stack([matrix, offset]), [0, 0, 0, 1]])
        points = np.stack([start + sum(row[t] * np.indices(shape)[t] for t in range(3))
                           for row, start in zip(matrix, offset)], axis=-1)
        reach, last = covering_reach(matrix) + 1e-3, np.array(source) - 1
        within = ((points >= -reach) & (points <= last + reach)).all(-1)
        rim += (within & ~((points >= 0) & (points <= last)).all(-1)).sum()
        nearest = affine_transform(data, matrix, offset, shape, order=1, mode="nearest")
        found = resample(data, to_source, shape, 1, fill=-5.0, covers=True)
        assert (found == np.where(within, nearest, np.float32(-5))).all()
    assert rim > 1000


@pytest.mark.parametrize("block", [1, 100, 1 << 30])
def test_the_last_axis_may_be_interpolated_in_parts(monkeypatch, block):
    """Of every size, along every axis, into either order of memory: the same bits."""
    generator = np.random.default_rng(0)
    monkeypatch.setattr("meshnet.scans.resample.BLOCK", block)
    for steps in ((0.3, 0.5, 0.7), (0.7, 0.3, 0.5), (0.5, 0.7, 0.3), (0.6, 0.6, 0.9)):
        data, to_source = generator.random((9, 8, 7), np.float32), np.diag([*steps, 1.0])
        to_source[:3, 3] = 0.2, -0.4, 1.3
        x, y, z = (np.clip(start + step * np.arange(n), 0, m - 1)
                   for start, step, n, m in zip(to_source[:3, 3], steps, (11, 12, 6), data.shape))
        expected = map_coordinates(data, np.meshgrid(x, y, z, indexing="ij"), order=1)
        for out in (np.empty((11, 12, 6), np.float32), np.empty((6, 12, 11), np.float32).T):
            found = resample(data, to_source, out.shape, order=1, out=out, covers=True)
            assert found is out
            np.testing.assert_allclose(out, expected, atol=1e-5)
        assert np.array_equal(out, resample(data, to_source, out.shape, order=1, covers=True))

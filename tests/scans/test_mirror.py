"""The plane between the hemispheres: known planes are found again, and a mirror image is that of plain loops."""

import numpy as np
import pytest
from cascades import plain_mirror_image
from scipy.ndimage import gaussian_filter, map_coordinates

from meshnet.scans import mirror


def noise(shape, seed=0):
    values = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return (128 + 45 * values / values.std()).clip(0, 255).astype(np.float32)


def image(volume, plane):
    found, = mirror.mirror_images([volume], plane)
    return found


def symmetric(shape, tilt_y, tilt_z, shift):
    """A volume that a plane leaves as it is: its means with its mirror image, both interpolated from noise."""
    points = np.indices(shape, float)
    middle = np.array([(n - 1) / 2 for n in shape]).reshape(3, 1, 1, 1)
    normal = np.array([1, tilt_y, tilt_z]).reshape(3, 1, 1, 1)
    apart = ((points - middle) * normal).sum(0) - shift
    there = points - 2 * normal * apart / (normal ** 2).sum()
    half = noise(shape)
    return ((half + map_coordinates(half, there, order=1, mode="nearest")) / 2).astype(np.uint8)


PLANES = [(0.0, 0.0, 0.0), (0.1, -0.05, 3.0), (-0.17, 0.14, -5.0), (0.0, 0.18, 7.5), (0.03125, 0.0, 0.5)]


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("shape", [(64, 72, 60), (65, 73, 61), (67, 74, 63), (66, 71, 62)])
def test_a_plane_is_found_again(shape, plane):
    """Where blocks of voxels leave some out, as well: to half a voxel, since blocks have two on an edge."""
    found = mirror.find_plane(symmetric(shape, *plane))
    assert np.allclose(found[:2], plane[:2], atol=0.016) and abs(found[2] - plane[2]) <= 0.75


def test_a_plane_is_not_to_one_side_of_the_true_one_where_the_volume_is_odd():
    apart = []
    for n in range(12):
        tilts, shift = np.random.default_rng(n).uniform(-0.12, 0.12, 2), n / 3 - 2
        apart.append(mirror.find_plane(symmetric((49, 53, 47), *tilts, shift))[2] - shift)
    assert abs(np.mean(apart)) < 0.2


def test_a_lesion_on_one_side_does_not_turn_the_plane():
    volume = symmetric((64, 72, 60), 0.05, -0.1, 2.0)
    before = mirror.find_plane(volume)
    volume[5:25, 20:50, 10:40] = 255
    assert np.allclose(mirror.find_plane(volume), before, atol=[0.016, 0.016, 0.5])


def test_without_a_tilt_the_image_is_the_volume_the_other_way_round():
    volume = noise((9, 8, 7)).astype(np.uint8)
    np.testing.assert_array_equal(image(volume, (0, 0, 0)), volume[::-1])
    moved = image(volume, (0, 0, 1.5))  # by three voxels
    np.testing.assert_array_equal(moved[3:], volume[:2:-1])
    assert not moved[:3].any()


@pytest.mark.parametrize("plane", [(0.1, -0.05, 1.0), (-1 / 3, 0.2, -2.25), (0.0, 0.0, 0.25)])
def test_the_image_is_that_of_plain_loops(plane):
    volume = noise((13, 11, 12)).astype(np.uint8)
    found = image(volume, plane)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, plain_mirror_image(volume, plane))


def test_a_difference_by_hand():
    """Of 10, 20, 90, 12 with the middle between the second and the third: 2 and 70, counted as 48; their mean is 25."""
    volume = np.int32([10, 20, 90, 12]).reshape(4, 1, 1)
    points = mirror.grid_points(volume.shape)
    assert mirror.difference(volume, points, volume.ravel(), (0.0, 0.0, 0.0)) == 25 * 4096
    # moved by one voxel, the images of the first two are in places 3 and 2 of the last three: 1 - 3, 2 - 2, 3 - 1
    assert mirror.difference(volume, points, volume.ravel(), (0.0, 0.0, 0.5)) == (8 + 0 + 8) * 4096 // 3
    assert mirror.difference(volume, points, volume.ravel(), (0.0, 0.0, 1.0)) == 48 * 4096  # no more than half


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 9), (9, 1, 9), (2, 3, 3), (5, 5, 5)])
def test_volumes_too_small_to_tell_have_a_plane_through_their_middle(shape):
    a, b, shift = mirror.find_plane(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    assert max(abs(a), abs(b), abs(shift)) <= 2


def test_means_of_blocks_leave_out_what_is_left_over():
    volume = np.arange(5 * 4 * 2, dtype=np.uint8).reshape(5, 4, 2)
    found = mirror.means(volume, 2)
    assert found.shape == (2, 2, 1) and found[0, 0, 0] == (0 + 1 + 2 + 3 + 8 + 9 + 10 + 11) // 8

"""What the second network of a cascade is given, beside the specification written plainly, voxel by voxel."""

import numpy as np
import pytest
from cascades import plain_input

from meshnet.scans import second

F = np.float32


def made(shape, channels=1, classes=2, box=((3, 12), (2, 14), (4, 13)), seed=0, levels=256):
    generator = np.random.default_rng(seed)
    scan = generator.integers(0, levels, (channels, *shape), np.uint8)
    p = np.zeros((classes, *shape), np.float32)
    inside = (slice(None), *(slice(a, b) for a, b in box))
    p[inside] = generator.random(p[inside].shape, np.float32) ** 4
    return scan, p


@pytest.mark.parametrize("case", [
    {"shape": (17, 16, 18)}, {"shape": (17, 16, 18), "channels": 2, "classes": 3, "seed": 1},
    {"shape": (14, 15, 16), "levels": 3, "seed": 2},  # quartiles closer than the narrowest range
    {"shape": (17, 16, 18), "box": ((0, 17), (0, 16), (0, 18)), "seed": 3},
    {"shape": (9, 7, 1), "box": ((2, 5), (2, 5), (0, 1)), "seed": 4},  # too few voxels of brain, an axis of one
])
@pytest.mark.parametrize("voxel_mm", [2.0, 3.2, 16.5])
def test_what_the_second_network_is_given_is_the_specification_to_the_byte(case, voxel_mm):
    scan, p = made(**case)
    found = second.second_input(scan, p, voxel_mm)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, plain_input(scan, p, voxel_mm))


@pytest.mark.parametrize("across", [0, 1, 2])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_mirror_image_of_all_channels_follows_them(across, channels):
    scan, p = made((24, 22, 26), channels, box=((3, 21), (4, 22), (2, 25)))
    found, alone = second.second_input(scan, p, 2.0, across), second.second_input(scan, p, 2.0)
    np.testing.assert_array_equal(found[:channels + 2], alone)
    np.testing.assert_array_equal(found, plain_input(scan, p, 2.0, across))
    assert found[channels + 2:].any() and found.flags.c_contiguous


def test_what_a_network_is_given_by_name():
    assert second.given_names(["T1w"], None, False) == ["T1w"]
    assert second.given_names(["T1w"], ["a", "b"], True) == ["T1w", "a", "b", "T1w, mirrored", "a, mirrored",
                                                            "b, mirrored"]


def test_the_order_of_axes_in_memory_changes_nothing():
    scan, p = made((17, 16, 18))
    turned = second.second_input(np.asfortranarray(scan), np.asfortranarray(p), 2.0)
    np.testing.assert_array_equal(turned, second.second_input(scan, p, 2.0))


def test_where_nothing_is_found_there_is_no_region():
    scan, p = made((8, 8, 8))
    p[:] = F(0.3)  # not above it
    assert second.region(p, 2) is None and second.second_input(scan, p, 2) is None


def test_the_region_has_eight_millimetres_around_what_is_found_and_ends_with_the_volume():
    p = np.zeros((2, 20, 20, 20), np.float32)
    p[1, 5, 10, 19] = 0.4
    assert second.region(p, 2) == ((1, 10), (6, 15), (15, 20))
    assert second.region(p, 3.2)[0] == (3, 8)  # 2.5 voxels: 2, the even number
    assert second.region(p, 20)[0] == (5, 6)


@pytest.mark.parametrize("values, expected", [
    ([7] * 501, (7, 7, 7)), ([7] * 500, (0, 64, 128)), ([], (0, 64, 128)),
    ([0] * 251 + [9] * 251 + [200] * 251 + [255] * 251, (0, 9, 200)),
    ([1] * 250 + [2] * 752, (2, 2, 2)),  # 250 are fewer than a quarter of 1,002
])
def test_a_quartile_is_the_smallest_value_up_to_which_that_share_lies(values, expected):
    assert second.quartiles(np.array(values, np.uint8)) == expected


def test_grey_values_lie_between_four_ranges_below_the_median_and_eight_above():
    levels = second.grey_levels((90, 100, 110))
    assert levels[100] == 85 and levels[20] == levels[0] == 0 and levels[255] == 250
    assert second.grey_levels((100, 100, 100))[[84, 100, 104, 132]].tolist() == [0, 85, 106, 255]

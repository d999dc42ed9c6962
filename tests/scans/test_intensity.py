"""Intensities: the ranges that scalings take from a scan, and what becomes of values outside them."""

import numpy as np
import pytest
from small import array, image_of

from meshnet.errors import UserError
from meshnet.scans.grid import Grid, conform
from meshnet.scans.intensity import intensity_range, without_extremes


def test_brainchops_quantiles_are_those_of_the_sorted_conformed_voxels():
    """Its 5 % and 95 % of all voxels go to 0 and 1; values outside stay. A volume of one value is no division by 0."""
    rng = np.random.default_rng(0)
    scan = image_of(rng.gamma(2.0, 40.0, (20, 17, 23)) * (rng.random((20, 17, 23)) < 0.7))
    grid = Grid(1.0, (24, 24, 24))
    plain, scaled = (array(conform(scan, grid, kind)).astype(float) for kind in ("conform_uint8", "brainchop_quantile"))
    ordered = np.sort(plain, axis=None)
    low, high = ordered[int(0.05 * plain.size)], ordered[int(np.ceil(0.95 * plain.size)) - 1]
    np.testing.assert_allclose(scaled, (plain - low) / (high - low), atol=1e-6)
    assert scaled.max() > 1 and array(conform(scan, grid, "brainchop_quantile")).dtype == np.float32
    assert np.isfinite(array(conform(image_of(np.ones((3, 3, 3))), grid, "brainchop_quantile"))).all()
    with pytest.raises(UserError, match="window"):
        conform(scan, grid, "brainchop_quantile", (0, 1))


def test_uint8_scaling_crops_a_thousandth_of_the_non_zero_voxels():
    # 10,000 different values above zero, as many zeros: the top ten of the values may be clipped.
    data = np.concatenate([np.zeros(10_000), np.arange(1, 10_001)]).reshape(20, 20, 50).astype(np.float32)
    low, high = intensity_range(data, "conform_uint8")
    assert low == 0 and high == pytest.approx(9_980)  # bins of 10; the one before that in which the share is reached
    scaled = array(conform(image_of(data), Grid(1, (20, 20, 50), "RAS")))
    np.testing.assert_array_equal(scaled, np.rint(np.minimum(data * np.float32(255 / high), 255)).astype(np.uint8))


def test_uint8_data_keep_their_values():
    data = np.random.default_rng(1).integers(0, 99, (10, 12, 14)).astype(np.uint8)
    assert (array(conform(image_of(data), Grid(1, (10, 12, 14), "RAS"))) == data).all()


def test_space_outside_the_scan_is_zero_even_where_values_are_negative():
    ct = np.random.default_rng(2).integers(-1000, 1000, (8, 8, 8)).astype(np.int16)
    for scaling, window in (("conform_uint8", None), ("minmax", None), ("quantile", None), ("window", (-20.5, 80))):
        out = array(conform(image_of(ct), Grid(1, (16, 16, 16), "RAS"), scaling, window))
        inside = out[4:12, 4:12, 4:12]
        assert inside.max() == (255 if scaling == "conform_uint8" else 1) and inside.min() == 0
        assert out.sum(dtype=float) == inside.sum(dtype=float)


def test_scalings_have_their_own_ranges():
    data = np.concatenate([np.zeros(500), np.linspace(1, 1000, 500)]).reshape(10, 10, 10)
    assert intensity_range(data, "minmax") == (0, 1000)
    assert intensity_range(data, "quantile") == pytest.approx((5.995, 995.005))
    window = array(conform(image_of(data), Grid(1, (10, 10, 10), "RAS"), "window", (100, 300)))
    np.testing.assert_allclose(window, np.clip((data - 100) / 200, 0, 1), atol=1e-6)
    assert window.dtype == np.float32


@pytest.mark.parametrize(("shape", "low", "high"), [((5, 5, 4), 5, 94), ((5, 11, 2), 5, 104)])
def test_brainchops_quantiles_are_single_voxels_of_the_sorted_ones(shape, low, high):
    """Of 100 different values the sixth and the 95th; 5 % of 110 is rounded down, 95 % of it up."""
    values = np.random.default_rng(0).permutation(np.prod(shape)).astype(np.uint8).reshape(shape)
    scaled = array(conform(image_of(values), Grid(1, shape, "RAS"), "brainchop_quantile"))
    np.testing.assert_allclose(scaled, (values.astype(float) - low) / (high - low), atol=1e-6)


@pytest.mark.parametrize("window", [(3, 3), (3, 1), (1, 2, 3), (0,)])
def test_a_window_has_a_lower_and_an_upper_end(window):
    with pytest.raises(UserError, match="expected LOW < HIGH"):
        intensity_range(np.ones((2, 2, 2)), "window", window)
    assert intensity_range(np.ones((2, 2, 2)), "window", (-1, 3)) == (-1.0, 3.0)


def test_a_range_that_float32_cannot_hold_is_none():
    """Rubbish of a damaged header: next to nothing but denormal numbers, and a few large ones."""
    data = np.full((30, 30, 30), 1e-44, np.float32)
    data[::2] = 3e-44
    data[0, 0, :5] = 1e-20
    assert without_extremes(data, "conform_uint8", 0.064) is None
    data[data < 1e-30] *= np.float32(1e38)
    data[0, 0, :5] = 1
    assert without_extremes(data, "conform_uint8", 0.064).high < 1e-5


@pytest.mark.parametrize("value", [5.0, -3e7, 2e21])
def test_a_scan_of_one_value_has_a_range_to_divide_by(value):
    scan = image_of(np.full((8, 8, 8), value, np.float32))
    low, high = intensity_range(np.asarray(scan.dataobj), "conform_uint8")
    assert low == np.float32(value) and np.float32(high - low) >= 1
    with np.errstate(all="raise"):
        assert not array(conform(scan, Grid(1.0, (8, 8, 8)), exact=False)).any()

"""Sampling maps and smooth fields."""

import numpy as np
from scipy import ndimage

from meshnet.data.synthetic import atlas


def test_sample_is_trilinear():
    rng = np.random.default_rng(0)
    maps = rng.random((7, 8, 9, 2), dtype=np.float32)
    index = rng.uniform(0, 5.9, (3, 200))
    expected = np.stack([ndimage.map_coordinates(maps[..., c], index, order=1) for c in range(2)], -1)
    np.testing.assert_allclose(atlas.sample(maps, index), expected, atol=1e-5)


def test_smooth_field_is_the_same_at_every_lattice():
    axis = np.arange(-60, 60, 2.0)
    fine = atlas.smooth_field(np.random.default_rng(1), (axis,) * 3, 20.0)
    coarse = atlas.smooth_field(np.random.default_rng(1), (axis[::3],) * 3, 20.0)
    np.testing.assert_allclose(fine[:, ::3, ::3, ::3], coarse, atol=1e-5)
    many = np.stack([atlas.smooth_field(np.random.default_rng(s), (axis[::6],) * 3, 8.0) for s in range(8)])
    assert abs(many.std() - 1) < 0.1 and abs(many.mean()) < 0.1

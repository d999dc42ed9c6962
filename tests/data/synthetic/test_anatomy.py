"""Swelling and pull."""

import numpy as np

from meshnet.data.synthetic import anatomy, atlas


def test_swelling_magnifies_and_pull_moves():
    """Where the warp's source points lie closer together, what is there looks larger."""
    axes = (np.arange(-8, 9, 4.0, dtype=np.float32),) * 3
    centre = atlas.BRAIN_CENTRE_MM
    still = np.eye(3, dtype=np.float32), np.zeros(3, np.float32), ()
    warp = lambda swellings, pulls: anatomy.Warp(*still, swellings, pulls)
    plain = warp([], []).points(axes).reshape(3, 5, 5, 5)
    swollen = warp([(centre, 30.0, 0.3)], []).points(axes).reshape(3, 5, 5, 5)
    assert np.ptp(swollen[0, :, 2, 2]) < 0.75 * np.ptp(plain[0, :, 2, 2])
    pulled = warp([], [(centre, 30.0, np.array([5.0, 0, 0], np.float32))]).points(axes).reshape(3, 5, 5, 5)
    np.testing.assert_allclose(pulled[:, 2, 2, 2] - plain[:, 2, 2, 2], [-5, 0, 0], atol=1e-4)

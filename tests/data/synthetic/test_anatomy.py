"""Swelling and pull."""

import numpy as np

from meshnet.data.synthetic import anatomy, atlas
from meshnet.data.synthetic.lesions import Lesion


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


def cube(side, corner):
    """A lesion of ``side``³ mm."""
    return Lesion(np.ones((side,) * 3, bool), 1.0, np.array(corner, np.float32))


def test_fresh_lesions_swell_and_old_ones_pull_the_nearer_ventricle():
    large, small, far = cube(30, (20, -30, 0)), cube(15, (20, -30, 0)), cube(30, (20, 60, 60))
    assert np.allclose(large.centre_mm, (34.5, -15.5, 14.5))
    radius = (3 * 30**3 / (4 * np.pi)) ** (1 / 3)
    for seed in range(40):
        fresh = anatomy.draw_warp(np.random.default_rng(seed), [large], True, 1)
        assert len(fresh.swellings) == 3 and not fresh.pulls  # each ventricle has its own
        centre, reach, amount = fresh.swellings[-1]
        assert np.array_equal(centre, large.centre_mm) and 0 <= amount <= 0.2
        np.testing.assert_allclose(reach, 1.3 * radius)
        old = anatomy.draw_warp(np.random.default_rng(seed), [large, small, far], False, 1)
        assert len(old.swellings) == 2 and len(old.pulls) == 1  # not towards a small or a distant one
        middle, reach, vector = old.pulls[0]
        assert np.array_equal(middle, anatomy.VENTRICLES_MM[1]) and reach == 14
        away = large.centre_mm - middle
        assert np.linalg.norm(vector) <= 0.25 * radius
        np.testing.assert_allclose(vector / np.linalg.norm(vector), away / np.linalg.norm(away), atol=1e-3)


def test_rotations_are_about_x_then_y_then_z():
    quarter = np.pi / 2
    for angles, point, expected in (((quarter, 0, 0), (0, 1, 0), (0, 0, 1)), ((0, quarter, 0), (0, 0, 1), (1, 0, 0)),
                                    ((0, 0, quarter), (1, 0, 0), (0, 1, 0)),
                                    ((quarter, quarter, quarter), (0, 1, 0), (0, 1, 0))):
        np.testing.assert_allclose(anatomy.rotation(np.array(angles)) @ point, expected, atol=1e-9)

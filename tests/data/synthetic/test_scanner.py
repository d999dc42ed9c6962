"""Flaws of the scanner do what they say."""

import numpy as np
import pytest
from scipy import ndimage

from meshnet.data.synthetic import scanner


def flawless(**changes) -> scanner.Acquisition:
    return scanner.Acquisition(**{"acquired_mm": (2.0, 2.0, 2.0), "bias": 0.0, "noise": 0.0, **changes})


def test_scanner_flaws_do_what_they_say():
    rng = np.random.default_rng(0)
    truth = ndimage.gaussian_filter(rng.random((24, 24, 24)).astype(np.float32), 1)
    take = lambda **changes: scanner.scan(np.random.default_rng(1), truth, 2.0, flawless(**changes))
    plain = take()
    np.testing.assert_allclose(plain, truth, rtol=1e-5)
    np.testing.assert_allclose(take(gain=7.0), 7 * truth, rtol=1e-5)
    # Thick slices: equal to averaging by hand where slices divide the lattice, and linear between their middles.
    thick = take(acquired_mm=(2.0, 2.0, 8.0))
    slices = truth.reshape(24, 24, 6, 4).mean(-1)
    middle = slices[..., 1] * 0.625 + slices[..., 0] * 0.375
    np.testing.assert_allclose(thick[..., 4], middle, rtol=1e-4)
    # Ringing keeps the mean and the low frequencies.
    rung = take(ringing=(0, 0.5))
    spectrum = np.abs(np.fft.fft(rung, axis=0))
    assert spectrum[9:16].max() < 1e-2 * spectrum.max() and rung.mean() == pytest.approx(truth.mean(), rel=1e-2)
    np.testing.assert_allclose(take(ghost=(1, 0.1, 3)), truth + 0.1 * np.roll(truth, 8, 1), rtol=1e-5)
    np.testing.assert_allclose(take(shift_mm=(0, 4.0)), 0.6 * truth + 0.4 * np.roll(truth, 2, 0), rtol=1e-5)
    np.testing.assert_allclose(take(shift_mm=(0, 0.5)), 0.6 * truth + 0.4 * np.roll(truth, 1, 0), rtol=1e-5)
    np.testing.assert_allclose(take(gamma=2.0), truth ** 2, rtol=1e-5)
    cut = take(cut_mm={(2, 0): 10.0})
    assert (cut[:, :, :5] == 0).all() and (cut[:, :, 5:] > 0).all()
    assert take(offset=0.1).min() == np.float32(-0.1) and (take(offset=0.1) < 0).sum() == 1
    noise = take(noise=0.05) - plain
    assert 0.03 < noise.std() < 0.07


def test_mask_is_blank_where_the_scan_is_cut():
    how = flawless(cut_mm={(2, 0): 8.0, (2, 1): 4.0})
    away = scanner.cut_away((6, 6, 10), 2.0, how)
    assert away[..., :4].all() and away[..., 8:].all() and not away[..., 4:8].any()


def test_without_flaws_there_is_a_bias_field_and_noise():
    for seed in range(20):
        how = scanner.draw_acquisition(np.random.default_rng(seed), 2.0, 0.0)
        assert how.acquired_mm == (2.0,) * 3 and how.gamma == 1 and not how.cut_mm and how.offset == 0
        assert how.ghost is None and how.shift_mm is None and how.ringing is None
        assert 0.03 <= how.bias <= 0.25 and 60 <= how.bias_mm <= 150
        assert 0.003 <= how.noise <= 0.05 and 100 <= how.gain <= 3000


def test_each_flaw_comes_as_often_as_it_should():
    """At a share of 0.4: thick slices and the cut below half as often again, the cut above at 0.16."""
    drawn = [scanner.draw_acquisition(np.random.default_rng(seed), 2.0, 0.4) for seed in range(1500)]
    often = lambda test: np.mean([bool(test(how)) for how in drawn])
    for test, expected in ((lambda how: max(how.acquired_mm) > 3.2, 0.6 * 3.8 / 4.5), (lambda how: how.ghost, 0.4),
                           (lambda how: how.shift_mm, 0.4), (lambda how: how.ringing, 0.4),
                           (lambda how: (2, 0) in how.cut_mm, 0.6), (lambda how: (2, 1) in how.cut_mm, 0.16),
                           (lambda how: how.offset, 0.4), (lambda how: min(how.acquired_mm) > 2.0, 0.4 * 1.2 / 1.7)):
        assert often(test) == pytest.approx(expected, abs=0.05)
    smooth = [scanner.draw_acquisition(np.random.default_rng(seed), 1.0, 0.4, smooth=True) for seed in range(50)]
    assert all(min(how.acquired_mm) >= 1.5 for how in smooth)
    assert all(2 <= how.ghost[2] <= 5 and 0.02 <= how.ghost[1] <= 0.12 for how in drawn if how.ghost)
    assert all(0.35 <= how.ringing[1] <= 0.7 for how in drawn if how.ringing)
    assert all(0.5 <= how.shift_mm[1] <= 4 for how in drawn if how.shift_mm)

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
    assert not np.allclose(take(ghost=(1, 0.1, 2)), plain) and not np.allclose(take(shift_mm=(0, 2.0)), plain)
    cut = take(cut_mm={(2, 0): 10.0})
    assert (cut[:, :, :5] == 0).all() and (cut[:, :, 5:] > 0).all()
    assert take(offset=0.1).min() < 0
    noise = take(noise=0.05) - plain
    assert 0.03 < noise.std() < 0.07


def test_mask_is_blank_where_the_scan_is_cut():
    how = flawless(cut_mm={(2, 0): 8.0, (2, 1): 4.0})
    away = scanner.cut_away((6, 6, 10), 2.0, how)
    assert away[..., :4].all() and away[..., 8:].all() and not away[..., 4:8].any()

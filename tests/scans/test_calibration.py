"""The factor and the shift that make probabilities right, of logits whose own are known."""

import sys

import numpy as np
import pytest


@pytest.fixture
def calibrate(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks/trust"))
    import calibrate

    yield calibrate
    sys.modules.pop("calibrate", None)


@pytest.mark.parametrize("factor, shift", [(1.0, 0.0), (0.7, 0.6), (0.85, -0.5), (1.3, 0.4)])
def test_factor_and_shift_are_found_again(calibrate, factor, shift):
    """Of 200,000 voxels of three classes, mostly background, which are lesion by these probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal([3, 0, 0.5], [1.5, 3, 1], (200_000, 3))
    truth = rng.random(len(logits)) < calibrate.probability(logits, factor, shift)
    assert calibrate.fitted(logits, truth) == pytest.approx((factor, shift), abs=0.03)
    said = calibrate.reliability(calibrate.probability(logits, factor, shift), truth)
    assert all(one["is"] == pytest.approx(one["said"], abs=0.03) for one in said if one["voxels"] > 3000)


def test_the_search_does_not_end_where_it_begins(calibrate):
    """As it did on these, with a shift of 0.002."""
    rng = np.random.default_rng(0)
    logits = rng.normal([7.0, -1.7, 1.9], [3.9, 2.3, 1.3], (6000, 3))
    truth = rng.random(len(logits)) < calibrate.probability(logits, 0.87, 0.62)
    assert calibrate.fitted(logits, truth) == pytest.approx((0.87, 0.62), abs=0.1)

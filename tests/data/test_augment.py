"""Augmentation: off by default, seeded per run, epoch and case, and each transform does what it says."""

import numpy as np
import pytest
import torch

from meshnet.config import AugmentConfig
from meshnet.data.augment import PROBABILITIES, Augment, case_seed, is_on
from meshnet.data.batches import TrainingCases
from meshnet.data.reader import PreparedData


@pytest.fixture(scope="module")
def case():
    generator = np.random.default_rng(0)
    image = np.zeros((2, 16, 18, 20), np.float32)
    image[:, 3:-3, 3:-3, 3:-3] = generator.uniform(0.3, 0.7, (2, 10, 12, 14))
    mask = np.zeros((16, 18, 20), np.uint8)
    mask[4:7, 6:10, 8:12] = 1
    return image, mask


def make(orientation="LIA", **values):
    return Augment(AugmentConfig(**values), 1.0, orientation)


@pytest.fixture(scope="module")
def second(case):
    """What the second network of a cascade is given: a channel of the scan, two of the first one's probabilities."""
    image = np.concatenate([case[0][:1], case[0] / 2])
    return image, case[1]


@pytest.mark.parametrize("name", [name for name in PROBABILITIES if name not in ("flip", "affine")])
def test_grey_values_of_a_first_networks_probabilities_and_outside_its_region_stay(second, name):
    image, _ = Augment(AugmentConfig(**{name: 1.0}), 1.0, "LIA", [True, False, False])(*second, seed=1)
    assert np.array_equal(image[1:], second[0][1:]) and not np.array_equal(image[0], second[0][0])
    outside = np.ones(image.shape[1:], bool)
    outside[3:-3, 3:-3, 3:-3] = False
    assert not image[:, outside].any()


def test_a_first_networks_probabilities_move_with_the_scan(second):
    image, mask = Augment(AugmentConfig(flip=1.0), 1.0, "LIA", [True, False, False])(*second, seed=0)
    assert np.array_equal(image, np.flip(second[0], 1)) and np.array_equal(mask, np.flip(second[1], 0))
    turn = {"affine": 1.0, "rotate_degrees": 25, "shift_mm": 3}
    image, mask = Augment(AugmentConfig(**turn), 1.0, "LIA", [True, False, False])(*second, seed=3)
    plain, plain_mask = Augment(AugmentConfig(**turn), 1.0, "LIA")(*second, seed=3)
    inside = image.any(0)
    np.testing.assert_allclose(image[:, inside], plain[:, inside], atol=1e-5)
    assert np.array_equal(mask, plain_mask) and not np.array_equal(image, second[0]) and inside.mean() > 0.2


def test_grey_values_of_the_mirror_image_change_with_those_of_the_scan(second):
    """A scan and a probability, then the mirror images of both."""
    image = np.concatenate([second[0][:2], np.flip(second[0][:2], 1)])
    found, _ = Augment(AugmentConfig(contrast=1.0), 1.0, "LIA", [True, False, True, False])(image, second[1], seed=1)
    assert np.array_equal(found[1::2], image[1::2]) and not np.array_equal(found[0], image[0])
    np.testing.assert_allclose(found[2], np.flip(found[0], 0), atol=1e-6)


def test_off_by_default():
    assert not is_on(AugmentConfig()) and is_on(AugmentConfig(flip=0.5))


@pytest.mark.parametrize(("orientation", "axis"), [("LIA", 0), ("PIR", 2), ("ASL", 2)])
def test_a_flip_mirrors_left_and_right_of_image_and_mask(case, orientation, axis):
    image, mask = make(orientation, flip=1.0)(*case, seed=0)
    assert np.array_equal(image, np.flip(case[0], axis + 1)) and np.array_equal(mask, np.flip(case[1], axis))


@pytest.mark.parametrize("name", [name for name in PROBABILITIES if name not in ("flip", "affine")])
def test_intensity_transforms_change_the_image_alone_and_stay_in_range(case, name):
    image, mask = make(**{name: 1.0})(*case, seed=1)
    assert not np.array_equal(image, case[0]) and np.array_equal(mask, case[1])
    assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1


def test_a_wider_range_of_intensities_is_not_cut(case):
    """As the scaling brainchop_quantile gives it."""
    image = case[0] * 4 - 1
    flipped, _ = make(flip=1.0)(image, case[1], 0)
    assert np.array_equal(flipped, image[:, ::-1])


def test_an_affine_moves_image_and_mask_together():
    image = np.zeros((1, 24, 24, 24), np.float32)
    image[0, 8:14, 9:16, 7:15] = 1
    moved, mask = make(affine=1.0, shift_mm=3.0)(image, image[0].astype(np.uint8), seed=3)
    assert mask.sum() > 0 and not np.array_equal(mask, image[0])
    assert np.mean((moved[0] > 0.5) == (mask > 0)) > 0.99


def test_the_seed_decides(case):
    both = make(flip=0.5, affine=0.5, noise=0.5, contrast=0.5)
    one, two = both(*case, seed=5), both(*case, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(one, two))
    assert len({both(*case, seed=seed)[0].tobytes() for seed in range(6)}) > 3
    assert len({case_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}) == 125


def test_workers_and_epochs(tiny_data):
    data = PreparedData(tiny_data)
    augment = Augment(AugmentConfig(flip=0.5, noise=1.0), 8.0, "LIA")
    cases = TrainingCases(data, None, [], 7, augment)
    from meshnet.data.batches import load_batches

    alone, helped = ([batch["image"] for batch in load_batches(cases, [[0], [1], [2]], 4, workers)]
                     for workers in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, helped))
    assert alone[0].dtype == torch.float32
    later = next(iter(load_batches(cases, [[0]], 5, 0)))["image"]
    assert not torch.equal(later, alone[0])

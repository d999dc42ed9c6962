"""Losses against torch's own classes and MONAI-free hand arithmetic, a value a case."""

import pytest
import torch

from meshnet.config import LossConfig
from meshnet.training.loss import SegmentationLoss, cross_entropy, soft_dice


def case(seed, classes=2, batch=1, size=5):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, size, size, size, generator=generator)
    return logits, torch.randint(0, classes, (batch, size, size, size), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.01, 0.3])
def test_a_case_equals_torch_cross_entropy(classes, smoothing):
    logits, target = case(0, classes)
    config = LossConfig(background_weight=0.5, lesion_weight=1.0, label_smoothing=smoothing)
    weight = torch.tensor([0.5] + [1.0] * (classes - 1))
    expected = torch.nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)(logits, target.long())
    torch.testing.assert_close(SegmentationLoss(config, classes)(logits, target), expected)


def test_smoothing_moves_the_target_as_the_guide_says():
    # Soft targets [0.005, 0.995] for smoothing 0.01 over two classes, worked by hand at one voxel.
    logits = torch.tensor([0.3, -0.2]).reshape(1, 2, 1, 1, 1)
    log_p = logits.flatten().log_softmax(0)
    weight = torch.tensor([0.5, 1.0])
    expected = -(0.005 * 0.5 * log_p[0] + 0.995 * 1.0 * log_p[1])
    found = cross_entropy(logits, torch.ones(1, 1, 1, 1, dtype=torch.uint8), weight, 0.01)
    torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("name", ["ce", "dice", "dice_ce"])
def test_a_batch_is_the_mean_of_its_cases(name):
    loss = SegmentationLoss(LossConfig(name=name, background_weight=0.1), 2)
    logits, target = case(1, batch=3)
    target[0] = 0  # a healthy case beside two with lesions: where torch's own mean over a batch goes astray
    each = torch.stack([loss(logits[i:i + 1], target[i:i + 1]) for i in range(3)])
    torch.testing.assert_close(loss(logits, target), each.mean())
    if name == "ce":
        mixed = torch.nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0]), label_smoothing=0.01)(logits, target.long())
        assert abs(mixed - each.mean()) > 1e-3


def test_soft_dice_by_hand():
    # p(lesion) = 0.75 on both lesion voxels and 0.25 on both others: overlap 1.5, sums 2 and 2, smoothing 1.
    odds = torch.log(torch.tensor(3.0))
    logits = torch.stack([torch.zeros(4), torch.tensor([odds, odds, -odds, -odds])]).reshape(1, 2, 4, 1, 1)
    target = torch.tensor([1, 1, 0, 0], dtype=torch.uint8).reshape(1, 4, 1, 1)
    assert soft_dice(logits, target).item() == pytest.approx(1 - (2 * 1.5 + 1) / (2 + 2 + 1))


def test_soft_dice_of_a_healthy_case_rewards_silence():
    target = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    silent = torch.tensor([20.0, -20.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 3, 3, 3)
    assert soft_dice(silent, target).item() == pytest.approx(0, abs=1e-5)
    assert soft_dice(-silent, target).item() > 0.9


def test_background_weight_and_dice_weight_count():
    logits, target = case(2)
    light = SegmentationLoss(LossConfig(background_weight=0.0), 2)(logits, target)
    heavy = SegmentationLoss(LossConfig(background_weight=1.0), 2)(logits, target)
    assert light != heavy
    both = SegmentationLoss(LossConfig(name="dice_ce", dice_weight=2.0), 2)(logits, target)
    ce = SegmentationLoss(LossConfig(), 2)(logits, target)
    torch.testing.assert_close(both, ce + 2 * soft_dice(logits, target).mean())


def test_a_healthy_case_without_background_weight_adds_nothing():
    logits, target = case(3, batch=2)
    target[0] = 0
    loss = SegmentationLoss(LossConfig(background_weight=0.0, label_smoothing=0.0), 2)
    torch.testing.assert_close(loss(logits, target), loss(logits[1:], target[1:]) / 2)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 2, 48, 48, 48, dtype=torch.float16)  # 110,592 voxels: float16 sums end at 65,504
    target = torch.zeros(1, 48, 48, 48, dtype=torch.uint8)
    assert SegmentationLoss(LossConfig(label_smoothing=0.0), 2)(logits, target).item() == pytest.approx(0.693147, 1e-4)

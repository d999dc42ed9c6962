"""Counted where the logits are: the Dice at every threshold, the loss and the scores, each against its definition."""

import numpy as np
import pytest
import torch
from small import network, scan

from meshnet.config import LossConfig
from meshnet.inference import predict
from meshnet.scans import metrics
from meshnet.scans.mask import Marks, slices
from meshnet.training import sweep
from meshnet.training.loss import SegmentationLoss, sums_of
from meshnet.training.tally import as_numbers, from_numbers, tally
from meshnet.training.validation import choose

GENERATOR = torch.Generator().manual_seed(3)


def values(number=4000):
    """Probabilities with every threshold among them, and the numbers next to it on either side."""
    edges = torch.tensor(sweep.THRESHOLDS)
    beside = [torch.nextafter(edges, torch.tensor(end)) for end in (0.0, 1.0)]
    return torch.cat([torch.rand(number, generator=GENERATOR), edges, *beside, torch.tensor([0.0, 1.0])])


def test_the_dice_at_every_threshold_is_that_of_the_mask_there():
    probability = values()
    truth = torch.rand(len(probability), generator=GENERATOR) < probability
    found = sweep.dice_by_threshold(sweep.histograms(probability, truth).tolist())
    for threshold, dice in zip(sweep.THRESHOLDS, found, strict=True):
        mask = (probability.numpy() >= threshold)[:, None, None]
        assert dice == pytest.approx(metrics.overlap_metrics(mask, truth[:, None, None])["dice"], abs=1e-12)
    nothing = sweep.histograms(torch.zeros(5), torch.zeros(5, dtype=torch.bool))
    assert sweep.dice_by_threshold(nothing.tolist()) == [1.0] * len(sweep.THRESHOLDS)


def test_the_counts_of_a_gpu_are_the_same_but_at_the_edges(monkeypatch):
    probability, truth = torch.rand(5000, generator=GENERATOR), torch.rand(5000, generator=GENERATOR) < 0.3
    exact = sweep.histograms(probability, truth)

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")  # any but the CPU

    other = sweep.histograms(probability.as_subclass(Elsewhere), truth).as_subclass(torch.Tensor)
    assert (exact - other).abs().sum() <= 4 and other.sum() == 5000


@pytest.mark.parametrize(("curves", "expected"), [
    ([{0.3: 0.8}, {0.3: 0.2, 0.7: 0.9}], 0.3),  # the mean decides: 0.5 against 0.45
    ([{0.1: 0.4, 0.45: 0.4, 0.9: 0.4}], 0.45),  # of equal ones the nearest to 0.5
    ([{}], 0.5),
])
def test_the_threshold_is_the_one_with_the_highest_mean(curves, expected):
    curves = [[each.get(threshold, 0.0) for threshold in sweep.THRESHOLDS] for each in curves]
    threshold, place = sweep.best_threshold(curves)
    assert threshold == expected == sweep.THRESHOLDS[place]


@pytest.mark.parametrize("name", ["ce", "dice", "dice_ce"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_from_sums_of_two_parts_is_that_of_the_whole(name, classes):
    config = LossConfig(name=name, background_weight=0.3, label_smoothing=0.05, dice_weight=0.7)
    criterion = SegmentationLoss(config, classes)
    logits = 4 * torch.randn(1, classes, 6, 5, 4, generator=GENERATOR)
    target = torch.randint(0, classes, (1, 6, 5, 4), generator=GENERATOR).to(torch.uint8)
    sums = sums_of(logits[0, :, :2], target[0, :2]) + sums_of(logits[0, :, 2:], target[0, 2:])
    assert criterion.of_sums(sums) == pytest.approx(criterion(logits, target).item(), rel=1e-5)
    healthy = SegmentationLoss(LossConfig(background_weight=0), 2)
    assert healthy.of_sums(sums_of(logits[0, :2], torch.zeros(6, 5, 4))) == 0


@pytest.mark.parametrize(("classes", "marks"), [(2, None), (3, None), (3, "fluid")])
def test_a_tally_has_the_scores_of_the_mask(classes, marks):
    names = ("background", "lesion", "fluid")[:classes]
    marking = Marks(names, marks)
    logits = 3 * torch.randn(classes, 7, 6, 5, generator=GENERATOR)
    truth = torch.randint(0, classes, (7, 6, 5), generator=GENERATOR).to(torch.uint8)
    found = tally(logits, truth, marking, True)
    labels = marking.labels(marking.of(logits.softmax(0).numpy()))
    expected = metrics.overlap_metrics(labels, marking.truth(truth.numpy()), (2, 2, 2), marking.count)
    assert metrics.confusion_metrics(found.confusion.tolist(), (2, 2, 2)) == pytest.approx(expected)
    if marks or classes == 2:
        probability = marking.of(logits.softmax(0))[0]
        dices = sweep.dice_by_threshold(found.bins.tolist())
        for place in (0, 60, 99, 150):
            mask = probability >= sweep.THRESHOLDS[place]
            assert dices[place] == pytest.approx(metrics.overlap_metrics(mask, marking.truth(truth) > 0)["dice"])
        assert found.highest == pytest.approx(probability.max())
    else:
        assert found.bins is None


class OnGPU(torch.Tensor):
    """Computed on the CPU by what is meant for a GPU."""

    device = torch.device("meta")


@pytest.mark.parametrize("dice", [False, True])
@pytest.mark.parametrize(("classes", "marks"), [(2, None), (3, None), (3, "fluid")])
def test_a_gpu_counts_the_same(classes, marks, dice):
    marking = Marks(("background", "lesion", "fluid")[:classes], marks)
    logits = 3 * torch.randn(classes, 17, 16, 15, generator=GENERATOR)
    truth = torch.randint(0, classes, (17, 16, 15), generator=GENERATOR).to(torch.uint8)
    truth[5:] = 0
    here = tally(logits, truth, marking, dice)
    there = tally(logits.as_subclass(OnGPU), truth.as_subclass(OnGPU), marking, dice)
    assert torch.equal(here.confusion, there.confusion.as_subclass(torch.Tensor))
    assert torch.allclose(here.sums, there.sums.as_subclass(torch.Tensor), rtol=1e-6)
    assert here.bins is None or (here.bins - there.bins.as_subclass(torch.Tensor)).abs().sum() <= 4


@pytest.mark.parametrize(("classes", "marks"), [(2, None), (3, None), (3, "fluid")])
def test_a_tally_comes_back_whole_from_its_numbers(classes, marks):
    marking = Marks(("background", "lesion", "fluid")[:classes], marks)
    logits = torch.randn(classes, 9, 8, 7, generator=GENERATOR)
    found = tally(logits, torch.randint(0, classes, (9, 8, 7), generator=GENERATOR).to(torch.uint8), marking, True)
    fill = torch.randn(classes, generator=GENERATOR)
    back, beside = from_numbers(as_numbers(found, fill), classes, marking)
    assert torch.equal(beside, fill) and back.sums.dtype == torch.float64
    for one, other in zip(found, back, strict=True):
        assert (one is None and other is None) or (one.dtype == other.dtype and torch.equal(one, other))


def test_what_is_seen_once_gives_the_same_answer(monkeypatch):
    model, volume = network(4), scan(1, (40, 36, 28), box=((9, 30), (7, 25), (5, 20)), air=0.2)
    for given in (volume, np.asarray(volume, order="F")):
        first, seen = predict.answer(model, given), predict.seen_by(model, given)
        with monkeypatch.context() as patch:
            patch.setattr(predict, "look", lambda volume: pytest.fail("looked at again"))
            again = predict.answer(model, given, seen=seen)
        assert again.box == first.box
        assert torch.equal(again.logits, first.logits) and torch.equal(again.fill, first.fill)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_answer_is_the_whole_volume_without_its_air(norm, order):
    model = network(4, norm=norm)
    model.head.bias.data[0] += 30  # marks nothing, so that the box around the head does not grow
    volume = np.asarray(scan(1, (40, 36, 28), box=((9, 30), (7, 25), (5, 20)), air=0.2), order=order)
    whole = predict.predict_logits(model, volume)
    found = predict.answer(model, volume)
    assert np.array_equal(found.logits.numpy(), whole[(slice(None), *slices(found.box))])
    rest = np.ones(whole.shape[1:], bool)
    rest[slices(found.box)] = False
    assert rest.any() == (norm == "batch")
    assert np.array_equal(whole[:, rest], np.broadcast_to(found.fill[:, None], (2, rest.sum())))


def test_a_network_of_several_classes_has_no_threshold():
    rows = [{"case": "a", "dice": 0.3}, {"case": "b", "dice": 0.5}]
    found = choose(rows)
    assert found.threshold is None and [row["dice_swept"] for row in found.rows] == [0.3, 0.5]

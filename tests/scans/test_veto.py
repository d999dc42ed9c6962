"""The veto against a hand-worked part, and what it may change."""

import json
import math
import re
import sys

import numpy as np
import pytest

from meshnet.errors import UserError
from meshnet.scans.veto import Veto, count_of, parts_of, take_back, values_of

F = np.float32


@pytest.fixture
def learning(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks/trust"))
    import veto

    yield veto
    for name in ("veto", "second_heads", "builtin_weights"):
        sys.modules.pop(name, None)


def two_parts():
    """Probabilities (3, 9, 8, 7) of background, lesion and another class with two lesions apart, and two channels, of
    which the second is bright at the second one."""
    found = np.full((3, 9, 8, 7), 0.05, F)
    found[1, 1:3, 2:4, 2:4], found[1, 6:8, 4:7, 3:5] = 0.7, 0.8
    found[1, 2, 3, 3], found[2, 7, 5, 4] = 0.9, 0.15
    found[0] = 1 - found[1:].sum(0)
    given = np.full((2, 9, 8, 7), 51, np.uint8)
    given[1, 5:9, 3:8, 2:6] = 204
    return found, given


def test_the_values_of_a_part_by_hand():
    """Eight voxels of 2 mm, 0.7 but for one of 0.9, and 4 x 4 x 4 - 8 voxels around them."""
    found, given = two_parts()
    given[0, 1, 2, 2] = 255
    given[1, 0, 1, 1] = 255
    (box, inside, around), _ = parts_of(found[1], 0.5, 0.6)
    assert box == (slice(0, 4), slice(1, 5), slice(1, 5)) and inside.sum() == 8 and around.sum() == 56
    values = values_of((inside, around), found[1][box], found[2][box], given[(slice(None), *box)], 2.0)
    mean = (7 * 0.7 + 0.9) / 8
    assert values == pytest.approx([
        math.log(0.064), math.log(0.901 / 0.101), math.log((mean + 0.001) / (1.001 - mean)), 0.05,
        (7 * 0.2 + 1) / 8, 0.2, 0.2, (55 * 0.2 + 1) / 56], abs=1e-6)
    assert len(values) == count_of(2)


def test_only_a_part_with_a_score_below_nothing_is_lowered():
    found, given = two_parts()
    before = found.copy()
    veto = Veto(0.5, (0, 0, 0, 0, 0, -1, 0, 0))  # the second channel within it: 0.2, and 0.8 for the second part
    assert take_back(found, [1], given, 0.4, 0.6, 2.0, veto) == pytest.approx(12 * 0.008)
    changed = np.zeros(found.shape[1:], bool)
    changed[6:8, 4:7, 3:5] = True
    np.testing.assert_array_equal(found[:, ~changed], before[:, ~changed])
    np.testing.assert_array_equal(found[1, changed], before[1, changed] * F(0.2))
    np.testing.assert_array_equal(found[2], before[2])
    assert found[1, changed].max() < 0.4 and np.abs(found.sum(0) - 1).max() < 1e-6


def test_what_is_nowhere_sure_is_left_and_both_classes_count_where_they_decide():
    found, given = two_parts()
    before, never = found.copy(), Veto(-1.0, (0,) * 8)
    assert take_back(found, [1], given, 0.5, 0.95, 2.0, never) == 0 and np.array_equal(found, before)
    assert take_back(found, [1, 2], given, 0.5, 0.945, 2.0, never) == pytest.approx(20 * 0.008)  # 0.95 in both
    assert found[1:].sum(0).max() < 0.5


def test_a_part_that_fills_the_region_has_nothing_around_it():
    found, given = np.full((2, 3, 3, 3), 0.8, F), np.full((1, 3, 3, 3), 255, np.uint8)
    found[0] = 0.2
    assert take_back(found, [1], given, 0.5, 0, 1.0, Veto(0.0, (0, 0, 0, 0, 0, -1))) == 0
    assert take_back(found, [1], given, 0.5, 0, 1.0, Veto(0.0, (0, 0, 0, 0, -1, 0))) == pytest.approx(0.027)


def test_nothing_found_is_nothing_taken_back():
    found = np.zeros((2, 4, 4, 4), F)
    assert take_back(found, [1], np.zeros((1, 4, 4, 4), np.uint8), 0.5, 0.6, 2.0, Veto(-1.0, (0,) * 6)) == 0


# ---------------------------------------------------------------------- learning it

def test_the_regression_is_that_of_the_least_loss(learning):
    """The slope of the loss, by differences, is 0 there, and what is right is told from what is not."""
    generator = np.random.default_rng(0)
    values = generator.normal(5, [1, 20, 0.1], (400, 3))
    right = values @ [0.5, 0.1, -20] + generator.logistic(0, 1, 400) > np.median(values @ [0.5, 0.1, -20])
    each = generator.uniform(0.2, 3, 400)
    weights, bias = learning.regress(values, right, each)
    middle, spread = values.mean(0), values.std(0)

    def loss(weights, bias):
        score = values @ weights + bias
        return (each * np.where(right, np.log1p(np.exp(-score)), np.log1p(np.exp(score)))).sum() + (
            learning.PENALTY / 2 * ((weights * spread) ** 2).sum())

    least = loss(weights, bias)
    for k in range(3):
        step = np.zeros(3)
        step[k] = 0.02 / spread[k]
        for sign in (1, -1):  # about the middle, so that the bias goes along
            assert loss(weights + sign * step, bias - sign * step @ middle) > least
    assert loss(weights, bias + 0.02) > least < loss(weights, bias - 0.02)
    assert ((values @ weights + bias > 0) == right).mean() > 0.75 and weights[2] < 0 < weights[1]


def test_what_is_right_with_less_than_the_least_probability_is_taken_back(learning, tmp_path):
    """Of 3,000 parts of which a share is right that their first value says; what looks otherwise is not asked."""
    generator = np.random.default_rng(1)
    levels = generator.uniform(-3, 3, 3000)
    right = generator.random(3000) < 1 / (1 + np.exp(-levels))
    parts = [[[float(level), 0.0], 1.0, float(one)] for level, one in zip(levels, right)]
    rows = [{"looks": "T2w", "threshold": 0.3, "parts": parts},
            {"looks": "T1w", "parts": [[[9.0, 9.0], 1.0, 0.0]]}]
    card = {"contrasts": {"T2w": {"threshold": 0.3, "quality": {}}}}  # which was learned with another veto
    (tmp_path / "config.json").write_text(json.dumps(card))
    learning.fit(rows, {"T2w": 0.2}, {"T2w": 0.6}, tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())["contrasts"]["T2w"]
    veto = Veto(found["veto"]["bias"], tuple(found["veto"]["weights"]))
    border = -veto.bias / veto.weights[0]
    assert found["threshold"] == 0.3 and found["veto"]["sure"] == 0.6 and "quality" not in found
    assert border == pytest.approx(math.log(0.2 / 0.8), abs=0.25)
    assert veto.weights[1] == 0
    with pytest.raises(UserError, match="FLAIR or DWI: found 0 parts, expected some"):
        learning.fit(rows, {"FLAIR or DWI": 0.2}, {}, tmp_path)
    with pytest.raises(UserError, match="T2w: found heads measured from"):
        learning.fit([{**rows[0], "threshold": 0.4}], {"T2w": 0.2}, {}, tmp_path)


@pytest.mark.parametrize("given, said", [
    ([], "found nothing"), (["T2w", "0.4", "FLAIR"], "found T2w 0.4 FLAIR"), (["T2w", "40"], "found T2w 40"),
    (["t2w", "0.4"], "found t2w 0.4"), (["T2w", "x"], "found T2w x"), (["FLAIR", "0.2", "DWI", "0.4"], "DWI twice")])
def test_a_probability_for_each_contrast_is_asked_for(learning, given, said):
    with pytest.raises(UserError, match=f"--least: .*{said}"):
        learning.shares(given)
    assert learning.shares(["DWI", "0.2", "T2w", "0.4"]) == {"FLAIR or DWI": 0.2, "T2w": 0.4}


def test_the_scores_of_a_head_by_hand(learning):
    """4 mL half of it right, and 2 mL that is wrong, of two lesions of 10 mL: 2 · 2 / 16, and 2 · 1 / (1 + 2 + 1)."""
    parts = [[[], 4.0, 0.5, 0.9, [1]], [[], 2.0, 0.0, 0.8, []]]
    assert learning.scores({"ml": 10.0, "n": 2}, parts) == (0.25, 0.5, 6.0)
    assert learning.scores({"ml": 0.0, "n": 0}, []) == (1.0, None, 0)


def test_a_veto_is_tried_on_heads_that_it_was_not_learned_from(learning, tmp_path, capsys, monkeypatch):
    """In five folds, each seed in one of them; the value says what is right."""
    (tmp_path / "config.json").write_text(json.dumps({"sure": 0.5, "contrasts": {"T2w": {}}}))
    generator, rows = np.random.default_rng(0), []
    for seed in range(100):
        level, other = generator.normal(2, 1), generator.normal(-2, 1)
        parts = [[[float(level)], 3.0, 0.8, 0.9, [1]], [[float(other)], 2.0, 0.0, 0.8, []]]
        healthy = seed % 5 == 0
        rows.append({"seed": seed, "looks": "T2w", "contrast": "T2w", "ml": 0.0 if healthy else 3.0,
                     "n": 1 - healthy, "parts": parts[healthy:]})
    learning.compare(rows, {"T2w": 0.5}, {}, tmp_path)
    without, within = capsys.readouterr().out.splitlines()
    assert without == ("T2w, without: Dice 0.600, F1 0.667, 20 of 20 healthy heads over 1 mL, 90 % 2.00 mL, "
                       "value 0.573")
    assert re.match(r"T2w, with: Dice 0.7\d\d, F1 0.9\d\d, [0-2] of 20 healthy heads", within)
    learned = []
    monkeypatch.setattr(learning, "learn", lambda some: learned.append({row["seed"] for row in some}) or ([0.0], 0.0))
    learning.compare(rows, {"T2w": 0.5}, {}, tmp_path)
    assert len(learned) == 5 and set().union(*({*range(100)} - one for one in learned)) == {*range(100)}
    assert all(len(one) == 80 for one in learned)

"""Known answers, scipy, statsmodels and brute force."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from meshnet.crossval import stats
from meshnet.crossval.stats import ScoredRun


def run(model, fold, restart, val_dice, scores, metric="dice"):
    cases = tuple({"case": name, "subject": name.split("_")[0], metric: value} for name, value in scores.items())
    return ScoredRun(model, fold, restart, val_dice, cases)


RUNS = [  # fold 0 chooses restart 1, fold 1 restart 0: by validation, against the test scores
    run("a", 0, 0, 0.5, {"s1": 0.9, "s2": 0.9}),
    run("a", 0, 1, 0.6, {"s1": 0.2, "s2": 0.4}),
    run("a", 1, 0, 0.7, {"s3_x": 0.4, "s3_y": 0.8, "s4": 0.8}),
    run("a", 1, 1, 0.7, {"s3_x": 1.0, "s3_y": 1.0, "s4": 1.0}),
]


def test_the_three_means_by_hand():
    found = stats.summarise(RUNS, "dice", np.random.default_rng(0))
    # Chosen: fold 0 (0.2 + 0.4) / 2 = 0.3; fold 1: s3 is the mean of its two scans, (0.6 + 0.8) / 2 = 0.7.
    assert found.folds.mean == pytest.approx(0.5)
    assert found.folds.sd == pytest.approx(0.4 / math.sqrt(2))
    assert found.folds.n == 2
    assert found.restarts.mean == pytest.approx((0.9 + 0.3 + 0.7 + 1.0) / 4)
    assert found.restarts.n == 4
    assert found.subjects.mean == pytest.approx((0.2 + 0.4 + 0.6 + 0.8) / 4)
    assert found.subjects.sd == pytest.approx(np.std([0.2, 0.4, 0.6, 0.8], ddof=1))
    assert found.subjects.n == 4
    assert found.low < found.subjects.mean < found.high


def test_spread_agrees_with_statsmodels():
    values = np.random.default_rng(0).normal(size=17)
    found, reference = stats.spread(values), DescrStatsW(values, ddof=0)
    assert found.mean == pytest.approx(reference.mean)
    assert found.sd == pytest.approx(reference.std_ddof(1))
    assert stats.spread([1.0, math.nan, 3.0]) == stats.Spread(2.0, math.sqrt(2), 2)
    assert math.isnan(stats.spread([1.0]).sd)
    assert math.isnan(stats.spread([math.nan]).mean)


def test_the_restart_is_chosen_by_validation_with_ties_to_the_lowest_and_nan_last():
    chosen = stats.choose_restarts(reversed(RUNS))
    assert {key: value.restart for key, value in chosen.items()} == {("a", 0): 1, ("a", 1): 0}
    runs = [run("a", 0, i, v, {"s": 0.5}) for i, v in enumerate([math.nan, -1.0, math.nan])]
    for order in itertools.permutations(runs):
        assert stats.choose_restarts(order)["a", 0].restart == 1
    assert stats.choose_restarts(runs[::2])["a", 0].restart == 0


def test_a_case_in_two_folds_is_refused():
    with pytest.raises(ValueError, match="s1 is a test case of more than one fold"):
        stats.pooled_cases([run("a", 0, 0, 0.5, {"s1": 0.1}), run("a", 1, 0, 0.5, {"s1": 0.1})])


def test_bootstrap_agrees_with_scipy_draw_for_draw():
    values = np.random.default_rng(1).beta(2, 1, 40)
    low, high = stats.bootstrap_interval([*values, math.nan], np.random.default_rng(7), 2000)
    reference = scipy.stats.bootstrap((values,), np.mean, n_resamples=2000, method="percentile",
                                      rng=np.random.default_rng(7)).confidence_interval
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert np.isnan(stats.bootstrap_interval([0.5], np.random.default_rng(0))).all()


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        low, high = stats.bootstrap_interval(rng.normal(0.7, 0.2, 60), rng, 400)
        hits += low <= 0.7 <= high
    assert 0.91 <= hits / 400 <= 0.975


def exact_p(differences):
    """Two-sided p by all 2ⁿ sign patterns."""
    ranks = scipy.stats.rankdata(np.abs(differences))
    observed = ranks[differences > 0].sum()
    sums = np.array([np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(ranks))])
    tail = min((sums <= observed + 1e-9).mean(), (sums >= observed - 1e-9).mean())
    return min(1.0, 2 * tail)


@pytest.mark.parametrize("n", [4, 7, 12])
def test_wilcoxon_agrees_with_all_sign_patterns(n):
    rng = np.random.default_rng(n)
    a, b = rng.random(n), rng.random(n) * 0.8
    statistic, p, effect = stats.wilcoxon(a, b)
    assert p == pytest.approx(exact_p(a - b), abs=1e-12)
    ranks = scipy.stats.rankdata(np.abs(a - b))
    assert statistic == min(ranks[a > b].sum(), ranks[a < b].sum())
    assert effect == pytest.approx((ranks[a > b].sum() - ranks[a < b].sum()) / ranks.sum())


def test_wilcoxon_of_few_pairs_is_exact_with_ties_and_without():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 50))
    assert stats.wilcoxon(a, b)[1] == pytest.approx(scipy.stats.wilcoxon(a, b, method="exact").pvalue, abs=1e-12)
    for _ in range(5):
        differences = rng.integers(-4, 7, 11).astype(float)
        kept = differences[differences != 0]
        assert stats.wilcoxon(differences, np.zeros(11))[1] == pytest.approx(exact_p(kept), abs=1e-12)


def test_wilcoxon_of_many_pairs_with_ties_and_zeros_agrees_with_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 12, (2, 200)) / 16
    reference = scipy.stats.wilcoxon(a, b, zero_method="wilcox", method="asymptotic")
    statistic, p, _ = stats.wilcoxon(a, b)
    assert (statistic, p) == pytest.approx((reference.statistic, reference.pvalue), abs=1e-12)
    # Where the exact test ends, the normal one takes over without a jump.
    a, b = rng.random((2, 51))
    ranks = scipy.stats.rankdata(np.abs(a - b))
    assert stats.wilcoxon(a, b)[1] == pytest.approx(stats.exact_p(ranks, ranks[a > b].sum()), abs=0.005)


def test_wilcoxon_textbook_and_degenerate_cases():
    # Six pairs, the model better in all: W− = 0, p = 2 / 2⁶.
    assert stats.wilcoxon([2, 4, 6, 8, 10, 12], [1, 2, 3, 4, 5, 6]) == (0.0, pytest.approx(2 / 64), 1.0)
    assert stats.wilcoxon([0.5, 0.5], [0.5, 0.5]) == (0.0, 1.0, 0.0)
    assert np.isnan(stats.wilcoxon([], [])).all()
    # 0.3 − 0.1 and 0.2 − 0 differ in the last bit and still tie: the ranks are (1.5, 1.5).
    assert stats.wilcoxon([0.3, 0.0], [0.1, 0.2]) == (1.5, 1.0, 0.0)


def test_holm_agrees_with_statsmodels_and_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 11):
        p = rng.random(n) ** 3
        assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-15)
    with_gap = stats.holm([0.01, math.nan, 0.03])
    assert with_gap[::2] == pytest.approx([0.02, 0.03])
    assert math.isnan(with_gap[1])


def test_stars():
    found = [stats.stars(p) for p in (0.0009, 0.001, 0.0099, 0.01, 0.049, 0.05, 1, math.nan)]
    assert found == ["***", "**", "**", "*", "*", "", "", ""]


def test_compare_on_made_up_subjects_with_known_answers():
    subjects = [f"s{i}" for i in range(1, 9)]
    reference = {s: 0.5 for s in subjects}
    better = {s: 0.5 + 0.01 * i for i, s in enumerate(subjects, 1)}   # W+ = 36, p = 2 / 2⁸
    mixed = {s: 0.5 + (0.01 if i % 2 else -0.01) * i for i, s in enumerate(subjects, 1)}
    found = stats.compare({"r": reference, "better": better, "mixed": mixed | {"s9": 0.1, "s1": math.nan}}, "r",
                          np.random.default_rng(0))
    assert set(found) == {"better", "mixed"}
    best = found["better"]
    assert (best.n, best.effect, best.stars) == (8, 1.0, "*")
    assert best.difference == pytest.approx(0.045)
    assert best.p == pytest.approx(2 / 256)
    assert best.p_holm == pytest.approx(4 / 256)
    other = found["mixed"]  # without s1: −2 3 −4 5 −6 7 −8, ranks 1 to 7, W+ = 2 + 4 + 6, W− = 1 + 3 + 5 + 7
    assert (other.n, other.statistic, other.stars) == (7, 12.0, "")
    assert other.effect == pytest.approx((12 - 16) / 28)
    assert other.p_holm == pytest.approx(exact_p(np.array([-2, 3, -4, 5, -6, 7, -8])))
    assert other.low <= other.difference <= other.high


def test_bland_altman_by_hand():
    bias, low, high = stats.bland_altman([11, 19, 33], [10, 20, 30])
    assert bias == pytest.approx(1.0)
    assert (low, high) == (pytest.approx(1 - 1.96 * 2), pytest.approx(1 + 1.96 * 2))

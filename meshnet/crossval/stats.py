"""From per-case scores to what a table may say: means by name, intervals, paired tests. Values in, values out.

Three means are kept apart, since their deviations mean different things:

========== ===========================================================================================================
folds      over outer folds, of the restart with the best validation Dice of each fold (what the paper's table shows)
restarts   over every restart of every fold: how much the random seed matters
subjects   over subjects, each scored once, by the chosen restart of the fold that holds it as a test subject
========== ===========================================================================================================

A run's score is the mean over its test subjects; a subject with several scans counts once, by the mean of its scans.
Scores that are NaN (an AVD without a true lesion) are left out of every mean, and ``n`` says how many were in it.
Deviations divide by n − 1 and are NaN for one value.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

EXACT_PAIRS = 50
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


@dataclass(frozen=True)
class ScoredRun:
    """One trained network: ``val_dice`` chose its checkpoint, ``cases`` are rows of its test scores.

    A row has ``case``, ``subject`` and scores by name (``dice`` …).
    """

    model: str
    fold: int
    restart: int
    val_dice: float
    cases: tuple[Mapping, ...] = field(repr=False)


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (n − 1) and number of values."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Summary:
    """One model's score by the three means of this module, and the bootstrap interval of the mean over subjects."""

    folds: Spread
    restarts: Spread
    subjects: Spread
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A model against the reference on the subjects that both have.

    ``difference`` is the mean of model − reference with its bootstrap interval ``low``..``high``; ``effect`` the
    matched-pairs rank-biserial correlation, positive where the model's values are larger; ``p_holm`` and ``stars``
    take account of all models compared with the reference.
    """

    n: int
    difference: float
    low: float
    high: float
    statistic: float
    p: float
    effect: float
    p_holm: float = math.nan
    stars: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# Means

def spread(values: Iterable[float]) -> Spread:
    """Mean (SD) of the values that are not NaN; NaN where there are too few."""
    known = np.array([v for v in values if not math.isnan(v)], dtype=np.float64)
    return Spread(float(known.mean()) if len(known) else math.nan,
                  float(known.std(ddof=1)) if len(known) > 1 else math.nan, len(known))


def by_subject(cases: Iterable[Mapping], metric: str) -> dict[str, float]:
    """The mean score of each subject's scans; a subject all of whose scores are NaN is NaN."""
    scores: dict[str, list[float]] = {}
    for row in cases:
        scores.setdefault(row["subject"], []).append(float(row[metric]))
    return {subject: spread(values).mean for subject, values in scores.items()}


def run_score(run: ScoredRun, metric: str) -> float:
    """The mean of a run's score over its test subjects."""
    return spread(by_subject(run.cases, metric).values()).mean


def choose_restarts(runs: Iterable[ScoredRun]) -> dict[tuple[str, int], ScoredRun]:
    """For each (model, fold) the run with the best validation Dice; of equal ones the lowest restart.

    A run whose validation Dice is NaN loses against every other. Test scores are not looked at.
    """
    chosen: dict[tuple[str, int], ScoredRun] = {}
    for run in sorted(runs, key=lambda r: (r.model, r.fold, r.restart)):
        best = chosen.get((run.model, run.fold))
        if best is None or run.val_dice > best.val_dice or math.isnan(best.val_dice) > math.isnan(run.val_dice):
            chosen[run.model, run.fold] = run
    return chosen


def pooled_cases(runs: Iterable[ScoredRun]) -> list[Mapping]:
    """Test rows of one model's chosen runs, fold after fold.

    Raises:
        ValueError: if a case is in two folds, which would count it twice.
    """
    rows = [row for run in sorted(runs, key=lambda r: r.fold) for row in run.cases]
    names = [row["case"] for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"case {twice[0]} is a test case of more than one fold")
    return rows


def summarise(runs: Sequence[ScoredRun], metric: str, generator: np.random.Generator, resamples: int = 9999) -> Summary:
    """One model's runs by the three means, with the 95 % interval of the mean over subjects."""
    assert len({run.model for run in runs}) == 1, "one model at a time"
    chosen = [run for _, run in sorted(choose_restarts(runs).items())]
    subjects = list(by_subject(pooled_cases(chosen), metric).values())
    low, high = bootstrap_interval(subjects, generator, resamples)
    return Summary(spread(run_score(run, metric) for run in chosen), spread(run_score(run, metric) for run in runs),
                   spread(subjects), low, high)


def bootstrap_interval(values: Sequence[float], generator: np.random.Generator, resamples: int = 9999,
                       level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), resampling values that are not NaN.

    (NaN, NaN) for fewer than two values.
    """
    known = np.array([v for v in values if not math.isnan(v)], dtype=np.float64)
    if len(known) < 2:
        return math.nan, math.nan
    means = known[generator.integers(0, len(known), (resamples, len(known)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# ---------------------------------------------------------------------------------------------------------------------
# Paired tests

def exact_p(ranks: np.ndarray, positive: float) -> float:
    """Two-sided p of the rank sum ``positive`` over all signs of ``ranks``, ties included.

    The number of sign patterns for each rank sum is built up rank by rank; ranks are multiples of one half. Exact for
    up to 50 ranks, where the counts still fit a float's 53 bits.
    """
    halves = np.rint(2 * ranks).astype(int)
    patterns = np.zeros(halves.sum() + 1)
    patterns[0] = 1
    for rank in halves:
        patterns[rank:] += patterns[:len(patterns) - rank].copy()
    at = round(2 * positive)
    return min(1.0, 2 * min(patterns[:at + 1].sum(), patterns[at:].sum()) / patterns.sum())


def wilcoxon(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Two-sided Wilcoxon signed-rank test of paired values: statistic min(W+, W−), p, and rank-biserial effect.

    Pairs without a difference are dropped (Wilcoxon 1945). The p-value is exact for up to ``EXACT_PAIRS`` others, with
    or without ties, and scipy's normal one with tie correction beyond. The effect is (W+ − W−) / (W+ + W−) (Kerby
    2014). Where no pair differs p is 1 and the effect 0; with no pairs at all everything is NaN.
    """
    from scipy import stats

    # Differences that are equal but for their last bits must tie.
    differences = np.round(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), 12)
    if not len(differences):
        return math.nan, math.nan, math.nan
    kept = differences[differences != 0]
    if not len(kept):
        return 0.0, 1.0, 0.0
    ranks = stats.rankdata(np.abs(kept))
    positive, negative = float(ranks[kept > 0].sum()), float(ranks[kept < 0].sum())
    if len(kept) <= EXACT_PAIRS:
        p = exact_p(ranks, positive)
    else:
        p = float(stats.wilcoxon(kept, method="asymptotic").pvalue)
    return min(positive, negative), p, (positive - negative) / (positive + negative)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given; NaN stays NaN and does not count."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted


def stars(p: float) -> str:
    """``*`` below 0.05, ``**`` below 0.01, ``***`` below 0.001, nothing otherwise (NaN included)."""
    return next((text for limit, text in STARS if p < limit), "")


def compare(scores: Mapping[str, Mapping[str, float]], reference: str, generator: np.random.Generator,
            resamples: int = 9999) -> dict[str, Comparison]:
    """Every model but the reference against it, with Holm's correction over these comparisons.

    Args:
        scores: a score by subject for each model. Subjects that one of a pair lacks or has as NaN are left out.
        reference: a key of ``scores``.
    """
    found = {}
    for model, mine in scores.items():
        if model == reference:
            continue
        theirs = scores[reference]
        shared = [s for s in sorted(mine) if s in theirs and not math.isnan(mine[s]) and not math.isnan(theirs[s])]
        a, b = np.array([mine[s] for s in shared]), np.array([theirs[s] for s in shared])
        low, high = bootstrap_interval(a - b, generator, resamples)
        statistic, p, effect = wilcoxon(a, b)
        found[model] = Comparison(len(shared), spread(a - b).mean, low, high, statistic, p, effect)
    adjusted = holm([c.p for c in found.values()])
    return {model: Comparison(c.n, c.difference, c.low, c.high, c.statistic, c.p, c.effect, p, stars(p))
            for (model, c), p in zip(found.items(), adjusted)}


def bland_altman(measured: Sequence[float], true: Sequence[float]) -> tuple[float, float, float]:
    """Mean difference measured − true, and its limits of agreement, ± 1.96 SD (Bland & Altman 1986)."""
    difference = spread(np.asarray(measured, dtype=np.float64) - np.asarray(true, dtype=np.float64))
    return difference.mean, difference.mean - 1.96 * difference.sd, difference.mean + 1.96 * difference.sd

"""Asynchronous successive halving of the promotion type: the rule alone, without clock, files or threads.

The rule is Algorithm 2 of Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020). When a
worker is free, look from the top rung down for a finished trial among the best ``floor(n / eta)`` of the ``n`` trials
that have finished its rung and that is not yet promoted; promote the best of those. If there is none, start a new
trial.

Decisions that the paper leaves open:

* As a rung fills, more than 1/eta of it may end up promoted. That is right: each was among the best when promoted.
* Only finished trials are ranked and counted, running ones are not.
* A tie is broken by age: the trial with the lower number ranks higher.
* A score that is NaN or infinite, and a trial that failed, ranks below every real score, counts as finished (so the
  others may be promoted past it) and is never promoted itself, not even where everything has failed.
* Scores are compared at equal epochs only. The best trial is the best of the highest rung that has a real score.
* Bracket b starts its trials at rung b and ranks them among themselves. New trials are dealt to brackets in the
  proportions of Hyperband (Li et al., JMLR 2018): a bracket with L of R rungs gets a share of R / L * eta ** (L - 1).
* The best of the top rung of any bracket wins: all brackets train to the same maximum.

With a ``judge`` the rule says which trials may be promoted, and the judge which of them is, and whether now: it sees
the best of every rung that the rule would promote and answers (number, whether it is worth more than a new trial).
After ``PATIENCE`` new trials in a row it is promoted in any case. The rule decides alone where no new trial is left, so
that a study ends with everything promoted that the rule promotes, and where ``MANY`` trials or more are running: then
the time that a trial waits for its promotion costs more than one that is not worth it.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

MOST_ETA = 1000
PATIENCE = 2
MANY = 8
SHOWN = 20  # trials of one rung that a judge is shown at most


@dataclass(frozen=True)
class Decision:
    """Train ``trial`` up to epoch ``epochs``, the end of ``rung``; it has been trained for ``start_epochs`` before."""

    trial: int
    rung: int
    epochs: int
    start_epochs: int


@dataclass
class Trial:
    """One set of parameters and its results. ``scores`` maps a finished rung to its score. ``pace``: seconds of an
    epoch of one of its runs, once they are known; the rule makes no use of it."""

    number: int
    parameters: dict
    bracket: int
    rung: int
    running: bool = True
    scores: dict[int, float] = field(default_factory=dict)
    failed: str = ""
    pace: float | None = None


def geometric_rungs(minimum: int, maximum: int, number: int) -> tuple[int, ...]:
    """``number`` whole epochs from ``minimum`` to ``maximum``, spaced geometrically: (15, 50, 4) is (15, 22, 33, 50).

    Each is the whole number nearest to the geometric one, found in integers (floating powers and logarithms round the
    wrong way at exact powers). Raises ``ValueError`` where the rungs are not distinct.
    """
    if number < 1 or minimum < 1 or maximum < minimum:
        raise ValueError(f"rungs need 1 <= minimum <= maximum and number >= 1, not {minimum}, {maximum}, {number}")
    if number == 1:
        return (maximum,)
    gaps = number - 1
    rungs = tuple(_nearest_root(minimum ** (gaps - i) * maximum**i, gaps) for i in range(number))
    if len(set(rungs)) < number:
        raise ValueError(f"{minimum} to {maximum} has no room for {number} different rungs")
    return rungs


def eta_rungs(minimum: int, maximum: int, eta: float | Fraction) -> tuple[int, ...]:
    """``minimum * eta ** k`` rounded down while below ``maximum``, then ``maximum``: (1, 9, 3) is (1, 3, 9)."""
    ratio = _fraction(eta)
    if minimum < 1 or maximum < minimum or ratio <= 1:
        raise ValueError(f"rungs need 1 <= minimum <= maximum and eta > 1, not {minimum}, {maximum}, {eta}")
    rungs: list[int] = []
    exact = Fraction(minimum)
    while exact < maximum:
        if not rungs or int(exact) > rungs[-1]:
            rungs.append(int(exact))
        exact *= ratio
    return (*rungs, maximum)


def _nearest_root(value: int, degree: int) -> int:
    """The whole number nearest to the ``degree``-th root of ``value``, a half rounded up."""
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:  # the largest whole number whose power is at most the value
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
    return low + 1 if (2 * low + 1) ** degree <= value * 2**degree else low


def _fraction(eta: float | Fraction) -> Fraction:
    # by way of the text: 1.1 is meant as 11/10, not as the binary fraction nearest to it
    return eta if isinstance(eta, Fraction) else Fraction(str(eta))


class Asha:
    """The state of one study.

    rungs: epochs of each rung, rising. eta: the best ``1 / eta`` of a rung are promoted. maximize: whether a higher
    score is better. max_trials: new trials stop there. brackets: how many of the rungs serve as a starting rung.

    judge: called with the numbers of the trials that may be promoted (from the top rung down, the best of a rung first)
    and the study; None leaves the choice to the rule.

    Call ``next_decision`` for a free worker and, when it is carried out, ``report`` or ``fail``. Nothing here draws
    random numbers: the parameters of a new trial come from the function given to ``next_decision``.
    """

    def __init__(
        self, rungs: Sequence[int], eta: float | Fraction, max_trials: int, maximize: bool = True, brackets: int = 1
    ):
        self.rungs = tuple(rungs)
        self.eta = _fraction(eta)
        self.max_trials = max_trials
        self.maximize = maximize
        self.brackets = brackets
        if not self.rungs or self.rungs[0] < 1 or any(a >= b for a, b in itertools.pairwise(self.rungs)):
            raise ValueError(f"rungs must be whole epochs that rise from at least 1, not {self.rungs}")
        if not 1 < self.eta <= MOST_ETA:
            raise ValueError(f"eta must be greater than 1 and at most {MOST_ETA}, not {eta}")
        if max_trials < 1:
            raise ValueError(f"max_trials must be at least 1, not {max_trials}")
        if not 1 <= brackets <= len(self.rungs):
            raise ValueError(f"brackets must be 1 to {len(self.rungs)} (the number of rungs), not {brackets}")
        self.trials: list[Trial] = []
        # finished[bracket][rung]: (loss, number) of every finished trial, best first
        self.finished = [[[] for _ in self.rungs] for _ in range(brackets)]
        self.promoted = [[set() for _ in self.rungs] for _ in range(brackets)]
        self._dealt = [0] * brackets
        self.judge: Callable[[list[int], Asha], tuple[int, bool]] | None = None
        self.fresh = 0  # new trials since the last promotion
        self.running = 0

    def next_decision(self, sample: Callable[[int], dict]) -> Decision | None:
        """What a free worker should do: a promotion, else a new trial, else None (wait, or the study is done).

        ``sample(number)`` is called for a new trial alone and returns its parameters.
        """
        return self._promotion() or self._new_trial(sample)

    def report(self, trial: int, score: float) -> None:
        """The current decision on ``trial`` ended with ``score``. NaN and infinities rank last."""
        self._finish(trial, score)

    def fail(self, trial: int, reason: str) -> None:
        """``trial`` diverged, ran out of memory or died too often: it gets the worst score."""
        self.trials[trial].failed = reason or "failed"
        self._finish(trial, math.nan)

    def restore(self, parameters: dict, bracket: int, rung: int) -> Decision:
        """Restore a trial that was started earlier (recorded in a ledger), in the order of the numbers."""
        number = len(self.trials)
        self.trials.append(Trial(number, parameters, bracket, rung))
        self._dealt[bracket] += 1
        self.fresh += 1
        self.running += 1
        return self.current_decision(number)

    def promote(self, trial: int) -> Decision:
        """Promote a trial to its next rung, now or as recorded in a ledger."""
        one = self.trials[trial]
        assert not one.running and one.rung + 1 < len(self.rungs), f"trial {trial} cannot be promoted"
        self.promoted[one.bracket][one.rung].add(trial)
        one.rung, one.running = one.rung + 1, True
        self.fresh = 0
        self.running += 1
        return self.current_decision(trial)

    def current_decision(self, trial: int) -> Decision:
        """The latest decision on ``trial``."""
        one = self.trials[trial]
        start = self.rungs[one.rung - 1] if one.rung > one.bracket else 0
        return Decision(trial, one.rung, self.rungs[one.rung], start)

    def promotable(self, bracket: int, rung: int) -> int | None:
        """The best trial among the top ``floor(n / eta)`` of a rung that is not yet promoted, or None."""
        return next(self._promotable_of(bracket, rung), None)

    def _promotable_of(self, bracket: int, rung: int) -> Iterator[int]:
        """All of them, best first."""
        finished, promoted = self.finished[bracket][rung], self.promoted[bracket][rung]
        top = len(finished) * self.eta.denominator // self.eta.numerator
        for loss, number in itertools.islice(finished, top):
            if loss == math.inf:  # failed trials lie behind all others
                return
            if number not in promoted:
                yield number

    def done(self) -> bool:
        """Nothing runs, nothing can be promoted and no trial is left to start."""
        return (
            len(self.trials) >= self.max_trials
            and not any(trial.running for trial in self.trials)
            and self._promotable_anywhere() is None
        )

    def best(self) -> Trial | None:
        """The best trial of the highest rung that has a real score; None before there is one."""
        for rung in reversed(range(len(self.rungs))):
            leaders = [self.finished[b][rung][0] for b in range(self.brackets) if self.finished[b][rung]]
            if leaders and min(leaders)[0] < math.inf:
                return self.trials[min(leaders)[1]]
        return None

    def _cells(self) -> Iterator[tuple[int, int]]:
        """(bracket, rung) of all that can be promoted from, from the top rung down."""
        for rung in reversed(range(len(self.rungs) - 1)):
            yield from ((bracket, rung) for bracket in range(min(rung + 1, self.brackets)))

    def _promotable_anywhere(self) -> int | None:
        return next((number for cell in self._cells() if (number := self.promotable(*cell)) is not None), None)

    def _promotion(self) -> Decision | None:
        if self.judge and self.running < MANY and len(self.trials) < self.max_trials:
            shown = [number for cell in self._cells() for number in itertools.islice(self._promotable_of(*cell), SHOWN)]
            number, worth = self.judge(shown, self) if shown else (None, False)
            return self.promote(number) if worth or (number is not None and self.fresh >= PATIENCE) else None
        number = self._promotable_anywhere()
        return None if number is None else self.promote(number)

    def _new_trial(self, sample: Callable[[int], dict]) -> Decision | None:
        if len(self.trials) >= self.max_trials:
            return None
        bracket = min(range(self.brackets), key=lambda b: ((self._dealt[b] + 1) / self._share(b), b))
        return self.restore(sample(len(self.trials)), bracket, bracket)

    def _share(self, bracket: int) -> Fraction:
        length = len(self.rungs) - bracket
        return Fraction(len(self.rungs), length) * self.eta ** (length - 1)

    def _finish(self, number: int, score: float) -> None:
        trial = self.trials[number]
        assert trial.running, f"trial {number} is not running"
        trial.running = False
        self.running -= 1
        trial.scores[trial.rung] = score
        loss = math.inf if not math.isfinite(score) else -score if self.maximize else score
        bisect.insort(self.finished[trial.bracket][trial.rung], (loss, number))

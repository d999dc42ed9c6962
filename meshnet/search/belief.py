"""What the model of a study believes: its best trial, which parameters matter, and what going on is worth.

The Gaussian process of ``surrogate.py`` is fitted to the scores of all rungs, whichever sampler made the trials. All
numbers that leave this file are in units of the study's score.

* The best trial is the one with the best expected score at the last rung, which need not be the one with the best
  score; its uncertainty is the standard deviation of what is believed.
* Which parameters matter is told by total Sobol' indices of the expected score (Homma and Saltelli, 1996, by the
  estimator of Jansen, 1999): the share of its variance that is left when all other parameters are known, over uniform
  draws from the space. Here they are shares of their sum.
* What going on promises is the expected improvement on the best believed score of a new trial that is trained to the
  end, or of an unfinished one, whichever is more for each epoch.
* Two runs of one recipe differ by chance. A promise below ``WORTH`` of that standard deviation is not worth an epoch.
"""

import math
import time
from concurrent.futures import Future, ThreadPoolExecutor

from meshnet.errors import decoration
from meshnet.search.asha import Asha
from meshnet.search.sampler import FIT_AT_MOST
from meshnet.search.space import Space
from meshnet.search.units import Known, around, as_tried, features, scale_of, snapshot

LEAST = 10  # scores from which there is something to believe
MOST = 300
CANDIDATES = 600
DRAWS = 256  # of Sobol' indices
WORTH = 0.1
PAUSE = 50  # a belief is renewed after this many times the seconds that it took at the earliest


def believe(known: Known, space: Space, maximize: bool, anew: bool = False) -> dict | None:
    """What ``known`` says; None with fewer than ``LEAST`` scores that are real and different.

    Args:
        anew: whether each rung is trained from the beginning.

    Returns:
        ``trial`` with its expected ``score`` at the last rung and its standard deviation ``uncertainty``;
        ``importance`` {parameter: share}, {} where nothing is told apart; ``luck``, the standard deviation of the
        scores of one recipe; ``promise``, the expected gain of ``promising`` (a trial, None for a new one) and the
        ``epochs`` that it takes.
    """
    real = {loss for _, _, loss, _ in known.scored if math.isfinite(loss)}
    if len(real) < LEAST:
        return None
    import numpy as np

    from meshnet.search.surrogate import Data, Surrogate, one_thread, standardised

    units, rungs, loss, trials = (np.array(column) for column in zip(*known.scored))
    target, middle, unit = standardised(loss)
    data = Data(features(space, units), scale_of(space), np.array(known.heights)[rungs], trials, target)
    numbers = np.random.default_rng(0)
    with one_thread():
        model = Surrogate(len(space.dimensions))
        model.fit(data.some(slice(None) if len(loss) <= FIT_AT_MOST
                            else numbers.choice(len(loss), FIT_AT_MOST, replace=False)))
        belief = model.condition(data)
        failed = trials[~np.isfinite(loss)]  # perhaps after a good score; never the best one, whatever is believed
        some = np.setdiff1d(trials, failed)
        if not len(some):
            return None
        place = np.array([int(np.flatnonzero(trials == trial)[0]) for trial in some])
        mean, variance = belief.of_trials(data.points[place], some)
        best = int(np.argmin(mean))
        promise, number, epochs = _promise(belief, space, units, known, anew, numbers)
        shares = _importance(belief, space, numbers)
    sign = -1 if maximize else 1
    return {
        "trial": int(some[best]), "score": sign * float(middle + unit * mean[best]),
        "uncertainty": float(unit * math.sqrt(variance[best])), "importance": shares,
        "luck": float(unit * math.sqrt(belief.parts[3] + belief.parts[4])), "promise": float(unit * promise),
        "promising": number, "epochs": epochs,
    }


def _promise(belief, space: Space, units, known: Known, anew: bool, numbers) -> tuple:
    """The largest expected improvement for each epoch: (gain, trial or None for a new one, epochs). It is one of the
    recipe: the luck of a run, which the next run of it does not have, counts for nothing."""
    import numpy as np

    from meshnet.search.surrogate import expected_improvement

    top, (believed, unsure, _) = known.epochs[-1], belief.at(features(space, units))
    goal, leaders = believed.min(), units[np.argsort(believed)[:5]]
    new = as_tried(space, np.vstack([around(space, leaders, CANDIDATES // 2, (0.02, 0.05, 0.15), numbers),
                                     numbers.random((CANDIDATES // 2, units.shape[1]))]))
    expected, spread, _ = belief.at(features(space, new))
    found = [(float(expected_improvement(expected, spread, goal).max()), None, top)]
    highest: dict[int, tuple[int, float]] = {}
    for (_, rung, loss, trial), gain in zip(known.scored, expected_improvement(believed, unsure, goal)):
        highest[trial] = max(highest.get(trial, (-1, 0.0)), (rung, float(gain) if math.isfinite(loss) else 0.0))
    for trial, (rung, gain) in highest.items():
        if (done := known.epochs[rung]) < top:
            found.append((gain, trial, top if anew else top - done))
    return max(found, key=lambda one: one[0] / one[2])


def _importance(belief, space: Space, numbers) -> dict[str, float]:
    count = len(space.dimensions)
    one, other = (as_tried(space, numbers.random((DRAWS, count))) for _ in range(2))
    base = belief.at(features(space, one))[0]
    total = []
    for column in range(count):
        moved = one.copy()
        moved[:, column] = other[:, column]
        total.append(((base - belief.at(features(space, moved))[0]) ** 2).mean())
    if sum(total) < 1e-9:
        return {}
    return {dimension.name: float(value / sum(total)) for dimension, value in zip(space.dimensions, total)}


# ---------------------------------------------------------------------- in words
def in_words(belief: dict, metric: str, seconds_per_epoch: float | None, folds: int = 1) -> list[str]:
    """What is believed, in lines of text."""
    lines = [f"believed best: trial {belief['trial']}, {metric} {belief['score']:.4f} ± {belief['uncertainty']:.4f} "
             "at the last rung"]
    shares = sorted(belief["importance"].items(), key=lambda one: -one[1])
    if shares:
        lines.append("what matters: " + ", ".join(f"{name} {share:.0%}" for name, share in shares[:4]))
    return [*lines, going_on(belief, seconds_per_epoch, folds)]


def going_on(belief: dict, seconds_per_epoch: float | None, folds: int = 1) -> str:
    """Whether another trial is worth it."""
    what = "a new trial" if belief["promising"] is None else f"trial {belief['promising']}"
    text = f"going on: {what} trained to the end promises {belief['promise']:.4f} more"
    if seconds_per_epoch:
        hours = seconds_per_epoch * belief["epochs"] * folds / 3600
        text += f", {belief['promise'] / hours:.2g} for each hour of a worker"
    text += f"; two runs of one recipe differ by {belief['luck']:.4f}"
    return text + (": hardly worth it" if belief["promise"] < WORTH * belief["luck"] else "")


# ---------------------------------------------------------------------- while a study runs
class Watch:
    """What is believed of a running study, found in a thread, so that no decision waits for it."""

    def __init__(self, space: Space, anew: bool = False):
        self.space, self.anew = space, anew
        self.found: dict | None = None
        self.scores = -1
        self.coming: Future | None = None
        self.began = self.next = -math.inf
        self.thread: ThreadPoolExecutor | None = None

    def latest(self, study: Asha) -> dict | None:
        """The last one that is ready; begins a new one where there are new scores, seldom enough to cost little."""
        self._collect()
        scores, now = sum(len(trial.scores) for trial in study.trials), time.monotonic()
        if not self.coming and scores != self.scores and now > self.next:
            self.thread = self.thread or ThreadPoolExecutor(1, "belief")
            self.scores, self.began = scores, now
            self.coming = self.thread.submit(believe, *self._given(study))
        return self.found

    def final(self, study: Asha) -> dict | None:
        """What all scores say."""
        with _unneeded():
            self.found = believe(*self._given(study))
        return self.found

    def _collect(self) -> None:
        if self.coming and self.coming.done():
            coming, self.coming = self.coming, None
            self.next = time.monotonic() + PAUSE * (time.monotonic() - self.began)
            with _unneeded():
                self.found = coming.result()

    def _given(self, study: Asha) -> tuple:
        known = snapshot(study, lambda trial: self.space.encode(trial.parameters), MOST)
        return known, self.space, study.maximize, self.anew


def _unneeded():
    return decoration("what the model believes of the study is not shown", "the search does not need it")

"""Where the parameters of a new trial come from: at random, or from a model of all scores so far.

``RandomSampler`` gives trial n the same parameters whatever happened before. ``ModelSampler`` proposes where the
expected improvement at the highest rung is largest (Jones et al., J. Global Optimization 1998), by the Gaussian process
of ``surrogate.py``, which tells the effect of parameters from the noise of scores. An improvement is one on the best
that is *believed*, not on the best score, which luck has chosen ("plug-in" rule: Picheny et al., "A benchmark of
kriging-based infill criteria for noisy optimization", 2013). Running trials count with the score that the model expects
of them, so that workers do not all try the same ("Kriging believer", Ginsbourger et al. 2010).

The same model judges promotions: a trial goes on when finishing it promises more for each epoch than a new trial does.
"""

import importlib
import math
import random
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from meshnet.search.asha import Asha, Trial
from meshnet.search.pace import Pace
from meshnet.search.space import Space
from meshnet.search.units import Known, around, as_tried, features, scale_of, snapshot

SAMPLERS = ("model", "random")
PREFETCH_FROM = 20  # batches of at least this many proposals are computed ahead in a thread: no decision waits for them
FIT_AT_MOST = 100  # scores that the model's sizes are fitted to (cubic cost); it is then given up to ``most`` of them
SAME = 1e-5  # units that are nearer in every parameter are one configuration: it has the same seed, so the same score


class RandomSampler:
    """Independent draws; trial n depends on the seed and on n alone."""

    def __init__(self, space: Space, seed: int):
        self.space, self.seed = space, seed

    def prepare(self, study: Asha) -> None:
        """Before the first decision: nothing to do."""

    def suggest(self, number: int, study: Asha) -> dict:
        """Parameters of trial ``number``."""
        return self.space.sample(random.Random(f"{self.seed}/{number}"))


@dataclass
class Aim:
    """What a trial is worth: its expected improvement on ``goal``, by ``belief``, for an epoch of ``pace``."""

    belief: Any
    goal: float
    pace: Pace

    def new(self, points, mean, variance):
        """Of new trials (N,). What a score could not tell from its noise is not worth a trial: the factor of "augmented
        expected improvement" (Huang et al., J. Global Optimization 2006), which is 1 where there is no noise."""
        import numpy as np

        from meshnet.search.surrogate import expected_improvement

        noise = self.belief.noise**2
        told = 1 - np.sqrt(noise / (variance + noise))
        return expected_improvement(mean, variance, self.goal) * told / self.pace.at(points)

    def finished(self, points, trials, shares, paces):
        """Of begun trials (N,), of whose epochs ``shares`` are left."""
        import numpy as np

        from meshnet.search.surrogate import expected_improvement

        mean, variance = self.belief.of_trials(points, np.array(trials))
        return expected_improvement(mean, variance, self.goal) / shares / self.pace.seen(paces)


@dataclass
class Batch:
    """Proposals with what they are worth, and by which aim."""

    points: list[tuple[Any, float]]
    aim: Aim


class ModelSampler:
    """Expected improvement of a Gaussian process over parameters and epochs.

    space, seed: as ``RandomSampler``. The first ``first`` trials, and those before any score, are spread evenly, and so
    is a share ``explore`` of the later ones, so that a wrong model cannot trap the study. ``most``: scores that the
    model is given at most (of the highest rungs, the best first); ``candidates``: proposals that are compared.

    ``margin``: what counts as an improvement, in standard deviations of a score's noise. ``wander``: the length scales
    are multiplied by log-normal factors of this size, other ones for each batch, since their fit is uncertain: one that
    is too long keeps a parameter at one value, and the search circles there.

    ``per_hour``: improvement is counted for each second instead of each epoch, as far as ``Trial.pace`` tells
    ("expected improvement per second", Snoek et al., NeurIPS 2012). A study then depends on how fast its machines are.

    ``batch``: proposals computed at a time, as a share of the known scores. With hundreds of workers a score arrives
    every second and one more changes little, so the model is asked again only when its knowledge has grown by this
    share; where a batch would hold fewer than two proposals it is asked for every trial. Batches of at least
    ``PREFETCH_FROM`` are computed ahead in a thread, started when half of the current batch is used or outdated, from
    what is known at that moment: proposals depend on the order of scores and decisions alone, never on how fast the
    thread is.
    """

    def __init__(
        self, space: Space, seed: int, first: int = 10, explore: float = 0.05, most: int = 300, candidates: int = 600,
        batch: float = 0.02, margin: float = 0.5, wander: float = 0.4, judging: bool = True, per_hour: bool = False,
    ):
        self.space, self.seed, self.first, self.explore = space, seed, first, explore
        self.most, self.candidates, self.batch = most, candidates, batch
        self.margin, self.wander, self.judging, self.per_hour = margin, wander, judging, per_hour
        self.model = None
        self.fitted_to = 0
        self.ready: Batch | None = None
        self.ready_for = 0
        self.size = 1
        self.coming: Future | None = None
        self.thread: ThreadPoolExecutor | None = None
        self.encoded: dict[int, list[float]] = {}

    def prepare(self, study: Asha) -> None:
        """Before the first decision: import what is needed (seconds) and, in a resumed study, start a batch."""
        with importlib.import_module("meshnet.search.surrogate").one_thread():  # finds the libraries
            pass
        self._spread(0)  # imports, and reads the sequence's table
        self._attach(study)
        if int(self.batch * self._known(study)) >= PREFETCH_FROM:
            self._begin(study, random.Random(f"{self.seed}/{len(study.trials)}/ahead").getrandbits(64))

    def suggest(self, number: int, study: Asha) -> dict:
        """Parameters of trial ``number``, from what ``study`` knows."""
        self._attach(study)
        generator = random.Random(f"{self.seed}/{number}")
        known = self._known(study)
        if number < self.first or known < self.first or generator.random() < self.explore:
            return self.space.decode(self._spread(number))
        self._renew(study, known, generator)
        point, _ = self.ready.points.pop(0)
        self._look_ahead(study, known, generator)
        return self.space.decode(point)

    def judge(self, shown: list[int], study: Asha) -> tuple[int, bool]:
        """Which trial of ``shown`` is promoted, and whether that is worth more than a new trial (see ``Asha``).

        Compared is the expected improvement for each epoch to the end. As long as the model knows too little, the
        first one is promoted, as without a judge.
        """
        import numpy as np

        from meshnet.search.surrogate import one_thread

        known = self._known(study)
        if known < self.first:
            return shown[0], True
        generator = random.Random(f"{self.seed}/{len(study.trials)}/{known}")
        self._renew(study, known, generator)
        self._look_ahead(study, known, generator)
        trials, top = [study.trials[number] for number in shown], study.rungs[-1]
        left = np.array([top - study.rungs[trial.rung] for trial in trials]) / top
        units = np.array([self._units(trial) for trial in trials])
        with one_thread():
            worth = self.ready.aim.finished(features(self.space, units), shown, left, [one.pace for one in trials])
        best = int(np.argmax(worth))
        return shown[best], bool(worth[best] >= self.ready.points[0][1])

    def _attach(self, study: Asha) -> None:
        if self.judging and study.judge is None:
            study.judge = self.judge

    @staticmethod
    def _known(study: Asha) -> int:
        """How many scores there are; 0 if none of them is real."""
        rungs = [rung for bracket in study.finished for rung in bracket if rung]
        return sum(map(len, rungs)) if any(rung[0][0] < math.inf for rung in rungs) else 0

    # ---------------------------------------------------------------- batches
    def _renew(self, study: Asha, known: int, generator: random.Random) -> None:
        """Make a new batch where the current one is used up or outdated."""
        if self.ready and self.ready.points and known <= self.ready_for:
            return
        self.size = max(1, int(self.batch * known))
        coming, self.coming = self.coming, None
        self.ready = coming.result() if coming else self._propose(
            self._snapshot(study), self.size, generator.getrandbits(64))
        self.ready_for = known + self.size - 1

    def _look_ahead(self, study: Asha, known: int, generator: random.Random) -> None:
        """Begin the next batch where half of the current one is used or outdated."""
        half = self.size // 2
        half_used = len(self.ready.points) <= half or known > self.ready_for - half
        if self.size >= PREFETCH_FROM and self.coming is None and half_used:
            self._begin(study, generator.getrandbits(64))

    def _begin(self, study: Asha, bits: int) -> None:
        """Make the next batch in the background."""
        self.thread = self.thread or ThreadPoolExecutor(1, "proposals")
        size = max(1, int(self.batch * self._known(study)))
        self.coming = self.thread.submit(self._propose, self._snapshot(study), size, bits)

    def _spread(self, number: int):
        """Point ``number`` of a scrambled Sobol sequence: spreads more evenly than chance.

        A first wave of 64 holds a configuration of the best 1 % in 54 of 100 studies, one drawn at random in 47; of
        128 in 83 and 73 (curves of benchmarks/search/asha_curves.py, seeds 0 to 89, six draws each).
        """
        from scipy.stats import qmc

        sequence = qmc.Sobol(len(self.space.dimensions), rng=random.Random(self.seed).getrandbits(63))
        if number:
            sequence.fast_forward(number)
        return sequence.random(1)[0]

    def _snapshot(self, study: Asha) -> Known:
        return snapshot(study, self._units, self.most)

    def _units(self, trial: Trial) -> list[float]:
        if trial.number not in self.encoded:
            self.encoded[trial.number] = self.space.encode(trial.parameters)
        return self.encoded[trial.number]

    def _propose(self, known: Known, count: int, bits: int) -> Batch:
        """``count`` points in units, each with the largest expected improvement given those before it."""
        import numpy as np

        from meshnet.search.surrogate import one_thread

        with one_thread():
            return self._best(known, count, np.random.default_rng(bits))

    def _best(self, known: Known, count: int, numbers) -> Batch:
        import numpy as np

        belief = self._believe(known, numbers)
        tried = np.array([row[0] for row in known.scored])
        believed = belief.at(features(self.space, tried))[0]
        aim = Aim(belief, believed.min() - self.margin * belief.noise, self._pace(known))
        leaders, half = tried[np.argsort(believed)[:5]], self.candidates // 2
        units = np.vstack([around(self.space, leaders, half, (0.02, 0.05, 0.15), numbers),
                           numbers.random((half, tried.shape[1]))])
        for scales in ((0.01, 0.03, 0.1), ()):  # once more around the most promising
            units = as_tried(self.space, units)
            points = features(self.space, units)
            mean, variance, factor = belief.at(points)
            gain = aim.new(points, mean, variance)
            if scales:
                order = np.argsort(-gain)
                units = np.vstack([units[order[:half]], around(self.space, units[order[:10]], half, scales, numbers)])
        occupied = np.array([*tried, *known.pending])
        new = ((units[:, None] - occupied) ** 2).max(2).min(1) > SAME**2
        chosen = []
        while True:
            gain = np.where(new, aim.new(points, mean, variance), -1.0)
            here = int(np.argmax(gain))
            chosen.append((units[here], float(max(gain[here], 0))))
            if len(chosen) == count:
                return Batch(chosen, aim)
            # as if observed at its expected mean, which leaves all means unchanged
            down = belief.learnt(points, factor, here, variance)
            factor, variance = np.vstack([factor, down]), np.maximum(variance - down**2, 1e-12)
            new &= ((units - units[here]) ** 2).max(1) > SAME**2

    def _pace(self, known: Known) -> Pace:
        """What is known of the seconds of an epoch; with nothing, all epochs are equal."""
        import numpy as np

        rows = {row[3]: row[0] for row in known.scored if row[3] in known.paces} if self.per_hour else {}
        points = features(self.space, np.array(list(rows.values()))) if rows else None
        return Pace(points, [known.paces[trial] for trial in rows])

    # ---------------------------------------------------------------- the model
    def _believe(self, known: Known, numbers):
        """The model refitted when a tenth more is known than at the last fit, and given all scores."""
        import numpy as np

        from meshnet.search.surrogate import Data, Surrogate, standardised

        units, rungs, loss, trials = (np.array(column) for column in zip(*known.scored))
        data = Data(features(self.space, units), scale_of(self.space), np.array(known.heights)[rungs], trials,
                    standardised(loss)[0])
        self.model = self.model or Surrogate(len(self.space.dimensions))
        if not self.fitted_to or len(loss) >= 1.1 * self.fitted_to + 1:
            some = slice(None) if len(loss) <= FIT_AT_MOST else numbers.choice(len(loss), FIT_AT_MOST, replace=False)
            self.model.fit(data.some(some))
            self.fitted_to = len(loss)
        model = self.model.wandered(numbers.normal(0, self.wander, self.model.scales))
        belief = model.condition(data)
        return belief.expecting(features(self.space, np.array(known.pending))) if known.pending else belief


def make_sampler(name: str, space: Space, seed: int, per_hour: bool = False) -> RandomSampler | ModelSampler:
    """The sampler called ``name``, one of ``SAMPLERS``."""
    return RandomSampler(space, seed) if name == "random" else ModelSampler(space, seed, per_hour=per_hour)

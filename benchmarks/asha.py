"""Searches on a simulated clock, side by side: what does it cost to reach the best 1 %?

No training: made-up learning curves of 15 to 50 epochs over the paper's space, with noise and crossings, drawn anew
for each seed. Each method runs with 1 to 500 workers until it has trained a configuration of the
best 1 % to the end. ``work`` is workers x time until then, in epochs: idle workers are paid for.

    python benchmarks/asha.py run --methods ours random --seeds 30 --out results.jsonl
    python benchmarks/asha.py table results.jsonl

Peers (``syne_tune``, ``optuna``) need their packages: requirements in benchmarks/asha_peers.txt, in an environment of
their own.
"""

import argparse
import datetime
import heapq
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from meshnet.asha import Asha, geometric_rungs
from meshnet.recipe import load_search
from meshnet.sampler import ModelSampler, RandomSampler
from meshnet.space import parse_space

SPACE = parse_space(load_search([Path(__file__).resolve().parent.parent / "recipes" / "search_space.yaml"]))
LOWEST, HIGHEST = SPACE.fidelity
WORKERS = (1, 4, 16, 64, 256, 500)
NEVER = 40_000  # epochs after which a method has failed to reach the best 1 %


# ---------------------------------------------------------------- what is searched
class Curves:
    """Made-up validation Dice over epochs for every point of the paper's space; another landscape for each seed.

    A wide quadratic basin in the logarithm of the learning rate (the dominant parameter), weaker ones in the others,
    interactions, and small waves. A high learning rate and few channels rise sooner, so that curves cross: the best at
    15 epochs is often not the best at 50. Noise: 0.01 an epoch, and 0.004 for the run as a whole.
    """

    def __init__(self, seed: int):
        numbers = np.random.default_rng([seed, 1])
        self.seed = seed
        self.centre = numbers.uniform(0.25, 0.85, 5)
        self.centre[0] = numbers.uniform(0.7, 1.0)  # more channels help
        self.width = np.array([0.9, 0.28, 0.7, 0.5, 1.2]) * numbers.uniform(0.8, 1.25, 5)
        self.tilt = numbers.normal(0, 0.5, (5, 5))
        self.waves = numbers.normal(0, 1, (6, 5)) * 3
        self.phases = numbers.uniform(0, 2 * math.pi, 6)
        many = numbers.random((20_000, 5))
        self.goal = float(np.quantile(self.final(many), 0.99))

    def final(self, units):
        """True Dice at the last epoch, (N, 5) -> (N,)."""
        away = (np.atleast_2d(units) - self.centre) / self.width
        bowl = (away**2).sum(1) + 0.25 * np.einsum("ni,ij,nj->n", away, self.tilt, away)
        waves = np.cos(np.atleast_2d(units) @ self.waves.T + self.phases).mean(1)
        return 0.75 * np.exp(-0.35 * np.maximum(bowl, 0)) + 0.02 * waves

    def score(self, units, epoch: int, number: int) -> float:
        """Measured Dice of run ``number`` after ``epoch`` epochs; the same question has the same answer."""
        units = np.asarray(units)
        speed = 0.8 + 1.4 * units[1] - 0.7 * units[0] + 0.3 * math.sin(7 * units[2])
        half = 18 / max(speed, 0.25)  # epochs to come half-way
        share = (1 - 2 ** (-epoch / half)) / (1 - 2 ** (-HIGHEST / half))
        run = np.random.default_rng([self.seed, 2, number]).normal(0, 0.004)
        noise = np.random.default_rng([self.seed, 3, number, epoch]).normal(0, 0.01)
        return float(self.final(units)[0] * share * (0.55 + 0.45 * share) + run + noise)

    def reached(self, units) -> bool:
        return bool(self.final(units)[0] >= self.goal)

    def pace(self, number: int) -> float:
        """Time of one epoch of this run; 1 in the median."""
        return float(np.exp(np.random.default_rng([self.seed, 4, number]).normal(0, 0.1)))


# ---------------------------------------------------------------- methods
@dataclass
class Work:
    """Train run ``number`` from epoch ``start`` to ``stop``; its score is wanted at the epochs ``looks``."""

    number: int
    units: list[float]
    start: int
    stop: int
    looks: tuple[int, ...] = ()


class Ours:
    """This project's promotion rule with one of its samplers."""

    def __init__(self, seed: int, workers: int, sampler=ModelSampler, eta=2, number=4, brackets=2):
        self.study = Asha(geometric_rungs(LOWEST, HIGHEST, number), eta, 10**9, brackets=brackets)
        self.sampler = sampler(SPACE, seed)

    def next(self) -> Work | None:
        job = self.study.next_job(lambda number: self.sampler.suggest(number, self.study))
        units = SPACE.encode(self.study.trials[job.trial].parameters)
        return Work(job.trial, units, job.start_epochs, job.epochs)

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        self.study.report(work.number, score)
        return True


class RandomSearch:
    """Everything in full."""

    def __init__(self, seed: int, workers: int):
        self.sampler, self.count = RandomSampler(SPACE, seed), 0

    def next(self) -> Work:
        self.count += 1
        return Work(self.count, SPACE.encode(self.sampler.suggest(self.count, None)), 0, HIGHEST)

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        return True


class OneRungThenBest(RandomSearch):
    """Train ``width`` for one rung, then the best quarter of them in full, best first; then the next ``width``."""

    width = 16

    def __init__(self, seed: int, workers: int):
        super().__init__(seed, workers)
        self.width = max(self.width, workers)
        self.scores, self.queue, self.out = [], [], 0

    def next(self) -> Work | None:
        if self.queue:
            return self.queue.pop(0)
        if self.out == self.width:
            return None  # the rung is not complete: wait
        self.out += 1
        return Work(self.count, super().next().units, 0, LOWEST)

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        if work.stop == LOWEST:
            self.scores.append((-score, work.number, work.units))
            if len(self.scores) == self.width:
                best = sorted(self.scores)[: max(1, self.width // 4)]
                self.queue = [Work(number, units, LOWEST, HIGHEST) for _, number, units in best]
                self.scores, self.out = [], 0
        return True


class Synchronous(RandomSearch):
    """Synchronous successive halving: a bracket of 27 (or as many as there are workers), a third goes on."""

    eta = 3

    def __init__(self, seed: int, workers: int):
        super().__init__(seed, workers)
        self.rungs = geometric_rungs(LOWEST, HIGHEST, 4)
        self.width = max(27, workers)
        self._bracket()

    def _bracket(self):
        self.level, self.scores = 0, []
        self.queue = []
        for _ in range(self.width):
            self.count += 1
            units = SPACE.encode(self.sampler.suggest(self.count, None))
            self.queue.append(Work(self.count, units, 0, self.rungs[0]))
        self.size = self.width

    def next(self) -> Work | None:
        return self.queue.pop(0) if self.queue else None

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        self.scores.append((-score, work.number, work.units))
        if len(self.scores) < self.size:
            return True
        best = sorted(self.scores)[: max(1, self.size // self.eta)]
        self.level += 1
        if self.level == len(self.rungs):
            self._bracket()
            return True
        low, high = self.rungs[self.level - 1], self.rungs[self.level]
        self.queue = [Work(number, units, low, high) for _, number, units in best]
        self.size, self.scores = len(self.queue), []
        return True


class OptunaPruner:
    """Optuna's TPE with its SuccessiveHalvingPruner: stopping type, every epoch reported."""

    def __init__(self, seed: int, workers: int):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        chosen = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=workers > 1)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=LOWEST, reduction_factor=2)
        self.optuna = optuna
        self.study = optuna.create_study(direction="maximize", sampler=chosen, pruner=pruner)
        self.trials = {}

    def next(self) -> Work:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self.study.ask()
            parameters = {}
            for d in SPACE.dimensions:
                if d.kind == "choices":
                    parameters[d.name] = trial.suggest_categorical(d.name, list(d.choices))
                elif d.discrete:
                    parameters[d.name] = trial.suggest_int(d.name, int(d.low), int(d.high))
                else:
                    parameters[d.name] = trial.suggest_float(d.name, d.low, d.high, log=d.kind == "loguniform")
        self.trials[trial.number] = trial
        return Work(trial.number, SPACE.encode(parameters), 0, HIGHEST, tuple(range(1, HIGHEST + 1)))

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        trial = self.trials[work.number]
        trial.report(score, epoch)
        if epoch == HIGHEST:
            self.study.tell(trial, score)
        elif trial.should_prune():
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
            return False
        return True


class SyneTune:
    """Syne Tune's ASHA (stopping type) with random search or with CQR; every epoch reported."""

    def __init__(self, seed: int, workers: int, kind: str):
        import logging

        logging.disable(logging.WARNING)
        from syne_tune.config_space import choice, loguniform, randint, uniform

        space = {}
        for d in SPACE.dimensions:
            if d.kind == "choices":
                space[d.name] = choice(list(d.choices))
            elif d.discrete:
                space[d.name] = randint(int(d.low), int(d.high))
            else:
                space[d.name] = (loguniform if d.kind == "loguniform" else uniform)(d.low, d.high)
        self.space = {**space, "epochs": HIGHEST}
        self.scheduler = self._make(kind, seed)
        self.count, self.trials, self.known = 0, {}, {}

    def _make(self, kind: str, seed: int):
        from syne_tune.optimizer import baselines

        options = {"metric": "dice", "do_minimize": False, "random_seed": seed}
        asha = {"time_attr": "epoch", "max_t": HIGHEST, "grace_period": LOWEST, "reduction_factor": 2}
        if kind == "cqr":
            return baselines.ASHACQR(self.space, **options, **asha)
        return baselines.ASHA(self.space, **options, **asha)

    def next(self) -> Work:
        from syne_tune.backend.trial_status import Trial

        suggestion = self.scheduler.suggest()
        number = self.count
        self.count += 1
        config = suggestion.config
        trial = Trial(trial_id=number, config=config, creation_time=datetime.datetime.now())
        self.scheduler.on_trial_add(trial)
        self.trials[number] = trial
        units = SPACE.encode({d.name: config[d.name] for d in SPACE.dimensions})
        return Work(number, units, 0, HIGHEST, tuple(range(1, HIGHEST + 1)))

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        trial, result = self.trials[work.number], {"epoch": epoch, "dice": score}
        if epoch == HIGHEST:
            self.scheduler.on_trial_complete(trial, result)
            return True
        return self.scheduler.on_trial_result(trial, result) == "CONTINUE"


METHODS: dict[str, Callable] = {
    "ours": Ours,
    "ours_random": lambda seed, workers: Ours(seed, workers, RandomSampler, brackets=1),
    "random": RandomSearch,
    "one_rung": OneRungThenBest,
    "synchronous": Synchronous,
    "optuna_tpe": OptunaPruner,
    "syne_tune_asha": lambda seed, workers: SyneTune(seed, workers, "asha"),
    "syne_tune_cqr": lambda seed, workers: SyneTune(seed, workers, "cqr"),
}


# ---------------------------------------------------------------- the clock
def simulate(method, curves, workers: int) -> float:
    """Wall time until a run of the best 1 % is trained to the end; NaN after ``NEVER`` epochs' work."""
    events: list[tuple] = []  # (time, order, work, epoch): a run has reached an epoch at which it is looked at
    idle, order, now = workers, 0, 0.0
    while True:
        while idle:
            work = method.next()
            if work is None:
                break
            idle -= 1
            first = next((epoch for epoch in work.looks if epoch > work.start), work.stop)
            order += 1
            heapq.heappush(events, (now + (first - work.start) * curves.pace(work.number), order, work, first))
        now, _, work, epoch = heapq.heappop(events)
        if epoch == HIGHEST and curves.reached(work.units):
            return now
        if workers * now > NEVER:
            return math.nan
        goes_on = method.tell(work, epoch, curves.score(work.units, epoch, work.number))
        if epoch < work.stop and goes_on:
            then = next((look for look in work.looks if look > epoch), work.stop)
            order += 1
            heapq.heappush(events, (now + (then - epoch) * curves.pace(work.number), order, work, then))
        else:
            idle += 1


def run(arguments) -> None:
    done = set()
    if arguments.out.exists():
        done = {tuple(json.loads(line)[key] for key in ("method", "workers", "seed")) for line in arguments.out.open()}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        curves = Curves(seed)
        for workers in arguments.workers:
            for name in arguments.methods:
                if (name, workers, seed) in done:
                    continue
                random.seed(seed)
                np.random.seed(seed)  # peers draw from the global state
                began = time.perf_counter()
                wall = simulate(METHODS[name](seed, workers), curves, workers)
                row = {"method": name, "workers": workers, "seed": seed, "wall": wall, "work": wall * workers,
                       "seconds": round(time.perf_counter() - began, 2)}  # fmt: skip
                with arguments.out.open("a") as out:
                    out.write(json.dumps(row) + "\n")


def table(arguments) -> None:
    rows = [json.loads(line) for path in arguments.files for line in path.open()]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    workers = sorted({row["workers"] for row in rows})
    for quantity in ("work", "wall"):
        print(f"\nmedian {quantity} to the best 1 %, in epochs (n seeds)\n")
        print("| method | " + " | ".join(map(str, workers)) + " |")
        print("|---" * (len(workers) + 1) + "|")
        for name in methods:
            cells = []
            for count in workers:
                values = [
                    math.inf if math.isnan(row[quantity]) else row[quantity]
                    for row in rows
                    if (row["method"], row["workers"]) == (name, count)
                ]
                cells.append(f"{statistics.median(values):,.0f} ({len(values)})" if values else "")
            print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="simulate and append to a file")
    running.add_argument("--methods", nargs="+", choices=METHODS, default=["ours", "ours_random", "random"])
    running.add_argument("--workers", nargs="+", type=int, default=list(WORKERS))
    running.add_argument("--seeds", type=int, default=30)
    running.add_argument("--first_seed", type=int, default=100, help="0 to 99 served to choose settings")
    running.add_argument("--out", type=Path, default=Path("asha.jsonl"))
    running.set_defaults(act=run)
    showing = commands.add_parser("table", help="medians over the seeds")
    showing.add_argument("files", nargs="+", type=Path)
    showing.set_defaults(act=table)
    arguments = parser.parse_args()
    arguments.act(arguments)


if __name__ == "__main__":
    main()

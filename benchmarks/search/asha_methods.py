"""The methods that benchmarks/search/asha.py compares: this project's search, simple baselines, and other libraries.

Each is made from a problem of asha_curves.py, a seed and the number of workers. ``next`` says what a free worker
trains, or None where it has to wait; ``tell`` takes a score and says whether that run goes on.
"""

import datetime
from collections.abc import Callable

from asha_botorch import LogNEI
from asha_curves import Curves
from asha_smac import Smac
from asha_work import Work

from meshnet.search.asha import Asha, geometric_rungs
from meshnet.search.sampler import ModelSampler, RandomSampler


class Ours:
    """This project's promotion rule with one of its samplers."""

    def __init__(self, problem: Curves, seed: int, workers: int, sampler=ModelSampler, eta=2, number=4, brackets=2):
        self.problem = problem
        self.study = Asha(geometric_rungs(problem.lowest, problem.highest, number), eta, 10**9, brackets=brackets)
        self.sampler = sampler(problem.space, seed)

    def next(self) -> Work | None:
        job = self.study.next_decision(lambda number: self.sampler.suggest(number, self.study))
        units = self.problem.space.encode(self.study.trials[job.trial].parameters)
        return Work(job.trial, units, job.start_epochs, job.epochs)

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        self.study.trials[work.number].pace = self.problem.pace(work.number, work.units)
        self.study.report(work.number, score)
        return True


class RandomSearch:
    """Everything in full."""

    def __init__(self, problem: Curves, seed: int, workers: int):
        self.problem = problem
        self.sampler, self.count = RandomSampler(problem.space, seed), 0

    def next(self) -> Work:
        self.count += 1
        units = self.problem.space.encode(self.sampler.suggest(self.count, None))
        return Work(self.count, units, 0, self.problem.highest)

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        return True


class OneRungThenBest(RandomSearch):
    """Train ``width`` for one rung, then the best quarter of them in full, best first; then the next ``width``."""

    width = 16

    def __init__(self, problem: Curves, seed: int, workers: int):
        super().__init__(problem, seed, workers)
        self.width = max(self.width, workers)
        self.scores, self.queue, self.out = [], [], 0

    def next(self) -> Work | None:
        if self.queue:
            return self.queue.pop(0)
        if self.out == self.width:
            return None  # the rung is not complete: wait
        self.out += 1
        return Work(self.count, super().next().units, 0, self.problem.lowest)

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        if work.stop == self.problem.lowest:
            self.scores.append((-score, work.number, work.units))
            if len(self.scores) == self.width:
                best = sorted(self.scores)[: max(1, self.width // 4)]
                low, high = self.problem.lowest, self.problem.highest
                self.queue = [Work(number, units, low, high) for _, number, units in best]
                self.scores, self.out = [], 0
        return True


class Synchronous(RandomSearch):
    """Synchronous successive halving: a bracket of 27 (or as many as there are workers), a third goes on."""

    eta = 3

    def __init__(self, problem: Curves, seed: int, workers: int):
        super().__init__(problem, seed, workers)
        self.rungs = geometric_rungs(problem.lowest, problem.highest, 4)
        self.width = max(27, workers)
        self._bracket()

    def _bracket(self):
        self.level, self.scores = 0, []
        self.queue = []
        for _ in range(self.width):
            self.count += 1
            units = self.problem.space.encode(self.sampler.suggest(self.count, None))
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


def _every_epoch(problem: Curves) -> tuple[int, ...]:
    return tuple(range(1, problem.highest + 1))


class OptunaPruner:
    """Optuna's TPE with its SuccessiveHalvingPruner: stopping type, every epoch reported."""

    def __init__(self, problem: Curves, seed: int, workers: int, multivariate: bool = True):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.problem = problem
        chosen = optuna.samplers.TPESampler(seed=seed, multivariate=multivariate, constant_liar=workers > 1)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=problem.lowest, reduction_factor=2)
        self.optuna = optuna
        self.study = optuna.create_study(direction="maximize", sampler=chosen, pruner=pruner)
        self.trials = {}

    def next(self) -> Work:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = self.study.ask()
            parameters = {}
            for d in self.problem.space.dimensions:
                if d.kind == "choices":
                    parameters[d.name] = trial.suggest_categorical(d.name, list(d.choices))
                elif d.discrete:
                    parameters[d.name] = trial.suggest_int(d.name, int(d.low), int(d.high))
                else:
                    parameters[d.name] = trial.suggest_float(d.name, d.low, d.high, log=d.kind == "loguniform")
        self.trials[trial.number] = trial
        units = self.problem.space.encode(parameters)
        return Work(trial.number, units, 0, self.problem.highest, _every_epoch(self.problem))

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        trial = self.trials[work.number]
        trial.report(score, epoch)
        if epoch == self.problem.highest:
            self.study.tell(trial, score)
        elif trial.should_prune():
            self.study.tell(trial, state=self.optuna.trial.TrialState.PRUNED)
            return False
        return True


class SyneTune:
    """Syne Tune's ASHA (stopping type) with random search or with CQR; every epoch reported."""

    def __init__(self, problem: Curves, seed: int, workers: int, kind: str):
        import logging

        logging.disable(logging.WARNING)
        from syne_tune.config_space import choice, loguniform, randint, uniform

        self.problem = problem
        space = {}
        for d in problem.space.dimensions:
            if d.kind == "choices":
                space[d.name] = choice(list(d.choices))
            elif d.discrete:
                space[d.name] = randint(int(d.low), int(d.high))
            else:
                space[d.name] = (loguniform if d.kind == "loguniform" else uniform)(d.low, d.high)
        self.space = {**space, "epochs": problem.highest}
        self.scheduler = self._make(kind, seed)
        self.count, self.trials, self.known = 0, {}, {}

    def _make(self, kind: str, seed: int):
        from syne_tune.optimizer import baselines

        options = {"metric": "dice", "do_minimize": False, "random_seed": seed}
        low, high = self.problem.lowest, self.problem.highest
        asha = {"time_attr": "epoch", "max_t": high, "grace_period": low, "reduction_factor": 2}
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
        units = self.problem.space.encode({d.name: config[d.name] for d in self.problem.space.dimensions})
        return Work(number, units, 0, self.problem.highest, _every_epoch(self.problem))

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        trial, result = self.trials[work.number], {"epoch": epoch, "dice": score}
        if epoch == self.problem.highest:
            self.scheduler.on_trial_complete(trial, result)
            return True
        return self.scheduler.on_trial_result(trial, result) == "CONTINUE"


class Orion:
    """Orion's ASHA: promotion type, random search, as many rungs as ours."""

    def __init__(self, problem: Curves, seed: int, workers: int):
        from orion.algo.asha import ASHA
        from orion.core.io.space_builder import SpaceBuilder
        from orion.core.worker.primary_algo import create_algo
        from orion.core.worker.trial import Trial

        self.problem, self.result = problem, Trial.Result
        space = {"epochs": f"fidelity({problem.lowest}, {problem.highest}, 2)"}  # the base is its reduction factor
        for d in problem.space.dimensions:
            range_ = f"{list(d.choices)}" if d.kind == "choices" else f"{d.low}, {d.high}"
            space[d.name] = f"{d.kind}({range_}{', discrete=True' if d.discrete else ''})"
        self.algorithm = create_algo(ASHA, SpaceBuilder().build(space), seed=seed, num_rungs=4)
        self.numbers, self.stops, self.trials = {}, {}, {}

    def next(self) -> Work | None:
        found = self.algorithm.suggest(1)
        if not found:
            return None
        parameters = {d.name: found[0].params[d.name] for d in self.problem.space.dimensions}
        number = self.numbers.setdefault(str(parameters), len(self.numbers))  # without epochs: a promoted one goes on
        start, stop = self.stops.get(number, 0), int(found[0].params["epochs"])
        self.stops[number], self.trials[number] = stop, found[0]
        return Work(number, self.problem.space.encode(parameters), start, stop)

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        trial = self.trials[work.number]
        trial.status, trial.results = "completed", [self.result(name="dice", type="objective", value=-score)]
        self.algorithm.observe([trial])
        return True


METHODS: dict[str, Callable] = {
    "ours": Ours,
    "ours_per_hour": lambda problem, seed, workers: Ours(
        problem, seed, workers, lambda space, seed: ModelSampler(space, seed, per_hour=True)),
    "ours_random": lambda problem, seed, workers: Ours(problem, seed, workers, RandomSampler, brackets=1),
    "random": RandomSearch,
    "one_rung": OneRungThenBest,
    "synchronous": Synchronous,
    "optuna_tpe": OptunaPruner,
    "optuna_tpe_default": lambda problem, seed, workers: OptunaPruner(problem, seed, workers, multivariate=False),
    "syne_tune_asha": lambda problem, seed, workers: SyneTune(problem, seed, workers, "asha"),
    "orion_asha": Orion,
    "smac": Smac,
    "botorch": lambda problem, seed, workers: Ours(problem, seed, workers, LogNEI),
    "ours_not_judging": lambda problem, seed, workers: Ours(
        problem, seed, workers, lambda space, seed: ModelSampler(space, seed, judging=False)),
    "syne_tune_cqr": lambda problem, seed, workers: SyneTune(problem, seed, workers, "cqr"),
}

"""SMAC3's multi-fidelity search for benchmarks/search/asha.py: Hyperband with a random forest of its own settings."""

import tempfile
from pathlib import Path

from asha_curves import Curves
from asha_work import Work


class Smac:
    """``MultiFidelityFacade`` asked and told from outside, halving as the others do. A promoted configuration goes
    on from where it stopped, which SMAC itself leaves to its user."""

    def __init__(self, problem: Curves, seed: int, workers: int):
        import logging

        logging.disable(logging.WARNING)
        from ConfigSpace import Categorical, ConfigurationSpace, Float, Integer
        from smac import MultiFidelityFacade, Scenario

        self.problem = problem
        space = ConfigurationSpace(seed=seed)
        for d in problem.space.dimensions:
            if d.kind == "choices":
                space.add(Categorical(d.name, list(d.choices)))
            elif d.discrete:
                space.add(Integer(d.name, (int(d.low), int(d.high))))
            else:
                space.add(Float(d.name, (d.low, d.high), log=d.kind == "loguniform"))
        self.folder = tempfile.TemporaryDirectory()
        scenario = Scenario(space, output_directory=Path(self.folder.name), deterministic=True, n_trials=10**6,
                            min_budget=problem.lowest, max_budget=problem.highest, seed=seed)
        self.smac = MultiFidelityFacade(
            scenario, lambda config, seed, budget: 0.0, overwrite=True, logging_level=False,
            intensifier=MultiFidelityFacade.get_intensifier(scenario, eta=2))
        self.numbers, self.stops, self.asked = {}, {}, {}

    def next(self) -> Work | None:
        info = self.smac.ask()
        if info is None:
            return None
        number = self.numbers.setdefault(info.config, len(self.numbers))
        start, stop = self.stops.get(number, 0), round(info.budget)
        self.stops[number], self.asked[number] = stop, info
        units = self.problem.space.encode({d.name: info.config[d.name] for d in self.problem.space.dimensions})
        return Work(number, units, start, stop)

    def tell(self, work: Work, epoch: int, score: float) -> bool:
        from smac.runhistory.dataclasses import TrialValue

        self.smac.tell(self.asked[work.number], TrialValue(cost=-score), save=False)
        return True

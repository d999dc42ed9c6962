"""The learning curves that benchmarks/search/asha.py searches: made-up ones, and a table of real ones."""

import functools
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np

from meshnet.recipe import load_search
from meshnet.search.space import Dimension, Space, parse_space

ROOT = Path(__file__).resolve().parents[2]


class Curves:
    """Made-up validation Dice over epochs for every point of the paper's space; another landscape for each seed.

    A wide quadratic basin in the logarithm of the learning rate (the dominant parameter), weaker ones in the others,
    interactions, and small waves. A high learning rate and few channels rise sooner, so that curves cross: the best at
    15 epochs is often not the best at 50. Noise: 0.01 an epoch, and 0.004 for the run as a whole.
    """

    space = parse_space(load_search([ROOT / "recipes" / "search_space.yaml"]))
    lowest, highest = space.fidelity

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
        share = (1 - 2 ** (-epoch / half)) / (1 - 2 ** (-self.highest / half))
        run = np.random.default_rng([self.seed, 2, number]).normal(0, 0.004)
        noise = np.random.default_rng([self.seed, 3, number, epoch]).normal(0, 0.01)
        return float(self.final(units)[0] * share * (0.55 + 0.45 * share) + run + noise)

    def reached(self, units) -> bool:
        return bool(self.final(units)[0] >= self.goal)

    def pace(self, number: int, units) -> float:
        """Time of one epoch of this run; 1 in the median."""
        return float(np.exp(np.random.default_rng([self.seed, 4, number]).normal(0, 0.1)))


class RealCurves:
    """Real trainings: the OpenCLIP networks of ScAn-Bench's VLM table (Sermaxhaj et al., NeurIPS 2026), 7 parameters.

    The table's configurations of 5 to 10 epochs that finished or diverged are used. The fidelity is tenths of a run;
    the validation loss is interpolated between measured epochs. A diverged run has the table's own loss of 5
    from there on. A proposal trains the configuration of the table nearest to it in the unit cube of those that this
    search has not trained yet. Otherwise a method that samples one region densely would be given the same
    configuration dozens of times. One instance serves one search.
    ``seed`` changes the pace of the runs and nothing else; the score is the negative loss.
    """

    space = Space(
        (
            Dimension("lr", "", "loguniform", 1e-5, 5e-2),
            Dimension("wd", "", "loguniform", 1e-6, 0.2),
            Dimension("warmup_fraction", "", "uniform", 0, 0.75),
            Dimension("global_batch_size", "", "choices", choices=(4096, 8192)),
            Dimension("text_width", "", "uniform", 32, 512, True),
            Dimension("vision_width", "", "uniform", 32, 512, True),
            Dimension("total_epochs", "", "uniform", 5, 10, True),
        ),
        (2, 10),
    )
    lowest, highest = space.fidelity

    def __init__(self, seed: int):
        self.seed = seed
        self.units, self.losses = read_table()
        self.best = set(np.argsort(self.losses[:, -1])[: round(len(self.losses) / 100)].tolist())
        self.rows: dict[tuple, int] = {}
        self.taken = np.zeros(len(self.units), bool)

    def row(self, units) -> int:
        """The configuration that a proposal trains: the nearest that no earlier one took, and always the same."""
        key = tuple(units)
        if key not in self.rows:
            if self.taken.all():
                self.taken[:] = False
            away = ((self.units - np.asarray(units)) ** 2).sum(1)
            self.rows[key] = int(np.where(self.taken, np.inf, away).argmin())
            self.taken[self.rows[key]] = True
        return self.rows[key]

    def score(self, units, epoch: int, number: int) -> float:
        """Negative validation loss after ``epoch`` tenths of the run."""
        return -float(self.losses[self.row(units), epoch - 1])

    def reached(self, units) -> bool:
        """Whether it is of the best 1 % of the table at the end."""
        return self.row(units) in self.best

    def pace(self, number: int, units) -> float:
        """Time of a tenth of this run; 1 in the median."""
        return float(np.exp(np.random.default_rng([self.seed, 4, number]).normal(0, 0.1)))


@functools.cache
def read_table() -> tuple[np.ndarray, np.ndarray]:
    """Units (N, 7) and losses (N, 10) of the table in the package scan-bench, which is not imported."""
    import pandas

    package = importlib.util.find_spec("scan_bench")
    if package is None:
        sys.exit("the real curves are in a package: pip install --no-deps scan-bench==0.2.3")
    rows = pandas.read_csv(Path(package.origin).parent / "vlm" / "data.csv")
    units, losses = [], []
    for _, run in rows[rows.total_epochs >= 5].sort_values("epoch").groupby("config_id"):
        length, diverged = int(run.total_epochs.iloc[0]), bool(run.epoch_diverged.any())
        whole = run.epoch.tolist() == list(range(1, length + 1))
        if not (whole or diverged):
            continue
        ends = range(int(run.epoch.iloc[-1]) + 1, length + 1)  # of a diverged run
        epochs, loss = [*run.epoch, *ends], [*run.val_loss, *(5.0 for _ in ends)]
        losses.append(np.interp(np.arange(1, 11) / 10, np.array(epochs) / length, loss))
        units.append(RealCurves.space.encode(run.iloc[0].to_dict()))
    return np.array(units), np.array(losses)


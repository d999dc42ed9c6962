"""LCBench's learning curves for benchmarks/search/asha.py: 2,000 real trainings a data set, interpolated.

Funnel-shaped networks of 7 parameters (Zimmer et al., 2021) by YAHPO Gym's surrogate (Pfisterer et al., 2022), an ONNX
file with a README of its inputs. The surrogate is smooth: it holds no noise between seeds or epochs. A problem's name
says how much is added: ``lcbench-3945`` none, ``lcbench-3945+0.5`` normal noise on each score whose standard deviation
is half the distance between the accuracies of the best 1 % and the best 5 %.
"""

import functools
import json
from pathlib import Path

import numpy as np

from meshnet.search.space import Dimension, Space

NOISES = ("0.5", "1", "2")
CHOOSING = ("126025", "167104", "167168", "167190", "168330", "168908", "189865", "189906")  # settings were chosen on


@functools.cache
def read_surrogate(folder: Path):
    """The ONNX session, and the number of each data set."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "surrogate.onnx"), options)
    return session, json.loads((folder / "tasks.json").read_text())


@functools.cache
def read_goals(folder: Path, task: str) -> tuple[float, float]:
    """Accuracies that the best 1 % and the best 5 % of 20,000 random configurations have at the last epoch."""
    units = np.random.default_rng(1).random((20_000, 7))
    final = LCBench.evaluate(folder, task, units, np.full(len(units), LCBench.highest))
    return float(np.quantile(final, 0.99)), float(np.quantile(final, 0.95))


class LCBench:
    """One data set. ``seed`` changes the noise and the pace of the runs; the score is the validation accuracy in %."""

    space = Space(
        (
            Dimension("batch_size", "", "loguniform", 16, 512, True),
            Dimension("learning_rate", "", "loguniform", 1e-4, 0.1),
            Dimension("momentum", "", "uniform", 0.1, 0.99),
            Dimension("weight_decay", "", "uniform", 1e-5, 0.1),
            Dimension("num_layers", "", "uniform", 1, 5, True),
            Dimension("max_units", "", "loguniform", 64, 1024, True),
            Dimension("max_dropout", "", "uniform", 0, 1),
        ),
        (5, 52),
    )
    lowest, highest = space.fidelity

    def __init__(self, name: str, seed: int, folder: Path):
        self.task, _, noise = name.removeprefix("lcbench-").partition("+")
        self.folder, self.seed = folder, seed
        self.goal, good = read_goals(folder, self.task)
        self.noise = float(noise or 0) * (self.goal - good)
        self.curves: dict[tuple, np.ndarray] = {}

    @classmethod
    def evaluate(cls, folder: Path, task: str, units, epochs) -> np.ndarray:
        """Accuracies of units (N, 7) at epochs (N,), both as they would be trained."""
        session, numbers = read_surrogate(folder)
        units = np.atleast_2d(units)
        values = [[d.decode(unit) for unit in column] for d, column in zip(cls.space.dimensions, units.T)]
        inputs = np.column_stack([epochs, *values]).astype(np.float32)
        task_column = np.full((len(units), 1), numbers[task], np.int32)
        return session.run(None, {"x_cat": task_column, "x_cont": inputs})[0][:, 1]

    def curve(self, units) -> np.ndarray:
        """Accuracies at all epochs, without noise."""
        key = tuple(units)
        if key not in self.curves:
            epochs = np.arange(1, self.highest + 1)
            self.curves[key] = self.evaluate(self.folder, self.task, np.tile(units, (len(epochs), 1)), epochs)
        return self.curves[key]

    def score(self, units, epoch: int, number: int) -> float:
        """Accuracy of run ``number`` after ``epoch`` epochs; the same question has the same answer."""
        value = float(self.curve(units)[epoch - 1])
        if self.noise:
            value += self.noise * np.random.default_rng([self.seed, 3, number, epoch]).normal()
        return value

    def reached(self, units) -> bool:
        return bool(self.curve(units)[-1] >= self.goal)

    def pace(self, number: int, units) -> float:
        """Time of one epoch of this run; 1 in the median."""
        return float(np.exp(np.random.default_rng([self.seed, 4, number]).normal(0, 0.1)))


def names(folder: Path, chosen: bool, noises: tuple[str, ...] = ("",)) -> list[str]:
    """Problems of the data sets that settings were chosen on, or of all others."""
    tasks = [task for task in sorted(read_surrogate(folder)[1]) if (task in CHOOSING) == chosen]
    return [f"lcbench-{task}" + (f"+{noise}" if noise else "") for task in tasks for noise in noises]

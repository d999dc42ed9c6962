"""What a model of a study is given: trials and proposals as points of the unit cube, and the scores worth knowing."""

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

from meshnet.search.asha import Asha, Trial
from meshnet.search.space import Dimension, Space


@dataclass
class Known:
    """epochs: of the rungs. heights: of the rungs, 0 to 1. scored: (units, rung, loss, trial). pending: units of
    running trials without a score. paces: seconds of an epoch of those trials in ``scored`` that have them."""

    epochs: tuple[int, ...]
    heights: list[float]
    scored: list[tuple]
    pending: list
    paces: dict[int, float]


def snapshot(study: Asha, units: Callable[[Trial], list[float]], most: int) -> Known:
    """Of more than ``most`` scores those of the highest rungs, the best first, without looking at all others."""
    height = [math.log(epochs) for epochs in study.rungs]
    height = [(each - height[0]) / max(height[-1] - height[0], 1e-9) for each in height]
    best_first = itertools.chain.from_iterable(
        ((rung, number, loss) for loss, number in heapq.merge(*(bracket[rung] for bracket in study.finished)))
        for rung in reversed(range(len(study.rungs)))
    )
    rows = list(itertools.islice(best_first, most + 1))
    rows = rows[:most] if len(rows) > most else sorted(rows, key=lambda row: (row[1], row[0]))
    scored = [(units(study.trials[number]), rung, loss, number) for rung, number, loss in rows]
    pending = [units(trial) for trial in study.trials if trial.running and not trial.scores]
    paces = {number: pace for _, number, _ in rows if (pace := study.trials[number].pace)}
    return Known(study.rungs, height, scored, pending, paces)


def in_order(dimension: Dimension) -> bool:
    """Whether its values are numbers, so that some are nearer to each other than others."""
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in dimension.choices)


def features(space: Space, units):
    """Units (N, D) as the model sees them (N, C): choices without an order are equally far from each other."""
    import numpy as np

    columns = []
    for column, dimension in enumerate(space.dimensions):
        if in_order(dimension):
            columns.append(units[:, column:column + 1])
        else:
            chosen = np.minimum(np.floor(units[:, column] * len(dimension.choices)), len(dimension.choices) - 1)
            columns.append(np.eye(len(dimension.choices))[chosen.astype(int)] * math.sqrt(0.5))
    return np.hstack(columns)


def scale_of(space: Space):
    """The number (C,) of the parameter that each feature belongs to."""
    import numpy as np

    return np.repeat(np.arange(len(space.dimensions)),
                     [1 if in_order(each) else len(each.choices) for each in space.dimensions])


def around(space: Space, leaders, count: int, scales: tuple, numbers):
    """``count`` points near ``leaders``, half of them in about a third of the parameters only."""
    import numpy as np

    shape = (count, leaders.shape[1])
    steps = numbers.normal(0, 1, shape) * numbers.choice(scales, (count, 1))
    steps *= numbers.random(shape) < numbers.choice([0.3, 1.0], (count, 1))
    units = np.clip(leaders[numbers.integers(len(leaders), size=count)] + steps, 0, 1 - 1e-9)
    for column, dimension in enumerate(space.dimensions):
        if not in_order(dimension):  # no choice is near another one
            other = numbers.random(count) < 0.2
            units[other, column] = numbers.random(int(other.sum()))
    return units


def as_tried(space: Space, units):
    """Whole numbers and choices where the value that would really be tried lies, as ``encode(decode(unit))``."""
    import numpy as np

    units = units.copy()
    for column, each in enumerate(space.dimensions):
        if each.choices or (each.discrete and each.kind == "uniform"):
            count = len(each.choices) or int(each.high) - int(each.low) + 1
            units[:, column] = (np.minimum(np.floor(units[:, column] * count), count - 1) + 0.5) / count
        elif each.discrete:
            low, width = math.log(each.low), math.log(each.high) - math.log(each.low)
            whole = np.clip(np.round(np.exp(low + units[:, column] * width)), each.low, each.high)
            units[:, column] = (np.log(whole) - low) / width
    return units

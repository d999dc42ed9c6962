"""Which points of a space can be: values that are allowed alone may not be allowed together, or with the recipe."""

import copy
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from meshnet.config import Config, resolve
from meshnet.errors import UserError
from meshnet.search.space import Dimension, Space

MOST = 400  # points that are looked at before a study starts; a larger space is looked at in part
TRIES = 1000  # draws before a trial is given up


def with_fields(config: Config, fields: dict, horizon: int) -> Config:
    """``config`` with the searched values and a schedule of ``horizon`` epochs, validated."""
    changed = copy.deepcopy(config.written or config)
    changed.training.max_epochs = horizon
    for field, value in fields.items():
        section, name = field.split(".")
        setattr(getattr(changed, section), name, value)
    return resolve(changed)


def values_of(dimension: Dimension) -> list:
    """All values of a choice or of a short range of whole numbers, else its ends and what lies between them."""
    if dimension.kind == "choices":
        return list(dimension.choices)
    if dimension.discrete and dimension.high - dimension.low < MOST:
        return list(range(int(dimension.low), int(dimension.high) + 1))
    return list(dict.fromkeys([dimension.ends()[0], dimension.decode(0.5), dimension.ends()[1]]))


@dataclass(frozen=True)
class Points:
    """The points of ``space`` in ``config``. ``horizons``: epochs of every schedule that a trial may get."""

    config: Config
    space: Space
    horizons: tuple[int, ...]

    def fault(self, parameters: dict) -> str:
        """Why a point cannot be; "" where it can."""
        for horizon in self.horizons:
            try:
                with_fields(self.config, self.space.fields(parameters), horizon)
            except UserError as error:
                return str(error)
        return ""

    def look(self) -> Iterator[dict]:
        """All points, as far as they can be counted, else some of them, with every end and choice several times."""
        names = [dimension.name for dimension in self.space.dimensions]
        values = [values_of(dimension) for dimension in self.space.dimensions]
        if math.prod(map(len, values)) <= MOST:
            yield from (dict(zip(names, point)) for point in itertools.product(*values))
            return
        generator = random.Random(0)
        each = max(2, MOST // sum(map(len, values)))
        for name, listed in zip(names, values):
            for value in listed:
                for _ in range(each):
                    yield {n: generator.choice(v) for n, v in zip(names, values)} | {name: value}

    def check(self, say: Callable[[str], None]) -> None:
        """Say which points cannot be, before any trial starts.

        Raises:
            UserError: where no point can be, or an end or a choice of a dimension in none of them.
        """
        faults = [(point, self.fault(point)) for point in self.look()]
        wrong = [(point, fault) for point, fault in faults if fault]
        if len(wrong) == len(faults) and len({fault for _, fault in wrong}) == 1 and len(self.space.dimensions) > 1:
            raise UserError(f"search: found no point that can be: {wrong[0][1]}")
        for dimension in self.space.dimensions:
            for value in dimension.ends():
                here = [fault for point, fault in faults if point[dimension.name] == value]
                if all(here):
                    raise UserError(f"search: {dimension.name} = {value}: {here[0]}")
        if wrong:
            point, fault = wrong[0]
            shown = ", ".join(f"{name} = {value}" for name, value in point.items())
            say(f"note: search: {len(wrong)} of {len(faults)} points cannot be, such as {shown}: {fault}; a trial that "
                "falls on one is drawn again")

    def suggest(self, sampler, number: int, study, seed: int, say: Callable[[str], None]) -> dict:
        """The sampler's parameters of trial ``number``, drawn again at random while they cannot be.

        Raises:
            UserError: where no point was found that can be.
        """
        parameters, generator = sampler.suggest(number, study), random.Random(f"{seed}/{number}/again")
        first = fault = self.fault(parameters)
        for _ in range(TRIES):
            if not fault:
                break
            parameters = self.space.sample(generator)
            fault = self.fault(parameters)
        if fault:
            raise UserError(f"search: found no point that can be in {TRIES} draws, the last one: {fault}")
        if first:
            say(f"trial {number}: drawn again ({first})")
        return parameters

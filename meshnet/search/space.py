"""Search spaces in Orion's notation, bound to the fields of the configuration.

    channels: uniform(5, 21, discrete=True)
    lr: loguniform(1e-4, 4e-2)
    warmup_pct: choices([0.02, 0.1, 0.2])
    epochs: fidelity(15, 50)

The notation is that of Orion (Bouthillier et al.). It is read with Python's parser and literals alone; nothing is
evaluated. Both ends of a range belong to it. Real values are rounded to four significant digits, Orion's default
precision, so that a recipe shows the very number that was trained with.
"""

import ast
import dataclasses
import math
import random
import typing
from dataclasses import dataclass

from meshnet.config import Config, check_limits, coerce
from meshnet.errors import UserError
from meshnet.flags import alike

SHORT_NAMES = {
    "channels": "model.channels",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "bg_weight": "loss.background_weight",
    "warmup_pct": "scheduler.pct_start",
}
FORMS = "uniform(a, b), uniform(a, b, discrete=True), loguniform(a, b), choices([a, b, ...]) or fidelity(a, b)"


@dataclass(frozen=True)
class Dimension:
    """One searched parameter. ``field`` is the dotted configuration field that it sets."""

    name: str
    field: str
    kind: str  # uniform, loguniform or choices
    low: float = 0.0
    high: float = 0.0
    discrete: bool = False
    choices: tuple = ()

    def decode(self, unit: float):
        """The value at ``unit`` in [0, 1): equal lengths of it mean equal probability."""
        if self.kind == "choices":
            return self.choices[min(int(unit * len(self.choices)), len(self.choices) - 1)]
        if self.kind == "uniform" and self.discrete:
            return min(int(self.low) + int(unit * (self.high - self.low + 1)), int(self.high))
        if self.kind == "uniform":
            value = self.low + unit * (self.high - self.low)
        else:
            value = math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
        if self.discrete:
            return min(max(round(value), int(self.low)), int(self.high))
        return min(max(float(f"{value:.4g}"), self.low), self.high)

    def encode(self, value) -> float:
        """Where ``value`` lies in [0, 1]; of a whole number or a choice, the middle of its share."""
        if self.kind == "choices":
            return (self.choices.index(value) + 0.5) / len(self.choices)
        if self.kind == "uniform" and self.discrete:
            return (value - self.low + 0.5) / (self.high - self.low + 1)
        if self.kind == "uniform":
            return (value - self.low) / (self.high - self.low)
        return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))

    def ends(self) -> tuple:
        """The values to check, which stand for all others: both ends, or every choice."""
        if self.kind == "choices":
            return self.choices
        return (int(self.low), int(self.high)) if self.discrete else (self.low, self.high)


@dataclass(frozen=True)
class Space:
    """What is searched. ``fidelity`` is (lowest, highest) number of epochs, or None where the block names none."""

    dimensions: tuple[Dimension, ...]
    fidelity: tuple[int, int] | None

    def sample(self, generator: random.Random) -> dict:
        """Independent draws, ``{name: value}``."""
        return {dimension.name: dimension.decode(generator.random()) for dimension in self.dimensions}

    def decode(self, units) -> dict:
        """``{name: value}`` from one number in [0, 1] for each dimension, in order."""
        return {dimension.name: dimension.decode(float(unit)) for dimension, unit in zip(self.dimensions, units)}

    def encode(self, parameters: dict) -> list[float]:
        """One number in [0, 1] for each dimension, in order."""
        return [dimension.encode(parameters[dimension.name]) for dimension in self.dimensions]

    def fields(self, parameters: dict) -> dict:
        """``{dotted config field: value}``."""
        return {dimension.field: parameters[dimension.name] for dimension in self.dimensions}


def parse_space(block: dict[str, str], where: str = "search") -> Space:
    """Read a ``search`` section: ``{name: notation}``.

    Raises:
        UserError: for anything that is not in the notation, an unknown config field, a range that is empty or lies
            outside what the field allows, two names for one field, more than one fidelity.
    """
    dimensions, fidelity = [], []
    for name, text in block.items():
        here = f"{where}: {name}: {text}"
        kind, values, options = _call(text, here)
        if kind == "fidelity":
            fidelity.append(_fidelity(values, options, here))
        else:
            dimensions.append(_dimension(str(name), kind, values, options, here))
    if len(fidelity) > 1:
        raise UserError(f"{where}: found {len(fidelity)} fidelities, expected one")
    if not dimensions:
        raise UserError(f"{where}: nothing to search; expected lines such as 'lr: loguniform(1e-4, 4e-2)'")
    for i, one in enumerate(dimensions):
        for other in dimensions[:i]:
            if one.field == other.field:
                raise UserError(f"{where}: '{other.name}' and '{one.name}' both set {one.field}; keep one of them")
    return Space(tuple(dimensions), fidelity[0] if fidelity else None)


def _call(text: object, here: str) -> tuple[str, list, dict]:
    """``name(1, 2, key=3)`` as its name, values and options, every one a literal."""
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise ValueError
        values = [ast.literal_eval(value) for value in node.args]
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise UserError(f"{here}: expected {FORMS}") from None
    if node.func.id not in ("uniform", "loguniform", "choices", "fidelity"):
        raise UserError(f"{here}: unknown distribution '{node.func.id}'; expected {FORMS}")
    return node.func.id, values, options


def _range(values: list, options: dict, allowed: tuple, here: str) -> tuple[float, float]:
    unknown = set(options) - set(allowed)
    if unknown:
        raise UserError(f"{here}: unknown option '{min(map(str, unknown))}'; expected {FORMS}")
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(values) != 2 or len(numbers) != 2:
        raise UserError(f"{here}: expected two numbers, low and high")
    if numbers[0] >= numbers[1]:
        raise UserError(f"{here}: the range is empty; expected low < high")
    return numbers[0], numbers[1]


def _fidelity(values: list, options: dict, here: str) -> tuple[int, int]:
    low, high = _range(values, options, (), here)
    if int(low) != low or int(high) != high or low < 1:
        raise UserError(f"{here}: expected whole epochs, at least 1")
    return int(low), int(high)


def _dimension(name: str, kind: str, values: list, options: dict, here: str) -> Dimension:
    field = SHORT_NAMES.get(name, name)
    type_hint, limits = _config_field(field, here)
    if kind == "choices":
        listed = values[0] if len(values) == 1 and isinstance(values[0], list | tuple) else None
        if not listed or options:
            raise UserError(f"{here}: expected choices([a, b, ...])")
        listed = [list(value) if isinstance(value, tuple) else value for value in listed]  # as a ledger returns it
        if len({repr(value) for value in listed}) < len(listed):
            raise UserError(f"{here}: a choice is named twice")
        dimension = Dimension(name, field, kind, choices=tuple(listed))
    else:
        low, high = _range(values, options, ("discrete",), here)
        discrete = options.get("discrete", False)
        if not isinstance(discrete, bool):
            raise UserError(f"{here}: discrete: found {discrete!r}, expected True or False")
        if discrete and (int(low) != low or int(high) != high):
            raise UserError(f"{here}: a discrete range needs whole numbers")
        if kind == "loguniform" and low <= 0:
            raise UserError(f"{here}: a loguniform range must lie above 0")
        if not discrete and int in (type_hint, *typing.get_args(type_hint)):
            raise UserError(f"{here}: {field} takes whole numbers; add discrete=True")
        dimension = Dimension(name, field, kind, low, high, discrete)
    for value in dimension.ends():
        check_limits(coerce(value, type_hint, f"{here}: {field}"), limits, f"{here}: {field}")
    return dimension


def _config_field(field: str, here: str) -> tuple[type, dict]:
    """Type hint and limits of a dotted config field."""
    section, _, name = field.partition(".")
    sections = typing.get_type_hints(Config)
    known = {f"{s}.{item.name}": (s, item) for s, kind in sections.items() for item in dataclasses.fields(kind)}
    if field not in known:
        close = alike(field, list(SHORT_NAMES)) or alike(field, list(known))
        short = ", ".join(SHORT_NAMES)
        hint = f"did you mean '{close[0]}'?" if close else f"expected {short} or a field such as loss.dice_weight"
        raise UserError(f"{here}: no config field '{field}'; {hint}")
    if field == "training.max_epochs":
        raise UserError(f"{here}: training.max_epochs follows from the fidelity; write epochs: fidelity(low, high)")
    return typing.get_type_hints(sections[section])[name], dict(known[field][1].metadata)

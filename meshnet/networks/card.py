"""A model's ``config.json`` as ``Card``: its architecture, and how a scan must be prepared for it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from meshnet import __version__
from meshnet.errors import UserError
from meshnet.scans.grid import Grid
from meshnet.scans.mask import Marks

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class Card:
    """All that is needed to use a model's weights.

    ``channels`` and ``classes`` are names, of classes the background first. ``arguments`` are those of the network's
    constructor.
    """

    channels: list[str]
    classes: list[str]
    name: str = "meshnet"  # of the architecture
    arguments: dict[str, Any] = field(default_factory=dict)
    voxel_mm: float = 1.0
    shape: list[int] | None = None  # voxels of the grid; None: round(256 / voxel_mm) on each axis
    orientation: str = "LIA"
    centre: str = "n/2"  # see ``scans.grid.Grid``
    averaged: bool = False
    scaling: str = "conform_uint8"
    window: list[float] | None = None
    shifted: bool = False  # also segment on a grid moved by half a voxel, and average
    crop: list[int] | None = None  # the box of every case that training used: x0, x1, y0, y1, z0, z1
    patch: list[int] | None = None  # size of the sliding window for networks other than MeshNet
    threshold: float = 0.5  # probability from which a voxel is lesion
    thresholds: dict[str, float] = field(default_factory=dict)  # the same of other weights in the folder, by file name
    min_lesion_mm3: float = 0  # smaller lesions are dropped
    training_data: Any = None
    metrics: dict[str, Any] = field(default_factory=dict)
    version: str | None = __version__
    marks: str | None = None  # the only class that a mask shows; None: all (see ``scans.mask.Marks``)
    others: dict[str, Any] = field(default_factory=dict)  # keys of the file that are not fields of this class

    def __post_init__(self):
        assert self.channels and self.classes, "a card names its channels and classes"

    @classmethod
    def from_dict(cls, values: dict) -> Card:
        """A card from the content of its file; keys that are missing there have their defaults."""
        known = {one.name for one in fields(cls)} - {"others"}
        given = {"version": None} | {key: value for key, value in values.items() if key in known}
        return cls(**given, others={key: value for key, value in values.items() if key not in (*known, "format")})

    def to_dict(self) -> dict:
        """The content of the file."""
        values = asdict(self)
        others = values.pop("others")
        return {"format": FORMAT, **values, **others}

    def changed(self, **values) -> Card:
        """A copy of the card with other ``values``."""
        return replace(self, **values)

    @property
    def marking(self) -> Marks:
        """Which of the classes a mask shows, and from what probability."""
        return Marks(tuple(self.classes), self.marks, self.threshold)

    def grids(self) -> list[Grid]:
        """The grids on which the model sees a scan: its own, and if it is ``shifted`` one moved by half a voxel along
        each axis, whose voxels lie between those of the first."""
        if not isinstance(self.shifted, bool):
            raise UserError(f"shifted: found {self.shifted!r}, expected true or false")
        grid = Grid(self.voxel_mm, tuple(self.shape) if self.shape else None, self.orientation, self.centre,
                    averaged=self.averaged)
        return [grid, replace(grid, offset=0.5)] if self.shifted else [grid]


def common_threshold(cards: Sequence[Card]) -> float:
    """The threshold for averaged probabilities: the mean of the models' own."""
    return statistics.fmean(card.threshold for card in cards)


def read_card(folder: str | Path, weights: str = WEIGHTS) -> Card:
    """The card of a model folder, from its ``config.json``, with the threshold that belongs to these ``weights``.

    Raises:
        UserError: where it is missing, not JSON, of another format, or incomplete.
    """
    path = Path(folder) / CONFIG
    card = card_from(read_values(path), path)
    return card.changed(threshold=card.thresholds.get(weights, card.threshold))


def read_values(path: Path) -> dict:
    """The content of a card's file.

    Raises:
        UserError: where it is missing, not JSON, or of another format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not found; a model folder holds {CONFIG} beside its weights. Give a run folder, a "
                        "model folder or a Hub name") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy the model folder again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise UserError(f"{path}: found format {found!r}, expected {FORMAT}; this file is not from this program, "
                        "or from a newer version of it")
    return values


def card_from(values: dict, path: Path) -> Card:
    """The card in the content of the file ``path``; a UserError where it is incomplete."""
    for key, kind in (("name", str), ("arguments", dict), ("channels", list), ("classes", list)):
        if not isinstance(values.get(key), kind) or not values[key]:
            raise UserError(f"{path}: found {key} = {values.get(key)!r}, expected a {kind.__name__} that is not empty")
    for key, listed in (("in_channels", "channels"), ("classes", "classes")):
        number = values["arguments"].get(key, len(values[listed]))
        if number != len(values[listed]):
            raise UserError(f"{path}: found {len(values[listed])} {listed}, expected {number} as arguments.{key} says")
    for key in ("averaged", "shifted"):
        if not isinstance(values.get(key, False), bool):
            raise UserError(f"{path}: found {key} = {values[key]!r}, expected true or false")
    if values.get("marks") is not None and values["marks"] not in values["classes"][1:]:
        known = ", ".join(values["classes"][1:])
        raise UserError(f"{path}: found marks = {values['marks']!r}, expected one of {known}")
    return Card.from_dict(values)

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
from meshnet.networks.card_checks import MENTIONS, OWN, QUALITY, SHARE, VETO, check_decision, check_first_classes
from meshnet.numbers import plain
from meshnet.scans.grid import Grid, left_to_right
from meshnet.scans.mask import Decision, Marks
from meshnet.scans.quality import Learned
from meshnet.scans.second import given_names
from meshnet.scans.veto import Veto

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
    sure: float = 0  # probability that a lesion reaches somewhere; others are dropped
    contrasts: dict[str, dict[str, Any]] = field(default_factory=dict)  # a ``Decision`` for scans that look so
    training_data: Any = None
    metrics: dict[str, Any] = field(default_factory=dict)
    version: str | None = __version__
    marks: str | None = None  # the only class that a mask shows; None: all (see ``scans.mask.Marks``)
    first: list[str] | None = None  # of a cascade: the first network's classes, which are channels as well
    first_share: float = 0  # of a cascade: what share of the result the first network's own probabilities have
    mirror: bool = False  # of a cascade: the second network is given the mirror image of all this as well
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

    @property
    def inputs(self) -> list[str]:
        """What the network is given, by name: the scan's channels, of a cascade the first network's classes, and where
        it is given the mirror image as well, all of these again."""
        return given_names(self.channels, self.first, self.mirror)

    @property
    def across(self) -> int | None:
        """The axis of the grid from left to right for a network that is given the mirror image; None for others."""
        return left_to_right(self.orientation) if self.mirror else None

    def changed(self, **values) -> Card:
        """A copy of the card with other ``values``."""
        return replace(self, **values)

    @property
    def marking(self) -> Marks:
        """Which of the classes a mask shows, and from what probability."""
        return Marks(tuple(self.classes), self.marks, self.threshold)

    def decision(self, contrast: str | None = None, veto: bool = False) -> Decision:
        """What makes a lesion on a scan that looks like ``contrast``, one of ``scans.contrast.CONTRASTS``. ``veto``:
        where the card's veto for it, if there is one, counts."""
        own = Decision(self.threshold, self.sure, self.min_lesion_mm3)
        given = {key: value for key, value in self.contrasts.get(contrast, {}).items()
                 if key not in (SHARE, VETO, OWN, QUALITY, MENTIONS)}
        own = replace(own, **given | {"also": tuple(given.get("also", ()))})
        found = self.veto(contrast) if veto else None
        return own if found is None or found.sure is None else replace(own, sure=found.sure)

    def share(self, contrast: str | None = None) -> float:
        """``first_share`` on a scan that looks like ``contrast``."""
        return self.contrasts.get(contrast, {}).get(SHARE, self.first_share)

    def veto(self, contrast: str | None = None) -> Veto | None:
        """What takes back lesions of a cascade on a scan that looks like ``contrast``; None where nothing does."""
        found = self.contrasts.get(contrast, {}).get(VETO)
        return found and Veto(found["bias"], tuple(found["weights"]), found.get("sure"))

    def quality(self, contrast: str | None = None) -> Learned | None:
        """How the quality of the card's own decision on such a scan is computed; None: by ``Evidence.dice``."""
        found = self.contrasts.get(contrast, {}).get(QUALITY)
        return found and Learned(tuple(found["marked"]), tuple(found["empty"]))

    def mentions(self, contrast: str | None = None) -> dict[str, float]:
        """From how many mL on classes that are not marked are mentioned on such a scan, by name."""
        return self.contrasts.get(contrast, {}).get(MENTIONS, {})

    @property
    def own_weights(self) -> list[str]:
        """The contrasts for which the second network of a cascade has weights of its own, in the same file."""
        return [contrast for contrast, settings in self.contrasts.items() if settings.get(OWN)]

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


def common_decision(cards: Sequence[Card], contrast: str | None = None, threshold: float | None = None,
                    min_lesion_mm3: float | None = None, veto: bool = False, also: Sequence[str] = ()) -> Decision:
    """What makes a lesion of averaged probabilities on a scan that looks like ``contrast``.

    Threshold and ``sure`` are the means of the models' own, the rest is the first one's. A ``threshold`` that a
    user gives decides alone, a ``min_lesion_mm3`` that a user gives replaces the size. ``veto``: whether a veto counts.
    ``also``: classes that a user wants marked as well.
    """
    own = [card.decision(contrast, veto) for card in cards]
    found = Decision(statistics.fmean(one.threshold for one in own), statistics.fmean(one.sure for one in own),
                     own[0].min_lesion_mm3 if min_lesion_mm3 is None else min_lesion_mm3,
                     tuple(dict.fromkeys((*own[0].also, *also))))
    return found if threshold is None else replace(found, threshold=threshold, sure=0.0)


def check_also(cards: Sequence[Card], also: Sequence[str], name: str = "also") -> None:
    """Raise UserError where a model cannot mark each of the classes in ``also`` beside its own; ``name`` is what the
    setting is called."""
    for card in cards:
        others = [one for one in card.classes[1:] if one != card.marks]
        if also and card.marks is None:
            raise UserError(f"{name}: found {also[0]} with a model that marks each of its classes "
                            f"({', '.join(card.classes[1:])}), expected one that marks one of several; leave it out")
        if unknown := [one for one in also if one not in others]:
            raise UserError(f"{name}: found {unknown[0]}, expected a class that the model does not mark by itself: "
                            f"{', '.join(others) or 'it has none; leave it out'}"
                            + ", a name with spaces in quotes" * any(" " in one for one in others))


def read_card(folder: str | Path, weights: str = WEIGHTS) -> Card:
    """The card of a model folder, from its ``config.json``, with the threshold that belongs to these ``weights``.

    Raises:
        UserError: where it is missing, not JSON, of another format, or incomplete.
    """
    path = Path(folder) / CONFIG
    card = card_from(read_values(path), path)
    if weights in card.thresholds and weights != WEIGHTS:  # the rest was chosen for other weights
        kept = {name: {key: one[key] for key in (SHARE, OWN) if key in one} for name, one in card.contrasts.items()}
        card = card.changed(sure=0, contrasts={name: one for name, one in kept.items() if one})
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
    check_first_classes(values, path)
    given = given_names(values["channels"], values.get("first"), values.get("mirror", False))
    for key, listed, what in (("in_channels", given, "channels"), ("classes", values["classes"], "classes")):
        number = values["arguments"].get(key, len(listed))
        if number != len(listed):
            raise UserError(f"{path}: found {len(listed)} {what}, expected {number} as arguments.{key} says")
    for key in ("averaged", "shifted"):
        if not isinstance(values.get(key, False), bool):
            raise UserError(f"{path}: found {key} = {values[key]!r}, expected true or false")
    if values.get("marks") is not None and values["marks"] not in values["classes"][1:]:
        known = ", ".join(values["classes"][1:])
        raise UserError(f"{path}: found marks = {values['marks']!r}, expected one of {known}")
    for key, least, most in (("threshold", 0, 1), ("min_lesion_mm3", 0, 1e9), ("voxel_mm", 0.01, 100)):
        value = values.get(key, 0.5)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise UserError(f"{path}: found {key} = {value!r}, expected a number from {plain(least)} to {plain(most)}; "
                            "correct it")
    check_decision(values, path)
    return Card.from_dict(values)

"""Cascades: a network that is given, beside the scan, the probabilities of a first one, whose model folder lies in its
own as ``first``."""

from __future__ import annotations

import shutil
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import whole_file, write_json
from meshnet.networks.card import CONFIG, WEIGHTS, Card, read_card

FIRST = "first"  # subfolder of a cascade's folder, a model folder of its own


def read_first(folder: Path, card: Card) -> Card | None:
    """The card of the first network of the model in ``folder``, whose own is ``card``; None where it is no cascade.

    Raises:
        UserError: where it is missing, not valid, or does not fit the second one.
    """
    if not card.first:
        return None
    where = folder / FIRST
    if not (where / CONFIG).is_file():
        raise UserError(f"{where / CONFIG}: not found, expected the first network of this cascade; copy the whole "
                        "model folder again")
    first = read_card(where)
    check_first(where / CONFIG, first, card)
    return first


def keep_first(weights: Path | None, folder: Path, channels: list[str] | None = None) -> None:
    """Copy the model with these ``weights`` into ``folder`` as the first network of a cascade, each file whole. Where
    there is none, remove one of an earlier data set or run.

    ``channels``: names that the copy's card has instead of its own.
    """
    where = folder / FIRST
    if weights is None:
        if {path.name for path in where.glob("*")} <= {CONFIG, WEIGHTS}:
            shutil.rmtree(where, ignore_errors=True)
        return
    card = read_card(weights.parent, weights.name).changed(thresholds={})
    with whole_file(where / WEIGHTS) as temporary:
        shutil.copyfile(weights, temporary)
    write_json(where / CONFIG, card.changed(channels=channels or card.channels).to_dict())


def check_first(where: Path | str, first: Card, card: Card) -> None:
    """Raise UserError where the network of ``first``, named ``where``, cannot be the first one before that of ``card``.
    """
    if first.first:
        raise UserError(f"{where}: is a cascade itself, expected a single network; a cascade has two stages")
    for what, found, expected in (("classes", first.classes[1:], card.first),
                                  ("channels", first.channels, card.channels)):
        if found != expected:
            raise UserError(f"{where}: found {what} {', '.join(found)}, expected {', '.join(expected)} as the second "
                            "network was trained with; copy the whole model folder again")
    if first.scaling != card.scaling:
        raise UserError(f"{where}: found scaling {first.scaling}, expected {card.scaling} as the second network; copy "
                        "the whole model folder again")

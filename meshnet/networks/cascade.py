"""Cascades: a network that is given, beside the scan, the probabilities of a first one, whose model folder lies in its
own as ``first``."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import hash_of, whole_file, write_json
from meshnet.networks.card import CONFIG, WEIGHTS, Card, read_card

# Of a first network's card: what its probabilities depend on, beside its weights.
SEEN = ("name", "arguments", "voxel_mm", "shape", "orientation", "centre", "averaged", "shifted", "scaling", "window")
FIRST = "first"  # subfolder of a cascade's folder, a model folder of its own
FOR_CONTRAST = "for_contrast"  # attribute of a second network: the same with other weights, by contrast


def of_contrast(tensors: dict, contrast: str | None) -> dict:
    """Those of a second network's ``tensors``, by name, that belong to the weights for ``contrast``; None: to those
    for every contrast without weights of its own."""
    if contrast is None:
        return {name: value for name, value in tensors.items() if not name.startswith(f"{FOR_CONTRAST}.")}
    start = f"{FOR_CONTRAST}.{contrast}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


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


def network_of(weights: Path) -> list[str]:
    """What the results of a first network depend on: the SHA-256 of its ``weights``, and of what the card beside them
    says of how it is computed and sees a scan.

    Raises:
        UserError: where one of both files is missing, or the card is not valid.
    """
    card = read_card(weights.parent, weights.name).to_dict()
    if not weights.is_file():
        raise UserError(f"{weights}: not found, expected the weights of a cascade's first network; copy the whole "
                        "folder again")
    with open(weights, "rb") as handle:
        return [hashlib.file_digest(handle, "sha256").hexdigest(), hash_of({name: card[name] for name in SEEN})]


def keep_first(weights: Path, folder: Path, channels: list[str] | None = None) -> None:
    """Copy the model with these ``weights`` into ``folder`` as the first network of a cascade, each file whole.

    ``channels``: names that the copy's card has instead of its own.
    """
    where = folder / FIRST
    network_of(weights)
    card = read_card(weights.parent, weights.name).changed(thresholds={})
    with whole_file(where / WEIGHTS) as temporary:
        shutil.copyfile(weights, temporary)
    write_json(where / CONFIG, card.changed(channels=channels or card.channels).to_dict())


def drop_first(folder: Path, described: str) -> None:
    """Remove the first network of an earlier cascade from ``folder``, where the file ``described`` in it says that
    there is one; a folder of that name is someone else's otherwise."""
    try:
        known = json.loads((folder / described).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    where = folder / FIRST
    if isinstance(known, dict) and known.get("first") and {path.name for path in where.glob("*")} <= {CONFIG, WEIGHTS}:
        shutil.rmtree(where, ignore_errors=True)


def take_first(data: Path, known: list[str] | None, folder: Path, resumed: bool) -> None:
    """Give the run in ``folder`` the first network of its data set. A ``resumed`` one keeps its own, which must be the
    data set's.

    Args:
        data: folder of the data set.
        known: ``network_of`` the first network that its cases were prepared with; None: it does not say.

    Raises:
        UserError: for another first network than that, or a missing one.
    """
    own, theirs = (where / FIRST / WEIGHTS for where in (folder, data))
    if not resumed or not own.is_file():
        if known and network_of(theirs) != known:
            raise UserError(f"{theirs.parent}: found another first network than the cases of this data set were "
                            "prepared with, expected that one; copy the whole data set again, or prepare it again")
        keep_first(theirs, folder)
    elif network_of(own) != (known or network_of(theirs)):
        raise UserError(f"{own.parent}: found another first network than that of {data}, expected the same until the "
                        "end of a run; begin anew with --no-resume or another --run_dir")


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

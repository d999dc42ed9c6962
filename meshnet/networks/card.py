"""A model's ``config.json``: its architecture, and how a scan must look before it reaches the network."""


from __future__ import annotations

import json
from pathlib import Path

from meshnet.errors import UserError

FORMAT = 1
CARD, WEIGHTS = "config.json", "model.safetensors"
DEFAULTS = {
    "voxel_mm": 1.0, "shape": None, "orientation": "LIA", "centre": "n/2", "averaged": False,
    "scaling": "conform_uint8", "window": None,
    "shifted": False,  # whether a second grid, half a voxel further, is looked at as well and the mean is taken
    "crop": None, "patch": None, "threshold": 0.5, "min_lesion_mm3": 0, "training_data": None, "metrics": {},
    "version": None,
    "marks": None,  # the only class that is marked, by the threshold, where others are there to tell it from them
}


def read_card(folder: str | Path) -> dict:
    """``config.json`` of a model folder, with ``DEFAULTS`` filled in.

    Raises:
        UserError: where it is missing, not JSON, of another format, or lacks what a network needs.
    """
    path = Path(folder) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not found; a model folder holds {CARD} beside its weights. Give a run folder, a "
                        "model folder or a Hub name") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy the model folder again") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise UserError(f"{path}: found format {found!r}, expected {FORMAT}; this file is not from this program or "
                        "from a newer version of it")
    for key, kind in (("name", str), ("arguments", dict), ("channels", list), ("classes", list)):
        if not isinstance(card.get(key), kind) or not card[key]:
            raise UserError(f"{path}: found {key} = {card.get(key)!r}, expected a {kind.__name__} that is not empty")
    for key, listed in (("in_channels", "channels"), ("classes", "classes")):
        number = card["arguments"].get(key, len(card[listed]))
        if number != len(card[listed]):
            raise UserError(f"{path}: found {len(card[listed])} {listed}, expected {number} as arguments.{key} says")
    for key in ("averaged", "shifted"):
        if not isinstance(card.get(key, False), bool):
            raise UserError(f"{path}: found {key} = {card[key]!r}, expected true or false")
    if card.get("marks") is not None and card["marks"] not in card["classes"][1:]:
        raise UserError(f"{path}: found marks = {card['marks']!r}, expected one of {', '.join(card['classes'][1:])}")
    return DEFAULTS | card

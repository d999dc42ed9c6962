"""A model's card beside an exported file, since no other layout holds the voxel size, threshold or least lesion."""

import hashlib
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import write_json
from meshnet.networks.card import Card, card_from, read_values

CARD_NAME = "card.json"  # not config.json: the folder is no model folder
EXPORTED = "exported"  # key in it: which file it belongs to


def write_beside(model, card: Card, path: Path, weights: Path, **more) -> None:
    """Write the card of an exported ``model`` to ``path``, whole or not at all, as it may leave this machine.

    Args:
        weights: the exported file, whose hash ties the card to it.
        more: further keys.
    """
    from meshnet.networks.readme import public_card

    # The threshold is that of the exported weights; the thresholds of other files in the folder do not belong here.
    card = public_card(card).changed(name=getattr(model, "name", "meshnet"), arguments=model.arguments, thresholds={})
    write_json(path, {**card.to_dict(), **more, EXPORTED: {"file": weights.name, "sha256": sha256(weights)}})


def read_beside(source: Path) -> Card | None:
    """The card that an export wrote beside ``source``, brainchop's model.json; None where there is none.

    Raises:
        UserError: where it is not valid, or belongs to other weights.
    """
    path = source.with_name(CARD_NAME)
    if not path.is_file():
        return None
    values = read_values(path)
    exported = values.pop(EXPORTED, None)
    try:
        weights = path.with_name(Path(exported["file"]).name)
        same = weights.is_file() and sha256(weights) == exported["sha256"]
    except (TypeError, KeyError):
        raise UserError(f"{path}: found no file that it belongs to, expected a card that share.py tfjs wrote; export "
                        "the model again") from None
    if not same:
        raise UserError(f"{path}: belongs to other weights than {weights}; copy the whole folder again, or remove "
                        f"{path.name} and give --channels, --voxel_mm, --orientation and --scaling")
    return card_from(values, path)


def sha256(path: Path) -> str:
    """Of a file's content, as hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

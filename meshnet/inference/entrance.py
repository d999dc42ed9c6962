"""``predict`` as it is public: a volume that is not prepared for its network is refused before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from meshnet.errors import UserError
from meshnet.inference import predict as inside
from meshnet.numbers import plain

if TYPE_CHECKING:
    from torch import nn

    from meshnet.inference.boxes import Box
    from meshnet.networks.build import Model
    from meshnet.networks.card import Card

TO_ONE = ("conform_uint8", "minmax", "window", "lesions_bright")  # scalings that give 0..1 and nothing beyond
ABOVE = 1.001  # what rounding may make of 1
LARGER = 1.5  # times the model's grid, from which a volume is one of other voxels; a smaller one may be a part


def predict(model: nn.Module | Model, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
            threads: int | None = None) -> np.ndarray:
    """Class probabilities (K, X, Y, Z), float32, of a volume (C, X, Y, Z) that is prepared as the model's card says.

    ``model`` is a network, or what ``load_model`` returned. Other arguments and errors as
    ``meshnet.inference.predict.predict``.

    Raises:
        UserError: besides, where the network was loaded with its card and the volume has values or a size that the card
            does not allow.
    """
    card = getattr(model, "card", None)
    model = getattr(model, "network", model) if isinstance(model, tuple) else model
    if card is not None:
        check_prepared(card, np.asarray(volume.detach().cpu() if hasattr(volume, "detach") else volume))
    return inside.predict(model, volume, crop, max_memory, device, threads)


def check_prepared(card: Card, volume: np.ndarray) -> None:
    """Raise UserError for a volume (C, X, Y, Z) that cannot be what ``card`` describes."""
    if volume.ndim != 4 or 0 in volume.shape:
        return  # refused by predict in its own words
    advice = "; segment_scan prepares a scan as the model needs it"
    grid = card.grids()[0]
    if any(found > LARGER * size for found, size in zip(volume.shape[1:], grid.size)):
        shape = " x ".join(map(str, volume.shape[1:]))
        raise UserError(f"volume: found {shape} voxels, expected the model's grid of "
                        f"{' x '.join(map(str, grid.size))} voxels of {plain(grid.voxel_mm)} mm{advice}")
    low, high = float(volume.min()), float(volume.max())
    if card.scaling in TO_ONE and (high > ABOVE or low < 1 - ABOVE):
        raise UserError(f"volume: found values from {low:g} to {high:g}, expected 0 to 1, the scaling {card.scaling} "
                        f"of the model{advice}")

"""What the second network of a cascade is given of a case that prepare.py prepares for its training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.data.row import First, Settings
from meshnet.errors import UserError
from meshnet.inference.cascade import second_volume, turned_alike
from meshnet.inference.models import load_models
from meshnet.inference.scan import conformed_view
from meshnet.networks.build import Model
from meshnet.networks.card import read_card
from meshnet.networks.cascade import network_of
from meshnet.scans import checks
from meshnet.scans.grid import LOOKS, left_to_right, stack_channels
from meshnet.scans.second import SCALINGS


def first_of(weights: Path, scaling: str, channels: list[str], wanted: list[str] | None = None,
             mirror: bool = False) -> First:
    """The first network of a cascade, as ``Settings`` have it.

    Args:
        weights: its weights, beside its card.
        scaling, channels: of the data set.
        wanted: the classes of the first network that the second one is known to take; None: any.
        mirror: whether the second one is given the mirror image as well.

    Raises:
        UserError: where it sees scans otherwise, or cannot be a first network.
    """
    card, name = read_card(weights.parent, weights.name), f"--first {weights.parent}"
    if card.scaling not in SCALINGS:
        raise UserError(f"{name}: has scaling {card.scaling}, expected {' or '.join(SCALINGS)} of a cascade's networks")
    if scaling != card.scaling:
        raise UserError(f"--scaling: found {scaling} beside {name}, expected {card.scaling}, its own; leave the flag "
                        "out")
    if len(card.channels) != len(channels) or (len(channels) > 1 and card.channels != channels):
        raise UserError(f"{name}: has channels {', '.join(card.channels)}, expected {', '.join(channels)} as the data "
                        "set; choose those with --suffix")
    if wanted and card.classes[1:] != wanted:
        raise UserError(f"{name}: has the classes {', '.join(card.classes[1:])}, expected {', '.join(wanted)} as the "
                        "first network of --like has them; leave --first out to keep that one, or tune it on masks of "
                        "all these classes")
    if mirror and len(card.classes) < 3:
        raise UserError(f"--mirror: found {name} with the class {card.classes[1]} alone, expected one that finds the "
                        "whole brain, such as by its fluid: the plane is looked for within what it finds; leave "
                        "--mirror out")
    return First(str(weights), tuple(card.classes[1:]), tuple(network_of(weights)), mirror)


@functools.cache
def first_model(folder: str) -> Model:
    """The first network, loaded once in each process."""
    return load_models([folder], device="cpu")[0]


def see(images: Sequence[nib.Nifti1Image], volumes: np.ndarray, affine: np.ndarray,
        settings: Settings) -> tuple[np.ndarray | None, str | None]:
    """``data.row.See``: what infer.py would give the second network of the case with these ``images``, and what these
    look like.

    Args:
        images: the channels on their own grids.
        volumes: the same, conformed to the grid of ``settings``, (C, X, Y, Z) uint8.
        affine: of that grid.
        settings: with the ``first`` network.
    """
    model = first_model(settings.first.folder)
    card = model.card
    grids = [checks.fitted(grid, images[0], "scan")[0] for grid in card.grids()]
    seen = [conformed_view(images, grid, card.scaling, None, {}) for grid in grids]
    second = stack_channels(turned_alike(volumes, seen[0][1])), affine
    across = left_to_right(settings.grid.orientation) if settings.first.mirror else None
    given = second_volume(model, [view for view, _ in seen], second, settings.grid.voxel_mm, across)
    return given and given[0], seen[0][1][0].get(LOOKS)

"""The second stage of a cascade: its network's input, from the scan and from what the first network finds."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from meshnet.inference.predict import predict
from meshnet.networks.build import Model, network_for
from meshnet.scans.contrast import T1W, turned_round
from meshnet.scans.grid import LOOKS, Grid, conform, stack_channels, to_native
from meshnet.scans.intensity import as_input
from meshnet.scans.mask import slices
from meshnet.scans.second import Box, input_within, mixed, region
from meshnet.scans.veto import take_back

View = tuple[np.ndarray, np.ndarray]  # a conformed scan (C, X, Y, Z) and its affine
Given = tuple[np.ndarray, Box]  # what a second network is given, and the region


def grey_view(images: Sequence[nib.Nifti1Image], grid: Grid, extras: Sequence[dict]) -> View:
    """The images conformed to the second network's ``grid``, uint8. ``extras`` as for ``turned_alike``."""
    conformed = [conform(image, grid, "conform_uint8", None, images[0], exact=False) for image in images]
    volumes = turned_alike([np.asarray(image.dataobj) for image in conformed], extras)
    return stack_channels(volumes), conformed[0].affine


def turned_alike(volumes: Sequence[np.ndarray], extras: Sequence[dict]) -> list[np.ndarray]:
    """The conformed channels (X, Y, Z) uint8 of the second network, with those turned round that the first one has seen
    so, whatever they look like on this grid. ``extras`` is what ``conform`` said of each for the first network."""
    return [turned_round(volume) if extra.get(LOOKS) == T1W else volume for volume, extra in zip(volumes, extras)]


def second_volume(first: Model, views: Sequence[View], second: View, voxel_mm: float, across: int | None = None,
                  crop: str = "head", max_memory: int | None = None, threads: int | None = None) -> Given | None:
    """What the second network of a cascade is given, as ``second_input`` has it, and the region, outside which it is 0;
    None where the first one found nothing.

    Args:
        first: the first network.
        views: the scan as that one sees it, a view for each of its grids, float32 in 0..1.
        second: the same from ``grey_view``.
        voxel_mm, across: of the second network's card.
        crop, max_memory, threads: as for ``predict``.
    """
    scan, affine = second
    like, total = nib.Nifti1Image(scan[0], affine), None
    for volume, from_affine in views:
        found = predict(first.network, volume, crop=crop, max_memory=max_memory, threads=threads)
        found = to_native(found[1:], from_affine, like)
        if len(views) > 1:
            found /= np.float32(len(views))
        total = found if total is None else np.add(total, found, out=total)
    box = region(total, voxel_mm)
    return None if box is None else (input_within(scan, total, box, across), box)


def second_probabilities(model: Model, given: Given | None, shape: tuple[int, ...], contrast: str | None = None,
                         crop: str = "head", max_memory: int | None = None, threads: int | None = None) -> np.ndarray:
    """The second network's probabilities (K, X, Y, Z) on a grid of that ``shape``, for what ``second_volume`` has
    ``given``, by the weights and with the share of the first one's for a scan that looks like ``contrast``. All outside
    the region is background; where nothing is given, all is, and nothing is computed. Others as for ``predict``."""
    card = model.card
    result = np.zeros((len(card.classes), *shape), np.float32)
    result[0] = 1
    if given is None:
        return result
    volume, box = given
    network = network_for(model.network, contrast)
    found = predict(network, as_input(volume), crop=crop, max_memory=max_memory, threads=threads)
    inside = (slice(None), *slices(box))
    result[inside] = found[inside]  # beyond, the network has seen nothing, but may mark what lies at the border
    if not (share := card.share(contrast)):
        return result
    places = [card.first.index(name) for name in card.classes[1:]]
    return mixed(result, volume[len(card.channels):], places, share)


def without_lookalikes(model: Model, probabilities: np.ndarray, given: Given | None, contrast: str | None) -> float:
    """Lower, in place, the second network's ``probabilities`` (K, X, Y, Z) of what the card's veto takes for no lesion
    on a scan that looks like ``contrast``, and return its mL. ``given`` is as for ``second_probabilities``."""
    card = model.card
    if given is None or (veto := card.veto(contrast)) is None:
        return 0.0
    volume, box = given
    decision, inside = card.decision(contrast, veto=True), (slice(None), *slices(box))
    marked = [card.classes.index(name) for name in (card.marks or card.classes[1], *decision.also)]
    return take_back(probabilities[inside], marked, volume[inside], decision.threshold, decision.sure, card.voxel_mm,
                     veto)

"""A mask from probabilities, and its connected lesions: their volumes, and dropping small ones."""

import numpy as np

from meshnet.scans.metrics import label_lesions


def what_counts(probabilities: np.ndarray, card: dict) -> np.ndarray:
    """Of probabilities (K, X, Y, Z) those that a mask is made of: of the one class that the card ``marks``, or of the
    lesion where it is the only class (the background's is one minus it), as (1, X, Y, Z); else all."""
    if card.get("marks") is not None:
        one = card["classes"].index(card["marks"])
        return probabilities[one:one + 1]
    return probabilities[1:] if len(probabilities) == 2 else probabilities


def what_is_true(labels, card: dict):
    """The true ``labels`` (X, Y, Z), an array or a tensor, as ``what_counts`` has the prediction: where the card
    ``marks`` one class, whether a voxel is of that class."""
    return labels if card.get("marks") is None else labels == card["classes"].index(card["marks"])


def scored_classes(card: dict) -> int:
    """How many classes, background included, a mask of that card's model has."""
    return len(card["classes"]) if card.get("marks") is None else 2


def decide(probabilities: np.ndarray, card: dict, threshold: float | None = None) -> np.ndarray:
    """Labels (X, Y, Z) uint8 from probabilities (K, X, Y, Z), of two classes the lesion's alone if one likes.

    With two classes a voxel is lesion where its probability reaches ``threshold`` (the card's by default); with more,
    the class is the most probable one.
    """
    threshold = card["threshold"] if threshold is None else threshold
    if len(probabilities) <= 2:
        return (probabilities[-1] >= threshold).astype(np.uint8)
    return probabilities.argmax(0).astype(np.uint8)


def occupied(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds everything above 0 in ``mask`` (X, Y, Z); None where there is nothing. Labelling that
    box alone is what makes it quick."""
    above = mask > 0
    plane = above.any(axis=2)
    if not plane.any():
        return None
    ends = [np.flatnonzero(profile)[[0, -1]] for profile in (plane.any(1), plane.any(0), above.any((0, 1)))]
    return tuple(slice(int(a), int(b) + 1) for a, b in ends)


def lesion_volumes_mm3(mask: np.ndarray, spacing_mm: np.ndarray) -> list[float]:
    """The volume of each 26-connected lesion of ``mask`` (X, Y, Z) with voxels of ``spacing_mm``, in mm³."""
    box = occupied(mask)
    if box is None:
        return []
    labels, count = label_lesions(mask[box] > 0)
    return (np.bincount(labels.ravel(), minlength=count + 1)[1:] * float(np.prod(spacing_mm))).tolist()


def clean(mask: np.ndarray, spacing_mm: np.ndarray, smallest_mm3: float) -> np.ndarray:
    """``mask`` without the 26-connected lesions of less than ``smallest_mm3`` mm³."""
    box = occupied(mask)
    if smallest_mm3 <= 0 or box is None:
        return mask
    labels, _ = label_lesions(mask[box] > 0)
    keep = np.bincount(labels.ravel()) * float(np.prod(spacing_mm)) >= smallest_mm3
    keep[0] = False
    cleaned = np.zeros_like(mask)
    cleaned[box] = np.where(keep[labels], mask[box], 0)
    return cleaned

"""Masks: from probabilities to labels, the box around a mask, its connected lesions and their volumes."""

from dataclasses import dataclass

import numpy as np

SEEN = 0.4  # probability from which a class that is not marked is mentioned


@dataclass(frozen=True)
class Decision:
    """What makes a lesion of probabilities.

    A voxel is lesion from probability ``threshold`` on. A 26-connected lesion is kept if some voxel of it reaches the
    probability ``sure``, and if it is not smaller than ``min_lesion_mm3``. ``also`` names the classes whose probability
    counts as that of the marked one: a voxel that is surely one of the two is marked, whichever it is.
    """

    threshold: float = 0.5
    sure: float = 0.0
    min_lesion_mm3: float = 0.0
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Marks:
    """Which of a network's classes a mask shows, and from what probability.

    ``classes`` are names, background first. If ``marks`` names one of them, only that class is marked, where its
    probability reaches ``threshold``; the other classes exist so that the network learns to tell them from it. If the
    lesion is the only class, ``threshold`` decides as well. Of several classes the most probable one is marked.
    """

    classes: tuple[str, ...]
    marks: str | None = None
    threshold: float = 0.5

    @property
    def count(self) -> int:
        """The number of labels of a mask, background included."""
        return len(self.classes) if self.marks is None else 2

    def of(self, probabilities: np.ndarray, also: tuple[str, ...] = ()) -> np.ndarray:
        """The probabilities that decide about a mask: (1, X, Y, Z) where one class is marked, else all of them.

        ``probabilities`` are an array or a tensor (K, X, Y, Z). ``also`` is that of a ``Decision``: with it the result,
        an array, is (2, X, Y, Z), the marked class's own probability and that with the others, which decides.
        """
        if self.marks is not None:
            one = self.classes.index(self.marks)
            if not also:
                return probabilities[one:one + 1]
            every = sum((probabilities[self.classes.index(name)] for name in also), start=probabilities[one])
            return np.stack([probabilities[one], every])
        return probabilities[1:] if len(probabilities) == 2 else probabilities

    def labels(self, probabilities: np.ndarray, threshold: float | None = None) -> np.ndarray:
        """Labels (X, Y, Z), uint8, from the result of ``of``, on any grid; ``threshold`` overrides the model's own."""
        threshold = self.threshold if threshold is None else threshold
        if len(probabilities) <= 2:
            return (probabilities[-1] >= threshold).astype(np.uint8)
        return probabilities.argmax(0).astype(np.uint8)

    def truth(self, labels):
        """The true ``labels`` (X, Y, Z), an array or a tensor, in the form of a mask: where one class is marked, a
        boolean for each voxel."""
        return labels if self.marks is None else labels == self.classes.index(self.marks)


def seen_beside(probabilities: np.ndarray, classes: list[str], mentions: dict[str, float],
                voxel_mm: float) -> dict[str, float]:
    """What else a network sees: the mL of each class in ``mentions`` where its probability is at least 0.4, of those
    that reach the mL named there.

    Args:
        probabilities: (K, X, Y, Z), of the ``classes`` by name.
        voxel_mm: edge of a voxel.
    """
    found = {name: np.count_nonzero(probabilities[classes.index(name)] >= np.float32(SEEN)) for name in mentions}
    volumes = {name: float(count) * voxel_mm ** 3 / 1000 for name, count in found.items()}
    return {name: ml for name, ml in volumes.items() if ml >= mentions[name]}


def beside_remarks(beside: dict[str, float]) -> list[str]:
    """The sentences on what ``seen_beside`` has."""
    return [f"about {ml:.0f} mL look like {name}, which this model does not count as lesion"
            for name, ml in beside.items()]


def box_of(mask: np.ndarray) -> tuple[tuple[int, int], ...] | None:
    """The smallest box ((x0, x1), (y0, y1), (z0, z1)), half open, around all voxels above 0 of ``mask`` (X, Y, Z).

    None where there are none.
    """
    above = mask if mask.dtype == bool else mask > 0
    plane = above.any(axis=2)
    if not plane.any():
        return None
    ends = [np.flatnonzero(profile)[[0, -1]] for profile in (plane.any(1), plane.any(0), above.any((0, 1)))]
    return tuple((int(a), int(b) + 1) for a, b in ends)


def slices(box: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    """A box as an index."""
    return tuple(slice(a, b) for a, b in box)


def voxel_volume_mm3(affine: np.ndarray) -> float:
    """The volume of a voxel in mm³ by the determinant of its (4, 4) affine, which is right for sheared grids as well;
    nine digits, so that sound headers give round numbers."""
    return float(f"{abs(np.linalg.det(affine[:3, :3])):.9g}")


def label_lesions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """The 26-connected parts of ``mask`` (X, Y, Z), numbered from 1, and their number."""
    from scipy import ndimage

    return ndimage.label(mask, structure=np.ones((3, 3, 3), dtype=bool))


def peaks_of(values: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The highest of the floating-point ``values`` (X, Y, Z) in each part, 1 to ``count``, of ``labels``, (count,)."""
    places = np.flatnonzero(labels)  # few; ndimage.maximum sorts all voxels
    peaks = np.full(count + 1, -np.inf, values.dtype)
    np.maximum.at(peaks, labels.ravel()[places], values.ravel()[places])
    return peaks[1:]


def lesion_volumes_mm3(mask: np.ndarray, voxel_mm3: float) -> list[float]:
    """The volume in mm³ of each 26-connected lesion of ``mask`` (X, Y, Z)."""
    box = box_of(mask)
    if box is None:
        return []
    labels, count = label_lesions(mask[slices(box)] > 0)
    return (np.bincount(labels.ravel(), minlength=count + 1)[1:] * voxel_mm3).tolist()


def clean(mask: np.ndarray, voxel_mm3: float, smallest_mm3: float) -> np.ndarray:
    """``mask`` (X, Y, Z) without the 26-connected lesions smaller than ``smallest_mm3`` mm³."""
    return kept(mask, None, voxel_mm3, Decision(min_lesion_mm3=smallest_mm3))[0]


def kept(mask: np.ndarray, probability: np.ndarray | None, voxel_mm3: float,
         decision: Decision) -> tuple[np.ndarray, float, float]:
    """``mask`` (X, Y, Z) without the lesions that a ``decision`` drops, and the mm³ of those that are nowhere sure and
    of the other small ones. ``probability`` (X, Y, Z) may be None where the decision has no ``sure``."""
    box = box_of(mask)
    if box is None or (decision.min_lesion_mm3 <= 0 and decision.sure <= decision.threshold):
        return mask, 0.0, 0.0
    labels, count = label_lesions(mask[slices(box)] > 0)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * voxel_mm3
    sizes[0] = 0
    unsure = np.zeros(count + 1, bool)
    if probability is not None and decision.sure > decision.threshold:
        peaks = peaks_of(probability[slices(box)], labels, count)
        unsure[1:] = np.asarray(peaks, np.float32) < np.float32(decision.sure)
    small = (sizes < decision.min_lesion_mm3) & ~unsure
    keep = ~(small | unsure)
    keep[0] = False
    cleaned = np.zeros_like(mask)
    cleaned[slices(box)] = np.where(keep[labels], mask[slices(box)], 0)
    return cleaned, float(sizes[unsure].sum()), float(sizes[small].sum())

"""How well a predicted mask agrees with the true one: overlap, volume, surface distance and lesion-wise scores.

Every score belongs to one case. Where neither mask is empty:

=================== =================================================================================================
dice                2TP / (2TP + FP + FN) of the lesion, which is all labels above 0 together
dice_macro          mean of the Dice of the background and of each class: the paper's "DICE" (arXiv 2503.05531)
avd                 |predicted volume − true volume| / true volume (the paper's AVD)
mcc                 Matthews correlation coefficient over all voxels of the volume
precision           TP / (TP + FP)
sensitivity         TP / (TP + FN)
volume_ml, truth_ml predicted and true volume
hd95_mm             95th percentile of the surface distances, the larger of the two directions (as MONAI)
asd_mm              mean of the surface distances of both directions together (average symmetric surface distance)
nsd                 share of both surfaces that lies within ``tolerance_mm`` of the other (normalised surface Dice)
lesion_f1           2TP / (2TP + FP + FN) over 26-connected lesions, as ISLES'22: a true lesion that any predicted voxel
                    touches is a TP, else a FN; a predicted one that touches no true voxel is a FP
lesions_truth, lesions_predicted   numbers of 26-connected lesions
=================== =================================================================================================

A surface is the mask's voxels with at least one of the six face neighbours outside it (outside the volume counts as
outside the mask); distances run between voxel centres.

Where a mask is empty, scores are chosen so that a network that predicts nothing never looks good:

=========================== ============ ================== ==================
score                       both empty   prediction empty   truth empty
=========================== ============ ================== ==================
dice, precision, sensitivity 1           0                  0
mcc (Chicco & Jurman 2020)  1            0                  0
avd                         0            1                  NaN (no scale)
hd95_mm, asd_mm             0            volume's diagonal  volume's diagonal
nsd, lesion_f1              1            0                  0
=========================== ============ ================== ==================

The MCC is also 0 where one mask fills the whole volume and the other does not, 1 where both do, and −1 where one is the
complement of the other. NaN is left out of means, which are reported with their number of cases.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from meshnet.scans.mask import label_lesions

SURFACE_KEYS = ("hd95_mm", "asd_mm", "nsd")
LESION_KEYS = ("lesion_f1", "lesions_truth", "lesions_predicted")
OVERLAP_KEYS = ("dice", "dice_macro", "avd", "mcc", "precision", "sensitivity", "volume_ml", "truth_ml")
HIGHER_IS_BETTER = {"dice": True, "dice_macro": True, "avd": False, "mcc": True, "precision": True,
                    "sensitivity": True, "hd95_mm": False, "asd_mm": False, "nsd": True, "lesion_f1": True}


class Counts(NamedTuple):
    """Voxels by agreement; Python integers, so that no product of them can overflow."""

    tp: int
    fp: int
    fn: int
    tn: int


def overlap_metrics(prediction, truth, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
                    classes: int = 2) -> dict[str, float]:
    """The scores that need only voxel counts (``OVERLAP_KEYS``): fast enough for every validation case of an epoch.

    Args:
        prediction, truth: (X, Y, Z) boolean or integer labels, numpy arrays or torch tensors on any device. For a
            tensor on a GPU, the box around the lesions is found there, and only that box is copied.
        spacing_mm: voxel size, for the volumes.
        classes: number of labels, background included. Above 2, each NAME of dice, avd, mcc, precision and
            sensitivity is also returned for each class K as ``NAME_classK``, and as ``NAME_classes``, the mean over
            the classes (NaN left out).

    Raises:
        ValueError: if shapes differ or are not three-dimensional, or if a label is above classes − 1 (with 2 classes
            every label above 0 is lesion).
        TypeError: for floating-point volumes; probabilities must be thresholded first.
    """
    p, t, voxels = crop_to_union(prediction, truth)
    return _overlap(p, t, voxels, spacing_mm, classes)


def case_metrics(prediction, truth, spacing_mm: Sequence[float] = (1.0, 1.0, 1.0), tolerance_mm: float = 2.0,
                 surface: bool = True, classes: int = 2) -> dict[str, float]:
    """All scores of one case; arguments and errors as in :func:`overlap_metrics`.

    Args:
        tolerance_mm: of ``nsd``.
        surface: False leaves out ``SURFACE_KEYS``.

    Surfaces and lesions are those of all labels above 0 together.
    """
    p, t, voxels = crop_to_union(prediction, truth)
    scores = _overlap(p, t, voxels, spacing_mm, classes)
    p, t = p > 0, t > 0
    if surface:
        diagonal_mm = math.dist([0.0] * 3, [n * mm for n, mm in zip(prediction.shape, spacing_mm)])
        scores |= surface_metrics(p, t, spacing_mm, tolerance_mm, diagonal_mm)
    return scores | lesion_metrics(p, t)


# ---------------------------------------------------------------------------------------------------------------------
# Cropping: everything but the true negatives lies in the box around both masks.

def crop_to_union(prediction, truth) -> tuple[np.ndarray, np.ndarray, int]:
    """Both volumes cropped to the box of (prediction > 0) | (truth > 0), as numpy, and the voxels of the whole volume.

    The box of two empty volumes has size 0. This is not ``mask.box_of``, since it also works on tensors on a GPU.
    """
    if tuple(prediction.shape) != tuple(truth.shape) or len(truth.shape) != 3:
        raise ValueError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} must share (X, Y, Z)")
    prediction, truth = _plain(prediction), _plain(truth)
    union = (prediction > 0) | (truth > 0)
    box = []
    for axis in range(3):
        rest = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(_numpy(union.any(axis=rest)))
        span = slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 0)
        box.append(span)
        union = union[tuple([slice(None)] * axis + [span])]
    return _numpy(prediction[tuple(box)]), _numpy(truth[tuple(box)]), math.prod(truth.shape)


def _plain(volume):
    """A volume in main memory as a numpy array, one on a GPU as it is. Raises TypeError for floating point."""
    floating = volume.is_floating_point() if hasattr(volume, "is_floating_point") else volume.dtype.kind not in "bui"
    if floating:
        raise TypeError(f"labels must be boolean or integer, not {volume.dtype}; threshold probabilities first")
    return volume if getattr(volume, "is_cuda", False) else _numpy(volume)


def _numpy(volume) -> np.ndarray:
    return volume.detach().cpu().numpy() if hasattr(volume, "detach") else np.asarray(volume)


# ---------------------------------------------------------------------------------------------------------------------
# Overlap

def count(p: np.ndarray, t: np.ndarray, voxels: int) -> Counts:
    """The agreement of two boolean arrays that were cropped from volumes of ``voxels`` voxels."""
    tp = int(np.count_nonzero(p & t))
    fp, fn = int(np.count_nonzero(p)) - tp, int(np.count_nonzero(t)) - tp
    return Counts(tp, fp, fn, voxels - tp - fp - fn)


def dice_of(c: Counts) -> float:
    """2TP / (2TP + FP + FN); 1 where both masks are empty."""
    return _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn, 1.0)


def mcc_of(c: Counts) -> float:
    """Matthews correlation coefficient; degenerate cases after Chicco & Jurman, BMC Genomics 21:6 (2020)."""
    margins = (c.tp + c.fp) * (c.tp + c.fn) * (c.tn + c.fp) * (c.tn + c.fn)
    if margins:
        # A Python integer of up to 2**128 fits a float's range; numpy's int64 would overflow at 256³.
        return (c.tp * c.tn - c.fp * c.fn) / math.sqrt(margins)
    if not (c.fp or c.fn):
        return 1.0
    return 0.0 if c.tp or c.tn else -1.0


def _scores(c: Counts) -> dict[str, float]:
    predicted, true = c.tp + c.fp, c.tp + c.fn
    nothing = 0.0 if predicted or true else 1.0
    return {
        "dice": dice_of(c),
        "avd": _ratio(abs(predicted - true), true, math.nan if predicted else 0.0),
        "mcc": mcc_of(c),
        "precision": _ratio(c.tp, predicted, nothing),
        "sensitivity": _ratio(c.tp, true, nothing),
    }


def _ratio(above: int, below: int, otherwise: float) -> float:
    return above / below if below else otherwise


def _overlap(p: np.ndarray, t: np.ndarray, voxels: int, spacing_mm: Sequence[float], classes: int) -> dict[str, float]:
    each = {}
    if classes > 2:
        for name, volume in (("prediction", p), ("truth", t)):
            if volume.size and volume.max() >= classes:
                raise ValueError(f"{name} holds label {volume.max()}, expected at most {classes - 1}")
        each = {k: count(p == k, t == k, voxels) for k in range(1, classes)}
    return _of_counts(count(p > 0, t > 0, voxels), each, spacing_mm)


def confusion_metrics(confusion: Sequence[Sequence[int]], spacing_mm: Sequence[float]) -> dict[str, float]:
    """What ``overlap_metrics`` returns, from ``confusion[true label][predicted label]``, a number of voxels each."""
    table = [[int(value) for value in row] for row in confusion]
    total = sum(map(sum, table))

    def counts(labels: range) -> Counts:
        tp = sum(table[t][p] for t in labels for p in labels)
        predicted, true = sum(row[p] for row in table for p in labels), sum(sum(table[t]) for t in labels)
        return Counts(tp, predicted - tp, true - tp, total - predicted - true + tp)

    classes = range(1, len(table))
    each = {k: counts(range(k, k + 1)) for k in classes} if len(table) > 2 else {}
    return _of_counts(counts(classes), each, spacing_mm)


def _of_counts(lesion: Counts, classes: dict[int, Counts], spacing_mm: Sequence[float]) -> dict[str, float]:
    scores, each = _scores(lesion), {k: _scores(c) for k, c in classes.items()}
    background = dice_of(Counts(lesion.tn, lesion.fn, lesion.fp, lesion.tp))
    dices = [background, *(s["dice"] for s in each.values())] if each else [background, scores["dice"]]
    voxel_ml = math.prod(spacing_mm) / 1000.0
    result = {"dice": scores["dice"], "dice_macro": math.fsum(dices) / len(dices), "avd": scores["avd"],
              "mcc": scores["mcc"], "precision": scores["precision"], "sensitivity": scores["sensitivity"],
              "volume_ml": (lesion.tp + lesion.fp) * voxel_ml, "truth_ml": (lesion.tp + lesion.fn) * voxel_ml}
    for name in scores if each else ():
        values = [s[name] for s in each.values()]
        known = [v for v in values if not math.isnan(v)]
        result |= {f"{name}_class{k}": v for k, v in zip(each, values)}
        result[f"{name}_classes"] = math.fsum(known) / len(known) if known else math.nan
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Surfaces

def surface_of(mask: np.ndarray) -> np.ndarray:
    """Voxels of ``mask`` (X, Y, Z) with a face neighbour outside it; beyond the array counts as outside."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for start in (0, 2):
            window = [slice(1, -1)] * 3
            window[axis] = slice(start, start + mask.shape[axis])
            inside &= padded[tuple(window)]
    return mask & ~inside


def surface_distances(p: np.ndarray, t: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of ``p`` to the nearest one of ``t``, and the other way round.

    ``p`` and ``t`` are boolean (X, Y, Z), neither of them empty.
    """
    from scipy.spatial import cKDTree

    surfaces = surface_of(p), surface_of(t)
    points = [np.argwhere(s) * np.asarray(spacing_mm, dtype=np.float64) for s in surfaces]
    shared = [surfaces[1][surfaces[0]], surfaces[0][surfaces[1]]]
    distances = []
    for i in (0, 1):
        # A voxel on both surfaces has distance 0, so only the others need a search.
        away = ~shared[i]
        found = np.zeros(len(points[i]))
        if away.any():
            tree = cKDTree(points[1 - i], leafsize=32, balanced_tree=False, compact_nodes=False)
            found[away] = tree.query(points[i][away])[0]
        distances.append(found)
    return distances[0], distances[1]


def surface_metrics(p: np.ndarray, t: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float,
                    diagonal_mm: float) -> dict[str, float]:
    """``SURFACE_KEYS`` of two boolean volumes (X, Y, Z); ``diagonal_mm`` is the distance where one is empty."""
    empty = not p.any(), not t.any()
    if all(empty):
        return {"hd95_mm": 0.0, "asd_mm": 0.0, "nsd": 1.0}
    if any(empty):
        return {"hd95_mm": diagonal_mm, "asd_mm": diagonal_mm, "nsd": 0.0}
    forth, back = surface_distances(p, t, spacing_mm)
    total = len(forth) + len(back)
    # A distance of exactly the tolerance is within it, whatever the last bit of the spacing.
    limit = tolerance_mm * (1 + 1e-9)
    return {
        "hd95_mm": float(max(np.percentile(forth, 95), np.percentile(back, 95))),
        "asd_mm": float((forth.sum() + back.sum()) / total),
        "nsd": float((np.count_nonzero(forth <= limit) + np.count_nonzero(back <= limit)) / total),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Lesions

def lesion_metrics(p: np.ndarray, t: np.ndarray) -> dict[str, float]:
    """``LESION_KEYS`` of two boolean volumes (X, Y, Z).

    Lesions are 26-connected, as in ISLES'22 (Hernandez Petzsche et al. 2022).
    """
    labels_p, predicted = label_lesions(p)
    labels_t, true = label_lesions(t)
    both = p & t
    hit = len(np.unique(labels_t[both]))
    false = predicted - len(np.unique(labels_p[both]))
    return {"lesion_f1": _ratio(2 * hit, hit + true + false, 1.0),
            "lesions_truth": float(true), "lesions_predicted": float(predicted)}

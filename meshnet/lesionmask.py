"""Connected lesions of a mask: their volumes, and dropping small ones."""

import numpy as np

from meshnet.metrics import label_lesions


def lesion_volumes_mm3(mask: np.ndarray, spacing_mm: np.ndarray) -> list[float]:
    """The volume of each 26-connected lesion of ``mask`` (X, Y, Z) with voxels of ``spacing_mm``, in mm³."""
    labels, count = label_lesions(mask > 0)
    return (np.bincount(labels.ravel(), minlength=count + 1)[1:] * float(np.prod(spacing_mm))).tolist()


def clean(mask: np.ndarray, spacing_mm: np.ndarray, smallest_mm3: float) -> np.ndarray:
    """``mask`` without the 26-connected lesions of less than ``smallest_mm3`` mm³."""
    if smallest_mm3 <= 0:
        return mask
    labels, _ = label_lesions(mask > 0)
    keep = np.bincount(labels.ravel()) * float(np.prod(spacing_mm)) >= smallest_mm3
    keep[0] = False
    return np.where(keep[labels], mask, 0).astype(mask.dtype)

"""Files as data sets have them, empty or made up."""

from pathlib import Path

import nibabel as nib
import numpy as np


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_nifti(path: Path, seed=0, mask=False, shape=(8, 9, 10), channels=None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    data = rng.random((*shape, channels) if channels else shape).astype(np.float32)
    if mask:
        data = (data > 0.7).astype(np.uint8)
    image = nib.Nifti1Image(data, np.diag([2.0, 2, 3, 1]))
    image.set_sform(image.affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return data


def names(listing) -> list[str]:
    return [c.case for c in listing.cases]

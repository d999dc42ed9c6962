"""Augmentation with MONAI's transforms, seeded by run, epoch and case: neither resuming nor workers change it."""

from collections.abc import Sequence

import numpy as np

from meshnet.config import AugmentConfig
from meshnet.scans.grid import left_to_right
from meshnet.scans.mask import box_of, slices

PROBABILITIES = ("flip", "affine", "intensity", "contrast", "bias_field", "noise", "blur")


def is_on(config: AugmentConfig) -> bool:
    """Whether any transform has a probability above 0; MONAI is imported only then."""
    return any(getattr(config, name) > 0 for name in PROBABILITIES)


def case_seed(*parts: int) -> int:
    """A 32-bit seed from non-negative numbers such as (seed, epoch, case), well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class Augment:
    """The transforms of a config for volumes of one voxel size and orientation.

    Flips mirror left and right only, since a brain has no other symmetry. Intensities stay within 0..1, or within
    the case's own range where that is wider.

    ``scan``: for the second network of a cascade, whether each channel is of the scan. The others, probabilities of the
    first one, are moved alike, but no grey values of theirs are changed, and what lies outside the region of the first
    one stays 0 (``scans.second``).
    """

    def __init__(self, config: AugmentConfig, voxel_mm: float, orientation: str, scan: Sequence[bool] | None = None):
        from monai import transforms as mt

        self.scan = None if scan is None else np.array(scan)
        left_right = left_to_right(orientation)
        radians = np.deg2rad(config.rotate_degrees)
        both, modes = ["image", "mask"], ["bilinear", "nearest"]
        if scan is not None:
            both, modes = [*both, "first", "inside"], [*modes, "bilinear", "nearest"]
        steps = [
            (config.flip, lambda p: mt.RandFlipd(both, prob=p, spatial_axis=left_right)),
            (config.affine, lambda p: mt.RandAffined(
                both, prob=p, mode=modes, padding_mode="zeros", rotate_range=[radians] * 3,
                scale_range=[config.scale] * 3, translate_range=[config.shift_mm / voxel_mm] * 3)),
            (config.bias_field, lambda p: mt.RandBiasFieldd(["image"], prob=p, coeff_range=(0.0, 0.3))),
            (config.contrast, lambda p: mt.RandAdjustContrastd(["image"], prob=p, gamma=(0.7, 1.5))),
            (config.intensity, lambda p: mt.Compose([
                mt.RandScaleIntensityd(["image"], factors=0.2, prob=p),
                mt.RandShiftIntensityd(["image"], offsets=0.1, prob=p)])),
            (config.blur, lambda p: mt.RandGaussianSmoothd(["image"], prob=p, sigma_x=(0.25, 1.0), sigma_y=(0.25, 1.0),
                                                           sigma_z=(0.25, 1.0))),
            (config.noise, lambda p: mt.RandGaussianNoised(["image"], prob=p, std=0.05)),
        ]
        self.transform = mt.Compose([make(p) for p, make in steps if p > 0])

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """``image`` (C, X, Y, Z) float32 in 0..1 and ``mask`` (X, Y, Z) integers, transformed as ``seed`` decides."""
        self.transform.set_random_state(seed)
        case = {"image": image, "mask": mask[None].astype(np.float32)}
        if self.scan is not None:
            inside = np.zeros_like(case["mask"])
            inside[(0, *slices(box_of(image.any(0)) or ((0, 0),) * 3))] = 1
            case |= {"image": image[self.scan], "first": image[~self.scan], "inside": inside}
        case = self.transform(case)
        moved = np.clip(np.asarray(case["image"], dtype=np.float32), min(0, image.min()), max(1, image.max()))
        if self.scan is not None:
            grey, moved = moved, np.empty_like(image)
            moved[self.scan], moved[~self.scan] = grey, np.clip(np.asarray(case["first"], dtype=np.float32), 0, 1)
            moved *= np.asarray(case["inside"]) > 0.5
        return moved, np.rint(np.asarray(case["mask"][0])).astype(np.uint8)

"""One synthetic case from a label map and lesion masks of folders: ``prepare.py --anatomy FOLDER --lesions FOLDER``."""

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from meshnet.data.synthetic.anatomy import draw_warp
from meshnet.data.synthetic.case import draw_lesions, draw_means, find_preset, to_lia
from meshnet.data.synthetic.labelled import FLUIDS, build_labelled, paint_labelled
from meshnet.data.synthetic.labelmaps import load_map
from meshnet.data.synthetic.lesionmasks import as_moved, draw_moved
from meshnet.data.synthetic.scanner import cut_away, draw_acquisition, scan

SHOWERS = 0.12  # share of strokes that come as many small ones
WARP = 0.6  # how far heads differ, of what the mean head is given: label maps are of different people


def make_labelled_case(seed: int, voxel_mm: float, preset: str, maps: Sequence[str], masks: Sequence[str] | None,
                       shape: tuple[int, int, int] | None = None, **options,
                       ) -> tuple[nib.Nifti1Image, nib.Nifti1Image, dict]:
    """One synthetic scan, its mask and what was drawn for it, as ``case.make_case`` has it.

    Args:
        seed: decides everything.
        voxel_mm: edge of a voxel.
        maps: files of whole-head label maps (``labelmaps``), one of which is drawn.
        masks: files of lesion masks in MNI space; None means procedural lesions.
        preset, shape, options: as in ``make_case``.

    The mask has 1 for lesion; where the preset has ``fluid`` also 2 for fluid, and where it has ``spots`` 3 for
    white-matter disease.
    """
    chosen = find_preset(preset, options)
    shape = tuple(shape or (round(256 / voxel_mm),) * 3)
    lesion_rng, contrast_rng, warp_rng, head_rng, paint_rng, scan_rng = (
        np.random.default_rng([seed, step, 23]) for step in range(6))
    names = list(chosen.contrasts)
    shares = np.array([chosen.contrasts[name] for name in names])
    contrast = str(contrast_rng.choice(names, p=shares / shares.sum()))
    fresh = {"DWI": 0.92, "FLAIR": 0.65}.get(contrast, chosen.acute)
    acute = bool(contrast_rng.random() < fresh)
    extracted = bool(contrast_rng.random() < chosen.extracted)
    inverted = bool(contrast_rng.random() < chosen.inverted)
    lesions = draw_strokes(lesion_rng, chosen, masks, acute)
    means = draw_levels(contrast_rng, contrast, acute)
    which = int(contrast_rng.integers(len(maps)))

    warp = draw_warp(warp_rng, lesions, acute, WARP * chosen.warp)
    head = build_labelled(head_rng, warp, load_map(str(maps[which])), lesions, voxel_mm, shape, chosen.spots)
    signal = paint_labelled(paint_rng, head, means, contrast, acute, voxel_mm)
    if extracted:
        signal = signal * head.brain
    image = np.zeros(shape, np.float32)
    image[head.box] = np.clip(1.1 - signal, 0, None) * (head.codes > 0) if inverted else signal
    how = draw_acquisition(scan_rng, voxel_mm, chosen.artefacts, smooth=contrast == "DWI")
    if contrast == "DWI":
        how.bias = float(scan_rng.uniform(0.1, 0.4))
    image = scan(scan_rng, image, voxel_mm, how)

    mask = np.zeros(shape, np.uint8)
    part = mask[head.box]
    if chosen.fluid:
        part[np.isin(head.codes, FLUIDS) & head.brain] = 2
    if chosen.spots and contrast not in ("DWI", "random"):
        part[(head.spots > 0.5)] = 3
    part[head.lesion] = 1
    mask[cut_away(shape, voxel_mm, how)] = 0
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = [-voxel_mm * (n // 2) for n in shape]
    info = {"seed": seed, "voxel_mm": voxel_mm, "preset": preset, "contrast": contrast, "acute": acute,
            "extracted": extracted, "lesions": len(lesions), "acquired_mm": list(how.acquired_mm), "map": which,
            "lesion_ml": float((mask == 1).sum() * voxel_mm ** 3 / 1000)}
    return to_lia(image, affine), to_lia(mask, affine), info


def draw_strokes(rng: np.random.Generator, preset, masks: Sequence[str] | None, acute: bool) -> list:
    """No stroke, one, two, or a shower of small ones in one or both hemispheres."""
    if masks is None:
        return [as_moved(each) for each in draw_lesions(rng, preset)]
    if rng.random() < preset.healthy:
        return []
    found = [draw_moved(rng, masks, preset.smallest_mm3, preset.largest_mm3)
             for _ in range(1 + int(rng.random() < preset.second))]
    if acute and rng.random() < SHOWERS:
        found += [draw_moved(rng, masks, 100.0, 1500.0) for _ in range(rng.integers(3, 14))]
    return found


def draw_levels(rng: np.random.Generator, contrast: str, acute: bool) -> dict[str, float]:
    """Mean signals: those of ``draw_means``, with weaker contrasts of fresh lesions, and white-matter disease."""
    means = draw_means(rng, contrast, acute)
    grey, white, fluid = means["grey"], means["white"], means["fluid"]
    if contrast == "DWI":
        means["rim"] = grey * (rng.uniform(1.25, 3.0) if acute else rng.uniform(1.05, 1.4))
        means["spots"] = grey * rng.uniform(0.9, 1.1)
    elif contrast == "FLAIR":
        means["rim"] = grey * rng.uniform(1.2, 2.3)
        means["spots"] = grey * rng.uniform(1.15, 1.8)
    elif contrast == "T2w":
        means["rim"] = grey + (fluid - grey) * rng.uniform(0.2 if acute else 0.35, 0.95)
        means["spots"] = grey + (fluid - grey) * rng.uniform(0.05, 0.5)
    elif contrast == "T1w":
        means["rim"] = fluid + (grey - fluid) * (rng.uniform(0.3, 0.9) if acute else rng.uniform(0.0, 0.65))
        means["spots"] = fluid + (grey - fluid) * rng.uniform(0.6, 1.05)
    else:
        means["spots"] = white + (grey - white) * rng.uniform(0.5, 1.5)
    means["cavity"] = fluid * rng.uniform(0.8, 1.0) + means["rim"] * rng.uniform(0, 0.1)
    return means

"""Synthetic heads with strokes: a deformed mean brain, random tissue contrast, procedural lesions, a poor scanner.

Everything random about a case comes from its seed, in millimetres, so one seed is the same patient at every voxel
size. Synthetic scans are for training and for tests; none is of a real patient.
"""

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np

from meshnet.data.synthetic.anatomy import Head, build_head, draw_warp
from meshnet.data.synthetic.atlas import smooth_field
from meshnet.data.synthetic.lesions import Lesion, draw_lesion
from meshnet.data.synthetic.scanner import cut_away, draw_acquisition, scan
from meshnet.errors import UserError


@dataclass(frozen=True)
class Preset:
    """How much a set of cases varies."""

    contrasts: dict[str, float]  # name -> share of cases
    healthy: float  # share of cases without a lesion
    smallest_mm3: float
    largest_mm3: float
    extracted: float  # share of brain-extracted cases
    artefacts: float  # probability of each of the scanner's flaws; 0 leaves bias field and noise
    lookalikes: float  # probability of each kind of structure that resembles a lesion
    warp: float = 1.0  # how far heads differ
    acute: float = 0.35  # share of fresh lesions: even, swollen, between grey matter and fluid on T2w
    fresh: tuple[str, ...] = ("DWI",)  # contrasts on which 85 % are fresh, since old lesions are dark on them
    second: float = 0.15  # share of cases with a second, independent lesion
    fluid: bool = False  # whether the mask says 2 where there is cerebrospinal fluid
    spots: float = 0.0  # share of heads with white-matter disease, 3 in the mask; on label maps alone
    inverted: float = 0.0  # share of scans whose grey values are turned round


PRESETS = {
    "demo": Preset({"demo": 1.0}, 0.0, 25_000.0, 200_000.0, 0.0, 0.0, 0.0, warp=0.6, acute=1.0, second=0.0),
    "train": Preset({"T2w": 0.44, "FLAIR": 0.2, "DWI": 0.14, "T1w": 0.08, "random": 0.14}, 0.08, 100.0, 400_000.0,
                    0.3, 0.2, 0.4),
}
# Lesions that are nearly all brighter than grey matter: what the built-in weights are trained on.
PRESETS["bright"] = replace(PRESETS["train"], contrasts={"T2w": 0.7, "FLAIR": 0.18, "DWI": 0.12}, smallest_mm3=2000.0,
                            healthy=0.12, fresh=("FLAIR", "DWI"))
# The same heads with the fluid in the mask, so that a network learns to tell it from the lesions that it resembles.
PRESETS["bright_fluid"] = replace(PRESETS["bright"], fluid=True)
# Every contrast and every size of stroke; made for label maps and lesion masks of folders (from_folders.py).
PRESETS["every"] = replace(PRESETS["train"], contrasts={"T1w": 0.3, "T2w": 0.29, "FLAIR": 0.2, "DWI": 0.17,
                           "random": 0.04}, healthy=0.12, smallest_mm3=800.0, largest_mm3=200_000.0, extracted=0.25,
                           fluid=True, spots=1.0, second=0.25, acute=0.3, inverted=0.01)
# Mean signals where the fluid of a T2w or the bright lesion of a DWI is about 1: lowest and highest drawn.
# grey is white times a factor; the lesion's level lies between the two tissues named in draw_means.
MEANS = {
    #        white         grey/white   fluid         bone          fat           muscle        eye
    "T2w": ((0.20, 0.42), (1.2, 1.6), (0.90, 1.15), (0.02, 0.12), (0.20, 1.00), (0.08, 0.25), (0.90, 1.15)),
    # The demo: a T2w as from one scanner, with fat as bright as the lesion.
    "demo": ((0.28, 0.34), (1.3, 1.45), (0.95, 1.05), (0.02, 0.08), (0.55, 0.80), (0.10, 0.20), (0.95, 1.05)),
    "FLAIR": ((0.35, 0.55), (1.1, 1.4), (0.03, 0.20), (0.02, 0.12), (0.10, 0.80), (0.15, 0.35), (0.03, 0.20)),
    "T1w": ((0.60, 0.85), (0.6, 0.85), (0.08, 0.25), (0.04, 0.15), (0.70, 1.15), (0.30, 0.50), (0.10, 0.25)),
    "DWI": ((0.28, 0.48), (0.95, 1.3), (0.03, 0.20), (0.01, 0.05), (0.02, 0.20), (0.03, 0.15), (0.03, 0.20)),
    "random": ((0.05, 1.0), (0.3, 2.0), (0.02, 1.1), (0.0, 0.4), (0.0, 1.0), (0.0, 0.8), (0.0, 1.1)),
}


def make_case(seed: int, voxel_mm: float = 1.0, preset: str = "train", shape: tuple[int, int, int] | None = None,
              **options) -> tuple[nib.Nifti1Image, nib.Nifti1Image, dict]:
    """One synthetic scan, its lesion mask and what was drawn for it.

    Args:
        seed: decides everything; the same patient comes out at every ``voxel_mm``.
        voxel_mm: edge of a voxel; image and mask are made directly at this size.
        preset: ``demo`` (T2-weighted, large lesions), ``train`` (full variety), ``bright`` (mostly T2-weighted,
            some FLAIR and DWI with lesions that are bright there, of at least 2 mL) or ``bright_fluid`` (those, with
            2 in the mask where there is fluid).
        shape: voxels per axis (RAS order); None means ``round(256 / voxel_mm)`` each.
        options: fields of ``Preset`` to change, such as ``healthy=1.0``.

    Returns:
        image (float32, orientation LIA), mask (uint8, the same grid), info (plain values: contrast, lesion_ml, …).

    Raises:
        UserError: for an unknown preset or option, or a voxel size outside 0.5–8 mm.
    """
    if not 0.5 <= voxel_mm <= 8:
        raise UserError(f"synthetic voxel_mm: found {voxel_mm}, expected 0.5 to 8; choose a size in that range")
    chosen = find_preset(preset, options)
    shape = tuple(shape or (round(256 / voxel_mm),) * 3)

    # Independent streams: what is drawn for one step never shifts another.
    lesion_rng, contrast_rng, warp_rng, head_rng, paint_rng, scan_rng = (
        np.random.default_rng([seed, step]) for step in range(6))
    lesions = draw_lesions(lesion_rng, chosen)
    names = list(chosen.contrasts)
    shares = np.array([chosen.contrasts[name] for name in names])
    contrast = str(contrast_rng.choice(names, p=shares / shares.sum()))
    acute = bool(contrast_rng.random() < max(chosen.acute, 0.85 * (contrast in chosen.fresh)))
    extracted = bool(contrast_rng.random() < chosen.extracted)
    means = draw_means(contrast_rng, contrast, acute)

    head = build_head(head_rng, draw_warp(warp_rng, lesions, acute, chosen.warp), lesions, voxel_mm, shape)
    signal = paint(paint_rng, head, means, voxel_mm, acute, chosen.lookalikes)
    if extracted:
        signal *= head.depth < contrast_rng.normal(0.5, 1.5)
    image = np.zeros(shape, np.float32)
    image[head.box] = signal
    how = draw_acquisition(scan_rng, voxel_mm, chosen.artefacts, smooth=contrast == "DWI")
    image = scan(scan_rng, image, voxel_mm, how)
    mask = np.zeros(shape, np.uint8)
    mask[head.box] = head.lesion > 0.5
    if chosen.fluid:
        mask[head.box][(head.fluid > 0.5) & (head.lesion <= 0.5)] = 2
    mask[cut_away(shape, voxel_mm, how)] = 0

    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = [-voxel_mm * (n // 2) for n in shape]
    info = {"seed": seed, "voxel_mm": voxel_mm, "preset": preset, "contrast": contrast, "acute": acute,
            "extracted": extracted, "lesions": len(lesions), "acquired_mm": list(how.acquired_mm),
            "lesion_ml": float((mask == 1).sum() * voxel_mm ** 3 / 1000)}
    return to_lia(image, affine), to_lia(mask, affine), info


def find_preset(name: str, options: dict) -> Preset:
    """The preset ``name`` with the fields ``options`` changed. Raises UserError for an unknown name or field."""
    if name not in PRESETS:
        raise UserError(f"synthetic preset: found {name!r}, expected one of {', '.join(PRESETS)}; choose one of them")
    known = Preset.__dataclass_fields__
    if unknown := set(options) - set(known):
        raise UserError(f"synthetic option: found {min(unknown)!r}, expected one of {', '.join(known)}; remove it")
    return replace(PRESETS[name], **options)


def to_lia(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A RAS array as a LIA image, contiguous in memory."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LIA"))
    turned = np.ascontiguousarray(nib.orientations.apply_orientation(array, turn))
    image = nib.Nifti1Image(turned, affine @ nib.orientations.inv_ornt_aff(turn, array.shape))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    return image


def draw_lesions(rng: np.random.Generator, preset: Preset) -> list[Lesion]:
    """No lesion, one, or two."""
    count = 0 if rng.random() < preset.healthy else 1 + int(rng.random() < preset.second)
    return [draw_lesion(rng, 2, preset.smallest_mm3, preset.largest_mm3) for _ in range(count)]


def draw_means(rng: np.random.Generator, contrast: str, acute: bool) -> dict[str, float]:
    """Mean signal of every tissue: near what the sequence shows, or at random.

    ``cavity`` is the fluid-filled part of an old lesion, ``rim`` its scarred part and the whole of a fresh one.
    """
    draw = [rng.uniform(*limits) for limits in MEANS[contrast]]
    white, grey, fluid = draw[0], min(draw[0] * draw[1], 1.1), draw[2]
    means = {"white": white, "grey": grey, "fluid": fluid, **dict(zip(("bone", "fat", "muscle", "eye"), draw[3:]))}
    between = rng.uniform(0.35, 0.85)
    if contrast == "demo":  # as if all came from one scanner, to be learnt in two minutes
        between = 0.5 + 0.3 * between
    if contrast in ("T2w", "demo"):
        rim = grey + (fluid - grey) * between
    elif contrast == "FLAIR":
        rim = grey * rng.uniform(1.3, 2.1)
    elif contrast == "T1w":
        rim = fluid + (grey - fluid) * between * (1 if acute else 0.8)
    elif contrast == "DWI":
        rim = grey * (rng.uniform(1.6, 3.2) if acute else rng.uniform(1.1, 1.6))
    else:
        apart = [level for level in np.linspace(0.02, 1.2, 60) if min(abs(level - white), abs(level - grey)) > 0.12]
        rim = float(rng.choice(apart))
    return {**means, "rim": rim, "cavity": fluid * rng.uniform(0.8, 1.0) + rim * rng.uniform(0, 0.1)}


def paint(rng: np.random.Generator, head: Head, means: dict[str, float], voxel_mm: float, acute: bool,
          lookalikes: float) -> np.ndarray:
    """The noise-free signal (X, Y, Z) float32 within the head's box."""
    texture, blotch = (smooth_field(rng, head.axes_mm, spacing)[0] for spacing in (5.0, 15.0))
    signal = means["grey"] * head.grey + means["white"] * head.white + means["fluid"] * head.fluid
    signal *= 1 + np.float32(rng.uniform(0.01, 0.05)) * texture + np.float32(rng.uniform(0, 0.06)) * blotch
    if rng.random() < lookalikes:
        signal += white_matter_spots(rng, head) * (means["rim"] * rng.uniform(0.7, 1.0) - signal)
    if rng.random() < lookalikes:
        signal += vessels(rng, head) * (rng.choice([0.02, means["fluid"], 1.0]) - signal)

    # A fresh lesion is even; an old one is a cavity with strands of tissue and a scarred rim.
    cavity = np.float32(rng.uniform(0, 0.15)) if acute else np.clip(
        rng.normal(0.5, 0.6) + 0.5 * blotch + 0.25 * texture + 2.0 * (head.lesion - 0.8), 0, 1)
    level = means["rim"] + (means["cavity"] - means["rim"]) * cavity
    level = level * (1 + np.float32(rng.uniform(0.02, 0.12)) * texture)
    hold = np.float32(rng.uniform(0.75, 1.0))  # how much of the tissue's own signal is gone
    fluid_stays = np.float32(rng.uniform(0, 1)) * head.fluid
    signal += head.lesion * hold * (1 - fluid_stays) * (level - signal)
    brain = np.clip(head.grey + head.white + head.fluid, 0, 1)
    return signal * brain + wall(rng, head, means, texture, blotch, voxel_mm) * (1 - brain)


def white_matter_spots(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Small age-related spots and caps of the ventricles, 0..1: bright on T2w and FLAIR, and no stroke."""
    spots = np.clip(3 * (smooth_field(rng, head.axes_mm, rng.uniform(4, 8))[0] - rng.uniform(1.6, 2.8)), 0, 1)
    return spots * np.clip(2 * head.white - 0.5, 0, 1)


def vessels(rng: np.random.Generator, head: Head) -> np.ndarray:
    """Thin winding tubes in sulci and at the base, 0..1: where two smooth fields are both near zero."""
    first, second = smooth_field(rng, head.axes_mm, 18.0, 2)
    tubes = np.exp(-(first ** 2 + second ** 2) / np.float32(rng.uniform(0.06, 0.15) ** 2))
    return tubes * np.clip(2 * head.fluid + head.grey - 0.5, 0, 1)


def wall(rng: np.random.Generator, head: Head, means: dict[str, float], texture: np.ndarray, blotch: np.ndarray,
         voxel_mm: float) -> np.ndarray:
    """Signal outside the brain: fluid under the skull, bone and marrow, flesh, cavities, skin, eyes, air."""
    inside = lambda distance: np.clip(0.5 - distance / np.float32(max(voxel_mm, 1.0)), 0, 1)
    flesh = means["muscle"] + (means["fat"] - means["muscle"]) * np.clip(1.5 * blotch - 0.2, 0, 1)
    flesh = flesh * (1 + np.float32(0.15) * texture)
    flesh *= 1 - np.clip(4 * (-blotch - rng.uniform(0.8, 1.6)), 0, 1)  # sinuses and airways
    flesh += inside(-head.outside - rng.uniform(-2, 5)) * (means["fat"] - flesh)
    marrow = np.clip(1 - np.abs(head.depth - head.skull_mm * 0.6) / 1.5, 0, 1) * rng.uniform(0, 0.8)
    bone = means["bone"] + (means["fat"] - means["bone"]) * marrow
    signal = flesh + inside(head.depth - head.skull_mm - texture) * (bone - flesh)
    signal += inside(head.depth - rng.uniform(0, 2.5)) * (means["fluid"] * rng.uniform(0.3, 1) - signal)
    signal += inside(head.eye) * (means["eye"] - signal)
    return signal * inside(head.outside)

"""Synthetic heads with strokes: a deformed mean brain, random tissue contrast, procedural lesions, a poor scanner.

Everything random about a case comes from its seed, in millimetres, so one seed is the same patient at every voxel
size. Synthetic scans are for training and for tests; they are no patient's.
"""

from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np

from meshnet.atlas import (
    BRAIN_CENTRE_MM,
    DISTANCE_MM,
    DISTANCE_ORIGIN_MM,
    LEVELS_MM,
    face_distance,
    load_atlas,
    load_distance,
    sample,
    smooth_field,
)
from meshnet.errors import UserError
from meshnet.lesions import Lesion, draw_lesion

CONTRASTS = ("T2w", "FLAIR", "T1w", "DWI", "random")
TISSUES = ("air", "grey", "white", "fluid", "bone", "fat", "muscle", "lesion", "rim", "eye")


@dataclass(frozen=True)
class Preset:
    """How much a set of cases varies."""

    contrasts: dict[str, float]  # name -> share of cases
    healthy: float  # share of cases without a lesion
    smallest_mm3: float
    largest_mm3: float
    extracted: float  # share of brain-extracted cases
    artefacts: float  # share of cases for each artefact of the scanner; 0 leaves bias field and noise alone
    second: float = 0.15  # share of cases with a second, independent lesion


PRESETS = {
    "demo": Preset({"T2w": 1.0}, 0.0, 15_000.0, 150_000.0, 0.0, 0.0, 0.0),
    "train": Preset({"T2w": 0.35, "FLAIR": 0.2, "DWI": 0.12, "T1w": 0.13, "random": 0.2}, 0.08, 30.0, 400_000.0, 0.3,
                    0.2),
}


def make_case(seed: int, voxel_mm: float = 1.0, preset: str = "train", shape: tuple[int, int, int] | None = None,
              **options) -> tuple[nib.Nifti1Image, nib.Nifti1Image, dict]:
    """One synthetic scan, its lesion mask and what was drawn for it.

    Args:
        seed: decides everything; the same patient comes out at every ``voxel_mm``.
        voxel_mm: edge of a voxel; image and mask are made directly at this size.
        preset: ``demo`` (T2-weighted, large lesions) or ``train`` (full variety).
        shape: voxels per axis; None means ``round(256 / voxel_mm)`` each.
        options: fields of ``Preset`` to change, such as ``healthy=1.0``.

    Returns:
        image (float32, orientation LIA), mask (uint8, the same grid), info (plain values: contrast, lesion_ml, …).

    Raises:
        UserError: for an unknown preset or option, or a voxel size outside 0.5–8 mm.
    """
    if preset not in PRESETS:
        raise UserError(f"synthetic preset: found {preset!r}, expected one of {', '.join(PRESETS)}; choose one of them")
    if not 0.5 <= voxel_mm <= 8:
        raise UserError(f"synthetic voxel_mm: found {voxel_mm}, expected 0.5 to 8; choose a size in that range")
    unknown = set(options) - set(Preset.__dataclass_fields__)
    if unknown:
        raise UserError(f"synthetic option: found {sorted(unknown)[0]!r}, expected one of "
                        f"{', '.join(Preset.__dataclass_fields__)}; remove it")
    chosen = replace(PRESETS[preset], **options)
    shape = shape or (round(256 / voxel_mm),) * 3

    # Independent streams: what is drawn for one step never shifts another.
    streams = [np.random.default_rng([seed, step]) for step in range(6)]
    lesions = draw_lesions(streams[0], chosen)
    names = list(chosen.contrasts)
    shares = np.array([chosen.contrasts[name] for name in names])
    contrast = str(streams[1].choice(names, p=shares / shares.sum()))
    head = build_head(streams[2], lesions, voxel_mm, shape)
    means = draw_means(streams[3], contrast)
    extracted = bool(streams[4].random() < chosen.extracted)
    signal = paint(streams[4], head, means, voxel_mm, extracted)
    image = np.zeros(shape, np.float32)
    image[head.box] = signal
    image = scan(streams[5], image, voxel_mm, chosen.artefacts)
    mask = np.zeros(shape, np.uint8)
    mask[head.box] = head.lesion > 0.5

    affine = lattice_affine(shape, voxel_mm)
    info = {"seed": seed, "voxel_mm": voxel_mm, "preset": preset, "contrast": contrast, "extracted": extracted,
            "lesions": len(lesions), "lesion_ml": float(mask.sum() * voxel_mm ** 3 / 1000)}
    images = [to_lia(array, affine) for array in (image, mask)]
    for each in images:
        each.set_qform(each.affine, 1)
        each.set_sform(each.affine, 1)
        each.header.set_xyzt_units("mm")
    return images[0], images[1], info


def lattice_affine(shape: tuple[int, int, int], voxel_mm: float) -> np.ndarray:
    """RAS affine (4, 4) whose voxel n/2 lies at 0 mm on every axis."""
    affine = np.diag([voxel_mm] * 3 + [1.0])
    affine[:3, 3] = [-voxel_mm * (n // 2) for n in shape]
    return affine


def to_lia(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """A RAS array as a LIA image, contiguous in memory."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt("LIA"))
    turned = nib.orientations.apply_orientation(array, turn)
    return nib.Nifti1Image(np.ascontiguousarray(turned), affine @ nib.orientations.inv_ornt_aff(turn, array.shape))


def draw_lesions(rng: np.random.Generator, preset: Preset) -> list[Lesion]:
    """No lesion, one, or two."""
    count = 0 if rng.random() < preset.healthy else 1 + int(rng.random() < preset.second)
    return [draw_lesion(rng, 2, preset.smallest_mm3, preset.largest_mm3) for _ in range(count)]


@dataclass
class Head:
    """Maps (X, Y, Z) of one deformed head within ``box`` of the image."""

    box: tuple[slice, slice, slice]
    axes_mm: tuple
    grey: np.ndarray
    white: np.ndarray
    fluid: np.ndarray
    lesion: np.ndarray  # 0..1, partial volume
    depth: np.ndarray  # mm to the brain's surface, negative inside
    outside: np.ndarray  # mm to the head's surface, negative inside
    eye: np.ndarray


def build_head(rng: np.random.Generator, lesions: list[Lesion], voxel_mm: float, shape: tuple) -> Head:
    """Deform the atlas and the lesions together."""
    angles = rng.normal(0, 0.12, 3)
    scale = rng.normal(1.0, 0.05) * np.exp(rng.normal(0, 0.03, 3))
    matrix = (rotation(angles) / scale[:, None]).astype(np.float32)
    shift = rng.normal(0, 6, 3).astype(np.float32) + np.array([0, 0, 12], np.float32)
    scalp_mm, skull_mm = rng.uniform(4, 9), rng.uniform(5, 9)
    seeds = rng.integers(0, 2 ** 31, 4)

    def mni(axes: tuple) -> np.ndarray:
        points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1) - shift[:, None]
        points = matrix @ points + BRAIN_CENTRE_MM[:, None]
        for amplitude, spacing, seed in ((5.0, 60.0, seeds[0]), (2.5, 25.0, seeds[1])):
            points += amplitude * smooth_field(np.random.default_rng(seed), axes, spacing, 3).reshape(3, -1)
        return points

    full = tuple(voxel_mm * (np.arange(n, dtype=np.float32) - n // 2) for n in shape)
    stride = max(1, round(8 / voxel_mm))
    rough = tuple(axis[::stride] for axis in full)
    depth, outside = surfaces(mni(rough), scalp_mm + skull_mm)
    inside = np.argwhere((outside < 6).reshape([len(axis) for axis in rough]))
    box = tuple(slice(max(0, int(a - 1) * stride), min(n, int(b + 2) * stride))
                for a, b, n in zip(inside.min(0), inside.max(0), shape))
    axes = tuple(axis[part] for axis, part in zip(full, box))
    size = [len(axis) for axis in axes]

    points = mni(axes)
    depth, outside = surfaces(points, scalp_mm + skull_mm)
    level = max(step for step in LEVELS_MM if step <= max(voxel_mm, 1))
    atlas = load_atlas(level)
    tissue = np.zeros((points.shape[1], 4), np.float32)
    near = np.flatnonzero(depth < 8)
    brain_points = points[:, near]
    index = (brain_points - atlas.origin_mm[:, None]) / level
    valid = np.all((index > 0) & (index < np.array(atlas.maps.shape[:3])[:, None] - 1), axis=0)
    tissue[near[valid]] = sample(atlas.maps, index[:, valid]) / 255
    grey, white, fluid, ventricle = tissue.T

    # Atrophy: the odds of fluid are raised, in the ventricles and in the sulci apart.
    sulci = np.exp(rng.normal(0.3, 0.5))
    folds = smooth_field(np.random.default_rng(seeds[2]), axes, 7.0).ravel()
    folds = np.exp(-(folds / 0.25) ** 2) * np.clip((18 + depth) / 12, 0, 1) * rng.uniform(0, 1)
    fluid = fluid * np.where(ventricle > 0.05, np.exp(rng.normal(0.3, 0.5)), sulci) + folds * grey
    total = np.maximum(grey + white + fluid, 1e-3)
    brain = np.clip((tissue[:, :3].sum(1) - 0.3) / 0.4, 0, 1)
    grey, white, fluid = grey / total * brain, white / total * brain, fluid / total * brain

    lesion = np.zeros(points.shape[1], np.float32)
    for each in lesions:
        index = (points - each.origin_mm[:, None]) / each.level_mm
        inside = np.flatnonzero(np.all((index > -1) & (index < np.array(each.mask.shape)[:, None]), axis=0))
        padded = np.pad(each.mask, 1).astype(np.float32)[..., None]
        lesion[inside] = np.maximum(lesion[inside], sample(padded, index[:, inside] + 1)[:, 0])
    x, y, z = points
    eye = np.sqrt((np.abs(x) - 33) ** 2 + (y - 62) ** 2 + (z + 38) ** 2) - 12
    maps = [m.reshape(size) for m in (grey, white, fluid, lesion * (brain > 0.2), depth, outside, eye)]
    return Head(box, axes, *maps)


def surfaces(points: np.ndarray, wall_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Signed mm (N,) to the brain's surface and to the head's, at MNI points (3, N)."""
    depth = sample(load_distance(), (points - DISTANCE_ORIGIN_MM[:, None]) / DISTANCE_MM)[:, 0]
    return depth, np.minimum(depth - wall_mm, face_distance(points))


def rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix of three angles in radians about x, y, z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def draw_means(rng: np.random.Generator, contrast: str) -> dict[str, float]:
    """Mean signal of every tissue, 0..1.2, near what the sequence shows, or at random."""
    near = {
        #        grey  white fluid bone  fat   muscle lesion rim  eye
        "T2w": (0.50, 0.36, 1.00, 0.08, 0.70, 0.20, 0.85, 0.68, 1.00),
        "FLAIR": (0.55, 0.44, 0.14, 0.10, 0.60, 0.30, 0.90, 0.85, 0.15),
        "T1w": (0.50, 0.75, 0.16, 0.12, 0.95, 0.42, 0.28, 0.45, 0.18),
        "DWI": (0.45, 0.40, 0.18, 0.04, 0.12, 0.12, 1.00, 0.75, 0.15),
    }
    if contrast == "random":
        values = rng.uniform(0.05, 1.0, 9)
        away = [v for v in np.linspace(0.02, 1.1, 40) if min(abs(v - values[0]), abs(v - values[1])) > 0.2]
        values[6] = rng.choice(away)
        values[7] = (values[6] + values[1]) / 2
    else:
        values = np.array(near[contrast]) * np.exp(rng.normal(0, 0.10, 9)) + rng.normal(0, 0.02, 9)
        values[6] = values[6] * rng.uniform(0.8, 1.15)
    return {"air": 0.0, **dict(zip(TISSUES[1:], np.clip(values, 0.0, 1.3).astype(float)))}


def paint(rng: np.random.Generator, head: Head, means: dict[str, float], voxel_mm: float,
          extracted: bool) -> np.ndarray:
    """The noise-free signal (X, Y, Z) within the head's box."""
    texture = smooth_field(rng, head.axes_mm, 6.0)[0]
    blotch = smooth_field(rng, head.axes_mm, 14.0)[0]
    signal = means["grey"] * head.grey + means["white"] * head.white + means["fluid"] * head.fluid
    core = np.clip(0.5 + 0.5 * blotch + rng.normal(0.3, 0.4), 0, 1)
    inner = means["rim"] + (means["lesion"] - means["rim"]) * core
    signal += head.lesion * (inner + 0.06 * texture - signal)
    brain = np.clip(head.grey + head.white + head.fluid, 0, 1)
    signal *= 1 + 0.03 * texture
    if extracted:
        return signal * brain
    return signal * brain + wall(head, means, texture, blotch, voxel_mm) * (1 - brain)


def wall(head: Head, means: dict[str, float], texture: np.ndarray, blotch: np.ndarray, voxel_mm: float) -> np.ndarray:
    """Signal outside the brain: fluid under the skull, bone, muscle and fat, eyes, air."""
    soft = lambda distance: np.clip(0.5 - distance / max(voxel_mm, 1.0), 0, 1)
    muscle = means["muscle"] + (means["fat"] - means["muscle"]) * np.clip(blotch - 0.3, 0, 1)
    flesh = muscle * (1 + 0.15 * texture)
    skin = soft(-head.outside - 5)
    flesh += skin * (means["fat"] - flesh)
    bone = soft(head.depth - 7 - texture)
    signal = flesh + bone * (means["bone"] - flesh)
    signal += soft(head.depth - 1.5) * (means["fluid"] * 0.7 - signal)
    signal += soft(head.eye) * (means["eye"] - signal)
    return signal * soft(head.outside)


def scan(rng: np.random.Generator, image: np.ndarray, voxel_mm: float, artefacts: float) -> np.ndarray:
    """What the scanner adds: bias field and noise."""
    axes = tuple(voxel_mm * (np.arange(n, dtype=np.float32) - n // 2) for n in image.shape)
    image = image * np.exp(rng.uniform(0.05, 0.25) * smooth_field(rng, axes, 90.0)[0])
    sigma = rng.uniform(0.005, 0.04)
    real = image + sigma * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(image.shape, dtype=np.float32)
    return np.sqrt(real ** 2 + imaginary ** 2) * np.float32(rng.uniform(200, 2000))

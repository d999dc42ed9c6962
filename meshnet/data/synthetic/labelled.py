"""One head from a label map: its tissues through a warp, its lesions as people outline them, and its signal."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from meshnet.data.synthetic.anatomy import Warp, lattice_axes
from meshnet.data.synthetic.atlas import sample, smooth_field
from meshnet.data.synthetic.labelmaps import BRAIN, CODE, TISSUES, LabelMap
from meshnet.data.synthetic.lesionmasks import MovedLesion

FLUIDS = (CODE["ventricle"], CODE["fluid"])
# Where the signal of echo-planar images rises: above the sinuses and beside the ear canals, in MNI mm.
SKULL_BASE_MM = np.array([[0, 40, -22], [-48, -22, -26], [48, -22, -26]], np.float32)

DISEASE_MM3 = 5860.0  # median volume of white-matter disease (white_matter_disease)
DISEASE_SPREAD = 1.41  # standard deviation of its logarithm
MOST_OF_WHITE = 0.2  # share of the white matter that it takes at most


@dataclass
class LabelledHead:
    """Maps (X, Y, Z) of one head within ``box`` of the scan's lattice. ``lesion``: the mask as a person draws it.
    ``spots``: white-matter disease, 0..1."""

    box: tuple[slice, slice, slice]
    axes_mm: tuple
    codes: np.ndarray
    brain: np.ndarray  # nerve tissue and fluid within the skull, as what an extraction leaves
    lesion: np.ndarray
    inside_mm: np.ndarray  # within a lesion: mm to its border; outside: minus the mm to it
    spots: np.ndarray
    base: np.ndarray  # 0..1, near the skull's base


def build_labelled(rng: np.random.Generator, warp: Warp, label_map: LabelMap, lesions: list[MovedLesion],
                   voxel_mm: float, shape: tuple, spots: float) -> LabelledHead:
    """Look the tissues up through ``warp`` and lay the lesions over them; ``spots`` is the probability of
    white-matter disease."""
    box = labelled_extent(warp, label_map, voxel_mm, shape)
    axes = tuple(axis[part] for axis, part in zip(lattice_axes(shape, voxel_mm), box))
    size = tuple(len(axis) for axis in axes)
    points = warp.points(axes)
    codes = label_map.at(points).reshape(size)
    tissue = np.isin(codes, BRAIN)
    hull = near_tissue(tissue, voxel_mm, float(rng.uniform(1.0, 5.0)))
    brain = tissue | (np.isin(codes, (*FLUIDS, CODE["blood"])) & hull) | (codes == CODE["ventricle"])

    share = np.zeros(points.shape[1], np.float32)
    for each in lesions:
        where, value = each.at(points)
        share[where] = np.maximum(share[where], value)
    # People take in the sulci within a lesion, more or less of them, and some of the fluid around it.
    lesion = (share.reshape(size) > 0.5) & brain & (codes != CODE["blood"])
    if lesion.any():
        taken = smooth_field(rng, axes, 12.0)[0] > rng.normal(0.0, 0.7)
        lesion &= tissue | ((codes == CODE["fluid"]) & taken)
        lesion &= ~ndimage.binary_erosion(codes == CODE["ventricle"], iterations=1)
    inside = np.full(size, -99.0, np.float32)
    if lesion.any():
        inside = signed_distance(lesion, voxel_mm)
    white = (codes == CODE["white"]) & ~lesion
    disease = np.zeros(size, np.float32)
    if rng.random() < spots:
        disease = white_matter_disease(np.random.default_rng(rng.integers(2 ** 31)), points, codes, white, voxel_mm)
    disease = np.maximum(disease, np.float32(0.9) * ((codes == CODE["spots"]) & ~lesion))
    base = np.zeros(points.shape[1], np.float32)
    for place in SKULL_BASE_MM:
        away = ((points - place[:, None]) ** 2).sum(0)
        base = np.maximum(base, np.exp(-away / np.float32(2 * rng.uniform(9, 18) ** 2)))
    return LabelledHead(box, axes, codes, brain, lesion, inside, disease, base.reshape(size))


def labelled_extent(warp: Warp, label_map: LabelMap, voxel_mm: float, shape: tuple) -> tuple[slice, slice, slice]:
    """The part of the lattice that holds the head, found on a coarse one."""
    stride = max(1, round(8 / voxel_mm))
    rough = tuple(axis[::stride] for axis in lattice_axes(shape, voxel_mm))
    inside = np.argwhere(label_map.at(warp.points(rough)).reshape([len(axis) for axis in rough]) > 0)
    return tuple(slice(max(0, int(a - 1) * stride), min(n, int(b + 2) * stride))
                 for a, b, n in zip(inside.min(0), inside.max(0), shape))


def near_tissue(tissue: np.ndarray, voxel_mm: float, reach_mm: float) -> np.ndarray:
    """True within about ``reach_mm`` of nerve tissue: a smooth hull, as an extraction leaves it."""
    return ndimage.gaussian_filter(tissue.astype(np.float32), (reach_mm + 1) / voxel_mm, truncate=2.5) > 0.16


def signed_distance(inside: np.ndarray, voxel_mm: float, reach_mm: float = 12.0) -> np.ndarray:
    """mm to the border (X, Y, Z) float32: above 0 inside, -99 further than ``reach_mm`` outside."""
    part = with_margin(inside, reach_mm / voxel_mm)
    cut = inside[part]
    signed = np.full(inside.shape, -99.0, np.float32)
    signed[part] = (ndimage.distance_transform_edt(cut, sampling=voxel_mm)
                    - ndimage.distance_transform_edt(~cut, sampling=voxel_mm))
    return signed


def with_margin(inside: np.ndarray, voxels: float) -> tuple[slice, slice, slice]:
    """The box around what is True, ``voxels`` larger on every side."""
    margin = int(np.ceil(voxels))
    return tuple(slice(max(0, a.start - margin), a.stop + margin)
                 for a in ndimage.find_objects(inside.astype(np.uint8))[0])


def white_matter_disease(rng: np.random.Generator, points: np.ndarray, codes: np.ndarray, white: np.ndarray,
                         voxel_mm: float) -> np.ndarray:
    """Caps and bands around the ventricles, and spots, 0..1, mostly alike on both sides: age and small vessels.

    The volume above 0.5 is drawn from a log-normal distribution with the median of 2,529 patients with an acute stroke
    and quartiles within 5 % of theirs (Giese et al., Neurology 95:e79, 2020: 5.86 mL, 2.18 to 14.61), whether the head
    has a stroke or not. What the label map has of its own counts, so that is the least; ``MOST_OF_WHITE`` limits it.
    Beyond its border it fades, by up to twice its volume where that is small. None in a head without a ventricle.

    Args:
        points: the voxels in MNI mm, (3, N).
        codes, white: tissues and healthy white matter, (X, Y, Z) of N voxels.
        voxel_mm: edge of a voxel.
    """
    ventricle, found = codes == CODE["ventricle"], np.zeros(codes.shape, np.float32)
    volume = float(np.exp(rng.normal(np.log(DISEASE_MM3), DISEASE_SPREAD))) / voxel_mm ** 3
    volume = min(volume - (codes == CODE["spots"]).sum(), MOST_OF_WHITE * white.sum())
    if volume < 1 or not ventricle.any():
        return found
    away = ndimage.distance_transform_edt(~ventricle, sampling=voxel_mm)[white]
    places = points[:, white.ravel()]
    one_half = np.concatenate([np.abs(places[:1]), places[1:]])
    score = np.float32(rng.uniform(1, 4)) * np.exp(-away / np.float32(rng.uniform(3, 9)))
    for where, weight, spacing in ((one_half, 1.0, rng.uniform(6, 14)), (places, rng.uniform(0.1, 0.5), 8.0),
                                   (places, rng.uniform(0.0, 0.3), 4.0)):
        score += np.float32(weight) * field_at(rng, where, spacing)
    border = np.partition(score, -int(volume))[-int(volume)]
    found[white] = np.clip((score - border) / np.float32(rng.uniform(0.2, 0.8)) + 0.5, 0, 1)
    return found


def field_at(rng: np.random.Generator, points: np.ndarray, spacing_mm: float, step_mm: float = 2.0) -> np.ndarray:
    """``smooth_field`` (N,) at points (3, N) in MNI mm."""
    low, high = points.min(1) - step_mm, points.max(1) + step_mm
    axes = tuple(np.arange(a, b + step_mm, step_mm, dtype=np.float32) for a, b in zip(low, high))
    field = smooth_field(rng, axes, spacing_mm)[0]
    return sample(field[..., None], (points - low[:, None]) / np.float32(step_mm))[:, 0]


# ---------------------------------------------------------------------- signal

def paint_labelled(rng: np.random.Generator, head: LabelledHead, means: dict[str, float], contrast: str, acute: bool,
                   voxel_mm: float) -> np.ndarray:
    """The noise-free signal (X, Y, Z) float32 within the head's box."""
    texture, blotch = (smooth_field(rng, head.axes_mm, spacing)[0] for spacing in (5.0, 15.0))
    levels = tissue_levels(rng, means, contrast)
    signal = levels[head.codes]
    flesh = head.codes == CODE["flesh"]
    signal[flesh] += ((means["fat"] - means["muscle"]) * np.clip(1.5 * blotch - 0.2, 0, 1))[flesh]
    signal *= 1 + np.float32(rng.uniform(0.01, 0.05)) * texture + np.float32(rng.uniform(0, 0.06)) * blotch
    signal += head.spots * np.float32(rng.uniform(0.6, 1.0)) * (np.float32(means["spots"]) - signal)
    if head.lesion.any():
        level, strength = lesion_signal(rng, head, means, acute, texture, blotch)
        signal += strength * (level - signal)
    if contrast == "DWI":
        signal *= 1 + np.float32(rng.uniform(0, 1.0)) * head.base
    return ndimage.gaussian_filter(signal, rng.uniform(0.35, 0.6) * max(1.0, 1.5 / voxel_mm))


def tissue_levels(rng: np.random.Generator, means: dict[str, float], contrast: str) -> np.ndarray:
    """The mean signal of each of ``TISSUES``, float32."""
    near = lambda value, spread=0.04: value * (1 + rng.normal(0, spread))
    between = lambda a, b, low, high: means[a] + (means[b] - means[a]) * rng.uniform(low, high)
    level = {
        "air": 0.0, "white": means["white"], "cortex": means["grey"], "deep": between("grey", "white", 0.05, 0.7),
        "cerebellum_grey": near(means["grey"]), "cerebellum_white": near(means["white"]),
        "stem": between("grey", "white", 0.3, 1.0), "plexus": between("grey", "fluid", 0.0, 0.9),
        "spots": means["spots"], "ventricle": means["fluid"], "fluid": means["fluid"] * rng.uniform(0.85, 1.05),
        "bone": means["bone"], "marrow": between("bone", "fat", 0.1, 1.0), "flesh": means["muscle"],
        "skin": between("muscle", "fat", 0.3, 1.0), "eye": means["eye"],
        "blood": rng.choice([0.03, means["fluid"], means["muscle"], 1.0]),
    }
    if contrast == "random":
        level |= {name: rng.uniform(0, 1) for name in ("deep", "stem", "skin", "flesh", "blood")}
    return np.array([level[name] for name in TISSUES], np.float32)


def lesion_signal(rng: np.random.Generator, head: LabelledHead, means: dict[str, float], acute: bool,
                  texture: np.ndarray, blotch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a lesion looks like, (X, Y, Z) each: its own signal, and 0..1 of how far it replaces that of the tissue.

    A mask that a person draws is wider than what is plainly changed: the change fades towards the border to a sixth or
    two thirds, islands and sulci within are spared, and a faint seam lies beyond. A fresh lesion is even, an old one
    has a cavity, or several.
    """
    deepest = float(head.inside_mm.max())
    fade = min(rng.uniform(1.5, 4) if acute else rng.uniform(2, 9), deepest * rng.uniform(0.3, 1.0))
    edge = rng.uniform(0.3, 0.8) if acute else rng.uniform(0.15, 0.7)
    depth = np.clip(head.inside_mm, 0, None)
    ragged = smooth_field(rng, head.axes_mm, rng.uniform(6, 12))[0]
    strength = edge + (1 - edge) * np.clip(depth / np.float32(fade) + np.float32(rng.uniform(0.1, 0.5)) * ragged, 0, 1)
    spared = smooth_field(rng, head.axes_mm, rng.uniform(8, 14))[0] > rng.uniform(0.9, 2.6) + (0.6 if acute else 0)
    strength = np.where(spared, strength * np.float32(rng.uniform(0, 0.4)), strength)
    strength *= np.float32(rng.uniform(0.85, 1.0))
    seam = np.float32(edge * rng.uniform(0, 0.6)) * np.exp(head.inside_mm / np.float32(rng.uniform(1.5, 5)))
    tissue = np.isin(head.codes, BRAIN)
    strength = np.where(head.lesion, strength, seam * tissue).astype(np.float32)
    fluid = np.isin(head.codes, FLUIDS)
    strength *= 1 - np.float32(rng.uniform(0.5, 1)) * fluid

    cavity = np.float32(rng.uniform(0, 0.15)) if acute else np.clip(
        rng.normal(0.2, 0.6) + 0.5 * blotch + 0.25 * texture + 1.5 * (np.clip(depth / max(deepest, 1e-3), 0, 1) - 0.5),
        0, 1) * np.clip(depth / 3, 0, 1)
    level = means["rim"] + (means["cavity"] - means["rim"]) * cavity
    return (level * (1 + np.float32(rng.uniform(0.02, 0.12)) * texture)).astype(np.float32), strength

"""The mean head that synthetic cases are deformed from: MNI152 tissue maps, and smooth random fields over them.

The tissue maps are the MNI152 2009a grey matter, white matter and brain T1 that ship inside nilearn's wheel; nothing is
downloaded. What lies outside the brain (skull, scalp, eyes, face, neck) is geometry in MNI millimetres.
"""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meshnet.errors import UserError

BRAIN_CENTRE_MM = np.array([0.0, -18.0, 8.0], np.float32)  # middle of the MNI152 brain
LEVELS_MM = (1, 2, 4)
DISTANCE_MM = 4  # the map of distances outside the brain is smooth: 4 mm suffice
DISTANCE_ORIGIN_MM = np.array([-140.0, -176.0, -176.0], np.float32)
DISTANCE_SHAPE = (71, 81, 86)


@dataclass(frozen=True)
class Atlas:
    """Tissue maps, channels last, uint8 0..255: ``maps[x, y, z] = (grey, white, fluid, ventricle)``.

    Voxel (i, j, k) lies at ``origin_mm + level_mm * (i, j, k)`` in MNI space (RAS+ millimetres).
    """

    maps: np.ndarray
    level_mm: float
    origin_mm: np.ndarray


def template_path(kind: str) -> Path:
    """File of the MNI152 map ``gm``, ``wm`` or ``t1`` in the installed nilearn (found without importing it)."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("synthetic cases need nilearn's MNI152 maps: found no nilearn, do `pip install nilearn`")
    path = Path(spec.submodule_search_locations[0], "datasets", "data",
                f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    if not path.is_file():
        raise UserError(f"{path}: not found, expected nilearn 0.14's MNI152 map there; reinstall nilearn")
    return path


@functools.cache
def load_atlas(level_mm: int = 1) -> Atlas:
    """The tissue maps averaged to ``level_mm`` (1, 2 or 4), kept for the life of the process."""
    import nibabel as nib

    if level_mm == 1:
        grey, white, t1 = (np.asanyarray(nib.load(template_path(kind)).dataobj) for kind in ("gm", "wm", "t1"))
        origin = nib.load(template_path("gm")).affine[:3, 3]
        brain = t1 > 0
        fluid = np.where(brain, 255 - np.minimum(grey.astype(np.int16) + white, 255), 0).astype(np.uint8)
        ventricle = np.where(ventricle_box(grey.shape, origin), fluid, 0)
        return Atlas(np.stack([grey * brain, white * brain, fluid, ventricle], -1), 1.0, origin.astype(np.float32))
    if level_mm not in LEVELS_MM:
        raise ValueError(f"level_mm {level_mm} is not one of {LEVELS_MM}")
    fine = load_atlas(level_mm // 2)
    size = [n // 2 * 2 for n in fine.maps.shape[:3]]
    blocks = fine.maps[:size[0], :size[1], :size[2]].astype(np.uint16)
    blocks = sum(blocks[i::2, j::2, k::2] for i in (0, 1) for j in (0, 1) for k in (0, 1))
    return Atlas((blocks // 8).astype(np.uint8), float(level_mm), fine.origin_mm + fine.level_mm / 2)


def ventricle_box(shape: tuple, origin_mm: np.ndarray) -> np.ndarray:
    """True within an ellipsoid around the lateral ventricles and the third (MNI 1 mm voxels)."""
    x, y, z = np.ogrid[:shape[0], :shape[1], :shape[2]]
    x, y, z = x + origin_mm[0], y + origin_mm[1], z + origin_mm[2]
    return (x / 38) ** 2 + ((y + 17) / 52) ** 2 + ((z - 10) / 24) ** 2 < 1


@functools.cache
def load_distance() -> np.ndarray:
    """Signed distance to the brain's surface in mm (negative inside), on a 4 mm lattice that reaches past the head."""
    from scipy import ndimage

    atlas = load_atlas(4)
    inside = np.zeros(DISTANCE_SHAPE, bool)
    start = np.round((atlas.origin_mm - DISTANCE_ORIGIN_MM) / DISTANCE_MM).astype(int)
    brain = atlas.maps[..., :3].sum(-1) > 127
    stop = np.minimum(start + brain.shape, DISTANCE_SHAPE)
    inside[tuple(slice(a, b) for a, b in zip(start, stop))] = brain[tuple(slice(0, b - a) for a, b in zip(start, stop))]
    inside = ndimage.binary_closing(inside, iterations=2)  # the skull does not follow the fissures
    outward = ndimage.distance_transform_edt(~inside, sampling=DISTANCE_MM)
    inward = ndimage.distance_transform_edt(inside, sampling=DISTANCE_MM)
    signed = np.where(inside, 2 - inward, outward - 2)
    return ndimage.gaussian_filter(signed, 1).astype(np.float32)[..., None]


def sample(maps: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Trilinear values (N, C) float32 of ``maps`` (X, Y, Z, C) at fractional voxels ``index`` (3, N); edges extend."""
    shape = maps.shape[:3]
    flat = maps.reshape(-1, maps.shape[3])
    low, part = [], []
    for axis in range(3):
        position = np.clip(index[axis], 0, shape[axis] - 1.001).astype(np.float32)
        floor = position.astype(np.int32)
        low.append(floor)
        part.append(position - floor)
    base = (low[0] * shape[1] + low[1]) * shape[2] + low[2]
    out = np.zeros((base.size, maps.shape[3]), np.float32)
    for i in (0, 1):
        wx = part[0] if i else 1 - part[0]
        for j in (0, 1):
            wxy = wx * (part[1] if j else 1 - part[1])
            for k in (0, 1):
                weight = wxy * (part[2] if k else 1 - part[2])
                out += flat[base + ((i * shape[1] + j) * shape[2] + k)] * weight[:, None]
    return out


def spline_matrix(positions_mm: np.ndarray, spacing_mm: float, start_mm: float, count: int) -> np.ndarray:
    """Cubic B-spline weights (len(positions), count) of knots at ``start_mm + spacing_mm * i``."""
    distance = np.abs((positions_mm[:, None] - start_mm) / spacing_mm - np.arange(count))
    near = 2 / 3 - distance ** 2 + distance ** 3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def smooth_field(rng: np.random.Generator, axes_mm: tuple, spacing_mm: float, channels: int = 1,
                 reach_mm: float = 200.0) -> np.ndarray:
    """A smooth random field (channels, X, Y, Z), mean 0 and standard deviation about 1, at the lattice ``axes_mm``.

    White noise on knots ``spacing_mm`` apart through -reach..reach on each axis, interpolated by cubic B-splines. The
    knots do not depend on the lattice, so one seed gives one field at every voxel size.
    """
    count = int(2 * reach_mm / spacing_mm) + 5
    start = -reach_mm - 2 * spacing_mm
    field = rng.standard_normal((channels, count, count, count), dtype=np.float32)
    for positions in axes_mm:  # contracts axis 1, appends the new one at the end
        field = np.tensordot(field, spline_matrix(np.asarray(positions, np.float32), spacing_mm, start, count), (1, 1))
    return field * np.float32(1 / 0.6927 ** 3)  # 0.6927: root mean square of the weights' norm on one axis


def face_distance(mni: np.ndarray) -> np.ndarray:
    """Signed distance-like value (mm, negative inside) of face and neck at MNI points (3, N)."""
    x, y, z = mni
    face = np.sqrt((x / 62) ** 2 + ((y - 22) / 68) ** 2 + ((z + 62) / 72) ** 2)
    jaw = (face - 1) * 62
    neck = np.sqrt((x / 1.05) ** 2 + ((y + 38) / 1.1) ** 2) - 56
    neck = np.maximum(neck, z + 55)
    return np.minimum(jaw, neck)

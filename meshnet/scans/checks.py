"""Whether a scan is what a network can be given: its header, its extent, its channels, its grey values.

What is certainly wrong raises a UserError. What is doubtful is returned as remarks: sentences that infer.py, prepare.py
and ``segment_scan`` pass on. A sound scan draws none.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import nibabel as nib
import numpy as np

from meshnet.errors import UserError
from meshnet.numbers import plain
from meshnet.scans.affines import inverse, product
from meshnet.scans.contrast import T1W
from meshnet.scans.grid import LIKELY, LOOKS, Grid, target_affine
from meshnet.scans.head import head_box
from meshnet.scans.intensity import Extremes, as_input
from meshnet.scans.mask import box_of, slices, voxel_volume_mm3
from meshnet.scans.nifti import declared_scale

SIZES_DIFFER = 0.02  # share by which voxel sizes of one header may differ
APART_MM = 5  # between the corners of a scan by qform and by sform that claim the same space
SHORT_MM = 60  # no head is shorter than this along any axis
ROUNDING = 1.0  # voxels beyond a grid that are air, noise or rounding
LONGEST_MM = 1200  # from feet to head is more than a network of heads is asked for
FEW_SLICES = 5
THICK = 3.5  # voxels of the model, above which a scan's slices are thick for it
THICK_MM = 3.0  # below this slices are never called thick
FEW = 0.003  # share of the voxels
GAP = 0.8  # of the grey levels, between a scan and something far brighter
GAP_SHARES = 0.002, 0.002, 0.01  # of the voxels: at most within the gap, at least below and above it
FEW_LEVELS = 16  # of 256 grey levels, between which 98 % of the head's voxels lie
COVERED = 0.1, 0.6  # share of the first channel's head that another covers: below them refused, and said
CUT, CUT_SHARE = 0.5, 0.002  # voxels beyond the grid, and share of a lesion there, that are rounding
MOST_ML = 1000  # of lesions; a hemisphere has some 600
IN_HEAD = 0.5  # share of a lesion that lies where its scan is not empty
DOUBTFUL = 0.6  # probability of a contrast; of 800 synthetic heads 15 lie below it, a third of them told wrongly
CHANGED, CHANGED_ML = 0.2, 0.5  # share and mL by which conforming may change a lesion without a word


def header_remarks(image: nib.Nifti1Image) -> list[str]:
    """Where a header contradicts itself: pixdim, qform and sform that disagree."""
    header, remarks = image.header, []
    affine = image.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], float))
    scale = sizes / pixdim if pixdim.all() else np.ones(3)
    unit = float(np.median(scale)) if declared_scale(header) != 1 else 1.0
    if not np.isfinite(pixdim).all() or (pixdim.all() and (np.abs(scale / unit - 1) > SIZES_DIFFER).any()):
        remarks.append(f"the header contradicts itself: voxels of {_mm(pixdim)} by pixdim and {_mm(sizes)} by the "
                       "affine; the affine was used, check the volume")
    if int(header["qform_code"]) > 0 and int(header["sform_code"]) > 0:
        remarks += _forms_remarks(header, image.shape)
    return remarks


def _forms_remarks(header, shape: tuple[int, ...]) -> list[str]:
    sform = header.get_sform()
    try:
        qform = header.get_qform()
    except (ValueError, np.linalg.LinAlgError):
        qform = np.full((4, 4), np.nan)
    if not np.isfinite(qform).all():
        return ["the header's qform is no rotation; sform was used"]
    if abs(np.linalg.det(sform[:3, :3])) < 1e-12 or abs(np.linalg.det(qform[:3, :3])) < 1e-12:
        return []
    axes = ["".join(nib.aff2axcodes(form)) for form in (qform, sform)]
    if axes[0] != axes[1]:
        return [f"the header contradicts itself: axes {axes[0]} by qform and {axes[1]} by sform; sform was used, check "
                "left and right"]
    if int(header["qform_code"]) == int(header["sform_code"]):  # with other codes they are of two spaces
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], [1], indexing="ij")).reshape(4, -1)
        apart = float(np.linalg.norm(((qform - sform) @ corners)[:3], axis=0).max()) * declared_scale(header)
        if apart > APART_MM:
            return [f"the header contradicts itself: qform and sform are {apart:.0f} mm apart, both of code "
                    f"{int(header['sform_code'])}; sform was used"]
    return []


def values_remarks(image: nib.Nifti1Image, name: str) -> list[str]:
    """Whether a channel is a scan at all: a mask has two values."""
    values = two_values(image)
    return [f"{name}: holds no values but {values}; is it a mask and not a scan?"] if values else []


def two_values(image: nib.Nifti1Image) -> str:
    """The only value or two of an image, in words; empty where it has more."""
    data = np.asanyarray(image.dataobj)
    few = np.unique(data[tuple(slice(None, None, 4 if n >= 32 else 1) for n in data.shape)])
    if len(few) > 2 or len(few := np.unique(data)) > 2:
        return ""
    return " and ".join(f"{value:g}" for value in few)


def extent_remarks(image: nib.Nifti1Image, voxel_mm: float) -> list[str]:
    """Whether a scan is as large as a head, and sliced finely enough for a model with voxels of ``voxel_mm``."""
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    shape = np.array(image.shape[:3])
    extent, remarks = spacing * shape, []
    if extent.min() < SHORT_MM:
        remarks.append(f"the scan measures {_mm(extent, 0)}, less than a head along one axis; what lies outside it "
                       "cannot be marked")
    elif shape.min() < FEW_SLICES:
        number = "1 slice" if shape.min() == 1 else f"{shape.min()} slices"
        remarks.append(f"the scan has only {number}; lesions between them cannot be marked")
    thickest = spacing.max()
    if thickest > max(THICK_MM, THICK * voxel_mm) and spacing.max() > 1.5 * spacing.min():
        remarks.append(f"slices of {thickest:.1f} mm are thick for a model with voxels of {plain(voxel_mm)} mm; small "
                       "lesions may be missed and outlines are coarse")
    return remarks


def fitted(grid: Grid, image: nib.Nifti1Image, where: str, head: Callable | None = None) -> tuple[Grid, list[str]]:
    """``grid``, made larger on both sides where the head of ``image`` does not fit into it, and a remark that says so.

    The voxels' places in the world stay the same. ``head`` returns ``head_box`` of the image; it is called where it is
    needed, so that several grids can share what it finds.

    Raises:
        UserError: for a scan that is no head by its size.
    """
    shape = np.array(grid.size)
    to_grid = product(inverse(target_affine(image, grid)), image.affine)
    if not _outside(to_grid, tuple((0, n) for n in image.shape[:3]), shape).any():
        return grid, []
    box = head() if head else head_box(np.asanyarray(image.dataobj), margin=0)
    lacks = _outside(to_grid, box, shape)
    if not lacks.any():
        return grid, []
    larger = tuple(int(n) for n in shape + 2 * lacks)
    if max(larger) * grid.voxel_mm > LONGEST_MM:
        raise UserError(f"{where}: measures {_mm(np.array(larger) * grid.voxel_mm, 0)} by its affine, expected a head "
                        f"of at most {LONGEST_MM} mm; correct its affine, or cut the head out")
    size = _mm(shape * grid.voxel_mm, 0)
    return replace(grid, shape=larger), [
        f"the scan is larger than the model's grid of {size}: the grid was enlarged, and what lies outside the head "
        "was not trained on"]


def _outside(to_grid: np.ndarray, box, shape: np.ndarray, at_least: float = ROUNDING) -> np.ndarray:
    """Voxels (3,) that a box of the scan reaches beyond the grid, the larger of both sides; 0 up to ``at_least``."""
    corners = np.array(np.meshgrid(*[(a - 0.5, b - 0.5) for a, b in box], [1], indexing="ij")).reshape(4, -1)
    places = np.nan_to_num(product(to_grid, corners)[:3])
    beyond = np.maximum(-0.5 - places.min(axis=1), places.max(axis=1) - (shape - 0.5))
    return np.where(beyond > at_least, np.ceil(beyond), 0).astype(int)


def check_channels(channels: Sequence[np.ndarray], names: list[str], where: str,
                   image: nib.Nifti1Image | None = None) -> list[str]:
    """Whether every channel of a conformed scan, volumes (X, Y, Z), holds something, where the first one does, and
    something of its own. ``image``: of which the first was conformed, to tell a small mask from an empty scan.

    Raises:
        UserError: for a channel that is constant, or lies elsewhere than the first one.
    """
    remarks = []
    heads = [small > small.min() for small in (channel[::2, ::2, ::2] for channel in channels)]
    if not heads[0].any() and image is not None and (values := two_values(image)):
        raise UserError(f"{where}: {names[0]} holds no values but {values}, and has the same value everywhere on the "
                        "model's grid, expected a head; is it a mask and not a scan?")
    if not heads[0].any():
        raise UserError(f"{where}: {names[0]} has the same value everywhere on the model's grid, expected a head; look "
                        "at the file")
    for name, head in zip(names, heads):
        if not head.any():
            raise UserError(f"{where}: channel {name} is empty on the model's grid, expected it to overlap the first "
                            f"channel ({names[0]}); check its affine, or whether it belongs to this patient")
    first = heads[0]
    for name, head in zip(names[1:], heads[1:]):
        covered = float((first & head).sum() / first.sum())
        if covered < COVERED[0]:
            raise UserError(f"{where}: channel {name} covers {100 * covered:.0f} % of channel {names[0]}, expected "
                            "overlap; check its affine, or whether it belongs to this patient")
        if covered < COVERED[1]:
            remarks.append(f"channel {name} covers only {100 * covered:.0f} % of channel {names[0]}")
    for a, b in itertools.combinations(range(len(channels)), 2):
        if np.array_equal(channels[a][::2, ::2, ::2], channels[b][::2, ::2, ::2]):
            remarks.append(f"channels {names[a]} and {names[b]} are the same; was one file given twice?")
    return remarks


def content_remarks(channel: np.ndarray, image: nib.Nifti1Image, voxel_mm: float) -> list[str]:
    """Whether what a channel (X, Y, Z), conformed from ``image``, holds is as large as a head where the image is: it
    may be padded."""
    if (np.linalg.norm(image.affine[:3, :3], axis=0) * image.shape[:3]).min() < SHORT_MM:
        return []  # extent_remarks says so
    small = channel[::2, ::2, ::2]
    box = box_of(small > small.min())
    extent = np.array([2 * voxel_mm * (b - a) for a, b in box]) if box else np.full(3, np.inf)
    if extent.min() >= SHORT_MM:
        return []
    return [f"what the scan holds measures {_mm(extent, 0)}, less than a head along one axis; what lies outside it "
            "cannot be marked"]


def is_doubtful(extra: dict) -> bool:
    """Whether ``conform``, whose ``extra`` this is, asked for the contrast and is unsure of it, or found no head."""
    return LIKELY in extra and (extra[LIKELY] is None or max(extra[LIKELY].values()) < DOUBTFUL)


def contrast_remarks(extra: dict, name: str = "") -> list[str]:
    """What a reader should know of a scan whose contrast is doubtful, or that was turned round because it looks like
    T1w; ``extra`` is ``conform``'s, ``name`` that of the channel where there are several."""
    of = f"{name}: " if name else ""
    if is_doubtful(extra) and extra[LIKELY] is None:
        return [f"{of}its contrast could not be told, since no head was found in it: its grey values were taken as "
                "they are; if it is T1w, do not use the mask"]
    if is_doubtful(extra):
        (first, p), (second, q), _ = sorted(extra[LIKELY].items(), key=lambda item: -item[1])
        if first == T1W:
            return [f"{of}looks most like T1w ({100 * p:.0f} %) and then {second} ({100 * q:.0f} %), which is "
                    "doubtful; its grey values were turned round for the model, so if it is not T1w, do not use the "
                    "mask"]
        return [f"{of}looks most like {first} ({100 * p:.0f} %) and then {second} ({100 * q:.0f} %), which is "
                f"doubtful; if its contrast is not {first}, do not trust the mask"]
    if extra.get(LOOKS) != T1W:
        return []
    return [f"{of}looks like T1w, where lesions are dark: its grey values were turned round for the model; if it has "
            "another contrast, do not use the mask"]


def grey_remarks(volume: np.ndarray, extremes: Extremes | None, name: str) -> list[str]:
    """Whether a channel uses the grey levels that its scaling gave it.

    Args:
        volume: of the channel, conformed (X, Y, Z), float32 in 0..1 or uint8.
        extremes: what ``conform`` left out of its range.
        name: of the channel.
    """
    if extremes:
        share = f"{extremes.share:.1%} of the voxels (a bright slice, padding?)"
        which = "a few voxels" if extremes.share < FEW else share
        return [f"{name}: {which} from {extremes.lowest:g} to {extremes.highest:g} lie far outside all others, which "
                f"go from {extremes.low:g} to {extremes.high:g}; they were clipped"]
    step = 3 if min(volume.shape) >= 64 else 1
    small = as_input(volume[::step, ::step, ::step])
    inside = small[small > small.min()]
    if inside.size < 100:
        return []
    low, high = np.quantile(inside, (0.01, 0.99))
    if (high - low) * 255 >= FEW_LEVELS:
        return _gap_remarks(inside, name)
    return [f"{name}: 98 % of the head lies within {max(1, round(float(high - low) * 255))} of 256 grey levels, so the "
            "mask is doubtful; check the intensities of the scan"]


def _gap_remarks(values: np.ndarray, name: str) -> list[str]:
    """Whether the grey levels between a scan and something far brighter are empty; ``values`` (n,) in 0..1."""
    counts = np.bincount((np.clip(values, 0, 1) * 255).astype(np.uint8), minlength=256) / values.size
    upto = np.concatenate([[0], np.cumsum(counts)])
    width = int(GAP * 256)
    within, below, above = GAP_SHARES
    empty = (upto[width:] - upto[:-width] <= within) & (upto[:-width] >= below) & (upto[width:] <= 1 - above)
    if not empty.any():
        return []
    first = int(empty.argmax())
    return [f"{name}: next to nothing lies between {first} and {first + width} of 256 grey levels (a bright slice, "
            "padding?), so the mask is doubtful; check the intensities of the scan"]


def volume_remarks(volume_ml: float) -> list[str]:
    """Whether a mask of lesions is larger than lesions are."""
    if volume_ml <= MOST_ML:
        return []
    return [f"the mask holds {volume_ml:.0f} mL, more than a lesion can; check the scan (inverted, no head, of another "
            "kind?) and the model"]


def place_remarks(classes: np.ndarray, box, channel: np.ndarray) -> list[str]:
    """Whether a lesion lies in what the scan holds; both conformed (X, Y, Z). ``box`` is that of the lesion."""
    if box is None:
        return []
    marked = classes[slices(box)] > 0
    total = np.count_nonzero(marked)
    inside = np.count_nonzero(marked & (channel[slices(box)] > channel.min()))
    if inside >= IN_HEAD * total:
        return []
    return [f"only {inside / total:.0%} of the lesion lies where the scan is not empty; check that the mask belongs to "
            "it"]


def mask_remarks(native: nib.Nifti1Image, conformed: nib.Nifti1Image, marks: int | None, name: str) -> list[str]:
    """Whether a lesion is the same before and after conforming.

    Args:
        native, conformed: classes (X, Y, Z) on the two grids.
        marks: the one class that is the lesion; None: every class is.
        name: of the mask, for errors.

    Raises:
        UserError: where the grid cuts off part of the lesion.
    """
    before, after = (np.asarray(image.dataobj) for image in (native, conformed))
    before, after = (classes > 0 if marks is None else classes == marks for classes in (before, after))
    total = np.count_nonzero(before)
    if not total:
        return []
    voxel_ml = voxel_volume_mm3(native.affine) / 1000
    to_grid = product(inverse(conformed.affine), native.affine)
    outside = 0
    if _outside(to_grid, box_of(before), np.array(after.shape), at_least=0).any():  # else there is nothing to count
        places = to_grid[:3, :3] @ np.argwhere(before).T + to_grid[:3, 3:]
        shape = np.array(after.shape)[:, None]
        outside = int(((places < -0.5 - CUT) | (places > shape - 0.5 + CUT)).any(axis=0).sum())
    if outside > CUT_SHARE * total:
        size = " x ".join(map(str, after.shape))
        raise UserError(f"{name}: {outside * voxel_ml:.2f} of {total * voxel_ml:.2f} mL of the lesion lie outside the "
                        f"grid of {size} voxels, expected all of it inside; prepare with a larger --shape")
    ml = np.count_nonzero(after) * voxel_volume_mm3(conformed.affine) / 1000
    if not ml:
        return [f"the lesion of {total * voxel_ml:.2f} mL has no voxel left on the grid; take a smaller --voxel_mm"]
    if abs(ml - total * voxel_ml) > max(CHANGED_ML, CHANGED * total * voxel_ml):
        return [f"the lesion of {total * voxel_ml:.2f} mL has {ml:.2f} mL on the grid"]
    return []


def _mm(sizes: np.ndarray, digits: int = 2) -> str:
    return " x ".join(f"{float(size):.{digits}f}".rstrip("0").rstrip(".") if digits else f"{float(size):.0f}"
                      for size in sizes) + " mm"

"""One case → one row of a prepared dataset → one Arrow file, written whole."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from meshnet.data import schema
from meshnet.data.schema import FORMAT_VERSION, SHARDS, union_box
from meshnet.data.sources.case import Case, Loaded
from meshnet.data.sources.find import load_case, sha256_file, signature
from meshnet.errors import UserError
from meshnet.files import hash_of, whole_file
from meshnet.scans import checks, contrast, contrast_network, grid, head, intensity, mirror, nifti, resample, second
from meshnet.scans import mask as masks
from meshnet.scans.checks import (
    check_channels,
    content_remarks,
    contrast_remarks,
    extent_remarks,
    grey_remarks,
    header_remarks,
    is_doubtful,
    mask_remarks,
    place_remarks,
    values_remarks,
)
from meshnet.scans.grid import EXTREMES, Grid, conform, conform_mask
from meshnet.scans.head import head_box
from meshnet.scans.mask import box_of
from meshnet.scans.nifti import is_soft, mask_classes, same_grid
from meshnet.scans.ours import has_signature

if TYPE_CHECKING:
    import pyarrow

FILLS_HEAD = 0.5  # share of the head from which a mask is asked about
# A change in these, in this file, or in the weights that tell contrasts apart prepares every case again.
CODE = (checks, contrast, contrast_network, grid, head, intensity, masks, mirror, nifti, resample, schema, second)


@dataclass(frozen=True)
class First:
    """The first network of a cascade, whose second one is to be trained: its weights' path (``folder``), the names of
    its classes without the background, which ``network`` it is, as ``networks.cascade.network_of`` says, and whether
    the second one is given the mirror image as well."""

    folder: str
    classes: tuple[str, ...]
    network: tuple[str, ...]
    mirror: bool = False


@dataclass(frozen=True)
class Settings:
    """How cases become rows."""

    grid: Grid
    scaling: str
    window: tuple[float, float] | None
    labels: tuple[tuple[int, int], ...] | None  # (mask value, class)
    channels: int
    groups: tuple[str, ...]
    allow_empty: bool = False
    marks: int | None = None  # the one class that is the lesion, where there are others
    first: First | None = None

    @property
    def identity(self) -> dict:
        """What a shard depends on: all but where the first network lies."""
        own = asdict(replace(self, first=None))
        del own["first"]
        if self.first:
            own["first"] = [self.first.classes, self.first.network, *(["mirror"] if self.first.mirror else [])]
        return own


# What a cascade's second network is given of a case: from its images and these conformed, (C, X, Y, Z) uint8, with
# their affine, the volume (C + K, X, Y, Z) uint8, or None where the first network finds nothing; and what the case
# looks like, None where that is not asked. See ``inference.prepared``, which is in a later room.
See = Callable[[Sequence[nib.Nifti1Image], np.ndarray, np.ndarray, Settings], tuple[np.ndarray | None, str | None]]


def code_version(synthetic: bool) -> str:
    """A hash of the source code that rows depend on: a change in it prepares every case again."""
    modules = [*CODE, sys.modules[__name__]]
    if synthetic:
        from meshnet.data.synthetic import (
            anatomy,
            atlas,
            case,
            from_folders,
            labelled,
            labelmaps,
            lesionmasks,
            lesions,
            scanner,
        )

        modules += [anatomy, atlas, case, from_folders, labelled, labelmaps, lesionmasks, lesions, scanner]
    return hash_of([sha256_file(path) for path in (*(module.__file__ for module in modules), contrast_network.WEIGHTS)])


def shard_name(case: Case, settings: Settings, version: str) -> str:
    """The file name of a case's shard: the same only while sources, settings and code are the same."""
    case = replace(case, groups={g: case.groups.get(g) for g in settings.groups})
    identity = [FORMAT_VERSION, version, settings.identity, asdict(case), signature(case)]
    return f"{SHARDS}/{hash_of(identity)[:32]}.arrow"


def make_row(case: Case, settings: Settings, see: See | None = None) -> dict:
    """Read, check and conform a case; the row as ``schema.features`` describes it. Raises UserError for a bad case.

    ``see`` is for settings with a ``first``.
    """
    loaded = load_case(case, settings.channels)
    native = _scan_of_mask(case, loaded.images, loaded.mask)
    labels = dict(settings.labels) if settings.labels else None
    classes = mask_classes(loaded.mask, labels, case.mask)
    lesion_voxels = int(np.count_nonzero(classes if settings.marks is None else classes == settings.marks))
    if labels and not classes.any() and (others := np.unique(loaded.mask.dataobj)).any():
        shown = ", ".join(f"{value:g}" for value in others[others != 0][:8])
        raise UserError(f"{case.mask}: found the value(s) {shown}, expected one of --labels that marks a lesion; "
                        "correct --labels, or leave the case out")
    if lesion_voxels == 0 and not settings.allow_empty:
        raise UserError(f"{case.mask}: the mask is empty, expected a lesion; leave the case out, or keep it with "
                        "--allow_empty")
    first = loaded.images[0]
    same = {c: c for c in labels.values()} if labels else None
    mask = conform_mask(nib.Nifti1Image(classes, native.affine), settings.grid, same, reference=first, exact=False)
    mask_array = np.ascontiguousarray(mask.dataobj)
    scale = ("conform_uint8", None) if settings.first else (settings.scaling, settings.window)
    conformed = [conform(image, settings.grid, *scale, reference=first, exact=False) for image in loaded.images]
    volumes = [np.asarray(image.dataobj) for image in conformed]
    image_array = np.ascontiguousarray(np.stack(volumes))
    lesion = box_of(mask_array)
    heads, more = [*map(head_box, volumes)], {}
    if settings.first:
        image_array, heads, more = _second(see, loaded, image_array, mask, settings)
    boxes = [_flat(box) for box in (*heads, lesion) if box is not None]
    groups = {**case.groups, **loaded.groups}
    if missing := [g for g in settings.groups if g not in groups]:
        raise UserError(f"{case.case}: has no group column {missing[0]}, expected one of {', '.join(groups) or 'none'}")
    warnings = look(case, loaded, settings, conformed, nib.Nifti1Image(classes, native.affine), mask, lesion)
    warnings += lost_remarks(more["inside_ml"], more["outside_ml"]) if more else []
    return {
        "case": case.case, "subject": case.subject, "session": case.session,
        **{f"group_{g}": groups[g] for g in settings.groups},
        "image": image_array, "image_shape": list(image_array.shape), "image_dtype": image_array.dtype.name,
        "mask": mask_array, "mask_shape": list(mask_array.shape), "mask_dtype": "uint8",
        "mask_native": np.ascontiguousarray(classes), "native_shape": list(classes.shape),
        "native_affine": [float(v) for v in native.affine.ravel()],
        "conformed_affine": [float(v) for v in mask.affine.ravel()],
        "lesion_voxels": lesion_voxels,
        "lesion_ml": lesion_voxels * abs(float(np.linalg.det(native.affine[:3, :3]))) / 1000,
        "head_box": union_box(boxes),
        "image_paths": list(case.images), "mask_path": case.mask,
        "image_sha256": loaded.image_sha256, "mask_sha256": loaded.mask_sha256, "warnings": warnings,
        **more,
    }


def _second(see: See, loaded: Loaded, volumes: np.ndarray, mask: nib.Nifti1Image,
            settings: Settings) -> tuple[np.ndarray, list, dict]:
    """What the second network of a cascade is given of a case, with the boxes to train on, and the columns of a case
    for a cascade: how much of the lesion lies in the region of the first one and outside it, and what it looks like."""
    marked = np.asarray(mask.dataobj)
    marked = marked > 0 if settings.marks is None else marked == settings.marks
    found, looks = see(loaded.images, volumes, mask.affine, settings)
    heads = [head_box(volumes[0])]
    outside = marked
    if found is None:
        given = (len(volumes) + len(settings.first.classes)) * (2 if settings.first.mirror else 1)
        found = np.zeros((given, *volumes.shape[1:]), np.uint8)
    else:
        heads = [box_of(found.any(0))]
        outside = marked.copy()
        outside[masks.slices(heads[0])] = False
    ml = settings.grid.voxel_mm ** 3 / 1000
    return found, heads, {"inside_ml": ml * (np.count_nonzero(marked) - np.count_nonzero(outside)),
                          "outside_ml": ml * np.count_nonzero(outside), "looks": looks or ""}


def lost_remarks(inside_ml: float, outside_ml: float) -> list[str]:
    """Whether a part of a lesion lies where the second network of a cascade cannot mark it."""
    if not outside_ml:
        return []
    return [f"{outside_ml:.2f} of {inside_ml + outside_ml:.2f} mL of the lesion lie outside what the first network "
            "found; the second one cannot mark them"]


def look(case: Case, loaded: Loaded, settings: Settings, conformed: list[nib.Nifti1Image], native: nib.Nifti1Image,
         mask: nib.Nifti1Image, lesion) -> list[str]:
    """What is doubtful about a case, in sentences, from its ``conformed`` channels, and from its mask before
    (``native``) and after conforming, where its box is ``lesion``.

    Raises:
        UserError: for what is certainly wrong: a channel that is empty, a lesion that the grid cuts off.
    """
    names = [f"channel {i}" for i in range(1, len(conformed) + 1)]
    volumes = [np.asarray(image.dataobj) for image in conformed]
    remarks = [line for image in loaded.images for line in header_remarks(image)]
    remarks += [line for image, name in zip(loaded.images, names) for line in values_remarks(image, name)]
    remarks += extent_remarks(loaded.images[0], settings.grid.voxel_mm)
    remarks += check_channels(volumes, names, case.images[0], loaded.images[0])
    remarks += content_remarks(volumes[0], loaded.images[0], settings.grid.voxel_mm)
    for image, volume, name in zip(conformed, volumes, names):
        remarks += grey_remarks(volume, image.extra[EXTREMES], name)
        remarks += contrast_remarks(image.extra, name if len(names) > 1 else "") if is_doubtful(image.extra) else []
    remarks += mask_remarks(native, mask, settings.marks, case.mask)
    remarks += ["the mask is soft: its upper half was taken as lesion"] if is_soft(np.asanyarray(
        loaded.mask.dataobj)) and not settings.labels else []
    remarks += place_remarks(np.asarray(mask.dataobj), lesion, volumes[0])
    remarks += ["the mask was written by this program: it is a prediction, and nobody has corrected it"
                ] if has_signature(loaded.mask) else []
    head, marked = (volume[::2, ::2, ::2] for volume in (volumes[0], np.asarray(mask.dataobj)))
    share = float(np.count_nonzero(marked) / max(np.count_nonzero(head > head.min()), 1))
    if share > FILLS_HEAD:
        remarks.append(f"the mask marks {share:.0%} of the head; is it a mask of lesions?")
    return list(dict.fromkeys(remarks))


def _scan_of_mask(case: Case, images: list[nib.Nifti1Image], mask: nib.Nifti1Image) -> nib.Nifti1Image:
    """The channel whose grid the mask is on; its affine is then used instead of the mask's own."""
    for image in images:
        if same_grid(image, mask):
            return image
    scan = images[0]
    if scan.shape != mask.shape:
        what, found, expected = "shape", list(mask.shape), list(scan.shape)
    else:
        what, found, expected = "affine", *(np.round(image.affine[:3], 3).tolist() for image in (mask, scan))
    raise UserError(
        f"{case.mask}: found another grid than its scan's ({what} {found}), expected {expected} of {case.images[0]}; "
        "resample the mask onto the scan, or check that they belong together"
    )


def _flat(box: tuple[tuple[int, int], ...]) -> list[int]:
    """((x0, x1), (y0, y1), (z0, z1)) → [x0, x1, y0, y1, z0, z1]."""
    return [edge for pair in box for edge in pair]


def write_shard(row: dict, schema: "pyarrow.Schema", path: Path) -> None:
    """Write one row as an Arrow stream file, uncompressed, so that a reader can map it; whole or not at all."""
    import pyarrow as pa

    arrays = [_as_arrow(row[f.name], f.type) for f in schema]
    with whole_file(path) as temporary, open(temporary, "wb") as handle, pa.ipc.new_stream(handle, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _as_arrow(value: object, kind: "pyarrow.DataType") -> "pyarrow.Array":
    import pyarrow as pa

    if isinstance(value, np.ndarray):  # wrapped, not copied
        offsets = pa.py_buffer(np.array([0, value.nbytes], np.int64))
        return pa.Array.from_buffers(kind, 1, [None, offsets, pa.py_buffer(value)])
    return pa.array([value], kind)


def prepare_case(case: Case, settings: Settings, schema: "pyarrow.Schema", path: Path,
                 see: See | None = None) -> tuple[str, str] | None:
    """Prepare one case into ``path``: None when it is written, (mask path, reason) when something is wrong with it.

    Runs in a worker process. A full or unwritable disk is not the case's fault and raises OSError.
    """
    try:
        write_shard(make_row(case, settings, see), schema, path)
    except UserError as error:
        return case.mask, str(error)
    except MemoryError:
        return case.mask, "not enough memory for this case; run again with fewer --workers or a larger --voxel_mm"
    return None

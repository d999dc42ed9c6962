"""A mask as a DICOM SEG object that refers to the series it was made of, by highdicom."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import nibabel as nib
import numpy as np

from meshnet import __version__
from meshnet.errors import UserError
from meshnet.files import whole_file

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's patient axes run left and back, NIfTI's right and front
PLACED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns")
SAME_PLACE_MM = 0.05  # two frames that are no farther apart lie at one place
ALIKE = 0.99  # correlation from which a frame holds the grey values of a scan's slice


def frame_affines(images: Sequence) -> list[np.ndarray]:
    """For each frame of a series its affine (4, 4), from (row, column, 0) to RAS+ mm, by DICOM's equation C.7.6.2.1-1.

    ``images`` are single-frame datasets, or one enhanced multi-frame one.
    """
    if "PerFrameFunctionalGroupsSequence" not in images[0]:
        return [affine(one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing) for one in images]
    shared = images[0].SharedFunctionalGroupsSequence[0]
    found = []
    for frame in images[0].PerFrameFunctionalGroupsSequence:
        pick = lambda name, frame=frame: (frame if name in frame else shared)[name].value[0]
        found.append(affine(pick("PlanePositionSequence").ImagePositionPatient,
                            pick("PlaneOrientationSequence").ImageOrientationPatient,
                            pick("PixelMeasuresSequence").PixelSpacing))
    return found


def affine(position, orientation, spacing) -> np.ndarray:
    """From (row, column, 0) of a frame to RAS+ mm."""
    along_row, down_column = np.array([float(v) for v in orientation]).reshape(2, 3)
    matrix = np.eye(4)
    matrix[:3, 0] = down_column * float(spacing[0])
    matrix[:3, 1] = along_row * float(spacing[1])
    matrix[:3, 2] = np.cross(along_row, down_column)
    matrix[:3, 3] = [float(v) for v in position]
    return TO_RAS @ matrix


def mask_on_frames(mask: nib.Nifti1Image, images: Sequence) -> np.ndarray:
    """The mask (frames, rows, columns), bool, at the pixels of a DICOM series: the voxel in which each of them lies.

    Where the NIfTI file holds the series' own voxels, as dcm2niix leaves them but for flipped axes, this is exact.
    """
    shape = int(images[0].Rows), int(images[0].Columns)
    return np.stack([on_frame(np.asanyarray(mask.dataobj) > 0, mask.affine, one, shape)
                     for one in frame_affines(images)])


def on_frame(data: np.ndarray, grid: np.ndarray, frame: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The values of a volume (X, Y, Z) at the pixels (rows, columns) of a frame, 0 outside; ``grid`` and ``frame`` are
    the affines of both."""
    pixels = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), -1).reshape(-1, 2)
    pixels = np.concatenate([pixels, np.zeros((len(pixels), 1)), np.ones((len(pixels), 1))], 1)
    where = np.rint((pixels @ (np.linalg.inv(grid) @ frame).T)[:, :3]).astype(int)
    inside = ((where >= 0) & (where < data.shape)).all(1)
    values = np.zeros(len(where), data.dtype)
    values[inside] = data[tuple(where[inside].T)]
    return values.reshape(shape)


def frames_of(scan: nib.Nifti1Image, images: Sequence) -> list[int]:
    """Which frames of a series are those of ``scan``, one for each place: of several volumes at the same places, as of
    b-values, or a magnitude and its phase, the frames with the grey values of the scan.

    Raises:
        ValueError: where a place has several frames and none of them is like the scan.
    """
    affines = frame_affines(images)
    places: dict[tuple, list[int]] = {}
    for number, one in enumerate(affines):
        places.setdefault(place_of(one), []).append(number)
    if len(places) == len(affines):
        return list(range(len(affines)))
    data, shape, found = np.asanyarray(scan.dataobj), (int(images[0].Rows), int(images[0].Columns)), []
    for numbers in places.values():
        wanted = on_frame(data, scan.affine, affines[numbers[0]], shape)
        likeness = [alike(wanted, pixels_of(images, number)) for number in numbers]
        best = int(np.argmax(likeness))
        if likeness[best] < ALIKE:
            raise ValueError("several frames lie at one place, and none holds the grey values of the scan")
        found.append(numbers[best])
    return sorted(found)


def place_of(one: np.ndarray) -> tuple[int, ...]:
    """Where a frame's first pixel lies, the same for all frames there."""
    return tuple(np.round(one[:3, 3] / SAME_PLACE_MM).astype(int))


def refer_to(seg, numbers: Sequence[int], affines: Sequence[np.ndarray]) -> None:
    """Have each frame of a SEG object refer to that frame of an enhanced series, among ``numbers``, which lies where it
    does; highdicom names the first one there."""
    right = {place_of(affines[number]): number + 1 for number in numbers}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        for derived in frame.get("DerivationImageSequence", ()):
            for source in derived.SourceImageSequence:
                if "ReferencedFrameNumber" in source:
                    source.ReferencedFrameNumber = right[place_of(affines[int(source.ReferencedFrameNumber) - 1])]


def pixels_of(images: Sequence, number: int) -> np.ndarray:
    """The grey values (rows, columns) of a frame of a series."""
    return images[number].pixel_array if len(images) > 1 else images[0].pixel_array[number]


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two pictures; of two without any contrast 1."""
    one, other = (values.astype(np.float64) - values.mean() for values in (one, other))
    sizes = np.linalg.norm(one), np.linalg.norm(other)
    return float((one * other).sum() / (sizes[0] * sizes[1])) if min(sizes) > 0 else float(max(sizes) == 0)


def source_images(files: Sequence[Path], scan: nib.Nifti1Image | None) -> tuple[list, list[int] | None]:
    """The datasets of a series that a scan was made of, and of an enhanced one with other frames too those frames, by
    number. Files that say nothing of where they lie, or are of another size than most, are left out."""
    import pydicom

    images = [pydicom.dcmread(file) for file in files]
    if "PerFrameFunctionalGroupsSequence" not in images[0]:
        images = [one for one in images if all(name in one for name in PLACED)]
        size = Counter((one.Rows, one.Columns) for one in images).most_common(1)[0][0]
        images = [one for one in images if (one.Rows, one.Columns) == size]
    frames = None if scan is None else frames_of(scan, images)
    if len(images) > 1:
        return [images[number] for number in frames] if frames is not None else images, None
    return images, frames if frames is not None and len(frames) < len(frame_affines(images)) else None


def seg_of(mask: nib.Nifti1Image, files: Sequence[Path], model: str, scan: nib.Nifti1Image | None):
    """The SEG object; errors are whatever pydicom and highdicom say of headers."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    images, numbers = source_images(files, scan)
    frames, positions, affines = mask_on_frames(mask, images), None, frame_affines(images)
    if numbers is not None:
        frames = frames[numbers]
        positions = [hd.PlanePositionSequence("PATIENT", [float(v) for v in (TO_RAS @ affines[number])[:3, 3]])
                     for number in numbers]
    by = hd.AlgorithmIdentificationSequence(name="MeshNet", version=__version__,
                                            family=codes.DCM.ArtificialIntelligence, parameters={"model": model})
    described = hd.seg.SegmentDescription(
        segment_number=1, segment_label="Lesion", algorithm_identification=by,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC)
    seg = hd.seg.Segmentation(
        source_images=images, pixel_array=frames.astype(np.uint8), plane_positions=positions,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY, segment_descriptions=[described],
        series_instance_uid=hd.UID(), series_number=900 + int(images[0].get("SeriesNumber") or 0) % 90,
        sop_instance_uid=hd.UID(), instance_number=1, manufacturer="MeshNet",
        manufacturer_model_name="MeshNet lesion masks", software_versions=__version__,
        device_serial_number="1", series_description="Lesions marked by MeshNet, research only",
        content_label="LESION", omit_empty_frames=bool(frames.any()))
    if numbers is not None:
        refer_to(seg, numbers, affines)
    return seg


def write_seg(mask: nib.Nifti1Image, files: Sequence[Path], path: Path, model: str,
              scan: nib.Nifti1Image | None = None) -> None:
    """Write a DICOM SEG object of a mask. It names the patient, as the series does, since a DICOM archive needs that.

    scan: the volume that was segmented, by which its frames are told from others of the series (default: all are its).

    Raises:
        UserError: where highdicom does not take the series; the line may hold what the headers say of the patient.
        OSError: of the disk that is written to.
    """
    try:
        seg = seg_of(mask, files, model, scan)
    except Exception as error:  # noqa: BLE001 - headers of a clinic hold anything, and libraries say it in many ways
        refuse(path, error)
    with whole_file(path) as temporary:
        try:
            seg.save_as(temporary)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - values that pydicom does not write
            refuse(path, error)


def refuse(path: Path, error: Exception) -> NoReturn:
    """Say that there is no SEG object."""
    raise UserError(f"{path}: no SEG object of this series ({type(error).__name__}: {' '.join(str(error).split())}), "
                    "expected one with a patient, a study and a frame of reference; leave out --dicom_seg") from None


def seg_remarks(mask: nib.Nifti1Image, files: Sequence[Path], path: Path, model: str, scan: nib.Nifti1Image
                ) -> list[str]:
    """``write_seg``, and where the series does not allow it a sentence for tables, without a word of its headers: these
    are printed alone. A SEG object of an earlier mask is removed then."""
    try:
        write_seg(mask, files, path, model, scan)
    except UserError as error:
        print(f"note: {error}", file=sys.stderr)
        path.unlink(missing_ok=True)
        return ["no DICOM SEG object was written: the headers of the series do not allow one"]
    return []

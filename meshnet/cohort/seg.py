"""A mask as a DICOM SEG object that refers to the series it was made of, by highdicom."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet import __version__
from meshnet.errors import UserError
from meshnet.files import whole_file

TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's patient axes run left and back, NIfTI's right and front


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
    data, back = np.asanyarray(mask.dataobj) > 0, np.linalg.inv(mask.affine)
    rows, columns = int(images[0].Rows), int(images[0].Columns)
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    pixels = np.concatenate([grid, np.zeros((len(grid), 1)), np.ones((len(grid), 1))], 1)
    frames = []
    for one in frame_affines(images):
        where = np.rint((pixels @ (back @ one).T)[:, :3]).astype(int)
        inside = ((where >= 0) & (where < data.shape)).all(1)
        values = np.zeros(len(where), bool)
        values[inside] = data[tuple(where[inside].T)]
        frames.append(values.reshape(rows, columns))
    return np.stack(frames)


def write_seg(mask: nib.Nifti1Image, files: Sequence[Path], path: Path, model: str) -> None:
    """Write a DICOM SEG object of a mask. It names the patient, as the series does, since a DICOM archive needs that.

    Raises:
        UserError: where highdicom is missing, or does not take the series.
    """
    try:
        import highdicom as hd
        import pydicom
        from pydicom.sr.codedict import codes
    except ImportError:
        raise UserError("--dicom_seg: highdicom is not installed; pip install -r requirements-dicom.txt") from None
    images = [pydicom.dcmread(file) for file in files]
    frames = mask_on_frames(mask, images)
    by = hd.AlgorithmIdentificationSequence(name="MeshNet", version=__version__,
                                            family=codes.DCM.ArtificialIntelligence, parameters={"model": model})
    described = hd.seg.SegmentDescription(
        segment_number=1, segment_label="Lesion", algorithm_identification=by,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion, algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC)
    try:
        seg = hd.seg.Segmentation(
            source_images=images, pixel_array=frames.astype(np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY, segment_descriptions=[described],
            series_instance_uid=hd.UID(), series_number=900 + int(images[0].get("SeriesNumber") or 0) % 90,
            sop_instance_uid=hd.UID(), instance_number=1, manufacturer="MeshNet",
            manufacturer_model_name="MeshNet lesion masks", software_versions=__version__,
            device_serial_number="1", series_description="Lesions marked by MeshNet, research only",
            content_label="LESION", omit_empty_frames=bool(frames.any()))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: no SEG object of this series ({error}), expected one with a patient, a study and a "
                        "frame of reference; leave out --dicom_seg") from None
    with whole_file(path) as temporary:
        seg.save_as(temporary)

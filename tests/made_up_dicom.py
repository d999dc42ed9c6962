"""DICOM series of a made-up head, written with pydicom: single-frame or enhanced, on any plane."""

from pathlib import Path

import numpy as np

SOP = {"MR": "1.2.840.10008.5.1.4.1.1.4", "ENHANCED": "1.2.840.10008.5.1.4.1.1.4.1", "CT": "1.2.840.10008.5.1.4.1.1.2"}
PATIENT = "Quux^Jane"


def head_at(points: np.ndarray) -> np.ndarray:
    """The grey value of the made-up head at points (..., 3) in LPS+ mm: a ball with a bright block, unlike in its
    mirror image."""
    inside = (np.linalg.norm(points, axis=-1) < 95).astype(np.int16) * 300
    block = ((points > [18, -30, -20]) & (points < [50, 20, 30])).all(-1)
    return np.where(block & (inside > 0), 1000, inside).astype(np.int16)


def plane(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Directions along a row and down a column, in LPS+."""
    if kind == "sagittal":
        return np.array([0.0, 1, 0]), np.array([0.0, 0, -1])
    if kind == "oblique":
        a, b = np.deg2rad(15), np.deg2rad(10)
        row = np.array([np.cos(a), np.sin(a), 0])
        column = np.cross([np.sin(b) * np.sin(a), -np.sin(b) * np.cos(a), np.cos(b)], row)
        return row, column / np.linalg.norm(column)
    return np.array([1.0, 0, 0]), np.array([0.0, 1, 0])


def geometry(kind: str, slices: int, size: int, mm: tuple[float, float]) -> tuple:
    """Row and column direction, and the position of the first pixel of each slice, in LPS+ mm."""
    row, column = plane(kind)
    normal = np.cross(row, column)
    if kind == "tilted":  # a gantry's: slices are stacked along the table, not along their normal
        tilt = np.deg2rad(18)
        column = np.array([0, np.cos(tilt), np.sin(tilt)])
        normal = np.array([0.0, 0, 1])
    first = -(row + column) * mm[0] * (size - 1) / 2 - normal * mm[1] * (slices - 1) / 2
    return row, column, [first + normal * mm[1] * i for i in range(slices)]


def common(study: str, series: str, number: int, description: str, modality: str):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = PATIENT, "id-4711", "19500101", "F"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, f"{study}.9"
    data.StudyDate = data.SeriesDate = data.ContentDate = "20260101"
    data.StudyTime = data.SeriesTime = data.ContentTime = "101010"
    data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "1", "", ""
    data.SeriesNumber, data.SeriesDescription, data.Modality = number, description, modality
    data.ProtocolName, data.Manufacturer = description, "Made up"
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 1
    data.PositionReferenceIndicator = ""
    return data


def write_series(folder: Path, kind: str = "axial", number: int = 3, description: str = "t2_tse_tra",
                 study: str = "1.2.3", slices: int = 40, size: int = 56, mm: tuple[float, float] = (4.0, 5.0),
                 skip: tuple[int, ...] = (),
                 modality: str = "MR", image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "M", "ND")) -> None:
    """Write a series of files into ``folder``; ``kind`` is axial, sagittal, oblique, tilted or enhanced."""
    folder.mkdir(parents=True, exist_ok=True)
    row, column, firsts = geometry(kind, slices, size, mm)
    series = f"{study}.{number}"
    steps = np.arange(size)[:, None, None] * column * mm[0] + np.arange(size)[None, :, None] * row * mm[0]
    frames = [head_at(steps + first) for first in firsts]
    if kind == "enhanced":
        write_enhanced(folder, common(study, series, number, description, modality), frames, firsts, row, column, mm,
                       image_type)
        return
    for i, (frame, first) in enumerate(zip(frames, firsts)):
        if i in skip:
            continue
        data = common(study, series, number, description, modality)
        data.ImageType = list(image_type)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SOP[modality]
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{series}.{i + 1}"
        data.InstanceNumber, data.Rows, data.Columns = i + 1, size, size
        data.ImagePositionPatient = [round(float(v), 6) for v in first]
        data.ImageOrientationPatient = [round(float(v), 8) for v in (*row, *column)]
        data.PixelSpacing, data.SliceThickness, data.SpacingBetweenSlices = [mm[0], mm[0]], mm[1], mm[1]
        data.EchoTime, data.RepetitionTime, data.ScanningSequence, data.MRAcquisitionType = 90.0, 5000.0, "SE", "2D"
        data.MagneticFieldStrength, data.SequenceVariant, data.ScanOptions, data.EchoTrainLength = 3, "SK", "", 15
        if modality == "CT":
            data.RescaleSlope, data.RescaleIntercept, data.KVP = 1, 0, 120
            data.GantryDetectorTilt = 18.0 if kind == "tilted" else 0.0
        data.PixelData = frame.astype("<i2").tobytes()
        data.save_as(folder / f"{number:02d}-{i:04d}.dcm", enforce_file_format=True)


def write_enhanced(folder, data, frames, firsts, row, column, mm, image_type) -> None:
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    def group(name, **values):
        inner, outer = Dataset(), Dataset()
        for key, value in values.items():
            setattr(inner, key, value)
        setattr(outer, name, Sequence([inner]))
        return outer

    data.ImageType = list(image_type)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SOP["ENHANCED"]
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{data.SeriesInstanceUID}.1"
    data.InstanceNumber, data.NumberOfFrames = 1, len(frames)
    data.Rows, data.Columns = frames[0].shape
    data.ContentQualification, data.ResonantNucleus, data.KSpaceFiltering = "RESEARCH", "1H", ""
    shared = group("PixelMeasuresSequence", PixelSpacing=[mm[0], mm[0]], SliceThickness=mm[1],
                   SpacingBetweenSlices=mm[1])
    shared.update(group("PlaneOrientationSequence",
                        ImageOrientationPatient=[round(float(v), 8) for v in (*row, *column)]))
    shared.update(group("MRTimingAndRelatedParametersSequence", RepetitionTime=5000.0))
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    per = []
    for i, first in enumerate(firsts):
        one = group("PlanePositionSequence", ImagePositionPatient=[round(float(v), 6) for v in first])
        one.update(group("FrameContentSequence", StackID="1", InStackPositionNumber=i + 1,
                         DimensionIndexValues=[1, i + 1], FrameAcquisitionNumber=1))
        per.append(one)
    data.PerFrameFunctionalGroupsSequence = Sequence(per)
    data.PixelData = np.stack(frames).astype("<i2").tobytes()
    data.save_as(folder / "enhanced.dcm", enforce_file_format=True)


def write_volumes(folder: Path, changes: list[dict], grey: bool = True, **more) -> None:
    """Write one series of several volumes at the same places, such as echoes; ``changes`` are the fields of each.

    grey: whether each volume has grey values of its own.
    """
    import pydicom

    for number, fields in enumerate(changes):
        write_series(folder / f"v{number}", **more)
        for path in sorted((folder / f"v{number}").iterdir()):
            data = pydicom.dcmread(path)
            data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{data.SOPInstanceUID}.{number}"
            data.InstanceNumber = int(data.InstanceNumber) + 100 * number
            for name, value in fields.items():
                setattr(data, name, value)
            if grey and number:
                generator = np.random.default_rng([number, int(data.InstanceNumber)])
                noise = generator.integers(0, 300, data.pixel_array.shape)
                data.PixelData = (data.pixel_array + noise).astype("<i2").tobytes()
            data.save_as(path)


B_VALUES = [{"DiffusionBValue": b, "DiffusionGradientOrientation": [0.0, 0.0, 1.0 * (b > 0)], "ScanningSequence": "EP",
             "AcquisitionNumber": i + 1, "Manufacturer": "Philips Medical Systems",
             "DiffusionDirectionality": "DIRECTIONAL"}
            for i, b in enumerate((0.0, 1000.0, 500.0))]

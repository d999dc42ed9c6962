"""DICOM in and out: made-up series through the real dcm2niix, which one is taken, and SEG objects read back."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bright import infer
from made_up_dicom import B_VALUES, PATIENT, head_at, write_series, write_volumes

pytest.importorskip("pydicom", reason="pip install -r requirements-dicom.txt")
pytest.importorskip("dcm2niix", reason="pip install -r requirements-dicom.txt")

from meshnet.cohort import dicom, exports, series
from meshnet.errors import UserError

KINDS = {"axial": {}, "sagittal": {}, "oblique": {}, "tilted": {"modality": "CT"}, "enhanced": {}}


def truth(image) -> np.ndarray:
    """The made-up head at the voxels of an image."""
    ijk = np.indices(image.shape).reshape(3, -1).T
    return head_at((ijk @ image.affine[:3, :3].T + image.affine[:3, 3]) * [-1, -1, 1]).reshape(image.shape)


@pytest.mark.parametrize("kind", ["tilted", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS
                                              if kind != "tilted")])
def test_every_voxel_lies_where_its_headers_say(kind, tmp_path):
    """A tilted gantry's too, whose grid dcm2niix's straightened volume does not keep."""
    write_series(tmp_path / "in", kind, **KINDS[kind])
    path, remarks = dicom.convert(series.find_series(tmp_path / "in")[0], tmp_path / "out")
    image = nib.load(path)
    assert image.shape == (56, 56, 40) and np.array_equal(np.asanyarray(image.dataobj), truth(image))
    assert ("tilted" in " ".join(remarks)) == (kind == "tilted") and len(remarks) == (kind == "tilted")


@pytest.mark.slow
def test_a_missing_slice_is_said(tmp_path):
    write_series(tmp_path / "in", skip=(17,))
    path, remarks = dicom.convert(series.find_series(tmp_path / "in")[0], tmp_path / "out")
    assert "1 slice(s) of the series are missing" in remarks[0] and nib.load(path).shape == (56, 56, 40)


def export(folder: Path) -> Path:
    """A patient's export: a localiser, a map, T1w with and without contrast, FLAIR and two T2w in one folder."""
    for kind, number, description, slices in (
            ("axial", 1, "localizer", 12), ("axial", 2, "t1_mprage_sag", 12), ("axial", 3, "t2_tse_tra", 40),
            ("axial", 4, "t2_tse_tra_post_gd", 44), ("axial", 5, "ep2d_diff_ADC", 12), ("axial", 6, "t2_flair", 12),
            ("axial", 7, "t2_tse_cor", 12)):
        write_series(folder / PATIENT, kind, number, description, slices=slices, size=40, mm=(6.0, 5.0))
    (folder / PATIENT / "readme.txt").write_text("no DICOM")
    return folder


def test_series_are_chosen_by_what_they_are(tmp_path):
    found = series.find_series(export(tmp_path))
    assert {one.number: one.why_not for one in found if one.why_not} == {1: "a localiser", 5: "a derived map"}
    assert [one.number for one in series.choose(found, ["T2w"])] == [3]
    assert [one.number for one in series.choose(found, ["FLAIR", "T1w"])] == [6, 2]
    assert [one.number for one in series.choose(found, ["ADC"])] == [5]
    built_in = "T1w, T2w, FLAIR or DWI"
    assert series.kinds_of(built_in) == ["T1w", "T2w", "FLAIR", "DWI"] and series.kinds_of("lesion") == ["lesion"]
    assert [one.number for one in series.choose(found, [built_in])] == [2]
    assert [one.number for one in series.choose([one for one in found if one.number != 2], [built_in])] == [3]
    assert [one.number for one in series.choose(found, ["T2w"], ["*cor"])] == [7]
    assert [one.number for one in series.choose(found, ["T2w", "x"], ["4", "1"])] == [4, 1]
    with pytest.raises(UserError, match=r"no series for CT among .*1 'localizer': a localiser.*--series NUMBER"):
        series.choose(found, ["CT"])
    with pytest.raises(UserError, match=r"--series: found 1 name"):
        series.choose(found, ["T2w", "FLAIR"], ["3"])


def test_one_bad_export_does_not_cost_the_others(tmp_path, capsys, monkeypatch):
    """A broken zip, a study that dcm2niix cannot convert, a header that is no geometry, and an export given twice."""
    import pydicom

    write_series(tmp_path / "in", slices=9, size=16)
    broken = pydicom.dcmread(next((tmp_path / "in").rglob("*.dcm")))
    broken.SOPInstanceUID, broken.SeriesInstanceUID = "1.2.3", "1.2.4"
    broken.ImageOrientationPatient = [1, 0, 0, 0]
    broken.save_as(tmp_path / "in" / "broken.dcm")
    (tmp_path / "Quux.zip").write_bytes(b"PK broken")
    paths = [tmp_path / "Quux.zip", tmp_path / "in", tmp_path / "in"]
    cases, failed = exports.dicom_cases(paths, tmp_path / "out", ["T2w"])
    said = capsys.readouterr().err
    assert len(cases) == 1 and [record["scan"] for record in failed] == [["export-1"]]
    assert "error: " in said and "cannot be read as a zip" in said and "found twice" in said
    assert "Quux" not in str(failed)
    monkeypatch.setattr(dicom, "own_affine", lambda *_: float("x"))
    with pytest.raises(UserError, match=r"cannot be used \(ValueError"):
        exports.dicom_cases(paths[1:], tmp_path / "other", ["T2w"])


def test_of_several_volumes_the_one_of_the_largest_b_value_is_taken(tmp_path):
    one, data = series.Series("1", "2"), np.arange(24).reshape(2, 2, 2, 3)
    assert dicom.one_volume(data[..., :1], tmp_path / "v.nii", one)[1] == []
    with pytest.raises(UserError, match="holds 3 volumes"):
        dicom.one_volume(data, tmp_path / "v.nii", one)
    (tmp_path / "v.bval").write_text("0 1000 500\n")
    found, said = dicom.one_volume(data, tmp_path / "v.nii", one)
    assert np.array_equal(found, data[..., 1]) and "number 2 was taken" in said[0] and "1000" in said[0]


def test_a_series_of_two_echoes_is_refused_and_its_slices_are_counted_once(tmp_path):
    """dcm2niix makes a file of each echo; a phase beside its magnitude is no second volume of this kind."""
    write_volumes(tmp_path / "in", [{"EchoTime": 20.0, "EchoNumbers": 1}, {"EchoTime": 100.0, "EchoNumbers": 2}],
                  slices=10, size=16)
    one = series.find_series(tmp_path / "in")[0]
    assert (one.frames, one.slices) == (20, 10)
    with pytest.raises(UserError, match=r"'t2_tse_tra' holds 2 volumes, expected one, or one for each b-value"):
        dicom.convert(one, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kinds = [{"ImageType": ["ORIGINAL", "PRIMARY", kind, "ND"]} for kind in "MP"]
    write_volumes(tmp_path / "phase", kinds, slices=10, size=16)
    path, remarks = dicom.convert(series.find_series(tmp_path / "phase")[0], tmp_path / "out")
    assert not remarks and np.array_equal(np.asanyarray(nib.load(path).dataobj), truth(nib.load(path)))


def test_of_volumes_of_other_sizes_the_largest_is_taken_and_said(tmp_path):
    for name, slices in (("v.nii", 20), ("va.nii", 3), ("v_ph.nii", 20), ("v_Eq.nii", 22)):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, slices), np.int16), np.eye(4)), tmp_path / name)
    of = lambda *names: dicom.best_of([tmp_path / name for name in names])
    assert of("v.nii", "va.nii", "v_ph.nii") == (tmp_path / "v.nii", [48])
    assert of("v.nii", "v_Eq.nii") == (tmp_path / "v_Eq.nii", []) and of() == (None, [])
    one = series.Series("1", "2")
    assert dicom.others_remarks([48], 320, one) == ["the largest of 2 volumes of the series was taken"]
    assert dicom.others_remarks([], 320, one) == []
    with pytest.raises(UserError, match="holds 3 volumes"):
        dicom.others_remarks([160, 48], 320, one)


@pytest.mark.parametrize(("description", "times", "kind"), [
    ("AX T2 FLAIR FS", (0, 0, 0), "FLAIR"), ("t2_tirm_dark-fluid", (0, 0, 0), "FLAIR"), ("AX T2 FSE", (0, 0, 0), "T2w"),
    ("SAG T1 MPRAGE", (0, 0, 0), "T1w"), ("t2*_fl2d_hemo", (0, 0, 0), "T2starw"), ("ep2d_diff_b1000", (0, 0, 0), "DWI"),
    ("WIP x", (100, 5000, 0), "T2w"), ("WIP x", (100, 9000, 2500), "FLAIR"), ("WIP x", (3, 7, 400), "T1w"),
    ("WIP x", (0, 0, 0), None)])
def test_what_a_series_holds(description, times, kind):
    header = dict(zip(("EchoTime", "RepetitionTime", "InversionTime"), times))
    assert series.Series("1", "2", header=header | {"SeriesDescription": description, "Modality": "MR"}).kind() == kind


def test_missing_slices_are_counted():
    assert [series.missing_slices(places) for places in ([0, 5, 10], [0, 5, 15, 20], [0, 5, 20, 25, 30], [0, 1])] == [
        0, 1, 2, 0]


@pytest.mark.slow
def test_an_export_as_a_zip_gives_one_mask_and_names_nobody(model, tmp_path):
    export(tmp_path / "export")
    archive = tmp_path / f"{PATIENT}.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted((tmp_path / "export").rglob("*.*")):
            file.write(path, path.relative_to(tmp_path / "export"))
    found = infer(archive, "-o", tmp_path / "masks", "--model", model, "--json", "--report", "--dicom_seg")
    result = json.loads(found.stdout)
    assert "series 3 't2_tse_tra', 40 slices, taken for T2w" in found.stderr
    assert "passed over: series 1 (a localiser)" in found.stderr
    mask = nib.load(result["mask"])
    scan = nib.load(next((tmp_path / "masks" / "converted").glob("*.nii.gz")))
    marked = np.asanyarray(mask.dataobj) > 0
    assert np.array_equal(mask.affine, scan.affine) and marked.any()
    assert 2 * (marked & (truth(scan) > 650)).sum() / (marked.sum() + (truth(scan) > 650).sum()) > 0.6
    by_nifti = infer(tmp_path / "masks" / "converted", "-o", tmp_path / "again", "--model", model, "--json")
    other = nib.load(json.loads(by_nifti.stdout)["mask"])
    assert np.array_equal(np.asanyarray(other.dataobj), np.asanyarray(mask.dataobj))
    texts = [path for path in (tmp_path / "masks").rglob("*") if path.is_file() and path.suffix != ".dcm"]
    import gzip

    for path in texts:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        for word in (b"Quux", b"Jane", b"4711", b"19500101"):
            assert word not in content and word.decode() not in str(path.relative_to(tmp_path)), path
    assert len(texts) >= 5


def by_hand(path: Path) -> tuple[np.ndarray, list]:
    """A SEG object read with pydicom alone: its frames, and where each lies."""
    import pydicom

    data = pydicom.dcmread(path)
    places = [np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
              for frame in data.PerFrameFunctionalGroupsSequence]
    return data.pixel_array.reshape(len(places), data.Rows, data.Columns), places


@pytest.mark.parametrize("kind", ["oblique", *(pytest.param(kind, marks=pytest.mark.slow) for kind in
                                               ("enhanced", "tilted", "sagittal"))])
def test_a_seg_object_holds_the_voxels_of_the_mask(kind, tmp_path):
    hd = pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
    from meshnet.cohort.seg import write_seg

    write_series(tmp_path / "in", kind, **KINDS[kind])
    one = series.find_series(tmp_path / "in")[0]
    image = nib.load(dicom.convert(one, tmp_path / "out")[0])
    rng = np.random.default_rng(0)
    labels = ((truth(image) > 650) & (rng.random(image.shape) < 0.7)).astype(np.uint8)  # unlike in any mirror image
    write_seg(nib.Nifti1Image(labels, image.affine), one.files, tmp_path / "seg.dcm", "bright")

    read = hd.seg.segread(tmp_path / "seg.dcm")
    assert read.get_segment_description(1).segmented_property_type.value == "52988006"
    assert str(read.PatientName) == PATIENT and read.ReferencedSeriesSequence[0].SeriesInstanceUID == one.uid
    frames, places = by_hand(tmp_path / "seg.dcm")
    orientation = np.array(read.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient,
                           float).reshape(2, 3)
    back, found = np.linalg.inv(image.affine), np.zeros_like(labels)
    for frame, place in zip(frames, places):
        rows, columns = np.nonzero(frame)
        points = place + rows[:, None] * 4.0 * orientation[1] + columns[:, None] * 4.0 * orientation[0]
        where = np.rint(nib.affines.apply_affine(back, points * [-1, -1, 1])).astype(int)
        found[tuple(where.T)] = 1
    assert np.array_equal(found, labels)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["oblique", "enhanced", "sagittal"])  # ITK has no sheared grids of a tilted gantry
def test_dcmqi_reads_as_many_voxels_of_a_seg_object(kind, tmp_path):
    pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
    from meshnet.cohort.seg import write_seg

    reader = shutil.which("segimage2itkimage", path=str(Path(sys.executable).parent))
    if reader is None:
        pytest.skip("pip install dcmqi")
    write_series(tmp_path / "in", kind, **KINDS[kind])
    one = series.find_series(tmp_path / "in")[0]
    image = nib.load(dicom.convert(one, tmp_path / "out")[0])
    labels = (truth(image) > 650).astype(np.uint8)
    write_seg(nib.Nifti1Image(labels, image.affine), one.files, tmp_path / "seg.dcm", "bright")
    subprocess.run([reader, "--inputDICOM", tmp_path / "seg.dcm", "--outputDirectory", tmp_path, "--outputType", "nii"],
                   check=True, capture_output=True)
    assert np.count_nonzero(nib.load(next(tmp_path.glob("*1.nii*"))).dataobj) == labels.sum()


@pytest.mark.parametrize("kind", ["b-values", "phase"])
def test_a_seg_object_refers_to_the_frames_of_its_volume_alone(kind, tmp_path):
    pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
    import pydicom

    from meshnet.cohort.seg import write_seg

    phase = [{"ImageType": ["ORIGINAL", "PRIMARY", part, "ND"]} for part in "PM"]
    write_volumes(tmp_path / "in", B_VALUES if kind == "b-values" else phase, slices=10, size=16, mm=(12.0, 15.0))
    one = series.find_series(tmp_path / "in")[0]
    image = nib.load(dicom.convert(one, tmp_path / "out")[0])
    mask = nib.Nifti1Image((np.asanyarray(image.dataobj) > 300).astype(np.uint8), image.affine)
    with pytest.raises(UserError, match="duplicates"):
        write_seg(mask, one.files, tmp_path / "seg.dcm", "bright")
    write_seg(mask, one.files, tmp_path / "seg.dcm", "bright", image)
    frames, _ = by_hand(tmp_path / "seg.dcm")
    assert frames.sum() == np.count_nonzero(mask.dataobj)
    named = pydicom.dcmread(tmp_path / "seg.dcm").ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert {item.ReferencedSOPInstanceUID[-2:] for item in named} == {".1"} and len(named) == 10


def test_of_an_enhanced_series_only_the_frames_of_its_volume_are_marked(tmp_path):
    pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
    import pydicom

    from meshnet.cohort.seg import write_seg

    write_series(tmp_path / "in", "enhanced", slices=6, size=16, mm=(12.0, 25.0))
    file = next((tmp_path / "in").iterdir())
    image = nib.load(dicom.convert(series.find_series(tmp_path / "in")[0], tmp_path / "out")[0])
    data = pydicom.dcmread(file)  # with a second volume, of other grey values
    frames = data.pixel_array
    data.PixelData = np.concatenate([np.roll(frames, 3, axis=1), frames]).astype("<i2").tobytes()
    data.PerFrameFunctionalGroupsSequence += [pydicom.Dataset(one) for one in data.PerFrameFunctionalGroupsSequence]
    data.NumberOfFrames = 12
    data.save_as(file)
    mask = nib.Nifti1Image((np.asanyarray(image.dataobj) > 0).astype(np.uint8), image.affine)
    write_seg(mask, [file], tmp_path / "seg.dcm", "bright", image)
    found, places = by_hand(tmp_path / "seg.dcm")
    assert found.sum() == np.count_nonzero(mask.dataobj) and len(places) == 6
    referred = [frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
                for frame in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence]
    assert sorted(int(number) for number in referred) == [7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("fault", ["date", "place"])
def test_headers_that_no_seg_object_can_be_made_of_cost_no_mask_and_are_not_told(model, tmp_path, fault):
    """A birth date that is none is in highdicom's words; without positions there is nothing to refer to."""
    pytest.importorskip("highdicom", reason="pip install -r requirements-dicom.txt")
    import gzip

    import pydicom

    write_series(tmp_path / "in", slices=12, size=16, mm=(12.0, 15.0))
    for path in (tmp_path / "in").iterdir():
        data = pydicom.dcmread(path)
        if fault == "date":
            data["PatientBirthDate"]._value = "1950-01-01"
        else:
            del data.ImagePositionPatient
        data.save_as(path)
    found = infer(tmp_path / "in", "-o", tmp_path / "masks", "--model", model, "--dicom_seg", "--report", "--json")
    result = json.loads(found.stdout)
    assert Path(result["mask"]).is_file() and "dicom_seg" not in result
    assert "no DICOM SEG object was written" in result["warnings"][-1] and "note: " in found.stderr
    assert not list((tmp_path / "masks").rglob("*.dcm"))
    for path in (tmp_path / "masks").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"1950" not in (gzip.decompress(content) if path.suffix == ".gz" else content), path
    assert "no DICOM SEG object" in (tmp_path / "masks" / "lesions.csv").read_text()


@pytest.mark.parametrize(("flags", "words"), [
    ([], "-o: expected a folder"), (["-o", "x.nii.gz"], "-o: expected a folder"),
    (["-o", "masks", "--series", "99"], "--series 99"), (["-o", "masks", "--format", "files", "--series", "1"], None)])
def test_a_mistake_is_one_line(model, tmp_path, flags, words):
    write_series(tmp_path / "in", slices=9, size=16)
    flags = [str(tmp_path / flag) if flag in ("masks", "x.nii.gz") else flag for flag in flags]
    found = infer(tmp_path / "in", "--model", model, *flags, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert words is None or words in found.stderr


def test_nifti_folders_are_no_exports(tmp_path):
    write_series(tmp_path / "in", slices=2, size=8)
    assert series.looks_like_dicom(tmp_path / "in")
    (tmp_path / "in" / "a.nii.gz").touch()
    assert not series.looks_like_dicom(tmp_path / "in")

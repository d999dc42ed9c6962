"""The page's DICOM: series sorted, chosen and converted as by the program, with dcm2niix compiled for browsers."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from made_up_dicom import write_series, write_volumes
from page_steps import Page

from meshnet import ROOT
from meshnet.sharing.to_web import converter_script

pytest.importorskip("pydicom", reason="pip install -r requirements-dicom.txt")
from meshnet.cohort import dicom, series
from meshnet.errors import UserError

VENDOR = ROOT / "meshnet/sharing/page/vendor"
DESCRIPTIONS = ("AX T2 FLAIR FS", "t2_tirm_dark-fluid", "AX T2 FSE", "SAG T1 MPRAGE", "t2*_fl2d_hemo",
                "ep2d_diff_b1000", "ep2d_diff_ADC", "localizer", "3-plane loc", "t2_tse_tra_post_gd", "t1 map", "WIP x",
                "pd_fs", "MIP_sag")


@pytest.fixture(scope="module")
def page():
    with Page() as page:
        yield page


def both(page, folder, channels, convert=()):
    """What the program and the page say of the series below a folder."""
    out = page.folder.name + "/dicom"
    files = [str(path) for path in series.files_below(folder) if series.is_dicom(path)]
    answer = page.ask("dicom", files=files, channels=list(channels), convert=list(convert), out=out)
    assert "error" not in answer, answer
    return series.find_series(folder), answer, out


def test_series_are_the_programs(page, tmp_path):
    """Kinds, why one is passed over, and the choice, over descriptions, times, studies, contrast agent and syntaxes."""
    import pydicom

    for number, description in enumerate(DESCRIPTIONS, 1):
        write_series(tmp_path / f"s{number:02d}", "axial", number, description, slices=8 + number % 3, size=4,
                     study="1.2.3" if number % 4 else "1.2.4", modality="CT" if number == 12 else "MR")
    write_series(tmp_path / "few", "axial", 30, "t2_tse", slices=3, size=4)
    write_series(tmp_path / "map", "axial", 31, "WIP", slices=9, size=4, image_type=("DERIVED", "PRIMARY", "ADC"))
    write_series(tmp_path / "enhanced", "enhanced", 32, "t2_tse enhanced", slices=11, size=4)
    # Another syntax, a sequence, a name in UTF-8, and a broken header.
    for n, path in enumerate(sorted((tmp_path / "s03").iterdir())):
        data = pydicom.dcmread(path)
        data.SpecificCharacterSet, data.ProtocolName = "ISO_IR 192", "Schädel"
        data.ReferencedImageSequence = [pydicom.Dataset(), pydicom.Dataset()]
        data.ReferencedImageSequence[0].SeriesDescription = "inner"
        data["ReferencedImageSequence"].is_undefined_length = n % 2 == 0
        data.RepetitionTime, data.EchoTime, data.InversionTime = 4000, 90.5, None
        if n == 2:
            data.ImageOrientationPatient = [1, 0, 0, 0]
        data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        data.save_as(path)
    found, answer, _ = both(page, tmp_path, ["T2w"])
    assert [[one["number"], one["kind"], one["whyNot"], one["frames"]] for one in answer["series"]] == [
        [one.number, one.kind(), one.why_not, one.frames] for one in found]
    assert len(found) == len(DESCRIPTIONS) + 3 and sum(bool(one.why_not) for one in found) > 5
    for channels in (["T2w"], ["T1w, T2w, FLAIR or DWI"], ["FLAIR", "ADC"], ["dwi"], ["CT"], ["PDw"]):
        answer = page.ask("dicom", files=[str(path) for one in found for path in one.files], channels=channels)
        try:
            expected = [one.number for one in series.choose(found, channels)]
        except UserError:
            expected = None
        assert expected == (None if None in answer["chosen"] else answer["chosen"]), channels


@pytest.mark.parametrize(("kind", "more"), [
    ("oblique", {}), ("tilted", {"modality": "CT"}), *(pytest.param(*one, marks=pytest.mark.slow) for one in (
        ("axial", {"skip": (17,)}), ("axial", {}), ("sagittal", {}), ("enhanced", {})))])
def test_a_series_becomes_the_programs_scan(page, tmp_path, kind, more):
    pytest.importorskip("dcm2niix", reason="pip install -r requirements-dicom.txt")
    write_series(tmp_path / "in", kind, **more)
    found, answer, out = both(page, tmp_path / "in", ["T2w"], convert=[3])
    path, remarks = dicom.convert(found[0], tmp_path / "out")
    assert answer["written"] == [{"number": 3, "remarks": remarks}]
    one, two = nib.load(f"{out}.3.nii"), nib.load(path)
    if "skip" in more:  # the two versions of dcm2niix interpolate what is missing differently
        assert "missing" in remarks[0]
        return
    assert np.array_equal(np.asanyarray(one.dataobj), np.asanyarray(two.dataobj)) and one.get_data_dtype() == np.int16
    np.testing.assert_allclose(one.affine, two.affine, atol=1e-4)  # of mm
    assert b"Quux" not in Path(f"{out}.3.nii").read_bytes() and not one.header["descrip"].item()


def test_a_series_of_two_echoes_is_refused_as_by_the_program(page, tmp_path):
    write_volumes(tmp_path, [{"EchoTime": 20.0, "EchoNumbers": 1}, {"EchoTime": 100.0, "EchoNumbers": 2}], slices=10,
                  size=16)
    files = [str(path) for path in series.files_below(tmp_path)]
    answer = page.ask("dicom", files=files, channels=["T2w"], convert=[3], out=page.folder.name + "/dicom")
    assert "holds 2 volumes" in answer["error"]


def test_the_converter_is_a_classic_script():
    text = converter_script()
    assert "import.meta" not in text and "export default" not in text and len(text) < 600_000

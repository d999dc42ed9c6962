"""Exports of DICOM files: damaged ones, what is converted once and used again, and what may not name the patient."""

import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bright import infer
from made_up_dicom import PATIENT, write_series

pytest.importorskip("pydicom", reason="pip install -r requirements-dicom.txt")
pytest.importorskip("dcm2niix", reason="pip install -r requirements-dicom.txt")

from meshnet.cohort import dicom, exports, series
from meshnet.errors import UserError
from meshnet.runs.place import Place


def damaged_zip(folder: Path, method: int) -> Path:
    """A zip whose directory is sound and whose content is not."""
    path = folder / f"damaged{method}.zip"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("a.dcm", np.random.default_rng(0).integers(0, 9, 20_000, dtype=np.uint8).tobytes())
    content = bytearray(path.read_bytes())
    content[60:2000] = bytes(1940)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_zip_is_one_lost_export(tmp_path, method, capsys):
    write_series(tmp_path / "in", slices=9, size=16)
    cases, failed = exports.dicom_cases([damaged_zip(tmp_path, method), tmp_path / "in"], tmp_path / "out", ["T2w"])
    assert len(cases) == 1 and [record["scan"] for record in failed] == [["export-1"]]
    assert "cannot be read as a zip" in capsys.readouterr().err


def test_a_number_of_a_header_that_is_none_costs_no_other_series(tmp_path):
    one = series.Series("1", "2", header={"SeriesNumber": [1, 2], "EchoTime": [3, 4], "RepetitionTime": "x"})
    assert (one.number, one.kind(), series.amount(np.nan), series.amount("7")) == (0, None, 0, 7)


def test_what_is_converted_is_used_by_the_next_command(tmp_path, monkeypatch):
    """With what was said of it; not where the series has got another slice meanwhile."""
    write_series(tmp_path / "in", skip=(17,), size=16)
    calls, run = [], dicom.by_dcm2niix
    monkeypatch.setattr(dicom, "by_dcm2niix", lambda *given: calls.append(1) or run(*given))
    again = lambda: exports.dicom_cases([tmp_path / "in"], tmp_path / "out", ["T2w"])[0][0]
    first, second = again(), again()
    assert len(calls) == 1 and first["remarks"] == second["remarks"] and "1 slice(s)" in first["remarks"][0]
    write_series(tmp_path / "in", size=16)
    assert again()["remarks"] == [] and len(calls) == 2


def test_an_export_is_converted_by_all_its_processes_together(tmp_path, monkeypatch):
    """Each study once, one that cannot be converted too; who comes later waits for what another does."""
    for i in range(4):
        write_series(tmp_path / "in" / str(i), slices=9, size=16, study=f"1.2.{i}")
    monkeypatch.setattr(exports, "POLL", 0.01)
    planned = {dicom.name_of(one): ([one], False) for one in series.find_series(tmp_path / "in")}
    bad, calls, run = list(planned)[2], [], dicom.convert_anew

    def slow(one, target):
        calls.append(dicom.name_of(one))
        time.sleep(0.2)
        if dicom.name_of(one) == bad:
            raise UserError("no volume")
        return run(one, target)

    monkeypatch.setattr(dicom, "convert_anew", slow)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda i: exports.converted_by_all(planned, tmp_path / "out", Place(i, 2, "c")), (0, 1)))
    assert sorted(calls) == sorted(planned) and calls[:2] != list(planned)[:2]
    for found in both:
        assert [name for name, case in found.items() if isinstance(case, UserError)] == [bad] and len(found) == 4
    assert not list((tmp_path / "out" / ".meshnet").glob("*.claim"))
    with pytest.raises(UserError, match="no volume"):  # another command tries again
        dicom.convert(planned[bad][0][0], tmp_path / "out" / "converted", "d")


def test_a_zip_is_copied_only_for_a_seg_object(tmp_path):
    write_series(tmp_path / "in", slices=9, size=16)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for path in (tmp_path / "in").iterdir():
            file.write(path, path.name)
    one = exports.dicom_cases([tmp_path / "a.zip"], tmp_path / "out", ["T2w"])[0][0]
    assert not one["source"][0].exists()
    one = exports.dicom_cases([tmp_path / "a.zip"], tmp_path / "out", ["T2w"], sources=True)[0][0]
    assert len(one["source"]) == 9 and all(path.exists() for path in one["source"])


def test_jobs_keep_what_may_name_the_patient_apart_from_the_masks(model, tmp_path):
    """Flags, logs and scripts hold the path of the export, which may be called after the patient."""
    write_series(tmp_path / PATIENT, slices=12, size=16, mm=(12.0, 15.0))
    found = infer(tmp_path / PATIENT, "-o", tmp_path / "masks", "--model", model, "--workers", 2, "--device", "cpu",
                  env={"OMP_NUM_THREADS": "1"})
    assert "masks_jobs: keeps what the jobs print" in found.stderr and (tmp_path / "masks" / "lesions.csv").is_file()
    assert PATIENT in (tmp_path / "masks_jobs" / "jobs.json").read_text()
    for path in (tmp_path / "masks").rglob("*"):
        assert b"Quux" not in (path.read_bytes() if path.is_file() else b"") and "Quux" not in path.name, path
    assert len(list((tmp_path / "masks").glob("*_lesion.nii.gz"))) == 1

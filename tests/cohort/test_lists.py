"""One table of an array whose tasks each have scans of their own."""

import csv
import os
from pathlib import Path

import pytest
from bright import infer, scan_file
from made_up_dicom import write_series


def task(number, of=2, job="7"):
    return {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_COUNT": str(of),
            "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": str(of - 1)}


def rows(out):
    return [(Path(row["scan"]).name, bool(row["error"])) for row in csv.DictReader((out / "lesions.csv").open())]


def test_the_table_and_the_page_are_of_all_tasks(model, tmp_path):
    out = tmp_path / "out"
    for number, names in enumerate(("ab", "cde")):
        (tmp_path / str(number)).mkdir()
        for name in names:
            scan_file(tmp_path / str(number) / f"{name}.nii.gz")
    (tmp_path / "1" / "d.nii.gz").write_bytes(b"broken")

    def run(number, job, **options):
        return infer(tmp_path / str(number), "-o", out, "--model", model, "--no-picture", "--report",
                     env=task(number, job=job), **options)

    run(0, "7")
    assert rows(out) == [("a.nii.gz", False), ("b.nii.gz", False)]
    assert run(1, "7", check=False).returncode == 1
    everything = [(f"{name}.nii.gz", name == "d") for name in "ceabd"]
    assert rows(out) == everything and "the page of 4 scans" in run(0, "8", check=False).stderr
    assert sorted(rows(out)) == sorted(everything)
    page = (out / "report.html").read_text()
    assert all(f'"{name}.nii.gz"' in page for name in "abcde")
    scan_file(tmp_path / "1" / "f.nii.gz")
    (tmp_path / "1" / "d.nii.gz").unlink()
    scan_file(tmp_path / "1" / "d.nii.gz")
    run(1, "9")  # the longer list takes the place of the shorter one
    assert len(rows(out)) == 6 and not any(error for _, error in rows(out))
    assert len(list((out / ".meshnet").glob("list-*.json"))) == 2


def test_exports_of_one_study_each_have_one_table_that_names_no_patient(model, tmp_path):
    for package in ("pydicom", "dcm2niix"):
        pytest.importorskip(package, reason="pip install -r requirements-dicom.txt")
    out = tmp_path / "out"
    for number in (0, 1):
        write_series(tmp_path / f"Quux{number}", study=f"1.2.{number}")
        infer(tmp_path / f"Quux{number}", "-o", out, "--model", model, "--no-picture", "--series", "3",
              env=task(number))
    assert len(rows(out)) == 2, os.listdir(out)
    assert not any("Quux" in path.read_text() for path in (out / ".meshnet").glob("*.json"))


def test_the_page_of_a_bids_data_set_is_of_all_tasks(model, tmp_path):
    for label in "12":
        (tmp_path / f"ds/sub-{label}/anat").mkdir(parents=True)
        scan_file(tmp_path / f"ds/sub-{label}/anat/sub-{label}_T2w.nii.gz")
    for number, label in enumerate("12"):
        infer(tmp_path / "ds", "--format", "bids", "-o", tmp_path / "out", "--participant-label", label, "--model",
              model, "--report", env=task(number))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "sub-1_T2w.nii.gz" in page and "sub-2_T2w.nii.gz" in page

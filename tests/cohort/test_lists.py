"""One table of an array whose tasks each have scans of their own."""

import csv
import os
from pathlib import Path

import nibabel as nib
import numpy as np
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


def test_tasks_of_one_scan_each_have_one_table(model, tmp_path):
    """Also of one that cannot be read; with the name of a mask in place of the folder there is none."""
    out, scans = tmp_path / "out", [scan_file(tmp_path / f"{name}.nii.gz") for name in "abc"]
    scans[1].write_bytes(b"broken")
    flags = ("--model", model, "--no-picture")
    for number, scan in enumerate(scans):
        found = infer(scan, "-o", out, *flags, env=task(number, of=3), check=False)
        assert found.returncode == (number == 1) and "lesions.csv: " in found.stderr
    assert sorted(rows(out)) == [("a.nii.gz", False), ("b.nii.gz", True), ("c.nii.gz", False)]
    made = (out / "a_lesion.nii.gz").stat().st_mtime_ns
    assert "3 scans" not in infer(scans[0], "-o", out, *flags, env=task(0, of=3, job="8"), check=False).stderr
    assert (out / "a_lesion.nii.gz").stat().st_mtime_ns == made and len(rows(out)) == 3
    for _ in range(2):
        infer(scans[0], "-o", tmp_path / "mask.nii.gz", *flags, env=task(0, of=3))
    assert not (tmp_path / "lesions.csv").exists() and not (tmp_path / ".meshnet").exists()


def test_tasks_whose_scans_have_one_name_do_not_share_a_mask(model, tmp_path):
    out, flags = tmp_path / "out", ("--model", model, "--no-picture")
    scans = [tmp_path / folder / "T2w.nii.gz" for folder in "abc"]
    for scan in scans:
        scan.parent.mkdir()
        scan_file(scan)
    for job in "78":  # the same when it is run again
        runs = [infer(scan, "-o", out, *flags, env=task(number, of=3, job=job), check=False)
                for number, scan in enumerate(scans)]
        assert [run.returncode for run in runs] == [0, 1, 1]
        assert f"its mask would be {out / 'T2w_lesion.nii.gz'}, which is that of {scans[0]}" in runs[1].stderr
        assert [failed for _, failed in rows(out)].count(True) == 2 and len(rows(out)) == 3
    scans[0].unlink()  # then the second one may have the name, once the mask is gone
    (out / "T2w_lesion.nii.gz").unlink()
    assert infer(scans[1], "-o", out, *flags, env=task(1, of=3, job="9"), check=False).returncode == 0


def test_a_task_does_again_what_is_gone_and_what_it_is_told_to(model, tmp_path):
    """Its scan is in nobody else's list; the table has the new numbers."""
    out, scans = tmp_path / "out", [scan_file(tmp_path / f"{name}.nii.gz") for name in "abc"]
    run = lambda number, job, *more, of=3: infer(scans[number], "-o", out, "--model", model, "--no-picture", *more,
                                                 env=task(number, of=of, job=job), check=False)
    table = lambda: csv.DictReader((out / "lesions.csv").open())
    volumes = lambda: {Path(row["scan"]).name[0]: row["volume_ml"] for row in table()}
    for number in range(3):
        run(number, "7")
    first = volumes()
    (out / "a_lesion.nii.gz").unlink()
    assert run(0, "8").returncode == 0 and (out / "a_lesion.nii.gz").exists() and volumes() == first
    assert "nothing left to do of 1 scans" in run(1, "8").stderr
    for scan in scans:
        scan_file(scan, bright=(slice(15, 35), slice(15, 40), slice(15, 45)))
    for number in range(3):
        run(number, "9", "--overwrite")
    assert volumes().keys() == first.keys() and all(volumes()[name] != first[name] for name in first)
    scans[1].write_bytes(b"broken")
    assert run(1, "10", "--overwrite").returncode == 1 and volumes()["b"] == ""
    scan_file(scans[1])
    env = {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "1",
           "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "1"}  # sbatch --array 1
    assert infer(scans[1], "-o", out, "--model", model, "--no-picture", env=env).returncode == 0
    assert volumes()["b"] == first["b"] and len(rows(out)) == 3


def test_a_mask_that_somebody_drew_or_changed_is_not_taken_for_the_models(model, tmp_path):
    (tmp_path / "in").mkdir()
    out, scans = tmp_path / "out", [scan_file(tmp_path / "in" / f"{name}.nii.gz") for name in "ab"]
    out.mkdir()
    drawn = nib.Nifti1Image(np.ones((64, 64, 64), np.uint8), nib.load(scans[0]).affine)
    nib.save(drawn, out / "a_lesion.nii.gz")
    flags = ("-o", out, "--model", model, "--no-picture")
    found = infer(tmp_path / "in", *flags, check=False)
    assert found.returncode == 1 and "was not written by this program" in found.stderr
    assert rows(out) == [("b.nii.gz", False), ("a.nii.gz", True)]
    assert infer(scans[0], *flags, env=task(0), check=False).returncode == 1
    changed = nib.load(out / "b_lesion.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(changed.shape, np.uint8), changed.affine), out / "b_lesion.nii.gz")
    infer(tmp_path / "in", *flags, check=False)
    row = next(csv.DictReader((out / "lesions.csv").open()))
    assert float(row["volume_ml"]) == 0 and "changed after it was written" in row["warnings"]


def test_a_scan_done_again_by_itself_has_its_new_numbers_in_the_next_table(model, tmp_path):
    (tmp_path / "in").mkdir()
    out, scans = tmp_path / "out", [scan_file(tmp_path / "in" / f"{name}.nii.gz") for name in "ab"]
    flags = ("-o", out, "--model", model, "--no-picture", "--report")
    infer(tmp_path / "in", *flags)
    before = (out / "lesions.csv").read_text()
    scan_file(scans[0], bright=(slice(15, 35), slice(15, 40), slice(15, 45)))
    assert "still has the scan's earlier row" in infer(scans[0], *flags[:-1]).stderr
    infer(tmp_path / "in", *flags)
    assert (out / "lesions.csv").read_text() != before and len(rows(out)) == 2


def test_an_export_that_gives_no_scan_is_a_row_of_the_table_of_all_tasks(model, tmp_path):
    for package in ("pydicom", "dcm2niix"):
        pytest.importorskip(package, reason="pip install -r requirements-dicom.txt")
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    (tmp_path / "in").mkdir()
    write_series(tmp_path / "in" / "0", slices=9, size=16)
    run = lambda what, number, **options: infer(what, "-o", tmp_path / "out", "--model", model, "--no-picture",
                                                "--format", "dicom", env=task(number), check=False)
    first = run(tmp_path / "bad.zip", 0)
    assert first.returncode == 1 and "cannot be read as a zip" in first.stderr, first.stderr
    ((name, failed),) = rows(tmp_path / "out")
    assert name.startswith("export-1-") and failed
    run(tmp_path / "in", 1)
    assert len(rows(tmp_path / "out")) == 2
    assert infer(tmp_path / "bad.zip", "-o", tmp_path / "one", "--model", model, check=False).returncode == 2


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

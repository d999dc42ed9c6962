"""infer.py on BIDS data sets: which scans, what is written, the official validator, and masks read back."""

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bright import bright_model, infer, scan_file
from conftest import run_script_file
from trees import touch

from meshnet.cohort import bids, call
from meshnet.cohort.batch import measured
from meshnet.cohort.records import write_table
from meshnet.data.sources.case import Filters
from meshnet.errors import UserError
from meshnet.runs.place import place

SCANS = ("sub-01/ses-1/anat/sub-01_ses-1_acq-tse3_run-1_T2w", "sub-01/ses-1/anat/sub-01_ses-1_acq-spc3_run-1_T2w",
         "sub-01/ses-1/anat/sub-01_ses-1_acq-spc3_run-2_T2w", "sub-01/ses-2/anat/sub-01_ses-2_FLAIR",
         "sub-01/ses-2/anat/sub-01_ses-2_T2w", "sub-02/anat/sub-02_T2w")
VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


def tree(root: Path) -> Path:
    """A data set with sessions, runs, acquisitions and two suffixes."""
    for number, name in enumerate(SCANS):
        path = root / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        scan_file(path, bright=(slice(20, 26 + number), slice(22, 34), slice(24, 40)))
        path.with_name(path.name.replace(".nii.gz", ".json")).write_text('{"RepetitionTime": 2.0}\n')
    (root / "dataset_description.json").write_text(json.dumps(
        {"Name": "made up", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}))
    (root / "README").write_text("made up for a test\n")
    (root / "participants.tsv").write_text("participant_id\tsite\nsub-01\ta\nsub-02\tb\n")
    return root


def validate(folder: Path, *flags: str) -> list[str]:
    """The errors that the official validator finds."""
    if not VALIDATOR.exists():
        pytest.skip("bids-validator-deno is not installed; pip install -r requirements-dev.txt")
    found = subprocess.run([VALIDATOR, folder, "--format", "json", "--ignoreWarnings", *flags], capture_output=True,
                           text=True, check=False, timeout=300)
    issues = json.loads(found.stdout)["issues"]["issues"]
    return [f"{issue['code']} {issue.get('location')}" for issue in issues if issue.get("severity") == "error"]


def test_a_valid_derivative_that_prepare_reads_back(model, tmp_path):
    root = tree(tmp_path / "ds")
    infer(root, "--format", "bids", "--suffix", "T2w", "--exclude", "acq=tse3", "--probability", "--model", model)
    out = root / "derivatives" / "meshnet"
    masks = sorted(path.relative_to(out).as_posix() for path in out.rglob("*_mask.nii.gz"))
    assert masks == ["sub-01/ses-1/anat/sub-01_ses-1_acq-spc3_run-1_label-lesion_mask.nii.gz",
                     "sub-01/ses-1/anat/sub-01_ses-1_acq-spc3_run-2_label-lesion_mask.nii.gz",
                     "sub-01/ses-2/anat/sub-01_ses-2_label-lesion_mask.nii.gz",
                     "sub-02/anat/sub-02_label-lesion_mask.nii.gz"]
    side = json.loads((out / masks[3].replace(".nii.gz", ".json")).read_text())
    assert side["Type"] == "Lesion" and side["Sources"] == ["bids:raw:sub-02/anat/sub-02_T2w.nii.gz"]
    assert side["SpatialReference"] == side["Sources"][0] and side["Threshold"] == 0.5
    assert len(side["Models"][0]["WeightsSHA256"]) == 64 and str(tmp_path) not in json.dumps(side)
    said = json.loads((out / "dataset_description.json").read_text())
    assert said["GeneratedBy"][0]["Name"] == "MeshNet" and said["DatasetLinks"] == {"raw": "../.."}
    table = [line.split("\t") for line in (out / "lesions.tsv").read_text().splitlines()]
    assert table[0] == list(bids.COLUMNS) == list(json.loads((out / "lesions.json").read_text()))
    assert [row[3] for row in table[1:]] == masks
    for row in table[1:]:
        image = nib.load(out / row[3])
        assert float(row[4]) == pytest.approx(np.count_nonzero(image.dataobj) * 64 / 1000, abs=1e-3)

    found = run_script_file("prepare.py", root, "--format", "bids", "--suffix", "T2w", "--list")
    pairs = [line.split("\t") for line in found.stdout.splitlines() if line.count("\t") == 2 and "left" not in line]
    assert [(Path(scan).name, Path(mask).relative_to(out).as_posix()) for _, scan, mask in pairs] == [
        (row[2].split("/")[-1], row[3]) for row in table[1:]]  # each mask goes to the scan that it was made of
    assert not validate(out)


@pytest.mark.slow
def test_a_data_set_prepared_of_a_derivative_holds_its_masks_to_the_voxel(model, tmp_path):
    """The whole way back: infer.py, prepare.py, and every prepared mask is the written one on the model's grid."""
    from meshnet.data.reader import PreparedData
    from meshnet.scans.grid import Grid, conform_mask

    root = tree(tmp_path / "ds")
    infer(root, "--format", "bids", "--suffix", "T2w", "--model", model)
    out = root / "derivatives" / "meshnet"
    run_script_file("prepare.py", root, "--format", "bids", "--suffix", "T2w", "--mask_pattern",
                    "derivatives/meshnet/*", "--out", tmp_path / "data", "--voxel_mm", 4, "--outer", 1, "--inner", 1,
                    "--workers", 1, "--group")
    data = PreparedData(tmp_path / "data")
    table = [line.split("\t") for line in (out / "lesions.tsv").read_text().splitlines()][1:]
    assert len(data) == len(table) == 5
    rows = {Path(row["image_paths"][0]).name: i for i, row in enumerate(data.rows)}
    assert len(rows) == 5
    for line in table:
        scan = nib.load(root / line[2])
        expected = conform_mask(nib.load(out / line[3]), Grid(4.0), reference=scan)
        number = rows[Path(line[2]).name]
        assert np.array_equal(data.read(number, "mask_native"), np.asarray(nib.load(out / line[3]).dataobj))
        assert np.array_equal(data.read(number, "mask"), np.asarray(expected.dataobj))
        assert data.rows[number]["lesion_ml"] == pytest.approx(float(line[4]), abs=1e-3) and float(line[4]) > 0


def test_only_what_is_left_is_done_and_one_scan_does_not_stop_the_others(model, tmp_path):
    root = tree(tmp_path / "ds")
    (root / "sub-02/anat/sub-02_T2w.nii.gz").write_bytes(b"no scan")
    flags = (root, "--format", "bids", "--model", model, "-o", tmp_path / "out", "--exclude", "acq=tse3")
    found = infer(*flags, check=False)
    assert found.returncode == 1 and "1 of 4" in found.stderr
    rows = [line.split("\t") for line in (tmp_path / "out/lesions.tsv").read_text().splitlines()]
    assert len(rows) == 5 and rows[4][0] == "sub-02" and rows[4][4] == "n/a" and "sub-02_T2w.nii.gz" in rows[4][-1]
    scan_file(root / "sub-02/anat/sub-02_T2w.nii.gz")
    found = infer(*flags)
    assert found.stdout.count("mL in") == 1 and "3 of 4 masks exist" in found.stderr
    assert "sub-02_label-lesion" in (tmp_path / "out/lesions.tsv").read_text().splitlines()[4]


def test_the_call_of_a_bids_app(model, tmp_path):
    root, out = tree(tmp_path / "ds"), tmp_path / "out"
    for label in ("01", "sub-02"):
        found = infer(root, out, "participant", "--participant-label", label, "--session-label", "ses-2",
                      "--model", model, check=False)
        assert (found.returncode == 0) == (label == "01"), found.stderr  # sub-02 has no session
    assert not (out / "lesions.tsv").exists() and len(list(out.rglob("*_mask.nii.gz"))) == 1
    infer(root, out, "participant", "--participant_label", "02", "--model", model)
    infer(root, out, "group")
    assert [line.split("\t")[0] for line in (out / "lesions.tsv").read_text().splitlines()[1:]] == ["sub-01", "sub-02"]
    found = infer(root, tmp_path / "nothing", "group", check=False)
    assert found.returncode == 2 and "run that first" in found.stderr


def test_channels_are_of_one_session_and_the_nearest_name_wins(tmp_path):
    touch(tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii.gz", "sub-1/ses-a/anat/sub-1_ses-a_acq-x_T2w.nii.gz",
          "sub-1/ses-a/anat/sub-1_ses-a_T2w.nii.gz", "sub-1/ses-b/anat/sub-1_ses-b_FLAIR.nii.gz",
          "sub-2/anat/sub-2_FLAIR.nii.gz", "sub-2/anat/sub-2_acq-x_T2w.nii.gz", "sub-2/anat/sub-2_acq-y_T2w.nii.gz",
          "derivatives/other/sub-1/anat/sub-1_FLAIR.nii.gz", "sourcedata/sub-3/anat/sub-3_FLAIR.nii.gz")
    found = bids.find_scans(tmp_path, ["FLAIR", "T2w"], Filters())
    assert [[scan.name for scan in case.scans] for case in found.cases] == [
        ["sub-1_ses-a_FLAIR.nii.gz", "sub-1_ses-a_T2w.nii.gz"]]
    assert [Path(path).name for path, _ in found.left_out] == ["sub-1_ses-b_FLAIR.nii.gz"]
    assert [Path(path).name for path, reason in found.failed if "2 T2w scans" in reason] == ["sub-2_FLAIR.nii.gz"]
    chosen = bids.find_scans(tmp_path, ["FLAIR", "T2w"], Filters.parse(exclude=["acq=x"]), ["2"])
    assert [scan.name for scan in chosen.cases[0].scans] == ["sub-2_FLAIR.nii.gz", "sub-2_acq-y_T2w.nii.gz"]


def test_an_include_of_participants_tsv_and_a_missing_participant(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", "sub-2/anat/sub-2_T2w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tsite\nsub-1\ta\nsub-2\tb\n")
    found = bids.find_scans(tmp_path, ["T2w"], Filters.parse(include=["site=b"]))
    assert [case.entities["sub"] for case in found.cases] == ["2"]
    with pytest.raises(UserError, match=r"found no sub-3 .* expected one of 1, 2"):
        bids.find_scans(tmp_path, ["T2w"], Filters(), ["3"])
    with pytest.raises(UserError, match="no FLAIR scan"):
        bids.find_scans(tmp_path, ["FLAIR"], Filters())


@pytest.mark.slow
def test_masks_of_two_suffixes_do_not_take_each_other_for_done(model, tmp_path):
    root = tree(tmp_path / "ds")
    flags = (root, "--format", "bids", "--model", model, "-o", tmp_path / "out")
    infer(*flags, "--suffix", "T2w", "--session-label", 2)
    found = infer(*flags, "--suffix", "FLAIR", check=False)
    assert found.returncode == 2 and "_T2w.nii.gz" in found.stderr and "--desc" in found.stderr
    infer(*flags, "--suffix", "FLAIR", "--desc", "FLAIR")
    assert (tmp_path / "out/sub-01/ses-2/anat/sub-01_ses-2_label-lesion_desc-FLAIR_mask.nii.gz").is_file()


@pytest.mark.parametrize(("flags", "words"), [
    (["--suffix", "T2w"], ["--suffix", "--format bids"]), (["--participant-label", "1"], ["--participant-label"]),
    (["x", "--format", "bids", "--suffix", "T2w"], ["2 paths"]), (["--format", "bids", "--desc", "a-b"], ["'a-b'"]),
    (["--format", "bids", "-o", "."], ["is the data set itself"])])
def test_a_mistake_is_one_line(model, tmp_path, flags, words):
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz")
    flags = [tmp_path if flag == "." else flag for flag in flags]
    found = infer(tmp_path, *flags, "--model", model, check=False)
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert all(word in found.stderr for word in words), found.stderr


def test_a_model_whose_channels_are_no_suffixes_needs_them(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz")
    model = bright_model(tmp_path / "model", channels=2)
    found = infer(tmp_path, "--format", "bids", "--model", model, check=False)
    assert found.returncode == 2 and "--suffix: missing" in found.stderr and "channel0" in found.stderr


@pytest.mark.slow
def test_two_suffixes_in_one_derivative_inside_a_valid_data_set(model, tmp_path):
    root = tree(tmp_path / "ds")
    infer(root, "--format", "bids", "--suffix", "T2w", "--model", model, "--picture")
    infer(root, "--format", "bids", "--suffix", "FLAIR", "--desc", "FLAIR", "--model", model)
    assert (root / "derivatives/meshnet/sub-02/figures/sub-02_label-lesion_mask.png").is_file()
    assert not validate(root / "derivatives/meshnet") and not validate(root) and not validate(root, "--recursive")


@pytest.mark.slow
def test_names_in_a_tree_as_large_as_arc_are_valid(shared_data, tmp_path):
    """Every T2w scan of ds004884, by the names of its real tree: each has one mask, and all names are BIDS."""
    names = gzip.decompress((shared_data / "arc" / "ds004884_tree.txt.gz").read_bytes()).decode().split()
    touch(tmp_path / "ds", *[name for name in names if name.endswith("_T2w.nii.gz")])
    found = bids.find_scans(tmp_path / "ds", ["T2w"], Filters())
    planned = bids.plan(found.cases, tmp_path / "ds", tmp_path / "out")
    assert len(planned) == len([name for name in names if name.endswith("_T2w.nii.gz")]) > 400
    tiny = tmp_path / "tiny.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tiny)
    bids.write_description(tmp_path / "out", tmp_path / "ds", [])
    result = {"volume_ml": 1.0, "lesions": 1, "largest_ml": 1.0, "side": None, "warnings": [], "remarks": []}
    for case in planned[::4]:
        case["mask"].parent.mkdir(parents=True, exist_ok=True)
        os.link(tiny, case["mask"])
        bids.write_sidecars(case, tmp_path / "ds", [], result, {})
    bids.write_table(tmp_path / "out", bids.rows_of(tmp_path / "out"))
    assert not validate(tmp_path / "out")
    shutil.rmtree(tmp_path)


def test_a_model_of_several_kinds_takes_the_first_that_there_is(tmp_path, capsys):
    root = tmp_path / "ds"
    touch(root, *(f"{name}.nii.gz" for name in SCANS))
    arguments = argparse.Namespace(scans=[str(root)], output=None, suffix=[], include=[], exclude=[], desc=None,
                                   image_pattern=None, participant_label=[], session_label=[])
    cases, _, _ = call.bids_cases(arguments, ["T1w, FLAIR, T2w or DWI"])
    assert [case["scans"][0].name for case in cases] == ["sub-01_ses-2_FLAIR.nii.gz"]
    assert "FLAIR scans, of T1w, FLAIR, T2w or DWI (--suffix" in capsys.readouterr().err
    with pytest.raises(UserError, match="found no dwi"):
        call.bids_cases(arguments, ["T1w or DWI"])


def test_a_name_in_foreign_bytes_is_no_end_of_a_table(tmp_path):
    scan = os.fsdecode(b"m\xfcller.nii.gz")
    table = write_table(tmp_path, [{"scan": [scan], "mask": scan}], [])
    assert "m\\udcfcller.nii.gz" in table.read_text(encoding="utf-8")
    bids.write_table(tmp_path, [{"source": scan}])
    assert "m\\udcfcller.nii.gz" in (tmp_path / "lesions.tsv").read_text(encoding="utf-8")


def test_a_list_of_channels_too_long_for_a_file_name_is_no_export():
    assert not call.is_export(",".join(["scan.nii.gz"] * 60)) and not call.is_export("a" * 600 + ".zip")


def test_a_mask_cut_off_is_refused_in_one_line(tmp_path):
    scan_file(tmp_path / "a.nii.gz")
    (tmp_path / "m.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:-400])
    with pytest.raises(UserError, match="cannot be read"):
        measured(tmp_path / "m.nii.gz")


def test_two_launches_of_torchrun_are_two_commands(monkeypatch):
    one = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "1"}
    first = place(one)
    assert place(one) == first
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert place(one) != first and place(one | {"TORCHELASTIC_RUN_ID": "a"}).command == "torchrun a 1"


def test_torchrun_over_machines_needs_a_name_for_each_launch():
    many = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "1"}
    with pytest.raises(UserError, match="add --rdzv_id NAME"):
        place(many)
    assert place(many | {"TORCHELASTIC_RUN_ID": "a"}).command == "torchrun a 1"
    steps = [place(many | {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": step}).command for step in "01"]
    assert steps[0] != steps[1] and "job 7" in steps[0]


def test_masks_of_another_model_are_listed_with_it_in_the_description(model, tmp_path, capsys):
    """The models that made the masks which are there, after each command; another program's file is left alone."""
    root, out = tmp_path / "ds", tmp_path / "out"
    touch(root, "sub-1/anat/sub-1_T2w.nii.gz", "sub-2/anat/sub-2_T2w.nii.gz")
    one, two = {"Name": "one", "WeightsSHA256": "1"}, {"Name": "two", "WeightsSHA256": "2"}
    planned = bids.plan(bids.find_scans(root, ["T2w"], Filters()).cases, root, out)
    result = {"volume_ml": 1.0, "lesions": 1, "largest_ml": 1.0, "side": None, "warnings": [], "remarks": []}
    listed = lambda: json.loads((out / bids.DESCRIPTION).read_text())["GeneratedBy"][0]["Models"]
    for model, done, expected in ((one, planned[:1], [one]), (two, planned[1:], [one, two]), (two, planned, [two])):
        bids.describe(out, root, [model])
        for case in done:
            touch(out, case["mask"].relative_to(out).as_posix())
            bids.write_sidecars(case, root, [model], result, {})
        assert model in listed()
        bids.describe(out, root, None)
        assert listed() == expected
    before = (out / bids.DESCRIPTION).stat().st_mtime_ns
    bids.describe(out, root, [two])
    assert (out / bids.DESCRIPTION).stat().st_mtime_ns == before
    theirs = '{"GeneratedBy": [{"Name": "fMRIPrep"}]}'
    (out / bids.DESCRIPTION).write_text(theirs)
    bids.describe(out, root, [one])
    assert (out / bids.DESCRIPTION).read_text() == theirs and "left as it is" in capsys.readouterr().err


def test_a_scan_that_fails_at_overwriting_is_no_finished_one(model, tmp_path):
    root, flags = tree(tmp_path / "ds"), ("--format", "bids", "--suffix", "T2w", "--model", model, "-o", tmp_path / "o")
    infer(root, *flags, "--participant-label", "02")
    (root / f"{SCANS[5]}.nii.gz").write_bytes(b"broken")
    assert infer(root, *flags, "--participant-label", "02", "--overwrite", check=False).returncode == 1
    rows = [line.split("\t") for line in (tmp_path / "o/lesions.tsv").read_text().splitlines()]
    assert len(rows) == 2 and rows[1][3:11] == ["n/a"] * 8 and "sub-02_T2w.nii.gz" in rows[1][11]
    (tmp_path / "scans").mkdir()
    scan = scan_file(tmp_path / "scans" / "a.nii.gz")
    scan_file(tmp_path / "scans" / "b.nii.gz")
    infer(tmp_path / "scans", "-o", tmp_path / "m", "--model", model, "--no-picture")
    scan.write_bytes(b"broken")
    infer(tmp_path / "scans", "-o", tmp_path / "m", "--model", model, "--no-picture", "--overwrite", check=False)
    table = (tmp_path / "m" / "lesions.csv").read_text().splitlines()
    assert "b.nii.gz" in table[1] and "a.nii.gz" in table[2] and ",,,,,,,," in table[2], table


def test_the_page_of_a_bids_app_is_written_by_its_last_level(model, tmp_path):
    root, out = tree(tmp_path / "ds"), tmp_path / "out"
    told = infer(root, out, "participant", "--participant-label", "02", "--suffix", "T2w", "--model", model, "--report")
    assert "report.html: is written by the level 'group'" in told.stderr and not (out / "report.html").exists()
    assert len(list((out / ".meshnet").glob("*.jpg"))) == 1
    for path in (out / ".meshnet").glob("*.jpg"):
        path.unlink()  # as of an earlier call without --report
    told = infer(root, out, "group", "--report")
    assert "report.html: the page of 1 scan\n" in told.stderr
    text = (out / "report.html").read_text()
    assert "sub-02_T2w.nii.gz" in text and '"picture": 0' in text


def test_a_published_model_has_its_name_in_a_derivative(model, tmp_path, monkeypatch):
    """A name that only ``sharing`` knows is looked up once, and the folder is what the sidecars describe."""
    from meshnet.sharing import published

    folder = shutil.copytree(model, tmp_path / "mindgrab-1")
    monkeypatch.setattr(published, "fetch", lambda name: folder)
    root = tree(tmp_path / "ds")
    name = next(iter(published.PUBLIC))
    infer(root, "--format", "bids", "--suffix", "FLAIR", "--model", name, "-o", tmp_path / "o")
    said = json.loads((tmp_path / "o" / "dataset_description.json").read_text())
    assert said["GeneratedBy"][0]["Models"][0]["Name"] == "mindgrab-1"

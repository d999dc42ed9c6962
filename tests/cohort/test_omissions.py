"""What of a BIDS tree is not segmented is counted, and stands in the table where a person has to decide."""

import pytest
from bright import bright_model, infer, scan_file
from trees import touch

from meshnet.cohort import bids
from meshnet.cohort.omissions import say_omissions
from meshnet.data.sources.case import Filters
from meshnet.errors import UserError


def found(root, *suffixes, **filters):
    return bids.find_scans(root, list(suffixes), Filters.parse(**filters))


def test_what_is_left_out_is_counted_by_its_reason(tmp_path, capsys):
    touch(tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii.gz", "sub-1/ses-a/anat/sub-1_ses-a_T2w.nii.gz",
          "sub-1/ses-b/anat/sub-1_ses-b_FLAIR.nii.gz", "sub-2/anat/sub-2_FLAIR.nii.gz", "sub-3/anat/sub-3_T2w.nii.gz",
          "sub-4/anat/sub-4_FLAIR.nii.gz", "sub-4/anat/sub-4_space-MNI_T2w.nii.gz", "sub-5/anat/sub-5_T1w.nii.gz",
          "sub-6/anat/sub-6_acq-x_FLAIR.nii.gz")
    say_omissions(found(tmp_path, "FLAIR", "T2w", exclude=["acq=x"]))
    assert capsys.readouterr().err.splitlines() == [
        "note: 2 scans left out: no T2w scan agrees with it, such as sub-1_ses-b_FLAIR.nii.gz",
        "note: 1 scan left out: --exclude acq=x, such as sub-6_acq-x_FLAIR.nii.gz",
        "note: 1 scan left out: no T2w scan agrees with it in space, such as sub-4_FLAIR.nii.gz",
        "note: 2 subjects or sessions without a FLAIR scan, such as sub-3"]


def test_an_error_says_what_was_left_out(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_FLAIR.nii.gz", "sub-2/anat/sub-2_FLAIR.nii.gz")
    with pytest.raises(UserError, match="found 2 FLAIR scans, but left out all of them: no T2w scan agrees with it"):
        found(tmp_path, "FLAIR", "T2w")
    with pytest.raises(UserError, match="found 2 FLAIR scans, but left out all of them: --exclude sub=1, --exclude"):
        found(tmp_path, "FLAIR", exclude=["sub=1,2"])


def test_what_cannot_be_decided_stands_in_the_table_until_it_is(tmp_path):
    root, out = tmp_path / "ds", tmp_path / "out"
    names = ("sub-1/anat/sub-1_FLAIR", "sub-1/anat/sub-1_T2w", "sub-2/anat/sub-2_FLAIR", "sub-2/anat/sub-2_acq-x_T2w",
             "sub-2/anat/sub-2_acq-y_T2w")
    touch(root, *(f"{name}.nii.gz" for name in names))
    for name in names:
        scan_file(root / f"{name}.nii.gz")
    flags = ("--suffix", "FLAIR", "T2w", "--model", bright_model(tmp_path / "model", channels=2))

    def rows():
        return [line.split("\t") for line in (out / "lesions.tsv").read_text().splitlines()[1:]]

    told = infer(root, "--format", "bids", "-o", out, *flags, "--report", check=False)
    assert told.returncode == 1 and "lesions.tsv: 2 scans, 1 failed" in told.stderr
    assert [row[0] for row in rows()] == ["sub-1", "sub-2"] and "2 T2w scans match it" in rows()[1][-1]
    assert "2 T2w scans match it" in (out / "report.html").read_text()
    (out / "lesions.tsv").unlink()
    assert infer(root, out, "participant", "--participant-label", "1", *flags).returncode == 0
    told = infer(root, out, "group", "--report", check=False)
    assert told.returncode == 1 and "2 T2w scans match it" in rows()[1][-1]  # of the subject that nobody asked for
    assert "2 T2w scans match it" in (out / "report.html").read_text()
    told = infer(root, out, "participant", *flags, "--exclude", "acq=x")
    assert told.stderr.count("note: 1 scan left out: --exclude acq=x") == 1
    assert infer(root, out, "group").returncode == 0
    assert [row[-1] for row in rows()] == ["n/a", "n/a"]


def test_a_failed_scan_that_is_no_longer_there_is_no_failure_of_the_group(model, tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", "sub-2/anat/sub-2_T2w.nii.gz")
    scan = scan_file(tmp_path / "sub-1/anat/sub-1_T2w.nii.gz")
    flags = (tmp_path, tmp_path / "out")
    assert infer(*flags, "participant", "--model", model, check=False).returncode == 1
    assert infer(*flags, "group", check=False).returncode == 1 and scan.is_file()
    (tmp_path / "sub-2/anat/sub-2_T2w.nii.gz").unlink()
    infer(*flags, "group")

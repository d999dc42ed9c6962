"""What is kept where a mask would be written."""

import csv
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bright import bright_model, infer, scan_file

from meshnet.cohort.kept import is_of_another, is_out_of_date, names, where_of
from meshnet.scans import ours
from meshnet.scans.ours import is_ours, of_another_scan, scan_mark, signed


@pytest.fixture
def model(tmp_path):
    return bright_model(tmp_path / "model")


def patients(folder):
    """Two patients whose scans have one file name."""
    blocks = {"sub-1": (slice(20, 30), slice(22, 34), slice(24, 40)), "sub-2": (slice(30, 36),) * 3}
    for name, block in blocks.items():
        (folder / name).mkdir()
        scan_file(folder / name / "FLAIR.nii.gz", bright=block)
    return [folder / name / "FLAIR.nii.gz" for name in blocks]


def test_a_mask_of_another_scan_is_kept(model, tmp_path):
    one, other = patients(tmp_path)
    mask, flags = tmp_path / "masks" / "FLAIR_lesion.nii.gz", ("-o", tmp_path / "masks", "--model", model)
    infer(one, *flags, "--no-picture")
    before = mask.read_bytes()
    refused = infer(other, *flags, "--no-picture", check=False)
    assert refused.returncode == 2 and mask.read_bytes() == before
    assert refused.stderr.strip() == (
        f"error: {mask}: exists and is the mask of another scan, of other channels, or of {other} before it was "
        "changed, so it is kept; give another folder with -o, or --overwrite replaces it")
    again = infer(one, *flags, "--no-picture", "--threshold", "0.999999")  # the same scan: as always
    assert "replaces an earlier mask" in again.stderr and "another scan" not in again.stderr
    infer(other, *flags, "--no-picture", "--overwrite")
    assert mask.read_bytes() != before


def test_a_mask_of_another_scan_does_not_make_this_one_finished(model, tmp_path):
    patients(tmp_path)
    scan_file(tmp_path / "sub-2" / "b.nii.gz")
    flags = ("-o", tmp_path / "masks", "--model", model, "--no-picture")
    scan_file(tmp_path / "sub-1" / "c.nii.gz")
    infer(tmp_path / "sub-1", *flags)
    before = (tmp_path / "masks" / "FLAIR_lesion.nii.gz").read_bytes()
    found = infer(tmp_path / "sub-2", *flags, check=False)
    assert found.returncode == 1 and "1 of 2 scans could not be segmented" in found.stderr
    assert "FLAIR_lesion.nii.gz: exists and is the mask of another scan" in found.stderr
    assert (tmp_path / "masks" / "b_lesion.nii.gz").exists()
    assert (tmp_path / "masks" / "FLAIR_lesion.nii.gz").read_bytes() == before
    again = infer(tmp_path / "sub-1", *flags)  # is the first patient's all the same
    assert again.stderr.count("exists, skipped") == 1
    assert (tmp_path / "masks" / "FLAIR_lesion.nii.gz").read_bytes() == before


def test_a_scan_that_was_changed_is_done_again_where_a_table_names_it(model, tmp_path):
    """As after one that could not be read has been repaired."""
    patients(tmp_path)
    scans = [tmp_path / "sub-1" / "FLAIR.nii.gz", scan_file(tmp_path / "sub-1" / "b.nii.gz")]
    flags = ("-o", tmp_path / "masks", "--model", model, "--no-picture")
    infer(*scans, *flags)
    scans[0].write_bytes((tmp_path / "sub-2" / "FLAIR.nii.gz").read_bytes())
    before = (tmp_path / "masks" / "FLAIR_lesion.nii.gz").read_bytes()
    found = infer(scans[0], *flags)
    assert "replaces an earlier mask" in found.stderr
    assert (tmp_path / "masks" / "FLAIR_lesion.nii.gz").read_bytes() != before


def test_a_mask_that_is_kept_has_its_row_besides(model, tmp_path):
    """Of the scan that it is of, in the table and the page; also where somebody has corrected it since."""
    one, other = patients(tmp_path)
    flags = ("-o", tmp_path / "masks", "--model", model, "--no-picture", "--report")
    more = [scan_file(tmp_path / f"sub-{number}" / "b.nii.gz") for number in "12"]
    infer(one, more[0], *flags)

    def rows(*scans):
        assert infer(*scans, *flags, check=False).returncode == 1
        found = list(csv.DictReader((tmp_path / "masks" / "lesions.csv").open()))
        return [(row["scan"], Path(row["mask"]).name, bool(row["volume_ml"]), bool(row["error"])) for row in found]

    mask = tmp_path / "masks" / "FLAIR_lesion.nii.gz"
    [picture.unlink() for picture in (tmp_path / "masks" / ".meshnet").glob("*.jpg")]
    refused = [(str(more[0]), "b_lesion.nii.gz", True, False), (str(other), "", False, True)]
    assert rows(other, more[1]) == [(str(one), mask.name, True, False), *refused]
    page = (tmp_path / "masks" / "report.html").read_text()
    assert str(one) in page and str(other) in page
    assert len(list((tmp_path / "masks" / ".meshnet").glob("*.jpg"))) == 1  # a path as typed may be another file here
    image = nib.load(mask)
    drawn = np.asarray(image.dataobj) * 0
    nib.save(nib.Nifti1Image(drawn, image.affine, image.header), mask)
    assert rows(other, more[1]) == [(str(one), mask.name, True, False), *refused]


def test_a_scan_by_the_same_words_elsewhere_is_another_one(model, tmp_path):
    """The record holds the paths as they are typed: in two folders they are of two scans. Here the folder is a link."""
    patients(tmp_path)
    here = tmp_path / "here"
    flags = (here / "FLAIR.nii.gz", here / "b.nii.gz", "-o", tmp_path / "masks", "--model", model, "--no-picture")
    for number in "12":
        scan_file(tmp_path / f"sub-{number}" / "b.nii.gz")
    here.symlink_to(tmp_path / "sub-1")
    infer(*flags)
    before = (tmp_path / "masks" / "FLAIR_lesion.nii.gz").read_bytes()
    here.unlink()
    here.symlink_to(tmp_path / "sub-2")
    found = infer(*flags, check=False)
    assert found.returncode == 1 and "FLAIR_lesion.nii.gz: exists and is the mask of another scan" in found.stderr
    assert (tmp_path / "masks" / "FLAIR_lesion.nii.gz").read_bytes() == before


@pytest.mark.parametrize("beside", [False, True])
def test_a_scan_that_was_changed_is_done_again_among_others(model, tmp_path, beside):
    one, other = patients(tmp_path)
    out = () if beside else ("-o", tmp_path / "masks")
    flags = (one, scan_file(tmp_path / "sub-1" / "b.nii.gz"), *out, "--model", model, "--no-picture")
    infer(*flags)
    one.write_bytes(other.read_bytes())
    found = infer(*flags)
    assert found.stderr.count("exists, skipped") == 1 and found.stdout.count(" mL") == 1
    assert "another model, with other settings or of the scan before it was changed; -o" in found.stderr
    assert infer(*flags).stderr.count("exists, skipped") == 2


def test_of_which_files_a_record_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = where_of(["a.nii"])
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert names({"scan": ["a.nii"], "where": where}, [tmp_path / "a.nii"]) is True
    assert names({"scan": ["a.nii"], "where": where}, ["a.nii"]) is False
    assert names({"scan": [str(tmp_path / "a.nii")]}, ["../a.nii"]) is True  # of an earlier version
    for unknown in (None, {}, {"scan": []}, {"scan": ["a.nii"]}):
        assert names(unknown, ["a.nii"]) is None


def test_a_scan_that_cannot_be_read_is_not_finished_by_the_mask_of_another(tmp_path):
    a = tmp_path / "a.nii"
    a.write_bytes(b"a")
    nib.save(signed(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), scan_mark([a])), tmp_path / "x.nii.gz")
    gone = {"scans": [tmp_path / "gone.nii"], "mask": tmp_path / "x.nii.gz"}
    assert is_out_of_date(gone, {"where": where_of([a])}) and is_of_another(gone, {"where": where_of([a])})
    assert not is_out_of_date(gone) and not is_out_of_date(gone, {"where": where_of(gone["scans"])})


def test_a_scan_is_known_by_its_content(tmp_path):
    for name, content in (("a.nii", b"x" * 5_000_000), ("b.nii", b"y" * 5_000_000)):
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    a, b = tmp_path / "a.nii", tmp_path / "b.nii"
    assert scan_mark([a]) == scan_mark([tmp_path / "a.nii.gz"]) != scan_mark([b]) == scan_mark([tmp_path / "b.nii.gz"])
    for name, packed in (("twice.nii.gz", gzip.compress(gzip.compress(a.read_bytes()))),
                         ("bgzip.nii.gz", b"".join(map(gzip.compress, (b"x" * 3_000_000, b"x" * 2_000_000, b"")))),
                         ("padded.nii.gz", gzip.compress(a.read_bytes()) + bytes(100))):
        (tmp_path / name).write_bytes(packed)
        assert scan_mark([tmp_path / name]) == scan_mark([a]), name
    (tmp_path / "cut.nii.gz").write_bytes(packed[:-108])
    assert scan_mark([tmp_path / "cut.nii.gz"]) == ""
    assert len({scan_mark(scans) for scans in ([a], [b], [a, b], [b, a])}) == 4
    assert scan_mark([tmp_path / "gone.nii"]) == scan_mark([tmp_path]) == ""


def test_a_compressed_scan_is_not_unpacked_for_its_mark(tmp_path, monkeypatch):
    """Its end says it, where it is of one member; of either form and byte order."""
    for number, (form, order) in enumerate(((nib.Nifti1Image, "<"), (nib.Nifti1Image, ">"), (nib.Nifti2Image, "<"))):
        image = form(np.full((30, 31, 32), number, np.int16), np.eye(4), form.header_class(endianness=order))
        nib.save(image, tmp_path / "scan.nii")
        nib.save(image, tmp_path / "scan.nii.gz")
        with monkeypatch.context() as patched:
            patched.setattr(ours, "unpacked", None)
            assert scan_mark([tmp_path / "scan.nii.gz"]) == scan_mark([tmp_path / "scan.nii"]) != ""


def test_what_a_mask_is_of(tmp_path):
    a, b = tmp_path / "a.nii", tmp_path / "sub" / "b.nii"
    b.parent.mkdir()
    a.write_bytes(b"a")
    b.write_bytes(b"b")
    voxels = nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4))
    nib.save(signed(voxels, scan_mark([a])), tmp_path / "x.nii.gz")
    nib.save(signed(voxels), tmp_path / "old.nii.gz")
    assert is_ours(tmp_path / "x.nii.gz") and is_ours(tmp_path / "old.nii.gz")
    assert not of_another_scan(tmp_path / "x.nii.gz", [a]) and of_another_scan(tmp_path / "x.nii.gz", [b])
    assert not of_another_scan(tmp_path / "old.nii.gz", [b])  # of an earlier version: not known
    assert not of_another_scan(tmp_path / "x.nii.gz", [tmp_path / "gone.nii"])
    case = {"scans": [b], "mask": tmp_path / "x.nii.gz"}
    assert is_of_another(case) and is_of_another(case, {"scan": [str(a)]})
    for same in ({**case, "source": []}, {**case, "bids": None}):
        assert not is_of_another(same)
    assert not is_of_another(case, {"scan": [str(b.parent / ".." / "sub" / "b.nii")]})  # changed since, perhaps
    beside = Path(b.parent / "b_lesion.nii.gz")
    beside.write_bytes((tmp_path / "x.nii.gz").read_bytes())
    assert not is_of_another({"scans": [b], "mask": beside})

"""Which cases are of one patient: said by the user, seen in names, found in the files."""

import gzip
import json
import random
import shutil

import pytest
from trees import names, touch, write_nifti

from meshnet.data.sources.case import Case, Filters, Listing
from meshnet.data.sources.find import find_cases
from meshnet.data.sources.patients import join_rows, time_points
from meshnet.errors import UserError


def nnunet(root, cases, **more):
    touch(root, *(f"imagesTr/{c}_0000.nii.gz" for c in cases), *(f"labelsTr/{c}.nii.gz" for c in cases))
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T2w"}, "labels": {"background": 0}, **more}))
    return root


@pytest.mark.parametrize("first", [
    ["a01_t0", "a01_t1"], ["a01_baseline", "a01_followup"], ["a01_ses-1", "a01_ses-2"],
    ["a01_20200131", "a01_20210201"],
    ["a01_0", "a01_1"], ["a0100", "a0101"], ["a01a", "a01b"], ["a01v1", "a01v2"], ["a01 (1)", "a01 (2)"],
    ["a01_left", "a01_right"], ["a01_aug1", "a01_aug2"],
])
def test_names_that_look_like_time_points(first):
    everything = [name.replace("01", f"{i:02d}", 1) for i in (1, 2, 3) for name in first]
    found = time_points(everything)
    assert set(found) == set(everything) and sorted(set(found.values())) == ["a01", "a02", "a03"]


@pytest.mark.parametrize("cases", [
    [f"BRATS_{i:03d}" for i in range(1, 485)], [f"liver_{i}" for i in range(131)], [f"case_{i:05d}" for i in range(99)],
    [f"case_{i:05d}" for i in range(9)], [f"stroke_scan{i}" for i in range(40)], [f"s{i}" for i in range(40)],
    [f"site{s}_scan{i}" for s in "AB" for i in range(30)], ["a_t0", "b_t0", "c_t0"], [f"p{i}a" for i in range(9)],
])
def test_names_of_patients_are_none(cases):
    assert time_points(cases) == {}


def test_running_numbers_with_gaps_are_none():
    for seed in range(300):
        rng = random.Random(seed)
        drawn = rng.sample(range(300), rng.randint(2, 60))
        assert time_points([f"case_{i:04d}" for i in drawn]) == {}, seed


def test_time_points_stay_together_unless_said_to_be_apart(tmp_path):
    root = nnunet(tmp_path, [f"g_{p}{t}" for p in ("08", "09", "10") for t in ("00", "01")])
    listing = find_cases("nnunet", str(root), [], Filters())
    assert listing.together == [["g_0800", "g_0801"], ["g_0900", "g_0901"], ["g_1000", "g_1001"]]
    assert "3 patient(s) seem to have several cases, such as g_0800, g_0801 of the same patient" in listing.notes[0]
    assert {c.subject for c in listing.cases} == set(names(listing))
    apart = find_cases("nnunet", str(root), [], Filters(), apart=True)
    assert not apart.together and not apart.notes


def test_two_spellings_of_one_patient_stay_together_and_it_is_said(tmp_path):
    names = ["P 22", "7", "7.0", "P01", "p01", "P1", "sub-P01", "P_2", "P-2", "P22",
             "M\u00fcller", "Mu\u0308ller", "P1_1", "P11"]
    (tmp_path / "t.csv").write_text("case,subject,image,mask\n" + "".join(
        f"c{i},{name},{i}.nii,{i}m.nii\n" for i, name in enumerate(names)), encoding="utf-8")
    for i in range(len(names)):
        (tmp_path / f"{i}.nii").write_bytes(bytes([i] * 99))
        (tmp_path / f"{i}m.nii").write_bytes(bytes([i] * 50))
    listing = find_cases("table", str(tmp_path / "t.csv"), [], Filters())
    together = sorted(map(sorted, listing.together))
    assert together == [["7", "7.0"], sorted(names[10:12]), ["P 22", "P22"], ["P-2", "P_2"],
                        ["P01", "P1", "p01", "sub-P01"]]
    assert listing.notes[0].startswith("5 patient(s) seem to be spelt in several ways, such as ")
    assert not find_cases("table", str(tmp_path / "t.csv"), [], Filters(), apart=True).together


def test_a_pattern_or_a_table_names_the_patient(tmp_path):
    root = nnunet(tmp_path / "set", ["g_0800", "g_0801", "g_0900", "x"])
    listing = find_cases("nnunet", str(root), [], Filters(), subject=r"g_(\d\d)")
    assert [(c.case, c.subject) for c in listing.cases] == [("g_0800", "08"), ("g_0801", "08"), ("g_0900", "09")]
    assert "found nothing in x, expected the patient" in listing.failed[0][1] and not listing.together
    with pytest.raises(UserError, match="found in none of 4 case names, such as g_0800"):
        find_cases("nnunet", str(root), [], Filters(), subject="q(.)")
    with pytest.raises(UserError, match="no regular expression"):
        find_cases("nnunet", str(root), [], Filters(), subject="q(")
    table = tmp_path / "who.csv"
    table.write_text("case;subject\ng_0800;ann\ng_0801;ann\ng_0900;bob\n", encoding="utf-16")
    listing = find_cases("nnunet", str(root), [], Filters(), subject=str(table))
    assert [c.subject for c in listing.cases] == ["ann", "ann", "bob"]
    assert "found no line for the case x" in listing.failed[0][1]
    for text, fault in (("case,subject\na,b\na,c\n", "line 3: found a again with the subject c, expected b as on"),
                        ("case,subject\na\n", "line 2: found no subject"), ("x,y\na,b\n", "found the columns x, y")):
        table.write_text(text)
        with pytest.raises(UserError, match=fault):
            find_cases("nnunet", str(root), [], Filters(), subject=str(table))
    with pytest.raises(UserError, match="no such file"):
        find_cases("nnunet", str(root), [], Filters(), subject="absent.csv")


def test_a_pattern_works_for_other_formats(tmp_path):
    touch(tmp_path, "sub-1a/anat/sub-1a_T2w.nii.gz", "derivatives/l/sub-1a/sub-1a_label-lesion_mask.nii.gz",
          "i.nii.gz", "m.nii.gz")
    bids = find_cases("bids", str(tmp_path), ["T2w"], Filters(), subject=r"sub-(\d+)")
    (tmp_path / "t.csv").write_text("subject,image,mask\nk7_2,i.nii.gz,m.nii.gz\n")
    table = find_cases("table", str(tmp_path / "t.csv"), [], Filters(), subject=r"k\d")
    assert bids.cases[0].subject == "1" and table.cases[0].subject == "k7"


def twins(tmp_path, copy):
    """A table of five subjects of which b has the scan of a, as ``copy`` makes it."""
    for seed, name in enumerate("acde"):
        write_nifti(tmp_path / f"{name}.nii.gz", seed)
    made = copy(tmp_path / "a.nii.gz", tmp_path)
    touch(tmp_path, *(f"m{name}.nii.gz" for name in "abcde"))
    lines = [f"{name},{made if name == 'b' else f'{name}.nii.gz'},m{name}.nii.gz\n" for name in "abcde"]
    (tmp_path / "t.csv").write_text("subject,image,mask\n" + "".join(lines))
    return find_cases("table", str(tmp_path / "t.csv"), [], Filters())


def packed_otherwise(path, root):
    (root / "b.nii.gz").write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    return "b.nii.gz"


def unpacked(path, root):
    (root / "b.nii").write_bytes(gzip.decompress(path.read_bytes()))
    return "b.nii"


def in_blocks(path, root):
    content = gzip.decompress(path.read_bytes())
    (root / "b.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    shutil.copy(root / "b.nii.gz", path)
    return "b.nii.gz"


@pytest.mark.parametrize("copy", [lambda path, root: shutil.copy(path, root / "b.nii.gz"), packed_otherwise, unpacked,
                                  in_blocks, lambda path, root: path.name])
def test_the_same_scan_under_two_names_is_found(tmp_path, copy):
    listing = twins(tmp_path, copy)
    assert listing.together == [["a", "b"]] and len(listing.notes) == 1
    assert "a, b hold the same scan under 2 names: they are kept in one fold" in listing.notes[0]


def test_files_of_one_length_are_no_twins(tmp_path):
    def other(path, root):
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[-1] ^= 1
        (root / "b.nii").write_bytes(content)
        return "b.nii"

    listing = twins(tmp_path, other)
    assert not listing.together and not listing.notes


def test_a_scan_of_most_cases_is_said_and_joins_nobody(tmp_path):
    write_nifti(tmp_path / "a.nii.gz")
    touch(tmp_path, "m.nii.gz")
    (tmp_path / "t.csv").write_text("subject,image,mask\n" + "".join(f"{n},a.nii.gz,m.nii.gz\n" for n in "abc"))
    listing = find_cases("table", str(tmp_path / "t.csv"), [], Filters())
    assert not listing.together and "3 cases hold the same scan (a, b, c), more than half" in listing.notes[0]


def test_rows_of_a_hub_data_set_are_compared_by_their_hashes():
    rows = [{"case": c, "subject": c[0], "image_sha256": [h, "z" + c]} for c, h in
            (("a1", "x"), ("a2", "x"), ("b1", "y"), ("c1", "y"), ("d1", "w"), ("e1", "v"))]
    listing = Listing([Case(r["case"], r["subject"], (), "") for r in rows], [])
    assert "b1, c1 hold the same scan" in join_rows(listing, rows)[0]
    assert listing.together == [["b", "c"]]


def test_one_mask_of_two_subjects_is_said(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.nii").write_bytes(bytes([i + 1] * 99))
    (tmp_path / "t.csv").write_text("subject,image,mask\nA,0.nii,3.nii\nB,1.nii,3.nii\nA,2.nii,3.nii\n")
    listing = find_cases("table", str(tmp_path / "t.csv"), [], Filters())
    assert "3.nii: is the mask of 2 subjects (A, B); check whose it is" in listing.notes[0] and not listing.together

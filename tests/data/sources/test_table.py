"""A table of cases: its columns, and what it cannot say."""

import pytest
from trees import names, touch

from meshnet.data.sources.case import Filters
from meshnet.data.sources.find import find_cases
from meshnet.errors import UserError


def test_table_columns_are_channels_and_groups(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "m.nii.gz")
    (tmp_path / "cases.csv").write_text(
        "subject,session,image_T2w,image_FLAIR,mask,site\n"
        "s1,1,a.nii.gz,b.nii.gz,m.nii.gz,Oslo\ns1,1,b.nii.gz,a.nii.gz,m.nii.gz,Oslo\n"
        "s2,,a.nii.gz,b.nii.gz,,Oslo\ns3,,a.nii.gz,,m.nii.gz,Oslo\ns4,,a.nii.gz,b.nii.gz,m.nii.gz,Rome\n"
        "s5,,a.nii.gz,b.nii.gz,gone.nii.gz,Oslo\n"
    )
    listing = find_cases("table", str(tmp_path / "cases.csv"), [], Filters.parse(exclude=["site=Rome"]))
    assert names(listing) == ["s1_1", "s1_1_2"] and listing.channels == ["T2w", "FLAIR"]
    assert listing.cases[1].images == (str(tmp_path / "b.nii.gz"), str(tmp_path / "a.nii.gz"))
    assert listing.cases[0].groups == {"site": "Oslo"}
    assert [why for _, why in listing.left_out] == ["no mask", "--exclude site=Rome"]
    assert sorted(why for _, why in listing.failed) == [f"{tmp_path}/gone.nii.gz: no such file", "no image_FLAIR"]
    one = find_cases("table", str(tmp_path / "cases.csv"), ["image_FLAIR"], Filters())
    assert one.channels == ["FLAIR"] and len(one.cases[0].images) == 1


@pytest.mark.parametrize("text", ["", "subject,mask\n1,2\n", "image,mask\na,b\n", "image,subject,mask\n"])
def test_a_table_without_its_columns_is_refused(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match="expected"):
        find_cases("table", str(tmp_path / "t.csv"), [], Filters())


def test_scan_and_mask_of_different_subjects_fail(tmp_path):
    touch(tmp_path, "sub-1_T2w.nii.gz", "sub-2_mask.nii.gz")
    (tmp_path / "t.csv").write_text("subject,image,mask\n1,sub-1_T2w.nii.gz,sub-2_mask.nii.gz\n")
    assert "different subjects (1, 2)" in find_cases("table", str(tmp_path / "t.csv"), [], Filters()).failed[0][1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_of_spreadsheets(tmp_path, encoding, separator):
    touch(tmp_path, "ä.nii.gz", "m.nii.gz")
    text = "Subject,Session,image,mask\r\nJürg,1,ä.nii.gz,m.nii.gz\r\n\r\n"
    (tmp_path / "t.csv").write_bytes(text.replace(",", separator).encode(encoding))
    listing = find_cases("table", str(tmp_path / "t.csv"), [], Filters())
    assert [(c.subject, c.images[0]) for c in listing.cases] == [("Jürg", str(tmp_path / "ä.nii.gz"))]


def test_lines_of_another_length_are_named(tmp_path):
    touch(tmp_path, "a.nii.gz", "m.nii.gz")
    path = tmp_path / "t.csv"
    path.write_text("subject,image,mask,site\n1,a.nii.gz,m.nii.gz\n2,a.nii.gz\n")
    listing = find_cases("table", str(path), [], Filters())
    assert names(listing) == ["1"] and listing.failed == [
        (f"{path}, line 3", "found 2 values, expected 4 as the header has; complete the line")]
    path.write_text("subject,image,mask\n1,a.nii.gz,m.nii.gz,Oslo\n")
    with pytest.raises(UserError, match="line 2: found 4 values, expected 3"):
        find_cases("table", str(path), [], Filters())
    path.write_text("subject,image,mask,image\n1,a.nii.gz,m.nii.gz,a.nii.gz\n")
    with pytest.raises(UserError, match="line 1: found 2 columns called 'image'"):
        find_cases("table", str(path), [], Filters())


def test_empty_words_windows_paths_and_lines_that_stand_twice(tmp_path):
    (tmp_path / "s").mkdir()
    for name in ("a.nii", "am.nii", "b.nii"):
        (tmp_path / "s" / name).write_bytes(name.encode())
    lines = ["P0,s\\a.nii,.\\s\\am.nii", "P1,s/b.nii,n/a", "P2,s/b.nii,NaN", "n/a,s/b.nii,s/am.nii",
             "P0,s/a.nii,s/am.nii"]
    (tmp_path / "t.csv").write_text("subject,image,mask\n" + "\n".join(lines))
    listing = find_cases("table", str(tmp_path / "t.csv"), [], Filters())
    assert names(listing) == ["P0"]
    assert [reason for _, reason in listing.left_out] == ["no mask", "no mask"]
    assert sorted(reason for _, reason in listing.failed) == [
        "is listed twice, as P0 and as P0_2; remove one of them, or it counts twice", "no subject"]


def test_a_path_may_begin_with_the_home_folder_or_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MASKS", str(tmp_path / "masks"))
    touch(tmp_path, "home/a.nii", "masks/m.nii")
    (tmp_path / "t.csv").write_text("subject,image,mask\nP0,~/a.nii,$MASKS/m.nii\n")
    listing = find_cases("table", str(tmp_path / "t.csv"), [], Filters())
    assert listing.cases[0].images == (str(tmp_path / "home/a.nii"),) and names(listing) == ["P0"]

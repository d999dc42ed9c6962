"""What systems, servers and editors leave among the data is no case, in any format."""

import json

import pytest
from trees import names, touch

from meshnet.data.sources.case import Filters
from meshnet.data.sources.find import find_cases
from meshnet.data.sources.ghosts import ghost_in, is_ghost


@pytest.mark.parametrize("name", ["._a.nii.gz", ".DS_Store", "Thumbs.db", "@eaDir", "lost+found", "__MACOSX",
                                  ".Trash-1000", "$RECYCLE.BIN", "#recycle", "cases.csv~", "~$cases.csv",
                                  "a.nii.gz.part"])
def test_ghosts_are_known_by_their_names(name):
    assert is_ghost(name)


def test_data_below_a_hidden_folder_is_no_ghost():
    assert not is_ghost("sub-1_space-orig_mask.nii.gz") and not is_ghost("case_00000")
    assert ghost_in("/home/me/.cache/set/imagesTr/a.nii.gz", "/home/me/.cache/set") is None
    assert ghost_in("/home/me/.cache/set/a.nii.gz", "/elsewhere") is None
    assert ghost_in("/set/__MACOSX/a.nii.gz", "/set") == "__MACOSX"


def test_bids_trees_are_read_without_servers_folders(tmp_path):
    inside = "derivatives/lesion/sub-1/anat/sub-1_label-lesion_mask.nii.gz"
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", inside, *(f"{ghost}/{file}" for file in (
        inside, "sub-1/anat/sub-1_T2w.nii.gz") for ghost in ("@eaDir", "lost+found", "__MACOSX", ".Trash-0")))
    listing = find_cases("bids", str(tmp_path), ["T2w"], Filters())
    assert len(listing.cases) == 1 and not listing.failed and not listing.left_out


def test_kits_and_decathlon_leave_ghosts_out(tmp_path):
    touch(tmp_path, "k/case_00000/imaging.nii.gz", "k/case_00000/segmentation.nii.gz",
          "k/case_00001.bak/imaging.nii.gz", "k/case_00001.bak/segmentation.nii.gz", "m/imagesTr/a.nii.gz",
          "m/labelsTr/a.nii.gz", "m/imagesTr/._a.nii.gz", "m/labelsTr/._a.nii.gz")
    assert names(find_cases("kits", str(tmp_path / "k"), [], Filters())) == ["case_00000"]
    (tmp_path / "m/dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "numTraining": 2, "training": [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("a", "._a")]}))
    listing = find_cases("msd", str(tmp_path / "m"), [], Filters())
    assert names(listing) == ["a"] and not listing.failed
    assert [why for _, why in listing.left_out] == ["left behind by a system or an editor, no scan"]


def test_a_file_beside_the_cases_of_kits_is_no_case(tmp_path):
    touch(tmp_path, "case_list.txt", "data/case_00000/imaging.nii.gz", "data/case_00000/segmentation.nii.gz")
    assert names(find_cases("kits", str(tmp_path), [], Filters())) == ["case_00000"]


def test_a_table_leaves_ghosts_out(tmp_path):
    touch(tmp_path, "a.nii.gz", "m.nii.gz", "._a.nii.gz")
    (tmp_path / "t.csv").write_text("subject,image,mask\n1,a.nii.gz,m.nii.gz\n2,._a.nii.gz,m.nii.gz\n")
    listing = find_cases("table", str(tmp_path / "t.csv"), [], Filters())
    assert names(listing) == ["1"] and "left behind" in listing.left_out[0][1] and not listing.failed

"""BIDS trees: which scan belongs to which mask, and why others are left out."""

import gzip
import shutil
from pathlib import Path

import pytest
from trees import touch

from meshnet.data.sources.case import Filters
from meshnet.data.sources.find import find_cases
from meshnet.errors import UserError


@pytest.fixture(scope="module")
def arc(shared_data, tmp_path_factory) -> Path:
    """The Aphasia Recovery Cohort's real tree, as empty files."""
    root = tmp_path_factory.mktemp("arc")
    with gzip.open(shared_data / "arc/ds004884_tree.txt.gz", "rt") as lines:
        touch(root, *(line.strip() for line in lines))
    shutil.copy(shared_data / "arc/participants.tsv", root)
    return root


def test_the_real_arc_tree_has_223_pairs_without_the_turbo_spin_echo(arc):
    everything = find_cases("bids", str(arc), ["T2w"], Filters())
    assert len(everything.cases) == 228 and not everything.failed and everything.groups == ["acq"]
    kept = find_cases("bids", str(arc), ["T2w"], Filters.parse(exclude=["acq=tse3"]))
    assert len(kept.cases) == len({c.subject for c in kept.cases}) == 223 and not kept.failed
    assert sorted(c.groups["acq"] for c in kept.cases).count("spc3p2") == 115
    assert len(find_cases("bids", str(arc), ["T2w"], Filters.parse(["acq=spc3"])).cases) == 108


def test_the_mask_decides_the_run(arc):
    listing = find_cases("bids", str(arc), ["T2w"], Filters())
    case = next(c for c in listing.cases if c.subject == "M2105")
    assert case.images[0].endswith("sub-M2105/ses-964/anat/sub-M2105_ses-964_acq-spc3_run-11_T2w.nii.gz")
    assert any("run-6_T2w" in p and "no lesion mask belongs to it" in why for p, why in listing.left_out)


def test_columns_of_the_participants_are_groups_and_filters(arc):
    listing = find_cases("bids", str(arc), ["T2w"], Filters.parse(["sex=F"]))
    assert 50 < len(listing.cases) < 150 and {c.groups["sex"] for c in listing.cases} == {"F"}
    assert any("--include sex=F, found M" in why for _, why in listing.left_out)


def test_atlas_names_pair_within_their_space(tmp_path):
    folder = "derivatives/ATLAS/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_"
    touch(tmp_path, folder + "label-L_desc-T1lesion_mask.nii.gz", folder + "T1w.nii.gz",
          "sub-r001s001/ses-1/anat/sub-r001s001_ses-1_T1w.nii.gz")
    listing = find_cases("bids", str(tmp_path), ["T1w"], Filters())
    assert [Path(c.images[0]).name for c in listing.cases] == ["sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz"]
    assert listing.cases[0].subject == "r001s001" and listing.cases[0].session == "1"


def test_a_mask_in_the_scans_own_space_takes_no_scan_in_a_template(tmp_path):
    touch(tmp_path, MASK, "derivatives/warped/sub-1/anat/sub-1_space-MNI_T2w.nii.gz")
    listing = find_cases("bids", str(tmp_path), ["T2w"], Filters())
    assert not listing.cases and dict(listing.left_out)[str(tmp_path / MASK)] == (
        "no T2w scan agrees with it in space: the mask says none (the space of its scan), sub-1_space-MNI_T2w.nii.gz "
        "MNI; if they are on one grid, add --same space=none, or --same space=ENTITY for the entity of the scan that "
        "holds this value")


MASK = "derivatives/lesion/sub-1/anat/sub-1_label-lesion_mask.nii.gz"


def test_two_scans_for_one_mask_are_a_failure_that_filters_settle(tmp_path):
    touch(tmp_path, MASK, "sub-1/anat/sub-1_run-1_T2w.nii.gz", "sub-1/anat/sub-1_run-2_T2w.nii.gz")
    listing = find_cases("bids", str(tmp_path), ["T2w"], Filters())
    assert not listing.cases and "2 T2w scans match it" in listing.failed[0][1]
    for filters in (Filters.parse(["run=2"]), Filters.parse(exclude=["run=1"])):
        listing = find_cases("bids", str(tmp_path), ["T2w"], filters)
        assert "run-2" in listing.cases[0].images[0] and not listing.failed
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz")  # the plain name is the mask's own
    assert find_cases("bids", str(tmp_path), ["T2w"], Filters()).cases[0].images[0].endswith("sub-1_T2w.nii.gz")


def test_a_mask_in_another_subjects_folder_or_beside_a_second_one_fails(tmp_path):
    touch(tmp_path, "derivatives/lesion/sub-1/sub-2_label-lesion_mask.nii.gz", "sub-2/anat/sub-2_T2w.nii.gz")
    assert "different subjects" in find_cases("bids", str(tmp_path), ["T2w"], Filters()).failed[0][1]
    touch(tmp_path, MASK, MASK.replace("label-lesion", "label-lesion_desc-second"), "sub-1/anat/sub-1_T2w.nii.gz")
    listing = find_cases("bids", str(tmp_path), ["T2w"], Filters())
    assert [why for p, why in listing.failed if "sub-1_" in p] == [
        "2 masks match the same scan; choose with --include or --exclude, or with --mask_pattern"
    ] * 2


def test_modalities_become_channels_in_the_order_asked_for(tmp_path):
    touch(tmp_path, "derivatives/l/sub-1/ses-a/sub-1_ses-a_acq-x_T2w_desc-lesion_mask.nii.gz")
    for session in "ab":
        for scan in ("acq-x_T2w", "acq-y_FLAIR"):
            touch(tmp_path, f"sub-1/ses-{session}/anat/sub-1_ses-{session}_{scan}.nii.gz")
    for order in (["T2w", "FLAIR"], ["FLAIR", "T2w"]):
        case = find_cases("bids", str(tmp_path), order, Filters()).cases[0]
        assert [Path(p).name.rsplit("_", 1)[1] for p in case.images] == [f"{s}.nii.gz" for s in order]
        assert all("ses-a" in p for p in case.images)
    listing = find_cases("bids", str(tmp_path), ["T2w", "T1w"], Filters())
    assert not listing.cases and ("no T1w scan agrees with it" in listing.left_out[0][1])


def test_a_tree_without_masks_is_said_to_be_one(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz")
    with pytest.raises(UserError, match="no lesion mask"):
        find_cases("bids", str(tmp_path), ["T2w"], Filters())
    with pytest.raises(UserError, match="no such file or folder"):
        find_cases("bids", str(tmp_path / "absent"), ["T2w"], Filters())


def test_a_mask_that_no_scan_agrees_with_is_said_without_list(tmp_path):
    touch(tmp_path, *(f"sub-{s}/anat/sub-{s}_run-1_T2w.nii.gz" for s in "12"),
          "derivatives/l/sub-1/sub-1_run-1_label-lesion_mask.nii.gz",
          "derivatives/l/sub-2/sub-2_run-01_label-lesion_mask.nii.gz")
    listing = find_cases("bids", str(tmp_path), ["T2w"], Filters())
    assert len(listing.cases) == 1 and [n for n in listing.notes if "left out" in n] == [
        "1 lesion mask left out, since no scan agrees with the name, such as sub-2_run-01_label-lesion_mask.nii.gz; "
        "--list says why"]
    assert not find_cases("bids", str(tmp_path), ["T2w"], Filters.parse(include=["run=1"])).notes

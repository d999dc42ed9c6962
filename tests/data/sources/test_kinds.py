"""What a mask is of: its JSON file, then its own words, then its folder; and what a space means."""

import json
from pathlib import Path

import pytest
from trees import touch

from meshnet.data.sources.case import Filters
from meshnet.data.sources.find import find_cases
from meshnet.errors import UserError

FOLDER = "derivatives/lesion_prep/sub-1/anat/"


def listed(root, *masks, filters=None, scan="sub-1/anat/sub-1_T2w.nii.gz", suffix="T2w"):
    touch(root, scan, *(FOLDER + mask for mask in masks))
    return find_cases("bids", str(root), [suffix], filters or Filters())


def taken(listing):
    return [Path(case.mask).name for case in listing.cases]


@pytest.mark.parametrize("mask", ["desc-brain_mask", "label-WM_mask", "label-CSF_dseg", "desc-tissue_dseg",
                                  "label-B_mask", "desc-nonlesion_mask", "desc-lesionfilled_mask",
                                  "brainmask_mask", "desc-skull_roi"])
def test_other_masks_in_a_folder_of_lesions_are_none(tmp_path, mask):
    listing = listed(tmp_path, f"sub-1_{mask}.nii.gz")
    reasons = dict(listing.left_out)
    assert not listing.cases and "no lesion by" in reasons[str(tmp_path / f"{FOLDER}sub-1_{mask}.nii.gz")]


@pytest.mark.parametrize("mask", ["label-L_mask", "desc-T2lesion_mask", "label-lesion_desc-brain_mask", "msk", "mask",
                                  "T2w_lesion", "acq-lesion_mask"])
def test_lesions_by_their_own_words_or_their_folder(tmp_path, mask):
    name = f"sub-1_{mask}.nii.gz"
    assert taken(listed(tmp_path, name, scan="sub-1/anat/sub-1_acq-lesion_T2w.nii.gz" if "acq" in mask else
                        "sub-1/anat/sub-1_T2w.nii.gz")) == [name]


def test_the_type_of_a_json_file_goes_before_the_name(tmp_path):
    for name, kind in (("sub-1_desc-a_mask", "Brain"), ("sub-1_desc-brain_mask", "Lesion")):
        touch(tmp_path, f"{FOLDER}{name}.nii.gz")
        (tmp_path / f"{FOLDER}{name}.json").write_text(json.dumps({"Type": kind}), encoding="utf-16")
    listing = listed(tmp_path)
    assert taken(listing) == ["sub-1_desc-brain_mask.nii.gz"]
    assert "a lesion mask by Type 'Lesion' of its JSON file (--mask_pattern says it otherwise)" in listing.guesses
    assert "no lesion by Type 'Brain'" in dict(listing.left_out)[str(tmp_path / f"{FOLDER}sub-1_desc-a_mask.nii.gz")]


def test_a_json_file_further_up_applies_and_a_broken_one_is_said(tmp_path):
    touch(tmp_path, "derivatives/lesion_prep/desc-x_mask.json")
    (tmp_path / "derivatives/lesion_prep/desc-x_mask.json").write_text('{"Type": "Brain"}')
    assert not taken(listed(tmp_path, "sub-1_desc-x_mask.nii.gz"))
    (tmp_path / "derivatives/lesion_prep/desc-x_mask.json").write_text('{"Type": ')
    listing = listed(tmp_path)
    assert taken(listing) == ["sub-1_desc-x_mask.nii.gz"]
    assert "desc-x_mask.json: cannot be read as JSON" in listing.notes[0]


def test_a_silent_mask_beside_named_ones_is_no_guess(tmp_path):
    touch(tmp_path, "sub-2/anat/sub-2_T2w.nii.gz", FOLDER.replace("sub-1", "sub-2") + "sub-2_mask.nii.gz")
    listing = listed(tmp_path, "sub-1_label-lesion_mask.nii.gz")
    assert [c.subject for c in listing.cases] == ["1"]
    assert any("while other masks in derivatives/lesion_prep say that they are lesions" in why
               for _, why in listing.left_out)
    both = listed(tmp_path, filters=Filters.parse(mask_pattern="sub-?_*mask.nii.gz"))
    assert [c.subject for c in both.cases] == ["1", "2"]


def test_include_settles_masks_and_leaves_scans_alone(tmp_path):
    names = ["sub-1_label-lesion_mask.nii.gz", "sub-1_desc-lesion_mask.nii.gz"]
    assert len(listed(tmp_path, *names).failed) == 2
    chosen = listed(tmp_path, filters=Filters.parse(["label=lesion"]))
    assert taken(chosen) == names[:1] and not chosen.failed
    touch(tmp_path, "sub-1/anat/sub-1_desc-raw_T2w.nii.gz")  # a scan with a desc- of its own stays as well
    assert len(listed(tmp_path, filters=Filters.parse(["desc=lesion"])).cases) == 1
    (tmp_path / "sub-1/anat/sub-1_T2w.nii.gz").unlink()
    raw = listed(tmp_path, scan="sub-1/anat/sub-1_desc-raw_T2w.nii.gz", filters=Filters.parse(["desc=lesion"]))
    assert raw.cases[0].images[0].endswith("desc-raw_T2w.nii.gz")


def test_patterns_choose_masks_and_scans_whatever_their_names_say(tmp_path):
    touch(tmp_path, "derivatives/manual/sub-1/anat/sub-1_desc-brain_mask.nii.gz", "sub-1/anat/sub-1_T2w.nii.gz",
          "sub-1/anat/sub-1_run-1_T2w.nii.gz")
    with pytest.raises(UserError, match="name the masks with --mask_pattern"):
        find_cases("bids", str(tmp_path / "sub-1"), ["T1w"], Filters())
    filters = Filters.parse(mask_pattern="derivatives/manual/*", image_pattern="*_run-1_*")
    listing = listed(tmp_path, "sub-1_label-lesion_mask.nii.gz", filters=filters)
    assert [Path(c.images[0]).name for c in listing.cases] == ["sub-1_run-1_T2w.nii.gz"]
    assert taken(listing) == ["sub-1_desc-brain_mask.nii.gz"]
    assert "--image_pattern *_run-1_*" in dict(listing.left_out).values()


def test_a_scan_that_won_over_others_is_named(tmp_path):
    listing = listed(tmp_path, "sub-1_label-lesion_mask.nii.gz", "x.json", scan="sub-1/anat/sub-1_acq-b_T2w.nii.gz")
    assert not [g for g in listing.guesses if "won over" in g]
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz")
    assert ("sub-1_T2w.nii.gz won over sub-1_acq-b_T2w.nii.gz, since its name is nearer to the mask's (--image_pattern "
            "says it otherwise)") in listed(tmp_path).guesses


def test_two_masks_on_the_very_same_scan_fail(tmp_path):
    listing = listed(tmp_path, "sub-1_run-1_label-lesion_mask.nii.gz", "sub-1_label-lesion_mask.nii.gz",
                     scan="sub-1/anat/sub-1_run-1_T2w.nii.gz")
    (tmp_path / "sub-1/anat/sub-1_T2w.nii.gz").unlink(missing_ok=True)
    assert not listing.cases and all("2 masks match sub-1_run-1_T2w.nii.gz" in why for _, why in listing.failed)


@pytest.mark.parametrize(("space", "scan"), [("orig", "T2w"), ("native", "T2w"), ("T2w", "T2w"),
                                             ("TRACE", "rec-TRACE_T2w"), ("hires", "acq-hires_T2w")])
def test_a_space_that_is_the_scans_own(tmp_path, space, scan):
    other = "sub-1/anat/sub-1_rec-ADC_T2w.nii.gz" if "rec" in scan else "sub-2/anat/sub-2_T2w.nii.gz"
    touch(tmp_path, other)
    listing = listed(tmp_path, f"sub-1_space-{space}_label-lesion_mask.nii.gz", scan=f"sub-1/anat/sub-1_{scan}.nii.gz")
    assert [Path(c.images[0]).name for c in listing.cases] == [f"sub-1_{scan}.nii.gz"] and not listing.failed


def test_a_space_in_the_way_is_named_and_settled(tmp_path):
    mask = "sub-1_space-B0_label-lesion_mask.nii.gz"
    scan = "sub-1/anat/sub-1_dir-B0_T2w.nii.gz"
    reason = dict(listed(tmp_path, mask, scan=scan).left_out)[str(tmp_path / FOLDER / mask)]
    assert "the mask says B0, sub-1_dir-B0_T2w.nii.gz none" in reason and "--same space=none" in reason
    for same in ("space=dir", "space=none"):
        assert len(listed(tmp_path, scan=scan, filters=Filters.parse(same=[same])).cases) == 1
    assert not listed(tmp_path, scan=scan, filters=Filters.parse(same=["space=rec"])).cases
    with pytest.raises(UserError, match="--same: found 'space', expected ENTITY=ENTITY"):
        Filters.parse(same=["space"])


def test_the_own_space_of_one_channel_serves_the_others(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_FLAIR.nii.gz")
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", FOLDER + "sub-1_space-T2w_label-lesion_mask.nii.gz")
    listing = find_cases("bids", str(tmp_path), ["T2w", "FLAIR"], Filters())
    assert [Path(p).name for p in listing.cases[0].images] == ["sub-1_T2w.nii.gz", "sub-1_FLAIR.nii.gz"]
    assert not find_cases("bids", str(tmp_path), ["FLAIR"], Filters()).cases


def predicted(root, *subjects, folder="derivatives/meshnet", **said):
    """Masks as ``infer.py --format bids`` leaves them, without voxels."""
    for subject in subjects:
        stem = f"{folder}/sub-{subject}/anat/sub-{subject}_label-lesion_mask"
        touch(root, f"sub-{subject}/anat/sub-{subject}_T2w.nii.gz", f"{stem}.nii.gz")
        (root / f"{stem}.json").write_text(json.dumps({"Type": "Lesion", **said}))
    (root / folder / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "MeshNet"}]}')


@pytest.mark.parametrize("said", [{"ManuallyDrawn": False}, {}])
def test_masks_of_a_model_are_no_truth_beside_drawn_ones(tmp_path, said):
    """By the JSON file of a mask, or by the description of its data set."""
    predicted(tmp_path, 1, 2, **said)
    listing = listed(tmp_path, "sub-1_label-lesion_mask.nii.gz")
    assert [case.mask for case in listing.cases] == [str(tmp_path / f"{FOLDER}sub-1_label-lesion_mask.nii.gz")]
    assert not listing.failed and sum("made by a model" in why for _, why in listing.left_out) == 2
    assert listing.notes[0].startswith("2 masks left out, made by a model of this program, such as sub-1_label")
    sub_2 = find_cases("bids", str(tmp_path), ["T2w"], Filters.parse(exclude=["sub=1"]))
    assert not sub_2.cases  # whether there are drawn ones is asked of the whole tree
    asked = find_cases("bids", str(tmp_path), ["T2w"], Filters(mask_pattern="derivatives/meshnet/*"))
    assert [case.subject for case in asked.cases] == ["1", "2"] and not asked.notes
    path = tmp_path / "derivatives/meshnet/sub-2/anat/sub-2_label-lesion_mask.json"
    path.write_text('{"ManuallyDrawn": true}')  # corrected by hand
    assert [case.subject for case in listed(tmp_path).cases] == ["1", "2"]


def test_masks_of_a_model_alone_are_taken_and_said(tmp_path):
    predicted(tmp_path, 1, ManuallyDrawn=False)
    listing = find_cases("bids", str(tmp_path), ["T2w"], Filters())
    assert len(listing.cases) == 1 and "every lesion mask (1) was made by a model" in listing.notes[0]


def test_a_mask_that_only_its_header_knows_as_a_models_is_none_beside_drawn_ones(tmp_path):
    """``infer.py ds -o ds/derivatives/x`` writes neither JSON files nor a description."""
    import nibabel as nib
    import numpy as np

    from meshnet.scans.ours import signed

    listed(tmp_path, "sub-1_label-lesion_mask.nii.gz")
    touch(tmp_path, "sub-2/anat/sub-2_T2w.nii.gz", "derivatives/x/sub-2_T2w_lesion.nii.gz")
    path = tmp_path / "derivatives/x/sub-2_T2w_lesion.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), path)
    assert [case.subject for case in listed(tmp_path).cases] == ["1", "2"]
    nib.save(signed(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))), path)
    assert [case.subject for case in listed(tmp_path).cases] == ["1"]

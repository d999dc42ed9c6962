"""The folders of challenges: Decathlon, KiTS and nnU-Net."""

import json
from pathlib import Path

import numpy as np
import pytest
from trees import names, touch, write_nifti

from meshnet.data.sources.case import Filters
from meshnet.data.sources.find import find_cases, load_case
from meshnet.errors import UserError


def decathlon(root: Path, modality, training) -> None:
    labels = {"0": "background", "1": "oedema", "2": "core"}
    description = {"modality": modality, "labels": labels, "training": training, "test": ["./imagesTs/c.nii.gz"]}
    (root / "dataset.json").write_text(json.dumps(description))


def test_decathlon_channels_lie_on_the_last_axis(tmp_path):
    data = write_nifti(tmp_path / "imagesTr/BRATS_1.nii.gz", channels=3)
    mask = write_nifti(tmp_path / "labelsTr/BRATS_1.nii.gz", mask=True)
    training = [{"image": "./imagesTr/BRATS_1.nii.gz", "label": "./labelsTr/BRATS_1.nii.gz"}]
    decathlon(tmp_path, {"0": "FLAIR", "1": "T1w", "2": "T2w"}, training)
    listing = find_cases("msd", str(tmp_path), [], Filters())
    assert names(listing) == ["BRATS_1"] and listing.channels == ["FLAIR", "T1w", "T2w"]
    assert listing.classes == ["oedema", "core"] and "test scan" in listing.left_out[0][1]
    loaded = load_case(listing.cases[0], 3)
    assert all((np.asarray(im.dataobj) == data[..., i]).all() for i, im in enumerate(loaded.images))
    assert (np.asarray(loaded.mask.dataobj) == mask).all()
    chosen = find_cases("msd", str(tmp_path / "dataset.json"), ["T2w", "FLAIR"], Filters())
    loaded = load_case(chosen.cases[0], 2)
    assert (np.asarray(loaded.images[0].dataobj) == data[..., 2]).all() and chosen.channels == ["T2w", "FLAIR"]
    with pytest.raises(UserError, match="--suffix: found 'T3'"):
        find_cases("msd", str(tmp_path), ["T3"], Filters())
    decathlon(tmp_path, {"0": "FLAIR", "1": "T1w"}, training)
    with pytest.raises(UserError, match=r"found 3 channel\(s\) on its last axis, expected 2"):
        load_case(find_cases("msd", str(tmp_path), [], Filters()).cases[0], 2)
    decathlon(tmp_path, {"0": "CT"}, training)  # one channel is declared, so a 4D file is refused
    with pytest.raises(UserError, match="found 4D data"):
        load_case(find_cases("msd", str(tmp_path), [], Filters()).cases[0], 1)


def test_kits_folders(tmp_path):
    touch(tmp_path, *(f"data/case_{i:05d}/{n}.nii.gz" for i in (0, 2) for n in ("imaging", "segmentation")),
          "data/case_00001/imaging.nii.gz")
    listing = find_cases("kits", str(tmp_path), [], Filters.parse(exclude=["case=case_00002"]))
    assert names(listing) == ["case_00000"] and listing.channels == ["CT"]
    assert sorted(why for _, why in listing.left_out) == ["--exclude case=case_00002", "no segmentation.nii.gz"]
    with pytest.raises(UserError, match="no case_"):
        find_cases("kits", str(tmp_path / "data/case_00000"), [], Filters())


def test_nnunet_channels_are_files(tmp_path):
    touch(tmp_path, *(f"imagesTr/sub-{s}_x_{c:04d}.nii.gz" for s in "abc" for c in (0, 1)), "labelsTr/sub-a_x.nii.gz",
          "labelsTr/sub-b_x.nii.gz")
    (tmp_path / "imagesTr/sub-b_x_0001.nii.gz").unlink()
    description = {"channel_names": {"0": "T2w", "1": "FLAIR"}, "labels": {"background": 0, "lesion": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps({**description, "file_ending": ".nii.gz"}))
    listing = find_cases("nnunet", str(tmp_path), [], Filters())
    assert names(listing) == ["sub-a_x"] and listing.cases[0].subject == "a" and listing.classes == ["lesion"]
    assert [Path(p).name for p in listing.cases[0].images] == ["sub-a_x_0000.nii.gz", "sub-a_x_0001.nii.gz"]
    assert "sub-b_x_0001.nii.gz: no such file" in listing.failed[0][1]
    assert [Path(p).name for p, _ in listing.left_out] == ["sub-c_x_0000.nii.gz"]
    assert names(find_cases("nnunet", str(tmp_path), ["T2w"], Filters())) == ["sub-a_x", "sub-b_x"]
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"no dataset\.json"):
        find_cases("nnunet", str(tmp_path), [], Filters())


def described(root: Path, **more) -> Path:
    base = {"channel_names": {"0": "T2w"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps({**base, **more}), encoding="utf-8-sig")
    return root


def test_nnunet_cases_that_the_file_lists_may_lie_anywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("SCANS", str(tmp_path / "elsewhere"))
    touch(tmp_path, "elsewhere/x.nii.gz", "set/manual/a.nii.gz", "set/manual/b.nii.gz", "out/c.nii.gz")
    root = described(tmp_path / "set", numTraining=3, dataset={
        "a": {"images": ["$SCANS/x.nii.gz"], "label": "manual/a.nii.gz"},
        "b": {"images": ["../out/c.nii.gz"], "label": "manual\\b.nii.gz"},
        "c": {"images": [str(tmp_path / "gone.nii.gz")], "label": str(tmp_path / "out/c.nii.gz")}})
    listing = find_cases("nnunet", str(root), [], Filters())
    assert names(listing) == ["a", "b"] and Path(listing.cases[0].images[0]).samefile(tmp_path / "elsewhere/x.nii.gz")
    assert [why for _, why in listing.failed] == [f"{tmp_path}/gone.nii.gz: no such file"] and not listing.notes


def test_nnunet_takes_the_labels_that_its_list_names(tmp_path):
    touch(tmp_path, *(f"{f}/{c}.nii.gz" for f in ("labelsTr", "labelsTr2") for c in "ab"),
          *(f"imagesTr/{c}_0000.nii.gz" for c in "abc"))
    listed = [{"image": f"./imagesTr/{c}{end}.nii.gz", "label": f"./labelsTr2/{c}.nii.gz"}
              for c, end in (("a", ""), ("b", "_0000"))]
    listing = find_cases("nnunet", str(described(tmp_path, training=listed)), [], Filters())
    assert [(Path(c.images[0]).name, Path(c.mask).parent.name) for c in listing.cases] == [
        ("a_0000.nii.gz", "labelsTr2"), ("b_0000.nii.gz", "labelsTr2")]
    assert "lists 2 case(s), and 2 mask(s) of labelsTr are not among them and are left out" in listing.notes[0]
    assert {Path(p).name for p, why in listing.left_out if why == "dataset.json does not list it"} == {
        "a.nii.gz", "b.nii.gz", "c_0000.nii.gz"}


def test_the_number_of_cases_is_compared_with_what_the_file_says(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz")
    root = described(tmp_path, numTraining=3)
    assert "found 2 case(s), expected 3 as numTraining says" in find_cases("nnunet", str(root), [], Filters()).notes[0]
    root = described(tmp_path, numTraining=2)
    assert not find_cases("nnunet", str(root), [], Filters.parse(exclude=["case=a"])).notes


def test_a_scan_for_testing_is_not_trained_on(tmp_path):
    touch(tmp_path, *(f"{f}/{c}.nii.gz" for f in ("imagesTr", "labelsTr") for c in "ab"))
    listed = [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in "ab"]
    for test in ("./imagesTr/b.nii.gz", {"image": "imagesTr/b.nii.gz", "label": "x"}, {"image": ["imagesTr/b.nii.gz"]}):
        root = described(tmp_path, modality={"0": "T2w"}, training=listed, test=[test])
        for form in ("msd", "nnunet"):
            listing = find_cases(form, str(root), [], Filters())
            assert names(listing) == ["a"]
            assert "lists its scan for training and for testing; remove it from one" in listing.failed[0][1]


@pytest.mark.parametrize(("more", "fault"), [
    ({"dataset": ["a"]}, "'dataset': found a list, expected cases by their names"),
    ({"dataset": {"a": {"images": ["x"]}}}, "for a, expected"),
    ({"dataset": {"a": {"images": ["x", "y"], "label": "z"}}}, r"found 2 image\(s\) for a, expected 1"),
    ({"dataset": {"a": {"images": [3], "label": "z"}}}, "found '3' in dataset, expected the path of a file"),
    ({"training": ["a"]}, "expected a list 'training' of image and label pairs"),
    ({"test": [None]}, "found 'None' in test"),
    ({"training": [{"image": "a\0b", "label": "c"}]}, "in training, expected the path"),
    ({"file_ending": ".mha"}, "found file_ending '.mha'"),
])
def test_a_description_of_another_form_is_refused(tmp_path, more, fault):
    with pytest.raises(UserError, match=fault):
        find_cases("nnunet", str(described(tmp_path, **more)), [], Filters())


def test_a_name_that_no_file_can_have_fails_alone(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    listed = [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in ("a", "b" * 300)]
    listing = find_cases("nnunet", str(described(tmp_path, training=listed)), [], Filters())
    assert names(listing) == ["a"] and "no such file" in listing.failed[0][1]
    with pytest.raises(UserError, match="no such file or folder"):
        find_cases("nnunet", str(tmp_path / ("x" * 300)), [], Filters())


def test_patterns_choose_among_the_cases_of_a_challenge(tmp_path):
    touch(tmp_path, *(f"imagesTr/{c}_0000.nii.gz" for c in "abc"), *(f"labelsTr/{c}.nii.gz" for c in "abc"))
    filters = Filters.parse(image_pattern="[ab]_0000*", mask_pattern="labelsTr/[bc].*")
    listing = find_cases("nnunet", str(described(tmp_path)), [], filters)
    assert names(listing) == ["b"] and {why for _, why in listing.left_out} == {
        "--image_pattern [ab]_0000*", "--mask_pattern labelsTr/[bc].*"}


def test_names_of_the_values_are_read_for_what_they_say(tmp_path):
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    described(tmp_path, labels={"lesion": 0, "background": 1})
    with pytest.raises(UserError, match="found 'lesion' for the value 0 in labels, expected the background"):
        find_cases("nnunet", str(tmp_path), [], Filters())
    described(tmp_path, labels={"background": 0, "lesion": 1, "ignore": 2})
    listing = find_cases("nnunet", str(tmp_path), [], Filters())
    assert listing.classes is None and "has the value 2 to be ignored" in listing.notes[0]

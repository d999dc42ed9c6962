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

"""Every source lists the right pairs, says why others are left out, and reads what it listed."""

import gzip
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meshnet.data.labels import class_names, parse_labels
from meshnet.data.sources.case import Case, Filters
from meshnet.data.sources.find import find_cases, load_case
from meshnet.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_nifti(path: Path, seed=0, mask=False, shape=(8, 9, 10), channels=None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    data = rng.random((*shape, channels) if channels else shape).astype(np.float32)
    if mask:
        data = (data > 0.7).astype(np.uint8)
    image = nib.Nifti1Image(data, np.diag([2.0, 2, 3, 1]))
    image.set_sform(image.affine, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return data


def names(listing) -> list[str]:
    return [c.case for c in listing.cases]


# ---- BIDS ---------------------------------------------------------------------------------------------------------


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
    assert any("run-6_T2w" in p and "no lesion mask chose it" in why for p, why in listing.left_out)


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
    assert not listing.cases and (str(tmp_path / MASK), "no T2w scan agrees with it") in listing.left_out


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
        "2 masks match the same scan; use --include or --exclude"
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


def test_filters_of_another_form_are_refused():
    with pytest.raises(UserError, match="expected ENTITY=VALUE"):
        Filters.parse(["acq"])
    parsed = Filters.parse(exclude=["run=1,2", "run=3"])
    assert parsed.exclude == {"run": frozenset("123")}
    assert parsed.rejects({"run": "3"}) == "--exclude run=3" and parsed.rejects({"run": "4"}) is None


# ---- challenge folders --------------------------------------------------------------------------------------------


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


# ---- table --------------------------------------------------------------------------------------------------------


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


# ---- Hub ----------------------------------------------------------------------------------------------------------


def nifti_bytes(seed, mask=False, shape=(6, 7, 8)) -> bytes:
    rng = np.random.default_rng(seed)
    data = (rng.random(shape) > 0.7).astype(np.uint8) if mask else rng.random(shape).astype(np.float32)
    image = nib.Nifti1Image(data, np.eye(4))
    image.set_sform(image.affine, 1)
    return gzip.compress(image.to_bytes())


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """Rows as the Hub copy of ARC has them: scans in lists, few masks, other scalar columns."""
    from datasets import Dataset, Features, List, Nifti, Value

    root = tmp_path_factory.mktemp("hub")
    text, nifti = Value("string"), Nifti(decode=False)
    columns = {"subject": text, "session": text, "t2w_acquisition": text, "t2w": List(nifti), "lesion": nifti}
    rows = []
    for i in range(6):
        scans = [nifti_bytes(i)] + ([nifti_bytes(9, shape=(5, 5, 5))] if i == 2 else [])
        scans += [nifti_bytes(8)] if i == 5 else []
        rows.append({
            "subject": f"s{i}", "session": "1", "t2w_acquisition": ["space", "tse"][i % 2],
            "t2w": [] if i == 3 else [{"bytes": b, "path": None} for b in scans],
            "lesion": None if i == 1 else {"bytes": nifti_bytes(i, mask=True), "path": None},
        })
    rows[4]["lesion"] = {"bytes": b"", "path": None}
    data = Dataset.from_list(rows, features=Features(columns))
    data.save_to_disk(root / "disk")
    data.to_parquet(root / "parquet/train-0.parquet", batch_size=2)
    return root


@pytest.mark.parametrize("form", ["disk", "parquet"])
def test_hub_rows_with_a_mask_are_cases(hub, form):
    listing = find_cases("hub", str(hub / form), ["T2w"], Filters())
    assert [c.subject for c in listing.cases] == ["s0", "s2", "s4", "s5"] and listing.groups == ["t2w_acquisition"]
    assert sorted(why for _, why in listing.left_out) == ["no lesion", "no t2w"]
    for case, seed in zip(listing.cases[:2], (0, 2)):  # the second has two scans, one of them on the mask's grid
        loaded = load_case(case, 1)
        expected = nib.Nifti1Image.from_bytes(gzip.decompress(nifti_bytes(seed)))
        assert (np.asarray(loaded.images[0].dataobj) == np.asarray(expected.dataobj)).all()
        assert loaded.mask.shape == (6, 7, 8)
    for case, fault in zip(listing.cases[2:], ("neither bytes nor a path", "2 scans, 2 of them on the mask's grid")):
        with pytest.raises(UserError, match=fault):
            load_case(case, 1)
    kept = find_cases("hub", str(hub / form), ["T2w"], Filters.parse(exclude=["t2w_acquisition=tse"]))
    assert [c.subject for c in kept.cases] == ["s0", "s2", "s4"]
    with pytest.raises(UserError, match=r"expected --suffix \(flair\)"):
        find_cases("hub", str(hub / form), ["FLAIR"], Filters())


def test_listing_a_hub_dataset_reads_no_volume(hub, monkeypatch):
    import pyarrow.parquet as pq

    asked, read = [], pq.ParquetFile.read

    def watched(self, columns):
        asked.extend(columns)
        return read(self, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read", watched)
    find_cases("hub", str(hub / "parquet"), ["T2w"], Filters())
    assert asked and not [c for c in asked if c.endswith("bytes")]


# ---- synthetic, labels --------------------------------------------------------------------------------------------


def test_synthetic_seeds_never_share_a_case():
    def listed(seed):
        return find_cases("synthetic", None, [], Filters(), cases=50, voxel_mm=4.0, seed=seed, preset="demo")

    assert len(listed(0).cases) == 50 and not set(names(listed(0))) & set(names(listed(1)))
    with pytest.raises(UserError, match="--cases 0"):
        find_cases("synthetic", None, [], Filters(), cases=0, voxel_mm=4.0, seed=0, preset="demo")


def test_the_number_of_channels_is_checked(tmp_path):
    write_nifti(tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "m.nii.gz", mask=True)
    case = Case("a", "a", (str(tmp_path / "a.nii.gz"),), str(tmp_path / "m.nii.gz"))
    with pytest.raises(UserError, match=r"found 1 channel\(s\), expected 2"):
        load_case(case, 2)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (None, None),
        (["1,2,3"], {1: 1, 2: 1, 3: 1}),
        (["1", "2"], {1: 1, 2: 2}),
        (["1,2=2", "4=1"], {1: 2, 2: 2, 4: 1}),
    ],
)
def test_labels(items, expected):
    assert parse_labels(items) == expected


@pytest.mark.parametrize("items", [["1", "1"], ["1=2"], ["a"], ["1=1", "2"], ["0"], ["1,"], ["1=x"]])
def test_wrong_labels_are_one_line(items):
    with pytest.raises(UserError, match="--labels"):
        parse_labels(items)


def test_names_of_classes():
    assert class_names(None, None, ["kidney", "tumour"]) == ["background", "lesion"]
    assert class_names({1: 1, 2: 2}, None, ["kidney", "tumour"]) == ["background", "kidney", "tumour"]
    assert class_names({1: 1, 2: 1, 3: 2}, None, ["a", "b", "c"]) == ["background", "class_1", "class_2"]
    assert class_names({2: 1}, ["core"], None) == ["background", "core"]
    with pytest.raises(UserError, match="--classes"):
        class_names({1: 1, 2: 2}, ["x"], None)
    with pytest.raises(UserError, match="--classes"):
        class_names(None, ["background"], None)

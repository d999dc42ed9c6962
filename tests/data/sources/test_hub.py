"""Data sets of the Hub: rows with a mask are cases, and listing them reads no volume."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from meshnet.data.sources.case import Filters
from meshnet.data.sources.find import find_cases, load_case
from meshnet.errors import UserError


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


def test_the_column_of_the_masks_is_named_and_can_be_chosen(hub):
    listing = find_cases("hub", str(hub / "disk"), ["T2w"], Filters())
    assert list(listing.guesses) == ["the mask is the column lesion (--mask_pattern says it otherwise), the patient "
                                     "the column subject (--subject says it otherwise)"]
    chosen = find_cases("hub", str(hub / "disk"), ["T2w"], Filters.parse(mask_pattern="t2?"))
    assert chosen.cases[0].mask.endswith("/t2w")
    for pattern, found in (("q*", "none"), ("t2w*", "t2w_acquisition, t2w")):
        with pytest.raises(UserError, match=rf"--mask_pattern .*: found {found} of the columns subject"):
            find_cases("hub", str(hub / "disk"), ["T2w"], Filters.parse(mask_pattern=pattern))


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    """The client's own errors are no OSError."""
    import httpx2
    from huggingface_hub import HfFileSystem

    def glob(*_, **__):
        raise httpx2.ConnectError("no name")

    monkeypatch.setattr(HfFileSystem, "glob", glob)
    with pytest.raises(UserError, match=r"^user/name: no local path; as a Hub dataset: the connection to"):
        find_cases("hub", "user/name", ["T2w"], Filters())

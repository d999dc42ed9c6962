"""Reading prepared cases: as stored, in boxes, and scaled."""

import numpy as np
import pytest

from meshnet.data import schema
from meshnet.data.reader import PreparedData, as_input
from meshnet.errors import UserError


def test_reads_what_is_stored_and_can_be_written_to(tiny_cases):
    table, _ = schema.load_dataset(tiny_cases.path)
    for index in (0, len(tiny_cases) - 1):
        for column in ("image", "mask", "mask_native"):
            stored = schema.volume(table, index, column)
            found = tiny_cases.read(index, column)
            assert np.array_equal(found, stored) and found.dtype == stored.dtype
            found += 1  # a copy: the file stays as it was
            assert np.array_equal(tiny_cases.read(index, column), stored)
    assert tiny_cases.image(0).max() <= 1 and tiny_cases.image(0).dtype == np.float32


def test_a_box_is_that_part(tiny_cases):
    box = [3, 20, 1, 30, 8, 9]
    assert np.array_equal(tiny_cases.read(1, "image", box), tiny_cases.read(1, "image")[:, 3:20, 1:30, 8:9])
    assert np.array_equal(tiny_cases.read(1, "mask", box), tiny_cases.read(1, "mask")[3:20, 1:30, 8:9])


@pytest.mark.parametrize("multiple", [1, 8, 32])
def test_the_training_box_holds_every_head(tiny_cases, multiple):
    box = tiny_cases.box(multiple)
    for index, row in enumerate(tiny_cases.rows):
        assert all(low >= start and high <= end for start, end, low, high in
                   zip(box[::2], box[1::2], row["head_box"][::2], row["head_box"][1::2]))
        assert tiny_cases.read(index, "mask", box).sum() == tiny_cases.read(index, "mask").sum()
    sizes = [end - start for start, end in zip(box[::2], box[1::2])]
    assert not any(size % multiple for size in sizes)
    assert min(box[::2]) >= 0 and all(end <= size for end, size in zip(box[1::2], tiny_cases.info["shape"]))


def test_uint8_becomes_zero_to_one():
    assert as_input(np.array([0, 255], np.uint8)).tolist() == [0.0, 1.0]
    assert as_input(np.array([0.25], np.float32)).tolist() == [0.25]


@pytest.mark.parametrize(("key", "value"), [
    ("voxel_mm", "seven"), ("voxel_mm", -8), ("shape", [32, 32]), ("channels", []), ("classes", "lesion"),
    ("box", [0, 1, 0, 1, 0, None])])
def test_values_that_an_editor_left_are_refused(tiny_cases, key, value):
    prepared = schema.load_prepared(tiny_cases.path)
    schema.check_values(prepared, tiny_cases.path)
    with pytest.raises(UserError, match=f"found {key} .*, which prepare.py does not write; run it again"):
        schema.check_values(prepared | {key: value}, tiny_cases.path)


def test_which_channels_are_of_the_scan():
    data = object.__new__(PreparedData)
    data.info = {"channels": ["T2w", "FLAIR"]}
    assert data.inputs == ["T2w", "FLAIR"] and data.of_scan is None
    data.info |= {"first": ["lesion"]}
    assert data.of_scan == [True, True, False]
    data.info["mirror"] = True
    assert data.inputs == ["T2w", "FLAIR", "lesion", "T2w, mirrored", "FLAIR, mirrored", "lesion, mirrored"]
    assert data.of_scan == [True, True, False, True, True, False]

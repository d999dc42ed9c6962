"""Scans and masks as files: what is read, what is refused in one line, and what is written."""

import contextlib
import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from small import affine_of, array, image_of

from meshnet.errors import UserError
from meshnet.scans.nifti import (
    check_image,
    image_from_bytes,
    image_like,
    mask_classes,
    read_image,
    same_grid,
    save_like,
    split_channels,
)


def test_save_like_keeps_the_scans_header(tmp_path):
    like = image_of(np.ones((5, 6, 7)), affine_of((1, 1, 3), (0.2, 0.1, 0)), np.int16)
    like.set_sform(like.affine, 4)
    like.set_qform(like.affine, 2)
    like.header.set_xyzt_units("mm", "sec")
    like.header["cal_max"] = 900
    labels = np.random.default_rng(0).integers(0, 3, (5, 6, 7))
    for values, dtype in ((labels, np.uint8), (labels / 2, np.float32)):
        save_like(values, like, tmp_path / "out.nii.gz")
        out = nib.load(tmp_path / "out.nii.gz")
        assert out.get_data_dtype() == dtype and out.shape == like.shape and out.header["cal_max"] == 0
        np.testing.assert_array_equal(out.affine, like.affine)
        for field in ("sform_code", "qform_code", "xyzt_units"):
            assert out.header[field] == like.header[field]
        np.testing.assert_array_equal(np.asanyarray(out.dataobj), values.astype(dtype))
    assert [p.name for p in tmp_path.iterdir()] == ["out.nii.gz"]
    with pytest.raises(ValueError, match="does not fit"):
        save_like(labels[1:], like, tmp_path / "bad.nii.gz")


def bad_files(folder):
    """(name, a fault) → path; every file that read_image has to refuse."""
    good = image_of(np.random.default_rng(0).random((8, 9, 10)) + 1, affine_of((1, 1, 2)), np.float32)
    content = good.to_bytes()
    packed = gzip.compress(content)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF

    def changed(**fields):
        copy = nib.Nifti1Image.from_bytes(content)
        for name, value in fields.items():
            copy.header[name] = value
        header = copy.header.binaryblock
        return gzip.compress(header + content[len(header) :])

    def filled(value):
        data = np.array(good.dataobj)
        data[3, 3, 3] = value
        return gzip.compress(image_of(data, good.affine).to_bytes())

    files = {
        "truncated": (packed[: len(packed) // 2], "truncated"),
        "damaged": (bytes(damaged), "damaged"),
        "short": (gzip.compress(content[: len(content) // 2]), "truncated"),
        "text": (gzip.compress(b"not a scan" * 100), "no NIfTI"),
        "empty": (b"", "an empty file"),
        "no_affine": (changed(sform_code=0, qform_code=0), "codes|sform_code"),
        "singular": (changed(srow_y=[0, 0, 0, 0]), "singular"),
        "nan_affine": (changed(srow_y=[np.nan, 0, 0, 0]), "singular"),
        "nan": (filled(np.nan), "NaN"),
        "inf": (filled(np.inf), "infinite"),
        "zero": (gzip.compress(image_of(np.zeros((4, 4, 4)), dtype=np.float32).to_bytes()), "zero"),
        "volumes": (gzip.compress(image_of(np.ones((4, 4, 4, 3)), dtype=np.float32).to_bytes()), "4D"),
        "flat": (gzip.compress(image_of(np.ones((4, 4)), dtype=np.float32).to_bytes()), "2D"),
    }
    for name, (stored, fault) in files.items():
        path = folder / f"{name}.nii.gz"
        path.write_bytes(stored)
        yield path, stored, fault


def test_every_bad_file_is_one_line_that_names_it(tmp_path):
    for path, content, fault in bad_files(tmp_path):
        with pytest.raises(UserError, match=fault) as caught:
            read_image(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value), path
        with pytest.raises(UserError):
            image_from_bytes(content, "row 3")
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / "absent.nii.gz")


def test_a_file_of_another_format_is_refused(tmp_path):
    nib.save(nib.MGHImage(np.ones((4, 4, 4), np.float32), np.eye(4)), tmp_path / "scan.mgz")
    with pytest.raises(UserError, match="no NIfTI"):
        read_image(tmp_path / "scan.mgz")


def test_reading_keeps_values_types_and_codes(tmp_path):
    data = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = image_of(data, affine_of((1, 2, 3)))
    image.set_sform(image.affine, 3)
    nib.save(image, tmp_path / "a.nii.gz")
    read = read_image(tmp_path / "a.nii.gz")
    assert array(read).dtype == np.int16 and (array(read) == data).all() and read.header["sform_code"] == 3
    image.header.set_slope_inter(0.5, -3)
    image.header["vox_offset"] = 352
    path = tmp_path / "b.nii"
    path.write_bytes(image.header.binaryblock + b"\0" * 4 + data.tobytes("F"))
    read = read_image(path)
    np.testing.assert_allclose(array(read), data * 0.5 - 3)
    assert (array(image_from_bytes(gzip.compress(path.read_bytes()), "x")) == array(read)).all()
    nib.save(nib.Nifti2Image(data, image.affine), tmp_path / "c.nii.gz")
    assert (array(image_from_bytes((tmp_path / "c.nii.gz").read_bytes(), "x")) == data).all()


def test_declared_channels_are_split_and_single_volumes_squeezed(tmp_path):
    data = np.random.default_rng(0).random((4, 5, 6, 2)).astype(np.float32)
    nib.save(image_of(data), tmp_path / "two.nii.gz")
    parts = split_channels(read_image(tmp_path / "two.nii.gz", channels=True))
    assert len(parts) == 2
    assert all((array(p) == data[..., i]).all() and p.shape == (4, 5, 6) for i, p in enumerate(parts))
    nib.save(image_of(data[..., :1]), tmp_path / "one.nii.gz")
    assert read_image(tmp_path / "one.nii.gz").shape == (4, 5, 6)


@pytest.mark.parametrize(("slope", "expected"), [(0.017, 1), (1e-40, 1), (3.0, 1), (float("nan"), 1), (-0.5, None)])
def test_a_mask_is_what_is_above_zero_whatever_its_scl_slope(tmp_path, slope, expected):
    data = np.zeros((4, 4, 4), np.uint8)
    data[1:3, 1:3, 1:3] = 1
    image = image_of(data)
    header = image.header.copy()
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, 0, 352
    path = tmp_path / "mask.nii"
    path.write_bytes(header.binaryblock + b"\0" * 4 + data.tobytes("F"))
    if expected is None:
        with pytest.raises(UserError, match=r"^mask: found the values -0.5, expected 0 and one other above 0; say"):
            mask_classes(read_image(path, "mask"))
        return
    classes = mask_classes(read_image(path, "mask"))
    assert classes.dtype == np.uint8 and (classes == data * expected).all()


def test_values_below_zero_are_no_background_without_a_word():
    """As 255 becomes in int8; interpolation's small ones are nothing."""
    below = np.zeros((4, 4, 4), np.int8)
    below[1:3, 1:3, 1:3] = -1
    with pytest.raises(UserError, match="found the values -1, expected"):
        mask_classes(image_of(below))
    assert mask_classes(image_of(below), {-1: 1}).sum() == 8
    both = below.copy()
    both[0, 0, 0] = 1
    with pytest.raises(UserError, match="found the values -1, 1, expected"):
        mask_classes(image_of(both))
    assert mask_classes(image_of(np.where(below, 1.0, -1e-7))).sum() == 8


def test_an_affine_beyond_any_room_is_refused():
    for at, value in (((0, 3), 1e30), ((1, 1), 1e6), ((2, 3), -1e30)):
        affine = np.diag([1.0, 1, 1, 1])
        affine[at] = value
        with pytest.raises(UserError, match=r"^a\.nii: found .* mm in its affine, expected at most 100000"):
            check_image(image_of(np.ones((4, 4, 4)), affine), "a.nii")
    small = image_of(np.ones((64, 64, 64), np.uint8), np.diag([3e3, 3e3, 3e3, 1]))
    small.header.set_xyzt_units("micron")
    assert check_image(small, "a.nii").affine[0, 0] == pytest.approx(3)


def test_nibabels_own_lines_are_not_printed(tmp_path, capfd):
    image = image_of(np.ones((4, 4, 4), np.uint8))
    nib.save(image, tmp_path / "a.nii")
    whole = bytearray((tmp_path / "a.nii").read_bytes())
    whole[76:80] = np.array([7], "<f4").tobytes()  # pixdim[0]
    image_from_bytes(bytes(whole), "a.nii")
    assert capfd.readouterr().err == ""
    for offset in (210.0, 1e30, -5.0):
        whole[108:112] = np.array([offset], "<f4").tobytes()
        with contextlib.suppress(UserError):
            image_from_bytes(bytes(whole), "a.nii")
    assert capfd.readouterr().err == ""


def test_labels_merge_and_rename_values():
    mask = image_of(np.array([0, 1, 2, 3, 4] * 2).reshape(1, 2, 5), dtype=np.int16)
    with pytest.raises(UserError, match=r"m.nii: found the values 1, 2, 3, 4.*--labels"):
        mask_classes(mask, name="m.nii")
    assert mask_classes(mask, {1: 1, 2: 1, 4: 2}).ravel().tolist() == [0, 1, 1, 0, 2] * 2
    with pytest.raises(UserError, match="fractions"):
        mask_classes(image_of(np.full((2, 2, 2), 0.5)), {1: 1})
    assert mask_classes(image_of(np.array([0, 255] * 4).reshape(2, 2, 2))).sum() == 4


def test_of_a_soft_mask_the_upper_half_is_lesion():
    """Probabilities and interpolated outlines; their tails are no lesion."""
    assert mask_classes(image_of(np.array([0, 0.2, 0.7, 1]).reshape(1, 2, 2))).ravel().tolist() == [0, 0, 1, 1]
    assert mask_classes(image_of(np.array([0, 1e-7, 1, 1]).reshape(1, 2, 2))).ravel().tolist() == [0, 0, 1, 1]
    assert mask_classes(image_of(np.array([0, 63.75, 200.5, 255]).reshape(1, 2, 2))).ravel().tolist() == [0, 0, 1, 1]
    assert mask_classes(image_of(np.array([0, 0.017, 0.017, 0]).reshape(1, 2, 2))).sum() == 2  # a broken slope
    assert mask_classes(image_of(np.array([0, 1.0001, 0.9999, 0]).reshape(1, 2, 2))).sum() == 2  # rounding
    assert mask_classes(image_of(np.array([0, 1.0001, 1.9999, 3]).reshape(1, 2, 2)), {2: 1}).sum() == 1


def test_sizes_in_another_declared_unit_are_read_in_it(tmp_path):
    affine = np.diag([0.004, 0.004, 0.004, 1])
    image = image_of(np.arange(125_000).reshape(50, 50, 50), affine)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii.gz")
    read = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(read.affine, np.diag([4, 4, 4, 1]), atol=1e-5)
    made = image_like(np.zeros((50, 50, 50), np.uint8), read)
    assert made.header.get_xyzt_units()[0] == "meter" and made.header["pixdim"][1] == image.header["pixdim"][1]
    np.testing.assert_allclose(made.affine, affine, atol=1e-9)
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "b.nii.gz")
    with pytest.raises(UserError, match=r"b\.nii\.gz: found an extent of .* mm, .* declares the unit micrometre"):
        read_image(tmp_path / "b.nii.gz")


def test_a_mask_has_nothing_of_its_scan_but_the_grid():
    like = image_of(np.ones((3, 4, 5)))
    like.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of a patient"))
    like.header["descrip"], like.header["aux_file"], like.header["db_name"] = b"name", b"colours", b"name"
    like.header["intent_code"], like.header["intent_name"], like.header["cal_max"] = 3, b"test", 9
    header = image_like(np.zeros((3, 4, 5), np.uint8), like).header
    assert not header.extensions
    for field in ("descrip", "aux_file", "db_name", "intent_code", "intent_name", "cal_max"):
        assert header[field].item() in (0, b""), field


def test_same_grid_allows_rounding_and_nothing_more():
    scan = image_of(np.ones((50, 60, 20)), affine_of((1, 1, 4), (0.1, 0, 0)))
    nudged = scan.affine.copy()
    nudged[0, 3] += 0.05
    moved = scan.affine.copy()
    moved[0, 3] += 0.5
    assert same_grid(scan, image_of(np.ones((50, 60, 20)), nudged))
    assert not same_grid(scan, image_of(np.ones((50, 60, 20)), moved))
    assert not same_grid(scan, image_of(np.ones((50, 60, 21)), scan.affine))


@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 1)])
def test_an_axis_may_have_one_voxel(tmp_path, shape):
    data = np.arange(1, np.prod(shape) + 1, dtype=np.int16).reshape(shape)
    nib.save(image_of(data), tmp_path / "a.nii.gz")
    assert (array(read_image(tmp_path / "a.nii.gz")) == data).all()


def test_voxels_begin_after_the_header_where_no_offset_is_given(tmp_path):
    nib.save(image_of(np.arange(125_000).reshape(50, 50, 50)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = bytes(4)
    assert (array(image_from_bytes(bytes(content), "a.nii")) == np.arange(125_000).reshape(50, 50, 50)).all()


@pytest.mark.parametrize("factor", [1e300, 1e-42])
def test_values_that_float32_cannot_hold_are_refused(factor):
    with pytest.raises(UserError, match="expected ones that float32 can hold"):
        image_from_bytes(image_of(np.arange(1.0, 28).reshape(3, 3, 3) * factor).to_bytes(), "a.nii")


def test_masks_of_several_fractions_below_a_half_are_no_lesion_without_a_word():
    """Probabilities that end below a half, or labels times a slope."""
    rng = np.random.default_rng(0)
    for values in (rng.uniform(0.05, 0.4, (4, 4, 4)), rng.integers(1, 4, (4, 4, 4)) * 0.1):
        with pytest.raises(UserError, match=r"found the values 0.*expected 0 and one other above 0"):
            mask_classes(image_of(values))
    assert mask_classes(image_of(np.where(rng.random((4, 4, 4)) < 0.5, 0.3, 0))).any()  # a broken slope


def test_what_stands_for_a_file_is_named():
    for content, words in ((b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
                           (b"/annex/objects/MD5E-s1--a.nii.gz\n", "pointer of git-annex"),
                           (b"\n<!DOCTYPE html><html>", "page of the web")):
        with pytest.raises(UserError, match=f"^a.nii.gz: found a {words}"):
            image_from_bytes(content, "a.nii.gz")


def test_a_scan_smaller_than_a_millimetre_is_refused():
    with pytest.raises(UserError, match=r"found an extent of 0.256 mm, expected a head; if the header holds metres"):
        check_image(image_of(np.ones((256, 200, 150), np.uint8), np.diag([0.001, 0.001, 0.001, 1])), "a.nii")


def test_what_stands_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "gone.nii").symlink_to(tmp_path / "nowhere.nii")
    (tmp_path / "empty.nii").touch()
    os.mkfifo(tmp_path / "pipe.nii")
    for name, words in (("folder", "is a folder"), ("gone", "is a link to a file that is not there"),
                        ("empty", "found an empty file"),
                        ("pipe", r"is no file that can be read twice \(a pipe or a device\)"),
                        ("none", "no such file")):
        with pytest.raises(UserError, match=rf"{name}\.nii: {words}, expected a NIfTI scan"):
            read_image(tmp_path / f"{name}.nii")


def test_a_file_that_was_gzipped_twice_is_read():
    image = image_of(np.arange(1, 28).reshape(3, 3, 3))
    twice = gzip.compress(gzip.compress(image.to_bytes()))
    assert (array(image_from_bytes(twice, "a.nii.gz")) == array(image)).all()
    with pytest.raises(UserError, match="found no NIfTI"):
        image_from_bytes(gzip.compress(twice), "a.nii.gz")


def test_a_soft_mask_whose_tails_are_a_thousandth():
    soft = np.zeros((4, 4, 4), np.float32)
    soft[0], soft[1] = 0.001, 1
    assert mask_classes(image_of(soft)).sum() == 16

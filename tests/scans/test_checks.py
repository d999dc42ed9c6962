"""What is asked of a scan: its header, extent, channels, grey values, and its lesion before and after conforming."""

import nibabel as nib
import numpy as np
import pytest
from small import array, image_of

from meshnet.errors import UserError
from meshnet.scans.checks import (
    check_channels,
    content_remarks,
    extent_remarks,
    fitted,
    grey_remarks,
    header_remarks,
    mask_remarks,
    place_remarks,
    values_remarks,
    volume_remarks,
)
from meshnet.scans.grid import Grid, conform, conform_mask
from meshnet.scans.intensity import as_input
from meshnet.scans.mask import box_of
from meshnet.scans.nifti import image_from_bytes


def head(shape=(50, 60, 48), seed=0) -> np.ndarray:
    data = np.zeros(shape, np.float32)
    data[6:-6, 6:-6, 6:-6] = np.random.default_rng(seed).uniform(200, 400, [n - 12 for n in shape])
    return data


def of_4_mm(data, affine=None) -> nib.Nifti1Image:
    return image_of(data, np.diag([4.0, 4, 4, 1]) if affine is None else affine)


def test_a_sound_scan_draws_no_remark():
    scan = of_4_mm(head())
    grid, remarks = fitted(Grid(4.0), scan, "a.nii")
    volume = as_input(np.asarray(conform(scan, grid, exact=False).dataobj))[None]
    assert grid == Grid(4.0) and not remarks and not header_remarks(scan) and not extent_remarks(scan, 4.0)
    assert not check_channels(volume, ["T2w"], "a.nii") and not grey_remarks(volume[0], None, "T2w")


def test_a_header_that_contradicts_itself_is_said():
    scan = of_4_mm(head())
    scan.header["pixdim"][1:4] = 1
    assert "contradicts itself: voxels of 1 x 1 x 1 mm by pixdim and 4 x 4 x 4 mm" in header_remarks(scan)[0]
    scan = of_4_mm(head())
    scan.set_qform(np.diag([-4.0, 4, 4, 1]), 1)
    scan.set_sform(np.diag([4.0, 4, 4, 1]), 1)
    assert "axes LAS by qform and RAS by sform" in header_remarks(scan)[0]
    scan.set_qform(None, 0)  # only one of them is used
    scan.header["pixdim"][1:4] = 4
    assert not header_remarks(scan)


@pytest.mark.parametrize(("shape", "sizes", "voxel_mm", "words"), [
    ((50, 60, 12), (4, 4, 4), 4, "less than a head along one axis"), ((256, 256, 4), (1, 1, 30), 1, "only 4 slices"),
    ((256, 256, 30), (0.9, 0.9, 5), 1, "slices of 5.0 mm are thick for a model with voxels of 1 mm"),
    ((256, 256, 30), (0.9, 0.9, 5), 4, None), ((50, 60, 48), (4, 4, 4), 1, None)])
def test_the_extent_and_the_slices(shape, sizes, voxel_mm, words):
    found = extent_remarks(image_of(np.ones(shape, np.uint8), np.diag([*sizes, 1.0])), voxel_mm)
    assert (words is None and not found) or words in found[0]


def test_a_grid_that_fits_keeps_the_places_of_its_voxels():
    scan = of_4_mm(head((50, 50, 100)))
    grid, (remark,) = fitted(Grid(4.0), scan, "a.nii")
    assert grid.size[1] >= 88 and grid.size[0] == grid.size[2] == 64 and "the grid was enlarged" in remark
    small, large = (conform(scan, each, exact=False) for each in (Grid(4.0), grid))
    more = (grid.size[1] - 64) // 2
    assert (np.asarray(large.dataobj)[:, more:-more] == np.asarray(small.dataobj)).all()
    air = head((50, 50, 100))
    air[:, :, :20] = air[:, :, 80:] = 0
    assert fitted(Grid(4.0), of_4_mm(air), "a.nii") == (Grid(4.0), [])  # what does not fit is air
    with pytest.raises(UserError, match=r"^a\.nii: measures .* mm by its affine, expected a head"):
        fitted(Grid(4.0), of_4_mm(head(), np.diag([40.0, 40, 40, 1])), "a.nii")


def test_channels_overlap_the_first_one():
    first = np.zeros((20, 20, 20), np.float32)
    first[4:16, 4:16, 4:16] = 0.5
    half, corner = np.zeros_like(first), np.zeros_like(first)
    half[4:10, 4:16, 4:16] = 0.5
    corner[14:20, 14:20, 14:20] = 0.5
    names = ["FLAIR", "T2w"]
    assert not check_channels(np.stack([first, first * 0.9]), names, "a.nii")
    assert "T2w covers only 50 % of channel FLAIR" in check_channels(np.stack([first, half]), names, "a.nii")[0]
    for other, words in ((corner, "T2w covers 0 % of channel FLAIR"), (first * 0, "T2w is empty on the model's grid")):
        with pytest.raises(UserError, match=f"^a.nii: channel {words}"):
            check_channels(np.stack([first, other]), names, "a.nii")


@pytest.mark.parametrize("scaling", ["conform_uint8", "minmax"])
def test_a_handful_of_extreme_voxels_does_not_take_the_grey_levels(scaling):
    plain, odd = head(), head()
    odd[20, 20, 20:23] = -32768
    odd[25, 25, 25] = 32767
    expected = as_input(np.asarray(conform(of_4_mm(plain), Grid(4.0), scaling, exact=False).dataobj))
    conformed = conform(of_4_mm(odd), Grid(4.0), scaling, exact=False)
    found = as_input(np.asarray(conformed.dataobj))
    assert np.median(np.abs(found - expected)[expected > 0]) < 0.02
    assert "a few voxels from -32768" in grey_remarks(found, conformed.extra["extremes"], "T2w")[0]
    exact = as_input(np.asarray(conform(of_4_mm(odd), Grid(4.0), scaling).dataobj))  # as mri_convert
    assert np.quantile(exact[expected > 0], 0.99) - np.quantile(exact[expected > 0], 0.01) < 0.02


def test_few_grey_levels_are_said():
    flat = np.where(head() > 0, 100 + np.random.default_rng(0).uniform(0, 2, (50, 60, 48)), 0)
    flat[25, 25, 20:30] = 900  # too many to be called extreme, too few for the histogram's top
    volume = np.clip(flat / 900, 0, 1).astype(np.float32)
    assert "of 256 grey levels" in grey_remarks(volume, None, "CT")[0]


def test_a_lesion_is_compared_before_and_after():
    mask = np.zeros((50, 50, 100), np.uint8)
    mask[20:30, 20:30, 90:97] = 1
    scan = of_4_mm(np.ones(mask.shape))
    with pytest.raises(UserError, match=r"^m\.nii: .* mL of the lesion lie outside the grid of 64 x 64 x 64 voxels"):
        mask_remarks(of_4_mm(mask), conform_mask(of_4_mm(mask), Grid(4.0), reference=scan, exact=False), None, "m.nii")
    dot = np.zeros((64, 64, 64), np.uint8)
    dot[31, 31, 31] = 1
    fine = image_of(dot, np.eye(4))
    found = mask_remarks(fine, conform_mask(fine, Grid(16.0), exact=False), None, "m.nii")
    assert found and ("no voxel left" in found[0] or "mL on the grid" in found[0])
    whole = np.zeros((50, 50, 48), np.uint8)
    whole[10:30, 10:30, 10:30] = 1
    assert not mask_remarks(of_4_mm(whole), conform_mask(of_4_mm(whole), Grid(4.0), exact=False), None, "m.nii")


def test_a_qform_that_is_no_rotation_is_said(tmp_path):
    nib.save(of_4_mm(head()), tmp_path / "a.nii")
    whole = (tmp_path / "a.nii").read_bytes()
    for at, value, words in ((80, np.nan, "contradicts itself"), (256, np.nan, "qform is no rotation"),
                             (256, 5.0, "qform is no rotation")):
        broken = bytearray(whole)
        broken[at:at + 4] = np.array([value], "<f4").tobytes()
        assert any(words in line for line in header_remarks(image_from_bytes(bytes(broken), "a.nii"))), (at, value)


def test_extreme_voxels_are_clipped_before_they_are_mixed_with_others():
    plain = head()
    spikes = np.random.default_rng(1).random(plain.shape) < 0.0004
    found = [np.asarray(conform(of_4_mm(np.where(spikes, value, plain)), Grid(8.0), exact=False).dataobj).astype(float)
             for value in (plain.max(), 32767)]
    assert np.abs(found[1] - found[0]).max() <= 3


@pytest.mark.parametrize("at", [20, 21, 22, 23])
@pytest.mark.parametrize("scaling", ["conform_uint8", "minmax", "quantile"])
def test_a_bright_slice_or_block_does_not_take_the_grey_levels_wherever_it_lies(scaling, at):
    """Also where the head is a small part of the volume, and with the file's axes in another order."""
    plain = np.pad(head(), ((0, 30), (0, 0), (0, 30)))
    for where in (np.s_[:, at], np.s_[at:at + 12, at:at + 8, at:at + 4]):
        odd = plain.copy()
        odd[where] *= 100
        scans = [of_4_mm(plain), of_4_mm(odd), of_4_mm(odd).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))]
        grid = Grid(4.0, (96, 64, 96), centre="middle")
        whole, one, turned = (conform(scan, grid, scaling, exact=False) for scan in scans)
        assert np.array_equal(array(one), array(turned))
        expected, found = (as_input(array(image)) for image in (whole, one))
        assert np.median(np.abs(found - expected)[expected > 0]) < 0.03
        remarks = grey_remarks(found, one.extra["extremes"], "T2w")
        words = "of the voxels (a bright slice, padding?) from 0 to " if where[0] == slice(None) else " from 0 to "
        assert len(remarks) == 1 and words in remarks[0]


def test_what_lies_far_outside_around_the_scan_is_clipped_and_said():
    """Padding of -32768, as a program for registration writes it."""
    odd = np.pad(head() - 100, 8, constant_values=-32768)
    conformed = conform(of_4_mm(odd), Grid(4.0), exact=False)
    inside = as_input(array(conformed))[array(conformed) > 0]
    assert np.quantile(inside, 0.99) - np.quantile(inside, 0.01) > 0.3
    assert "from -32768 to" in grey_remarks(array(conformed), conformed.extra["extremes"], "CT")[0]


@pytest.mark.parametrize("kind", ["vessels", "fluid", "padded", "noise in air", "CT with metal"])
def test_bright_things_of_healthy_heads_are_no_extremes(kind):
    rng, data = np.random.default_rng(0), head()
    if kind == "vessels":  # of an angiography: a hundredth of the head, six times as bright
        data[(rng.random(data.shape) < 0.01) & (data > 0)] = 2000
    elif kind == "fluid":
        data[20:30, 20:30, 20:30] = 1500
    elif kind == "padded":
        data = np.pad(data, 60)
    elif kind == "noise in air":
        data = np.pad(data, 40) + np.abs(rng.normal(0, 5, [n + 80 for n in data.shape])).astype(np.float32)
    else:
        data = np.where(data > 0, data, -1024)
        data[10, 10, 10:14] = 3071
    conformed = conform(of_4_mm(data), Grid(4.0), exact=False)
    assert not grey_remarks(array(conformed), conformed.extra["extremes"], "T2w")


def test_a_mask_for_a_scan_and_a_mask_beyond_any_lesion_are_asked_about():
    assert values_remarks(of_4_mm((head() > 0).astype(np.uint8)), "T2w") == [
        "T2w: holds no values but 0 and 1; is it a mask and not a scan?"]
    few = np.zeros((40, 40, 40), np.uint8)
    few[1, 1, 1], few[2, 2, 2] = 1, 2  # none of them on the voxels that are looked at first
    assert not values_remarks(of_4_mm(few), "T2w") and not values_remarks(of_4_mm(head()), "T2w")
    assert "the mask holds 3436 mL, more than a lesion can" in volume_remarks(3436.0)[0] and not volume_remarks(600.0)
    with pytest.raises(UserError, match=r"^a\.nii: T2w has the same value everywhere"):
        check_channels([np.full((8, 8, 8), 7, np.uint8)], ["T2w"], "a.nii")
    flat = [np.full((8, 8, 8), 7, np.uint8)]
    with pytest.raises(UserError, match=r"^a\.nii: T2w holds no values but 0 and 1, and has the same .* is it a mask"):
        check_channels(flat, ["T2w"], "a.nii", of_4_mm((head() > 0).astype(np.uint8)))
    with pytest.raises(UserError, match=r"^a\.nii: T2w has the same value everywhere"):
        check_channels(flat, ["T2w"], "a.nii", of_4_mm(head()))


def test_forms_of_one_code_are_asked_to_agree():
    scan = of_4_mm(head())
    moved = scan.affine.copy()
    moved[0, 3] += 30
    scan.set_qform(moved, 1)
    assert "qform and sform are 30 mm apart, both of code 1" in header_remarks(scan)[0]
    scan.set_sform(scan.affine, 4)  # a template's space: no contradiction
    assert not header_remarks(scan)
    scan.set_qform(scan.affine, 4)
    assert not header_remarks(scan)


def test_a_slab_padded_to_a_head_is_said():
    data = head()
    data[:, :, :18] = data[:, :, 28:] = 0
    scan = of_4_mm(data)
    volume = np.asarray(conform(scan, Grid(4.0), exact=False).dataobj)
    assert "what the scan holds measures" in content_remarks(volume, scan, 4.0)[0]
    assert not content_remarks(volume, of_4_mm(data[:, :, 18:28]), 4.0)  # said of the scan itself
    sound = np.asarray(conform(of_4_mm(head()), Grid(4.0), exact=False).dataobj)
    assert not content_remarks(sound, of_4_mm(head()), 4.0)


def test_a_slab_that_takes_the_grey_levels_is_said_however_large():
    data = head()
    data[:, :, :6], data[20:30, 20:30, 20:30] = 60000, 900
    volume = as_input(np.asarray(conform(of_4_mm(data), Grid(4.0), exact=False).dataobj))
    assert "next to nothing lies between" in grey_remarks(volume, None, "T2w")[0]


def test_one_file_given_as_two_channels_is_asked_about():
    volume = as_input(np.asarray(conform(of_4_mm(head()), Grid(4.0), exact=False).dataobj))
    assert check_channels([volume, volume.copy()], ["a", "b"], "a.nii") == [
        "channels a and b are the same; was one file given twice?"]
    assert not check_channels([volume, volume * np.float32(0.9)], ["a", "b"], "a.nii")


def test_a_lesion_beside_the_head_is_asked_about():
    volume = head()
    classes = np.zeros(volume.shape, np.uint8)
    classes[:6, 20:30, 20:30] = 1
    found = place_remarks(classes, box_of(classes), volume)
    assert "only 0% of the lesion lies where the scan is not empty" in found[0]
    classes[6:14, 20:30, 20:30] = 1
    assert not place_remarks(classes, box_of(classes), volume) and not place_remarks(classes * 0, None, volume)

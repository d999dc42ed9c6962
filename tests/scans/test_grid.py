"""The grid that scans are conformed to, and the way back, against mri_convert and nibabel."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import ORIENTATIONS, affine_of, array, image_of

from meshnet.errors import UserError
from meshnet.networks.card import Card
from meshnet.scans.grid import Grid, conform, conform_mask, target_affine, to_native
from meshnet.scans.nifti import read_image


def dice(a, b) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_conform_agrees_with_the_reference_on_an_oblique_thick_scan(shared_data):
    reference = nib.load(shared_data / "conform/flair_conformed_reference.nii.gz")
    ours = conform(read_image(shared_data / "conform/flair_oblique_thick.nii.gz"))
    expected = array(reference).astype(int)
    difference = np.abs(array(ours).astype(int) - expected)
    assert difference.max() <= 3
    assert (difference[expected > 0] <= 1).mean() >= 0.99
    np.testing.assert_allclose(ours.affine, reference.affine, atol=1e-4)
    assert array(ours).dtype == np.uint8 and nib.aff2axcodes(ours.affine) == tuple("LIA")


def test_conform_leaves_a_conformed_scan_as_it_is(shared_data):
    scan = read_image(shared_data / "t2_stroke/M2265_T2w.nii.gz")
    again = conform(scan)
    assert (array(again) == array(scan)).all()
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-4)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.5, 4), st.sampled_from(ORIENTATIONS), st.floats(-1, 1))
@settings(max_examples=40, deadline=None)
def test_target_grid_is_axis_aligned_and_centred_on_the_scan(n, target_n, voxel_mm, orientation, angle):
    scan = image_of(np.ones((n, 7, 9)), affine_of((1, 2, 3), (angle, 0, angle / 2), (5, -80, 33)))
    grid = Grid(voxel_mm, (target_n, 20, 31), orientation)
    affine = target_affine(scan, grid)
    np.testing.assert_allclose(
        affine @ [target_n / 2, 10, 15.5, 1], scan.affine @ [n / 2, 3.5, 4.5, 1], atol=1e-5
    )
    assert nib.aff2axcodes(affine) == tuple(orientation)
    assert np.count_nonzero(affine[:3, :3]) == 3


@pytest.mark.parametrize("shape", [(9, 12, 7), (8, 8, 8)])
@pytest.mark.parametrize("voxel_mm", [1.0, 2.5])
def test_turning_a_file_moves_nothing_when_middle_lies_on_middle(shape, voxel_mm):
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    image = image_of(values, affine_of((1, 2, 1.5), (0.3, 0, 0.1), (5, -8, 3)))
    grid, other = Grid(voxel_mm, (10, 11, 12), centre="middle"), Grid(voxel_mm, (10, 11, 12))
    expected = conform(image, grid, "window", (0, 1))
    middle = expected.affine @ [*(np.array(grid.size) - 1) / 2, 1]
    np.testing.assert_allclose(middle, image.affine @ [*(np.array(shape) - 1) / 2, 1], atol=1e-5)
    moved = 0
    for code in ORIENTATIONS:
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(code))
        turned = image.as_reoriented(turn)
        found = conform(turned, grid, "window", (0, 1))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
        assert (array(found) == array(expected)).all()
        moved += not np.allclose(target_affine(turned, other), target_affine(image, other))
    assert moved > 20, "mri_convert's centre moves as a file is turned"


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, 0, 0.1)], ids=["aligned", "oblique"])
@pytest.mark.parametrize("grid", [
    Grid(2.0, (14, 15, 16), centre="middle", averaged=True, offset=0.5), Grid(1.0, (28, 30, 31), centre="middle"),
    Grid(4.0, (7, 7, 7), centre="middle", averaged=True), Grid(1.3, (20, 20, 20), "PSR", centre="middle"),
], ids=["shifted", "fine", "averaged", "between"])
def test_a_turned_file_is_conformed_to_the_same_bits(grid, angles):
    """Whole numbers, whose means lie on rounding edges, and affines that went through a file's float32."""
    rng = np.random.default_rng(0)
    image = image_of(rng.integers(0, 200, (27, 25, 29)), affine_of((1, 2, 1.1), angles, (5.1, -80.7, 33.3)), np.uint8)
    expected = array(conform(image, grid))
    for code in ORIENTATIONS:
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(code))
        turned = nib.Nifti1Image.from_bytes(image.as_reoriented(turn).to_bytes())
        assert (array(conform(turned, grid)) == expected).all(), code


def test_a_second_channel_is_placed_by_its_affine_on_the_first_ones_grid():
    first = image_of(np.ones((20, 20, 20)), affine_of((1, 1, 1)))
    data = np.zeros((10, 10, 10), np.float32)
    data[5, 5, 5] = 1
    second = image_of(data, affine_of((1, 1, 1), origin=(2, 3, 4)))
    out = array(conform(second, Grid(1, (20, 20, 20), "RAS"), "minmax", reference=first))
    assert np.argwhere(out > 0.5).tolist() == [[7, 8, 9]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grid(0),
        lambda: Grid(1, (10, 0, 10)),
        lambda: Grid(1, None, "LLA"),
        lambda: Grid(1, None, "LIX"),
        lambda: Grid(1, None, "LIA", "corner"),
        lambda: Grid(1, None, "LIA", "n/2", "yes"),
        lambda: Card(["T1w"], ["background", "lesion"], shifted="yes").grids(),
        lambda: conform(image_of(np.ones((2, 2, 2, 2)))),
        lambda: conform(image_of(np.ones((2, 2, 2))), scaling="zscore"),
        lambda: conform(image_of(np.ones((2, 2, 2))), scaling="window"),
        lambda: conform(image_of(np.ones((2, 2, 2))), scaling="window", window=(3, 1)),
        lambda: conform(image_of(np.ones((2, 2, 2))), window=(0, 1)),
    ],
)
def test_wrong_settings_are_the_users_mistake(make):
    with pytest.raises(UserError, match="expected"):
        make()


@given(
    st.tuples(*[st.integers(3, 20)] * 3), st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS),
    st.integers(22, 25), st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_a_mask_of_the_same_voxel_size_comes_back_identical(shape, own, target, n, seed):
    """Odd against even sizes put the grids half a voxel apart, where every voxel is a tie."""
    codes = nib.orientations.axcodes2ornt(own)
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(codes):
        affine[int(world), axis] = sign
    affine[:, 3] = 3.25, -7, 11, 1
    mask = image_of(np.random.default_rng(seed).random(shape) > 0.5, affine, np.uint8)
    conformed = conform_mask(mask, Grid(1, (n, n, n), target))
    back = to_native(array(conformed), conformed.affine, mask)
    assert back.dtype == np.uint8 and (back == array(mask)).all()


def test_masks_of_three_patients_come_back_identical(shared_data):
    for folder in sorted((shared_data / "ms").iterdir()):
        mask = read_image(folder / "lesion_mask.nii.gz", "mask")
        conformed = conform_mask(mask)
        assert (to_native(array(conformed), conformed.affine, mask) == (array(mask) > 0)).all()


def check_lesions(paths) -> None:
    checked = 0
    for path in paths:
        mask = read_image(path, "mask")
        lesion = array(mask) > 0
        if np.count_nonzero(lesion) < 1000:
            continue
        conformed = conform_mask(mask)
        assert dice(to_native(array(conformed), conformed.affine, mask) > 0, lesion) >= 0.97, path.name
        checked += 1
    assert checked >= len(paths) // 2


def test_a_sample_of_real_lesions_comes_back(shared_data):
    check_lesions(sorted((shared_data / "lesions_mni").glob("*.nii.gz"))[::60])


@pytest.mark.slow
def test_all_real_lesions_come_back(shared_data):
    check_lesions(sorted((shared_data / "lesions_mni").glob("*.nii.gz")))


@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, -0.2, 0.1)], ids=["aligned", "oblique"])
def test_probabilities_come_back_by_linear_interpolation(angles):
    """A field that is linear in millimetres is reproduced exactly, so any slip in the affines shows."""
    like = image_of(np.ones((12, 14, 10)), affine_of((1.2, 0.9, 2), angles, (3, -4, 5)))
    grid = Grid(1.5, (30, 30, 30))
    affine = target_affine(like, grid)

    def field(shape, to_mm):
        index = np.stack([*np.indices(shape), np.ones(shape)])
        return np.tensordot([0.01, 0.02, -0.03, 0.5], np.tensordot(to_mm, index, 1), 1).astype(np.float32)

    conformed = field(grid.size, affine)
    both = to_native(np.stack([conformed, 1 - conformed]), affine, like)
    assert both.shape == (2, 12, 14, 10) and both.dtype == np.float32
    np.testing.assert_allclose(both[0], field(like.shape, like.affine), atol=1e-5)
    np.testing.assert_allclose(both.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(to_native(conformed, affine, like), both[0])


def test_what_lies_outside_the_conformed_grid_is_zero():
    like = image_of(np.ones((30, 30, 30)))
    affine = target_affine(like, Grid(1, (10, 10, 10), "RAS"))
    for block in (np.ones((10, 10, 10), np.uint8), np.ones((10, 10, 10), np.float32)):
        back = to_native(block, affine, like)
        assert back.sum() == 1000 and (back[10:20, 10:20, 10:20] == 1).all()


@given(st.integers(2, 24), st.floats(0.7, 7), st.floats(0.8, 8), st.sampled_from(("LIA", "RAS", "PSR")), st.booleans(),
       st.floats(0, 0.3))
@settings(max_examples=60, deadline=None)
def test_scan_mask_and_way_back_agree_at_every_face(slices, spacing_mm, voxel_mm, orientation, averaged, angle):
    """A lesion through every slice of any thickness is there in every slice again, at every face."""
    scan = image_of(np.full((13, 12, slices), 200.0), affine_of((4, 4, spacing_mm), (angle, 0, 0)))
    size = [int(np.ceil(1.5 * max(52, spacing_mm * slices) / voxel_mm)) + 4] * 3
    grid = Grid(voxel_mm, tuple(size), orientation, averaged=averaged)
    image = array(conform(scan, grid, "window", (0, 200), exact=False))
    mask = conform_mask(image_of(np.ones(scan.shape), scan.affine), grid, reference=scan, exact=False)
    apart = (image > 0.5) != (array(mask) > 0)  # only on the edge, where a thousandth of a voxel decides
    assert apart.sum() <= 0.01 * image.size and (image[image > 0.5] > 0.99).all()
    back = to_native(image.astype(np.float32), mask.affine, scan, seen_only=True)
    assert back.min() > 0.5

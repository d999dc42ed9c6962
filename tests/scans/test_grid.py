"""Geometry against references: mri_convert's conform, nibabel's resampling, and the way there and back."""

import gzip
import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnet.errors import UserError
from meshnet.networks.card import DEFAULTS
from meshnet.scans.grid import Grid, conform, conform_mask, target_affine, to_native
from meshnet.scans.head import head_box
from meshnet.scans.intensity import intensity_range
from meshnet.scans.nifti import image_from_bytes, mask_classes, read_image, same_grid, save_like, split_channels
from meshnet.scans.resample import resample

ORIENTATIONS = ["".join(c) for axes in itertools.permutations(("LR", "AP", "IS")) for c in itertools.product(*axes)]


def image_of(data, affine=None, dtype=None) -> nib.Nifti1Image:
    data = np.asarray(data, dtype)
    data = data.astype(np.int32) if data.dtype == np.int64 else data
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    return image


def rotation(x, y, z) -> np.ndarray:
    def about(axis, angle):
        c, s = np.cos(angle), np.sin(angle)
        matrix = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        return matrix

    return about(0, x) @ about(1, y) @ about(2, z)


def affine_of(voxel_mm, angles=(0, 0, 0), origin=(0, 0, 0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles) @ np.diag(voxel_mm)
    affine[:3, 3] = origin
    return affine


def array(image) -> np.ndarray:
    return np.asarray(image.dataobj)


def dice(a, b) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


# ---- conform ------------------------------------------------------------------------------------------------------


def test_conform_agrees_with_the_reference_on_an_oblique_thick_scan(shared_data):
    reference = nib.load(shared_data / "conform/flair_conformed_reference.nii.gz")
    ours = conform(read_image(shared_data / "conform/flair_oblique_thick.nii.gz"))
    expected = array(reference).astype(int)
    difference = np.abs(array(ours).astype(int) - expected)
    assert difference.max() <= 3
    assert (difference[expected > 0] <= 1).mean() >= 0.99
    np.testing.assert_allclose(ours.affine, reference.affine, atol=1e-4)
    assert array(ours).dtype == np.uint8 and nib.aff2axcodes(ours.affine) == tuple("LIA")


def test_brainchops_quantiles_are_those_of_the_sorted_conformed_voxels():
    """Its 5 % and 95 % of all voxels go to 0 and 1; values outside stay. A volume of one value is no division by 0."""
    rng = np.random.default_rng(0)
    scan = image_of(rng.gamma(2.0, 40.0, (20, 17, 23)) * (rng.random((20, 17, 23)) < 0.7))
    grid = Grid(1.0, (24, 24, 24))
    plain, scaled = (array(conform(scan, grid, kind)).astype(float) for kind in ("conform_uint8", "brainchop_quantile"))
    ordered = np.sort(plain, axis=None)
    low, high = ordered[int(0.05 * plain.size)], ordered[int(np.ceil(0.95 * plain.size)) - 1]
    np.testing.assert_allclose(scaled, (plain - low) / (high - low), atol=1e-6)
    assert scaled.max() > 1 and array(conform(scan, grid, "brainchop_quantile")).dtype == np.float32
    assert np.isfinite(array(conform(image_of(np.ones((3, 3, 3))), grid, "brainchop_quantile"))).all()
    with pytest.raises(UserError, match="window"):
        conform(scan, grid, "brainchop_quantile", (0, 1))


def test_conform_leaves_a_conformed_scan_as_it_is(shared_data):
    scan = read_image(shared_data / "t2_stroke/M2265_T2w.nii.gz")
    again = conform(scan)
    assert (array(again) == array(scan)).all()
    np.testing.assert_allclose(again.affine, scan.affine, atol=1e-4)


@pytest.mark.parametrize(
    "affine",
    [
        affine_of((1, 1, 1), origin=(-7, 3, 5)),
        affine_of((-1, 1, 1), origin=(4.5, 0, 0)),
        affine_of((0.45, 0.45, 5), origin=(10, -20, 30)),
        affine_of((2.5, 1.1, 0.9), (np.pi / 2, 0, np.pi), origin=(1, 2, 3)),
        affine_of((0.8, 0.9, 3), (0.2, -0.1, 0.4), origin=(1, 2, 3)),
    ],
    ids=["same", "mirrored", "thick", "turned", "oblique"],
)
@pytest.mark.parametrize("orientation", ["LIA", "RAS", "PSR"])
def test_conform_interpolates_as_nibabel_on_the_target_grid(affine, orientation):
    from nibabel.processing import resample_from_to

    data = np.random.default_rng(0).random((21, 24, 11)).astype(np.float32) + 1
    scan = image_of(data, affine)
    grid = Grid(1.3, (25, 30, 28), orientation)
    ours = conform(scan, grid, scaling="window", window=(0, 2))
    expected = array(resample_from_to(scan, (grid.size, target_affine(scan, grid)), order=1, cval=0)) / 2
    assert nib.aff2axcodes(ours.affine) == tuple(orientation)
    # Points on the very edge of the scan may fall on either side of it.
    assert (np.abs(array(ours) - expected) > 1e-4).mean() < 1e-3
    assert (array(ours) > 0).mean() > 0.05


@pytest.mark.parametrize(("spacing", "angles"), [
    ((1, 1, 1), (0, 0, 0)), ((-0.6, 1.9, 5), (0, 0, 0)), ((1, 0.9, 3), (0.2, -0.1, 0.4))
], ids=["blocks", "thick", "oblique"])
def test_an_averaged_voxel_is_the_mean_of_samples_spread_over_it(spacing, angles, monkeypatch):
    data = np.random.default_rng(0).random((25, 22, 19)).astype(np.float32)
    scan = image_of(data, affine_of(spacing, angles, origin=(3, -4, 5)))
    grid = Grid(4.0, (7, 5, 9), averaged=True)
    affine = target_affine(scan, grid)
    # Every sample by hand: four on an axis of 4 mm over 1 mm, two over 1.9 mm, one over 5 mm.
    along = np.linalg.norm((np.linalg.inv(scan.affine) @ affine)[:3, :3], axis=0)
    counts = [int(np.clip(np.rint(n), 1, 4)) for n in along]
    if angles == (0, 0, 0):
        assert sorted(counts) == ([4, 4, 4] if spacing[0] == 1 else [1, 2, 4])
    expected = np.zeros(grid.size)
    for sample in np.ndindex(*counts):
        shift = np.eye(4)
        shift[:3, 3] = [(s + 0.5) / n - 0.5 for s, n in zip(sample, counts)]
        expected += resample(data, np.linalg.inv(scan.affine) @ affine @ shift, grid.size, 1) / np.prod(counts)
    found = array(conform(scan, grid, "window", (0, 1)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - array(conform(scan, replace(grid, averaged=False), "window", (0, 1)))).max() > 0.1
    monkeypatch.setattr("meshnet.scans.resample.SAMPLES", 5000)  # a few planes at once
    np.testing.assert_allclose(array(conform(scan, grid, "window", (0, 1))), found, atol=1e-6)


def test_averaging_changes_nothing_where_voxels_are_not_larger_than_the_scans():
    scan = image_of(np.random.default_rng(0).random((9, 8, 7)), affine_of((2, 1.5, 3), (0.1, 0, 0.2)))
    for voxel_mm in (1.0, 2.0):
        one, other = (array(conform(scan, Grid(voxel_mm, (12, 13, 14), averaged=on))) for on in (False, True))
        assert (one == other).all()


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


def test_uint8_scaling_crops_a_thousandth_of_the_non_zero_voxels():
    # 10,000 different values above zero, as many zeros: the top ten of the values may be clipped.
    data = np.concatenate([np.zeros(10_000), np.arange(1, 10_001)]).reshape(20, 20, 50).astype(np.float32)
    low, high = intensity_range(data, "conform_uint8")
    assert low == 0 and 9_970 <= high <= 9_990
    scaled = array(conform(image_of(data), Grid(1, (20, 20, 50), "RAS")))
    np.testing.assert_array_equal(scaled, np.rint(np.minimum(data * np.float32(255 / high), 255)).astype(np.uint8))


def test_uint8_data_keep_their_values():
    data = np.random.default_rng(1).integers(0, 99, (10, 12, 14)).astype(np.uint8)
    assert (array(conform(image_of(data), Grid(1, (10, 12, 14), "RAS"))) == data).all()


def test_space_outside_the_scan_is_zero_even_where_values_are_negative():
    ct = np.random.default_rng(2).integers(-1000, 1000, (8, 8, 8)).astype(np.int16)
    for scaling, window in (("conform_uint8", None), ("minmax", None), ("quantile", None), ("window", (-20.5, 80))):
        out = array(conform(image_of(ct), Grid(1, (16, 16, 16), "RAS"), scaling, window))
        inside = out[4:12, 4:12, 4:12]
        assert inside.max() == (255 if scaling == "conform_uint8" else 1) and inside.min() == 0
        assert out.sum(dtype=float) == inside.sum(dtype=float)


def test_scalings_have_their_own_ranges():
    data = np.concatenate([np.zeros(500), np.linspace(1, 1000, 500)]).reshape(10, 10, 10)
    assert intensity_range(data, "minmax") == (0, 1000)
    assert intensity_range(data, "quantile") == pytest.approx((5.995, 995.005))
    window = array(conform(image_of(data), Grid(1, (10, 10, 10), "RAS"), "window", (100, 300)))
    np.testing.assert_allclose(window, np.clip((data - 100) / 200, 0, 1), atol=1e-6)
    assert window.dtype == np.float32


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
        lambda: Grid.views(DEFAULTS | {"shifted": "yes"}),
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


# ---- there and back -----------------------------------------------------------------------------------------------


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


# ---- files --------------------------------------------------------------------------------------------------------


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
        "empty": (b"", "no NIfTI"),
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
    for path in (tmp_path / "absent.nii.gz", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            read_image(path)


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


# ---- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "expected"), [(0.017, 1), (1e-40, 1), (3.0, 1), (float("nan"), 1), (-0.5, 0)])
def test_a_mask_is_what_is_above_zero_whatever_its_scl_slope(tmp_path, slope, expected):
    data = np.zeros((4, 4, 4), np.uint8)
    data[1:3, 1:3, 1:3] = 1
    image = image_of(data)
    header = image.header.copy()
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, 0, 352
    path = tmp_path / "mask.nii"
    path.write_bytes(header.binaryblock + b"\0" * 4 + data.tobytes("F"))
    classes = mask_classes(read_image(path, "mask"))
    assert classes.dtype == np.uint8 and (classes == data * expected).all()


def test_labels_merge_and_rename_values():
    mask = image_of(np.array([0, 1, 2, 3, 4] * 2).reshape(1, 2, 5), dtype=np.int16)
    with pytest.raises(UserError, match=r"m.nii: found the values 1, 2, 3, 4.*--labels"):
        mask_classes(mask, name="m.nii")
    assert mask_classes(mask, {1: 1, 2: 1, 4: 2}).ravel().tolist() == [0, 1, 1, 0, 2] * 2
    with pytest.raises(UserError, match="fractions"):
        mask_classes(image_of(np.full((2, 2, 2), 0.5)), {1: 1})
    assert mask_classes(image_of(np.array([0, 255] * 4).reshape(2, 2, 2))).sum() == 4
    assert mask_classes(image_of(np.array([0, 0.2, 0.7, 1]).reshape(1, 2, 2))).sum() == 3


def test_same_grid_allows_rounding_and_nothing_more():
    scan = image_of(np.ones((50, 60, 20)), affine_of((1, 1, 4), (0.1, 0, 0)))
    nudged = scan.affine.copy()
    nudged[0, 3] += 0.05
    moved = scan.affine.copy()
    moved[0, 3] += 0.5
    assert same_grid(scan, image_of(np.ones((50, 60, 20)), nudged))
    assert not same_grid(scan, image_of(np.ones((50, 60, 20)), moved))
    assert not same_grid(scan, image_of(np.ones((50, 60, 21)), scan.affine))


# ---- head box -----------------------------------------------------------------------------------------------------


def test_head_box_holds_the_head_and_little_more():
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    x, y, z = np.indices((96, 96, 96))
    head = ((x - 50) / 25) ** 2 + ((y - 45) / 30) ** 2 + ((z - 48) / 20) ** 2 < 1
    haze = np.abs(gaussian_filter(rng.normal(0, 200, head.shape), 3))  # smooth, so that no opening removes it
    assert np.percentile(haze, 99) > 10
    volume = haze + head * (80 + 40 * rng.random(head.shape))
    volume[2, 2, 2] = 255  # a speck
    box = head_box(np.clip(volume, 0, 255).astype(np.uint8))
    for (low, high), (first, last) in zip(box, ((26, 75), (16, 75), (29, 68))):
        assert first - 6 <= low <= first and last <= high <= last + 7


def test_head_box_of_nothing_is_the_volume():
    assert head_box(np.zeros((20, 30, 40), np.uint8)) == ((0, 20), (0, 30), (0, 40))


def test_head_boxes_of_real_heads(shared_data):
    for path in ("t2_stroke/M2265_T2w.nii.gz", "brainchop/t1_256.nii.gz", "ms/sub-07/FLAIR.nii.gz"):
        volume = array(conform(read_image(shared_data / path)))
        box = head_box(volume)
        share = np.prod([high - low for low, high in box]) / volume.size
        assert 0.15 < share < 0.5, path
        bright = volume > 100
        assert bright.sum() == bright[tuple(slice(*b) for b in box)].sum(), path

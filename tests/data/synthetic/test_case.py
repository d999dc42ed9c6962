"""Synthetic cases: one seed one patient at every voxel size, and info that says what was drawn."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from meshnet.data.synthetic import __main__, case
from meshnet.errors import UserError


def arrays(*arguments, **options):
    image, mask, info = case.make_case(*arguments, **options)
    return np.asarray(image.dataobj), np.asarray(mask.dataobj), info


def test_one_seed_one_case():
    first, again, other = (arrays(seed, 4.0) for seed in (11, 11, 12))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1]) and first[2] == again[2]
    assert not np.array_equal(first[0], other[0])


def test_case_is_a_lia_scan_with_its_mask():
    image, mask, info = case.make_case(3, 4.0, preset="demo")
    assert image.shape == mask.shape == (64, 64, 64)
    assert image.get_data_dtype() == np.float32 and mask.get_data_dtype() == np.uint8
    assert nib.aff2axcodes(image.affine) == ("L", "I", "A")
    np.testing.assert_array_equal(image.affine, mask.affine)
    np.testing.assert_allclose(image.affine @ [32, 32, 32, 1], [0, 0, 0, 1], atol=4.001)
    values = np.asarray(mask.dataobj)
    assert set(np.unique(values)) == {0, 1}
    assert info["lesion_ml"] == pytest.approx(values.sum() * 0.064)
    assert 10 < info["lesion_ml"] < 200


def test_one_patient_at_every_voxel_size():
    """The noise-free head is the same: volumes agree, and the 2 mm scan averaged to 4 mm resembles the 4 mm one."""
    quiet = {"preset": "demo", "smallest_mm3": 40_000.0}
    fine, fine_mask, fine_info = arrays(21, 2.0, **quiet)
    coarse, coarse_mask, coarse_info = arrays(21, 4.0, **quiet)
    assert fine_info["lesion_ml"] == pytest.approx(coarse_info["lesion_ml"], rel=0.08)
    centre = [np.argwhere(m).mean(0) * s for m, s in ((fine_mask, 2), (coarse_mask, 4))]
    assert np.linalg.norm(centre[0] - centre[1]) < 4
    average = ndimage.zoom(ndimage.uniform_filter(fine, 2), 0.5, order=1)
    inside = coarse > np.quantile(coarse, 0.8)
    assert np.corrcoef(average[inside], coarse[inside])[0, 1] > 0.6


def test_healthy_and_extracted_are_obeyed():
    _, mask, info = arrays(5, 4.0, healthy=1.0)
    assert not mask.any() and info["lesion_ml"] == 0 and info["lesions"] == 0
    whole, bare = (arrays(5, 4.0, preset="demo", extracted=share)[0] for share in (0.0, 1.0))
    level = 0.25 * np.quantile(whole, 0.99)
    assert (bare > level).sum() < 0.75 * (whole > level).sum()


def test_no_single_threshold_finds_demo_lesions():
    """Fluid and fat are as bright as the lesions, so that a network has something to learn."""
    thresholds = np.linspace(0.3, 1, 36)
    scores = []
    for seed in range(1000, 1010):
        image, mask, _ = arrays(seed, 4.0, preset="demo")
        image = image / np.quantile(image[image > 0], 0.999)
        truth = mask > 0
        marked = [image > threshold for threshold in thresholds]
        scores.append([2 * (m & truth).sum() / (m.sum() + truth.sum()) for m in marked])
    assert np.mean(scores, axis=0).max() < 0.3


def test_fluid_in_the_mask_changes_neither_scan_nor_lesion():
    plain, both = arrays(6, 4.0, preset="bright"), arrays(6, 4.0, preset="bright_fluid")
    assert np.array_equal(plain[0], both[0]) and np.array_equal(plain[1] == 1, both[1] == 1)
    assert plain[1].max() == 1 and plain[2]["lesion_ml"] == both[2]["lesion_ml"] > 0
    fluid = (both[1] == 2).sum() * 0.064
    assert 50 < fluid < 900  # ventricles, sulci and cisterns, mL
    assert both[2]["contrast"] == "T2w"  # where fluid is brighter than the rest of the head
    assert both[0][both[1] == 2].mean() > 1.5 * both[0][(both[1] == 0) & (both[0] > 0.1 * both[0].max())].mean()


def test_lesion_level_stands_out_from_white_matter():
    for contrast, sign in (("T2w", 1), ("FLAIR", 1), ("DWI", 1), ("T1w", -1)):
        for seed in range(5):
            means = case.draw_means(np.random.default_rng(seed), contrast, acute=True)
            assert sign * (means["rim"] - means["white"]) > 0.05, (contrast, means)


@pytest.mark.parametrize("arguments, message", [
    ({"preset": "nothing"}, "preset"), ({"voxel_mm": 0.1}, "voxel_mm"), ({"colour": 1}, "colour")])
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        case.make_case(0, **{"voxel_mm": 4.0, **arguments})


def test_pictures_command(tmp_path):
    out = tmp_path / "cases.png"
    __main__.draw_cases(str(out), 2, 0, 4.0, "train")
    assert out.stat().st_size > 5000


@pytest.mark.parametrize("contrast, acute, low, high", [
    ("FLAIR", True, 1.3, 2.1), ("DWI", True, 1.6, 3.2), ("DWI", False, 1.1, 1.6)])
def test_a_lesions_level_is_so_many_times_that_of_grey_matter(contrast, acute, low, high):
    draws = [case.draw_means(np.random.default_rng(seed), contrast, acute) for seed in range(300)]
    times = np.array([means["rim"] / means["grey"] for means in draws])
    room = 0.05 * (high - low)
    assert low <= times.min() < low + room and high - room < times.max() <= high


@pytest.mark.parametrize("contrast, acute, low, high", [
    ("T2w", True, 0.35, 0.85), ("demo", True, 0.605, 0.755), ("T1w", True, 0.15, 0.65), ("T1w", False, 0.32, 0.72)])
def test_a_lesions_level_lies_between_grey_matter_and_fluid(contrast, acute, low, high):
    draws = [case.draw_means(np.random.default_rng(seed), contrast, acute) for seed in range(300)]
    share = np.array([(means["rim"] - means["grey"]) / (means["fluid"] - means["grey"]) for means in draws])
    room = 0.05 * (high - low)
    assert low - 1e-9 <= share.min() < low + room and high - room < share.max() <= high + 1e-9

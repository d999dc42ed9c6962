"""Heads from label maps and lesion masks of folders: what lies where, what the mask says, what is refused."""

import nibabel as nib
import numpy as np
import pytest

from meshnet.data.synthetic import labelled
from meshnet.data.synthetic.from_folders import make_labelled_case
from meshnet.data.synthetic.labelled import white_matter_disease
from meshnet.data.synthetic.labelmaps import BOX_MM, CODE, find_maps, load_map
from meshnet.data.synthetic.lesionmasks import draw_moved, load_mask
from meshnet.errors import UserError

PLAIN = {"artefacts": 0.0, "extracted": 0.0, "inverted": 0.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A head of ellipsoids at 3 mm: skin, bone, fluid, cortex, white matter, ventricle; and a lesion mask in MNI."""
    maps, masks = tmp_path_factory.mktemp("maps"), tmp_path_factory.mktemp("masks")
    x, y, z = np.ogrid[:64, :80, :72]
    away = np.sqrt(((x - 32) / 26) ** 2 + ((y - 40) / 32) ** 2 + ((z - 36) / 28) ** 2)
    labels = np.zeros(away.shape, np.int16)
    for below, label in ((1.25, 511), (1.15, 515), (1.05, 24), (1.0, 3), (0.85, 2), (0.25, 4)):
        labels[away < below] = label
    labels[32:][labels[32:] == 2] = 41
    nib.save(nib.Nifti1Image(labels, np.diag([3.0, 3, 3, 1])), maps / "one.nii.gz")
    mask = np.zeros((60, 60, 60), np.uint8)
    mask[20:28, 22:30, 30:38] = 1  # 8 voxels of 2 mm on each side: 4,096 mm³ around (-33, -18, 7) mm
    nib.save(nib.Nifti1Image(mask, np.array([[2, 0, 0, -80], [0, 2, 0, -69], [0, 0, 2, -60], [0, 0, 0, 1.0]])),
             masks / "lesion.nii.gz")
    return [str(path) for path in find_maps(maps)], [str(path) for path in find_maps(masks)]


def test_a_map_is_laid_on_the_template_and_its_labels_become_tissues(folders):
    found = load_map(folders[0][0])
    assert found.codes.max() < len(CODE) and (found.codes == CODE["white"]).any()
    # Just within each face of the brain's box there is brain, just beyond it none.
    middle = BOX_MM.mean(1)
    for axis in range(3):
        for side in (0, 1):
            at = [middle.copy(), middle.copy()]
            outward = 1 if side else -1
            at[0][axis], at[1][axis] = BOX_MM[axis, side] - 5 * outward, BOX_MM[axis, side] + 5 * outward
            inner, outer = found.at(np.array(at, np.float32).T)
            assert inner == CODE["cortex"] and outer != CODE["cortex"]
    assert found.at(np.array([[500.0], [0], [0]], np.float32)) == 0


def test_a_case_is_the_same_for_the_same_seed_and_its_mask_lies_in_the_brain(folders):
    image, mask, info = make_labelled_case(5, 4.0, "every", *folders, healthy=0.0, **PLAIN)
    again = make_labelled_case(5, 4.0, "every", *folders, healthy=0.0, **PLAIN)
    assert np.array_equal(image.dataobj, again[0].dataobj) and np.array_equal(mask.dataobj, again[1].dataobj)
    labels = np.asarray(mask.dataobj)
    assert image.shape == (64,) * 3 and nib.aff2axcodes(image.affine) == tuple("LIA")
    assert set(np.unique(labels)) <= {0, 1, 2, 3} and (labels == 2).any()
    assert info["lesion_ml"] == pytest.approx((labels == 1).sum() * 0.064)
    scan = np.asarray(image.dataobj)
    assert scan[labels > 0].mean() > 3 * scan[:4].mean()  # nothing is marked in the air
    assert not (np.asarray(make_labelled_case(5, 4.0, "every", *folders, healthy=1.0, **PLAIN)[1].dataobj) == 1).any()


@pytest.mark.parametrize("contrast, sign", [("T1w", -1), ("T2w", 1), ("FLAIR", 1), ("DWI", 1)])
def test_lesions_are_dark_on_t1w_and_bright_on_the_others(folders, contrast, sign):
    differences = []
    for seed in range(4):
        image, mask, _ = make_labelled_case(seed, 4.0, "every", *folders, healthy=0.0, spots=0.0, acute=1.0,
                                            contrasts={contrast: 1.0}, smallest_mm3=60_000.0, **PLAIN)
        scan, labels = (np.asarray(each.dataobj) for each in (image, mask))
        other = make_labelled_case(seed, 4.0, "every", *folders, healthy=1.0, spots=0.0, acute=1.0,
                                   contrasts={contrast: 1.0}, **PLAIN)[0]
        healthy = np.asarray(other.dataobj)[labels == 0]
        differences.append(np.median(scan[labels == 1]) / np.median(healthy[healthy > healthy.max() * 0.2]) - 1)
    assert sign * np.median(differences) > 0.02


def test_a_lesion_has_the_volume_that_was_drawn_and_is_mirrored_half_of_the_time(folders):
    source = load_mask(folders[1][0])
    assert source.volume_mm3 == pytest.approx(4096) and source.centre_mm == pytest.approx([-33, -18, 7])
    points = np.stack(np.meshgrid(*[np.arange(-90, 91, 2.0)] * 3, indexing="ij")).reshape(3, -1).astype(np.float32)
    sides = []
    for seed in range(12):
        moved = draw_moved(np.random.default_rng(seed), folders[1], 5000.0, 5000.0)
        where, share = moved.at(points)
        assert (share > 0.5).sum() * 8 == pytest.approx(5000, rel=0.4)
        sides.append(points[0, where[share > 0.5]].mean() > 0)
    assert 2 <= sum(sides) <= 10


def test_white_matter_disease_has_the_volumes_of_a_published_cohort_and_lies_on_both_sides():
    # Giese et al., Neurology 95:e79, 2020: median 5.86 mL, quartiles 2.18 and 14.61 mL
    assert labelled.DISEASE_MM3 == 5860
    for quartile, published in ((-0.6745, 2.18), (0.6745, 14.61)):
        assert 5.86 * np.exp(quartile * labelled.DISEASE_SPREAD) == pytest.approx(published, rel=0.05)
    axis = np.arange(-76, 77, 4.0)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).astype(np.float32)
    away, points = np.sqrt((points ** 2).sum(0)), points.reshape(3, -1)
    codes = np.where(away < 20, CODE["ventricle"], CODE["white"])
    white = (away >= 20) & (away < 72)
    alike, turned = [], []
    for seed in range(24):
        drawn = np.exp(np.random.default_rng(seed).normal(np.log(5860), labelled.DISEASE_SPREAD)) / 64
        found = white_matter_disease(np.random.default_rng(seed), points, codes, white, 4.0)
        assert (found[~white] == 0).all() and found.min() >= 0 and found.max() <= 1
        there = found > 0.5
        assert there.sum() == pytest.approx(drawn, rel=0.15, abs=3)
        if drawn > 50:
            alike.append((there & there[::-1]).sum() / there.sum())
            turned.append((there & there[:, ::-1]).sum() / there.sum())
    assert np.median(alike) > 0.4 > 0.2 > np.median(turned)  # left and right are alike, front and back are not
    few, seed = white & (np.cumsum(white).reshape(white.shape) <= 300), 3
    assert np.exp(np.random.default_rng(seed).normal(np.log(5860), labelled.DISEASE_SPREAD)) / 64 > 60
    found = white_matter_disease(np.random.default_rng(seed), points, codes, few, 4.0)
    assert (found > 0.5).sum() == pytest.approx(60, abs=3)  # at most a fifth of the white matter
    nowhere = np.where(codes == CODE["ventricle"], CODE["deep"], codes)
    assert not white_matter_disease(np.random.default_rng(seed), points, nowhere, white, 4.0).any()
    codes[away < 35] = CODE["spots"]  # what a label map has of its own counts, and is more here than nearly all have
    codes[away < 20] = CODE["ventricle"]
    assert (codes == CODE["spots"]).sum() * 0.064 > 100
    assert not white_matter_disease(np.random.default_rng(1), points, codes, codes == CODE["white"], 4.0).any()


def test_labels_that_nobody_knows_are_refused_and_a_table_names_them(tmp_path):
    labels = np.zeros((8, 8, 8), np.int16)
    labels[2:6, 2:6, 2:6] = 7001
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="found the label 7001"):
        load_map(str(tmp_path / "a.nii.gz"))
    other = tmp_path / "other"
    other.mkdir()
    nib.save(nib.Nifti1Image(labels, np.eye(4)), other / "a.nii.gz")
    (other / "tissues.yaml").write_text("7001: white\n")
    assert (load_map(str(other / "a.nii.gz")).codes == CODE["white"]).all()
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    nib.save(nib.Nifti1Image(labels, np.eye(4)), wrong / "a.nii.gz")
    (wrong / "tissues.yaml").write_text("7001: whitish\n")
    with pytest.raises(UserError, match="found 7001: whitish"):
        load_map(str(wrong / "a.nii.gz"))
    with pytest.raises(UserError, match="found no NIfTI file"):
        find_maps(str(_empty(tmp_path)))


def _empty(folder):
    path = folder / "empty"
    path.mkdir()
    return path


def test_a_mask_outside_the_template_is_refused(tmp_path):
    mask = np.zeros((10, 10, 10), np.uint8)
    mask[4:6, 4:6, 4:6] = 1
    nib.save(nib.Nifti1Image(mask, np.array([[1, 0, 0, 300.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
             tmp_path / "far.nii.gz")
    with pytest.raises(UserError, match="registered to that template"):
        load_mask(str(tmp_path / "far.nii.gz"))

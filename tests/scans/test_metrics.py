"""Every score against an independent implementation, and every degenerate case against its decided value."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from sklearn.metrics import f1_score, matthews_corrcoef, precision_score, recall_score

from meshnet.scans.metrics import (
    LESION_KEYS,
    OVERLAP_KEYS,
    SURFACE_KEYS,
    Counts,
    case_metrics,
    mcc_of,
    overlap_metrics,
    surface_of,
)

TOLERANCE_MM = 2.0


def random_case(seed: int):
    """Two masks and a spacing: noise of any density, blobs, a blob and its shifted copy, or single voxels."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(3, 20, 3))
    spacing = tuple(float(s) for s in (np.ones(3) if seed % 3 == 0 else rng.uniform(0.4, 5.0, 3)))
    noise = [rng.random(shape) for _ in range(2)]
    kind = seed % 4
    if kind == 0:
        masks = [n < rng.uniform(0.02, 0.98) for n in noise]
    elif kind == 1:
        smooth = [ndimage.gaussian_filter(n, 2) for n in noise]
        masks = [s > np.quantile(s, rng.uniform(0.3, 0.95)) for s in smooth]
    elif kind == 2:
        smooth = ndimage.gaussian_filter(noise[0], 1.5)
        truth = smooth > np.quantile(smooth, rng.uniform(0.5, 0.95))
        masks = [np.roll(truth, rng.integers(-3, 4, 3), (0, 1, 2)) ^ (noise[1] < 0.02), truth]
    else:
        masks = [n == n.min() for n in noise]
    return masks[0], masks[1], spacing


def degenerate_cases():
    """Every pairing of empty, full, one voxel, another voxel, a face of the volume and the complement of a voxel."""
    shape = (5, 6, 4)
    masks = {"empty": np.zeros(shape, bool), "full": np.ones(shape, bool)}
    for name, index in (("voxel", (2, 3, 1)), ("corner", (0, 0, 0)), ("face", (slice(None), 0, slice(None)))):
        masks[name] = np.zeros(shape, bool)
        masks[name][index] = True
    masks["hole"] = ~masks["voxel"]
    return [pytest.param(masks[a], masks[b], (1.0, 2.0, 0.5), id=f"{a}-{b}") for a in masks for b in masks]


DEGENERATE = pytest.mark.parametrize(("p", "t", "spacing"), degenerate_cases())


def overlap_reference(p, t, spacing):
    """scikit-learn's scores, with our decisions where it has none."""
    y, x = t.ravel(), p.ravel()
    both_empty = not x.any() and not y.any()
    zero = {"zero_division": 1.0 if both_empty else 0.0}
    background = {"zero_division": 1.0}
    dice = f1_score(y, x, **zero)
    constant = (x.all() and y.all()) or both_empty
    opposite = (x != y).all() and len(np.unique(x)) == 1
    return {
        "dice": dice,
        "dice_macro": (dice + f1_score(~y, ~x, **background)) / 2,
        "precision": precision_score(y, x, **zero),
        "sensitivity": recall_score(y, x, **zero),
        "mcc": 1.0 if constant else -1.0 if opposite else matthews_corrcoef(y, x),
        "avd": abs(x.sum() - y.sum()) / y.sum() if y.any() else (0.0 if both_empty else math.nan),
        "volume_ml": x.sum() * np.prod(spacing) / 1000,
        "truth_ml": y.sum() * np.prod(spacing) / 1000,
    }


def surface_reference(p, t, spacing):
    """Every pair of surface voxels, no tree and no crop; the surface by scipy's erosion."""
    if not p.any() or not t.any():
        worst = 0.0 if p.any() == t.any() else math.sqrt(sum((n * s) ** 2 for n, s in zip(p.shape, spacing)))
        return {"hd95_mm": worst, "asd_mm": worst, "nsd": float(worst == 0)}
    a, b = (np.argwhere(m & ~ndimage.binary_erosion(m)) * spacing for m in (p, t))
    pairs = cdist(a, b)
    forth, back = pairs.min(1), pairs.min(0)
    pooled = np.concatenate([forth, back])
    return {"hd95_mm": max(np.quantile(forth, 0.95), np.quantile(back, 0.95)), "asd_mm": pooled.mean(),
            "nsd": (pooled <= TOLERANCE_MM).mean()}


def components(mask):
    """26-connected parts as a list of voxel sets: components of the graph of voxels one step apart on every axis."""
    points = np.argwhere(mask)
    if not len(points):
        return []
    i, j = KDTree(points).query_pairs(1.0, p=np.inf, output_type="ndarray").T
    number, label = connected_components(coo_matrix((np.ones(len(i)), (i, j)), [len(points)] * 2), directed=False)
    return [{tuple(q) for q in points[label == i]} for i in range(number)]


def lesion_reference(p, t):
    """ISLES'22's counting, lesion by lesion."""
    found, true = components(p), components(t)
    tp = sum(any(p[v] for v in lesion) for lesion in true)
    fp = sum(not any(t[v] for v in lesion) for lesion in found)
    fn = len(true) - tp
    f1 = 1.0 if tp + fp + fn == 0 else tp / (tp + (fp + fn) / 2)
    return {"lesion_f1": f1, "lesions_truth": len(true), "lesions_predicted": len(found)}


def monai_reference(p, t, spacing):
    """MONAI's own classes; its inf and NaN for empty masks are mapped to our decisions by the caller."""
    from monai.metrics import (
        ConfusionMatrixMetric,
        DiceMetric,
        HausdorffDistanceMetric,
        SurfaceDiceMetric,
        SurfaceDistanceMetric,
    )

    y, x = (torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (t, p))
    matrix = ConfusionMatrixMetric(include_background=False, reduction="mean",
                                   metric_name=["matthews correlation coefficient", "precision", "sensitivity"])
    distances = {"spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix(x, y)
        mcc, precision, sensitivity = (float(v) for v in matrix.aggregate())
        return {
            "dice": float(DiceMetric(include_background=False)(x, y)),
            "dice_macro": float(DiceMetric(include_background=True)(x, y).mean()),
            "mcc": mcc, "precision": precision, "sensitivity": sensitivity,
            "hd95_mm": float(HausdorffDistanceMetric(percentile=95)(x, y, **distances)),
            "asd_mm": float(SurfaceDistanceMetric(symmetric=True)(x, y, **distances)),
            "nsd": float(SurfaceDiceMetric([TOLERANCE_MM])(x, y, **distances)),
        }


def check_case(p, t, spacing, lesions=True):
    scores = case_metrics(p, t, spacing, TOLERANCE_MM)
    expected = overlap_reference(p, t, spacing) | surface_reference(p, t, spacing)
    if lesions:
        expected |= lesion_reference(p, t)
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, abs=1e-6, rel=0, nan_ok=True), name


def check_monai(p, t, spacing):
    """Both masks hold something and leave something, so that every one of MONAI's scores is defined."""
    scores = case_metrics(p, t, spacing, TOLERANCE_MM)
    for name, value in monai_reference(p, t, spacing).items():
        # MONAI keeps distances in float32 and interpolates the percentile there: torch.quantile's rank, of the order
        # of 1e3, has its last digit at 1e-4 of a step. check_case holds HD95 to 1e-6 in float64.
        assert scores[name] == pytest.approx(value, abs=1e-6, rel=1e-5 if name == "hd95_mm" else 1e-6), name


@pytest.mark.parametrize("seed", range(24))
def test_random_volumes_agree_with_sklearn_scipy_and_graph_components(seed):
    check_case(*random_case(seed))


@pytest.mark.parametrize("seed", range(12))
def test_random_volumes_agree_with_monai(seed):
    check_monai(*random_case(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_200_random_volumes_agree_with_every_implementation(seed):
    check_case(*random_case(seed))
    check_monai(*random_case(seed))


@DEGENERATE
def test_degenerate_volumes_agree_with_the_references(p, t, spacing):
    check_case(p, t, spacing)


@pytest.mark.slow
@DEGENERATE
def test_degenerate_volumes_agree_with_monai_where_it_has_a_value(p, t, spacing):
    scores = case_metrics(p, t, spacing, TOLERANCE_MM)
    expected = monai_reference(p, t, spacing)
    if not p.any() or not t.any():
        # MONAI says NaN (both empty) or inf; ours is decided in the table below.
        assert not math.isfinite(expected["hd95_mm"]) and not math.isfinite(expected["asd_mm"])
        return
    names = ["dice", "precision", "sensitivity", "hd95_mm", "asd_mm", "nsd"]
    names += [] if p.all() or t.all() else ["mcc", "dice_macro"]
    for name in names:
        assert scores[name] == pytest.approx(expected[name], abs=1e-6, rel=1e-6), name


DECIDED = {  # score: both empty, prediction empty, truth empty
    "dice": (1, 0, 0), "precision": (1, 0, 0), "sensitivity": (1, 0, 0), "mcc": (1, 0, 0), "avd": (0, 1, math.nan),
    "hd95_mm": (0, 13, 13), "asd_mm": (0, 13, 13), "nsd": (1, 0, 0), "lesion_f1": (1, 0, 0),
}


@pytest.mark.parametrize("name", DECIDED)
def test_the_decided_table_of_empty_masks(name):
    empty, some = np.zeros((3, 4, 6), bool), np.zeros((3, 4, 6), bool)
    some[1, 1, 1] = True
    spacing = (1.0, 1.0, 2.0)  # the diagonal is √(3² + 4² + 12²) = 13
    pairs = ((empty, empty), (empty, some), (some, empty))
    values = [case_metrics(p, t, spacing)[name] for p, t in pairs]
    assert values == pytest.approx(list(DECIDED[name]), nan_ok=True)


def test_a_case_worked_by_hand():
    truth, prediction = np.zeros((10, 10, 10), bool), np.zeros((10, 10, 10), bool)
    truth[1:3, 1, 1] = True      # two voxels in a row, found in part
    truth[8, 8, 8] = True        # a second lesion, missed
    prediction[2:5, 1, 1] = True  # TP 1, FP 2, FN 2, TN 995
    prediction[8, 1, 8] = True   # a false lesion, FP 3
    scores = case_metrics(prediction, truth, (2.0, 1.0, 1.0), tolerance_mm=2.0)
    assert scores["dice"] == pytest.approx(2 / 7)
    assert scores["dice_macro"] == pytest.approx((2 / 7 + 1988 / 1993) / 2)
    assert scores["avd"] == pytest.approx(1 / 3)
    assert scores["mcc"] == pytest.approx((1 * 994 - 3 * 2) / math.sqrt(4 * 3 * 997 * 996))
    assert (scores["precision"], scores["sensitivity"]) == (1 / 4, pytest.approx(1 / 3))
    assert (scores["volume_ml"], scores["truth_ml"]) == (pytest.approx(0.008), pytest.approx(0.006))
    assert (scores["lesion_f1"], scores["lesions_truth"], scores["lesions_predicted"]) == (0.5, 2, 2)
    # From the prediction 0, 2, 4 and 7 mm (to the missed lesion); from the truth 2, 0 and 7 mm.
    assert scores["asd_mm"] == pytest.approx((0 + 2 + 4 + 7 + 2 + 0 + 7) / 7)
    assert scores["nsd"] == pytest.approx(4 / 7)
    assert scores["hd95_mm"] == pytest.approx(max(np.percentile([0, 2, 4, 7], 95), np.percentile([2, 0, 7], 95)))


def test_counts_of_a_whole_volume_do_not_overflow():
    half = 256 ** 3 // 2
    assert mcc_of(Counts(half, 0, 0, half)) == 1.0
    assert mcc_of(Counts(half // 2, half // 2, half // 2, half // 2)) == 0.0
    volume = np.zeros((256, 256, 256), np.uint8)
    volume[:128] = 1
    scores = overlap_metrics(volume, 1 - volume)
    assert (scores["mcc"], scores["dice"], scores["avd"]) == (-1.0, 0.0, 0.0)


def test_labels_tensors_and_booleans_give_the_same():
    p, t, spacing = random_case(1)
    expected = case_metrics(p, t, spacing)
    for convert in (lambda m: m.astype(np.uint8) * 3, lambda m: m.astype(np.int64), torch.from_numpy,
                    lambda m: torch.from_numpy(m).to(torch.uint8)):
        assert case_metrics(convert(p), convert(t), spacing) == expected


def test_air_around_the_lesions_changes_no_surface_and_no_lesion():
    p, t, spacing = random_case(2)
    scores, padded = (case_metrics(a, b, spacing) for a, b in ((p, t), (np.pad(p, 5), np.pad(t, 5))))
    for name in SURFACE_KEYS + LESION_KEYS + ("dice", "avd", "precision", "sensitivity"):
        assert padded[name] == pytest.approx(scores[name]), name


def test_a_distance_of_exactly_the_tolerance_is_inside_it():
    truth, prediction = np.zeros((8, 3, 3), bool), np.zeros((8, 3, 3), bool)
    truth[1, 1, 1] = prediction[4, 1, 1] = True
    assert 4 * 0.1 - 1 * 0.1 > 0.3  # the last bit would put it outside
    assert case_metrics(prediction, truth, (0.1, 1, 1), tolerance_mm=0.3)["nsd"] == 1.0
    assert case_metrics(prediction, truth, (0.1, 1, 1), tolerance_mm=0.299)["nsd"] == 0.0


def test_overlap_is_the_part_of_case_metrics_without_distances():
    p, t, spacing = random_case(5)
    scores = case_metrics(p, t, spacing, surface=False)
    assert set(scores) == set(OVERLAP_KEYS) | set(LESION_KEYS)
    overlap = overlap_metrics(p, t, spacing)
    assert overlap == {name: scores[name] for name in OVERLAP_KEYS}


def test_several_classes_agree_with_sklearn_class_by_class():
    rng = np.random.default_rng(0)
    p, t = rng.integers(0, 4, (2, 9, 8, 7))
    t[t == 3] = 0  # class 3 is predicted but absent
    scores = case_metrics(p, t, classes=4)
    y, x = t.ravel(), p.ravel()
    per_class = f1_score(y, x, average=None, labels=[0, 1, 2, 3], zero_division=0)
    # Background here is label 0 against the rest, as in the two-class case.
    assert scores["dice_macro"] == pytest.approx(per_class.mean(), abs=1e-12)
    assert scores["dice_classes"] == pytest.approx(per_class[1:].mean())
    assert scores["dice"] == pytest.approx(f1_score(y > 0, x > 0))
    for k in (1, 2, 3):
        assert scores[f"dice_class{k}"] == pytest.approx(per_class[k])
        assert scores[f"mcc_class{k}"] == pytest.approx(matthews_corrcoef(y == k, x == k))
    assert math.isnan(scores["avd_class3"])
    assert scores["avd_classes"] == pytest.approx((scores["avd_class1"] + scores["avd_class2"]) / 2)


def test_surface_of_a_volume_that_reaches_its_border():
    full = np.ones((4, 5, 6), bool)
    assert np.array_equal(surface_of(full), full & ~ndimage.binary_erosion(full))
    assert surface_of(full).sum() == 4 * 5 * 6 - 2 * 3 * 4


def test_wrong_input_is_refused():
    mask = np.zeros((4, 4, 4), bool)
    with pytest.raises(ValueError, match="must share"):
        case_metrics(mask, mask[:3])
    with pytest.raises(ValueError, match="must share"):
        case_metrics(mask[0], mask[0])
    for volume in (mask.astype(float), torch.zeros(4, 4, 4)):
        with pytest.raises(TypeError, match="threshold"):
            case_metrics(volume, mask)
    with pytest.raises(ValueError, match="label 5"):
        overlap_metrics(np.full((4, 4, 4), 5), mask, classes=3)

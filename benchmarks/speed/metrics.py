"""Time of one case's metrics at 256³, beside MONAI's own classes for the same scores in the same run.

    python benchmarks/speed/metrics.py [--runs 3] [--masks DIR]

The cases are made-up: a lesion of 10, 100 and 400 mL with a rough edge, and its shifted, partly missed copy with false
specks. With ``--masks`` (a folder of NIfTI masks) three real shapes are put into the cube beside them. Per case the
median time is printed, and the ratio ours / MONAI, which should be at most 0.2. MONAI has no lesion-wise F1; ours
computes it, and its time is included.
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SIZE = 256
SPACING_MM = (1.0, 1.0, 1.0)


def made_up_case(volume_ml: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A rough ball of about ``volume_ml`` in the cube, and a prediction of it."""
    from scipy import ndimage

    radius = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    axis = np.arange(SIZE) - SIZE / 2
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    rough = ndimage.zoom(rng.standard_normal((33,) * 3), SIZE / 33, order=1) * radius * 0.3
    truth = distance + rough < radius
    return predicted(truth, rng), truth


def predicted(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``truth`` shifted by (2, 1, 3) voxels, with twenty false specks of 8 voxels within 60 voxels of the centre."""
    prediction = np.roll(truth, (2, 1, 3), (0, 1, 2))
    for x, y, z in rng.integers(SIZE // 2 - 60, SIZE // 2 + 60, (20, 3)):
        prediction[x:x + 2, y:y + 2, z:z + 2] = True
    return prediction


def real_cases(folder: Path, rng: np.random.Generator) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """A small, a middle and a large mask of the folder (by file size), padded or cut to the cube."""
    import nibabel

    files = sorted(folder.glob("*.nii*"), key=lambda p: p.stat().st_size)
    cases = []
    for path in (files[len(files) // 4], files[len(files) // 2], files[-len(files) // 20]):
        mask = np.asarray(nibabel.load(path).dataobj) > 0
        truth = np.zeros((SIZE,) * 3, bool)
        kept = mask[tuple(slice(0, min(n, SIZE)) for n in mask.shape)]
        truth[tuple(slice((SIZE - n) // 2, (SIZE - n) // 2 + n) for n in kept.shape)] = kept
        cases.append((path.name, predicted(truth, rng), truth))
    return cases


def monai_scores(prediction: np.ndarray, truth: np.ndarray) -> list:
    """Dice with and without background, MCC, precision, sensitivity, HD95, ASD and NSD by MONAI's classes."""
    import torch
    from monai.metrics import (
        ConfusionMatrixMetric,
        DiceMetric,
        HausdorffDistanceMetric,
        SurfaceDiceMetric,
        SurfaceDistanceMetric,
    )

    y_pred, y = (torch.from_numpy(np.stack([~m, m])[None]) for m in (prediction, truth))
    matrix = ConfusionMatrixMetric(include_background=False,
                                   metric_name=["matthews correlation coefficient", "precision", "sensitivity"])
    matrix(y_pred, y)
    return [DiceMetric(include_background=True, reduction="none")(y_pred, y), matrix.aggregate(),
            HausdorffDistanceMetric(percentile=95)(y_pred, y, spacing=SPACING_MM),
            SurfaceDistanceMetric(symmetric=True)(y_pred, y, spacing=SPACING_MM),
            SurfaceDiceMetric([2.0])(y_pred, y, spacing=SPACING_MM)]


def median_seconds(function, runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--masks", type=Path)
    arguments = parser.parse_args()
    import torch

    from meshnet.scans.metrics import case_metrics, overlap_metrics

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    cases = [(f"made-up {ml} mL", *made_up_case(ml, rng)) for ml in (10, 100, 400)]
    if arguments.masks:
        cases += real_cases(arguments.masks, rng)
    monai_scores(*(np.pad(m[1][:9, :9, :9], 1) for m in cases[:1] for _ in (0, 1)))  # imports are not timed
    print(f"{SIZE}³, {torch.get_num_threads()} torch threads, median of {arguments.runs}")
    print(f"{'case':<28} {'truth mL':>8} {'counts s':>9} {'ours s':>8} {'MONAI s':>8} {'ratio':>6}")
    worst = 0.0
    for name, prediction, truth in cases:
        counts = median_seconds(lambda p=prediction, t=truth: overlap_metrics(p, t), arguments.runs)
        ours = median_seconds(lambda p=prediction, t=truth: case_metrics(p, t, SPACING_MM), arguments.runs)
        monai = median_seconds(lambda p=prediction, t=truth: monai_scores(p, t), arguments.runs)
        worst = max(worst, ours / monai)
        size_ml = truth.sum() / 1000
        print(f"{name:<28.28} {size_ml:>8.1f} {counts:>9.3f} {ours:>8.3f} {monai:>8.3f} {ours / monai:>6.3f}")
    print(f"largest ratio {worst:.3f}, should be at most 0.200")


if __name__ == "__main__":
    main()

"""Do generated lesions resemble real ones? Volume, elongation, surface, parts and location.

``python benchmarks/trust/lesion_statistics.py FOLDER [--count 1000] [--out FIGURE.png] [--table TABLE.md]``

FOLDER holds real lesion masks (NIfTI) in MNI space at 1 mm. Both sets are measured by the same functions.
"""

import argparse
import functools
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.data.synthetic.atlas import load_atlas
from meshnet.data.synthetic.lesions import draw_lesion
from meshnet.errors import UserError, run_script
from meshnet.files import whole_file, write_text

MEASURES = ("volume", "elongation", "surface-to-volume", "roughness", "parts")
UNITS = ("mm³", "longest / shortest axis", "mm⁻¹", "surface / smoothed surface", "26-connected")
JUDGED = ("volume", "elongation", "surface-to-volume", "parts")


def measure(mask: np.ndarray) -> list[float]:
    """``MEASURES`` of a boolean mask (X, Y, Z) of 1 mm voxels.

    Elongation: square root of the ratio of the largest to the smallest eigenvalue of the voxels' covariance, 1/12 mm²
    added for a voxel's own extent. Surface: exposed voxel faces. Smoothing: Gaussian of 1.5 mm, cut at one half.
    """
    from scipy import ndimage

    found = np.argwhere(mask)
    low, high = found.min(0), found.max(0) + 1
    mask = np.pad(mask[tuple(slice(a, b) for a, b in zip(low, high))], 5)
    volume = len(found)
    covariance = (np.cov(found.T) if volume > 1 else np.zeros((3, 3))) + np.eye(3) / 12
    variances = np.linalg.eigvalsh(covariance)
    faces = count_faces(mask)
    smoothed = ndimage.gaussian_filter(mask.astype(np.float32), 1.5) > 0.5
    parts = ndimage.label(mask, np.ones((3, 3, 3)))[1]
    return [volume, float(np.sqrt(variances[-1] / variances[0])), faces / volume,
            faces / max(count_faces(smoothed), 1), parts]


def count_faces(mask: np.ndarray) -> int:
    """Voxel faces between inside and outside."""
    return sum(int((mask[tuple(slice(1, None) if a == axis else slice(None) for a in range(3))]
                    != mask[tuple(slice(-1) if a == axis else slice(None) for a in range(3))]).sum())
               for axis in range(3))


@functools.cache
def brain_box() -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner (3,) of the MNI brain in mm."""
    brain = np.argwhere(load_atlas(1).maps[..., :3].sum(-1, dtype=int) > 127)
    origin = load_atlas(1).origin_mm
    return brain.min(0) + origin, brain.max(0) + 1 + origin


def box_counts(points_mm: np.ndarray) -> np.ndarray:
    """Voxels in each of 3 × 3 × 3 equal boxes of the MNI brain's bounding box; (27,)."""
    low, high = brain_box()
    index = np.clip(np.floor((points_mm - low) / (high - low) * 3), 0, 2).astype(int)
    return np.bincount(index @ [9, 3, 1], minlength=27)


def measure_file(path: Path) -> tuple[list[float], np.ndarray]:
    import nibabel as nib

    image = nib.load(path)
    mask = np.asanyarray(image.dataobj) > 0
    return measure(mask), box_counts(nib.affines.apply_affine(image.affine, np.argwhere(mask)))


def measure_seed(seed: int) -> tuple[list[float], np.ndarray]:
    lesion = draw_lesion(np.random.default_rng(seed), level_mm=1)
    return measure(lesion.mask), box_counts(lesion.origin_mm + np.argwhere(lesion.mask))


def collect(function, items: list, workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Measures (N, 5) and the summed boxes' shares (27,)."""
    with ProcessPoolExecutor(workers) as pool:
        results = list(pool.map(function, items, chunksize=10))
    boxes = np.sum([boxes for _, boxes in results], axis=0)
    return np.array([measures for measures, _ in results]), boxes / boxes.sum()


def table(real: np.ndarray, made: np.ndarray, correlation: float) -> tuple[str, bool]:
    """The comparison as Markdown, and whether every judged figure is within 20 % and the places agree."""
    lines = ["| measure | quantile | real | generated | difference |", "|---|---|---|---|---|"]
    good = correlation >= 0.8
    for column, name in enumerate(MEASURES):
        for quantile in (0.25, 0.5, 0.75):
            expected, found = (np.quantile(values[:, column], quantile) for values in (real, made))
            off = found / expected - 1
            good &= abs(off) <= 0.2 or name not in JUDGED
            lines.append(f"| {name} | {quantile:.2f} | {expected:.4g} | {found:.4g} | {off:+.1%} |")
    lines.append(f"\nShare of lesion voxels in 3 × 3 × 3 boxes of the brain: correlation {correlation:.3f}.")
    lines.append(f"{len(real)} real lesions, {len(made)} generated.")
    return "\n".join(lines) + "\n", bool(good)


def draw(path: str, real: np.ndarray, made: np.ndarray, real_boxes: np.ndarray, made_boxes: np.ndarray) -> None:
    """Quantile curves of every measure, and the boxes' shares against each other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    steps = np.linspace(0.01, 0.99, 99)
    for panel, name, unit, column in zip(panels.flat, MEASURES, UNITS, range(5)):
        for values, label in ((real, "real"), (made, "generated")):
            panel.plot(np.quantile(values[:, column], steps), steps, label=label)
        panel.set(xscale="log", xlabel=f"{name} ({unit})", ylabel="share of lesions")
        panel.xaxis.set_minor_formatter("")  # labels between powers of ten lie on each other
        panel.legend()
    panel = panels.flat[5]
    panel.scatter(real_boxes, made_boxes)
    panel.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    panel.set(xlabel="share of real lesion voxels in a box", ylabel="share of generated")
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=90)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="real lesion masks in MNI space, 1 mm, NIfTI")
    parser.add_argument("--count", type=int, default=1000, help="lesions to generate")
    parser.add_argument("--out", help="figure to write (PNG)")
    parser.add_argument("--table", help="table to write (Markdown)")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    files = sorted(Path(arguments.folder).glob("*.nii*"))
    if not files:
        raise UserError(f"{arguments.folder}: found no NIfTI files, expected lesion masks in MNI space; check the path")
    real, real_boxes = collect(measure_file, files, arguments.workers)
    made, made_boxes = collect(measure_seed, list(range(arguments.count)), arguments.workers)
    text, good = table(real, made, float(np.corrcoef(real_boxes, made_boxes)[0, 1]))
    print(text, end="")
    if arguments.table:
        write_text(arguments.table, text)
    if arguments.out:
        draw(arguments.out, real, made, real_boxes, made_boxes)
    return 0 if good else 1


if __name__ == "__main__":
    run_script(main)

"""Does the way of scanning change what the built-in model finds? Synthetic patients, each scanned in several ways.

``python benchmarks/trust/builtin_robustness.py [--cases 60] [--model weights/meshnet16-synthetic] [--table TABLE.md]``

Each patient is made at 1 mm with skull and brain-extracted, then averaged to 2 mm, 3 mm and 5 mm slices and turned to
another orientation. Dice is taken on the 1 mm grid. Healthy heads show false positives. Each finished patient is a
line of ``--results``, so the same command resumes where it was stopped.
"""

import argparse
import contextlib
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import nibabel as nib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.errors import run_script
from meshnet.files import write_text

WAYS = ("1 mm", "2 mm", "3 mm", "5 mm slices", "1 mm, RAS", "1 mm, brain-extracted")
FIRST_SEED = 8_500_000


def averaged(image: nib.Nifti1Image, factors: tuple[float, float, float]) -> nib.Nifti1Image:
    """``image`` (1 mm) with voxels ``factors`` times as large, each the mean of what it covers."""
    from meshnet.data.synthetic.scanner import along, coarsen

    data = np.asarray(image.dataobj, np.float32)
    for axis, factor in enumerate(factors):
        matrix = coarsen(data.shape[axis], 1.0, factor)
        if matrix is not None:
            data = along(data, matrix, axis)
    grow = np.diag([*factors, 1.0])
    grow[:3, 3] = (np.array(factors) - 1) / 2
    return nib.Nifti1Image(data, image.affine @ grow)


def segment(model, card: dict, image: nib.Nifti1Image, like: nib.Nifti1Image) -> np.ndarray:
    """The model's mask of ``image`` on the grid of ``like``."""
    from meshnet.inference.predict import predict
    from meshnet.scans.grid import conform, to_native
    from meshnet.scans.mask import clean

    views = card.grids()
    probability = 0
    for grid in views:
        conformed = conform(image, grid, card.scaling, card.window)
        volume = np.asarray(conformed.dataobj, np.float32)[None] / 255
        probability += to_native(predict(model, volume, threads=1)[1], conformed.affine, like) / len(views)
    return clean(probability >= card.threshold, 1.0, card.min_lesion_mm3)


def score_patient(seed: int, folder: str) -> tuple[str, float, list[float], float]:
    """Contrast, true mL, Dice for every way of scanning, and the mL marked on the healthy head of the same seed."""
    import torch

    from meshnet.data.synthetic.case import make_case
    from meshnet.networks.build import load_model

    torch.set_num_threads(1)
    model, card = load_model(folder)
    options = {"artefacts": 0.0, "smallest_mm3": 3000.0}
    image, mask, info = make_case(seed, 1.0, "bright", healthy=0.0, extracted=0.0, **options)
    bare = make_case(seed, 1.0, "bright", healthy=0.0, extracted=1.0, **options)[0]
    scans = [image, averaged(image, (2, 2, 2)), averaged(image, (3, 3, 3)), averaged(image, (1, 5, 1)),
             nib.as_closest_canonical(image), bare]
    truth = np.asarray(mask.dataobj) > 0
    scores = []
    for scan in scans:
        found = segment(model, card, scan, image)
        scores.append(float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1)))
    healthy = make_case(seed, 1.0, "bright", healthy=1.0, extracted=0.0, artefacts=0.0)[0]
    return info["contrast"], info["lesion_ml"], scores, float(segment(model, card, healthy, healthy).sum() / 1000)


def version_of(folder: Path) -> str:
    """A hash of the model's files and of the code that makes, segments and scores a patient."""
    from meshnet.data.sources.find import sha256_file
    from meshnet.files import hash_of

    package = Path(__file__).resolve().parents[2] / "meshnet"
    files = [Path(__file__), *(path for end in ("py", "cpp", "h") for path in sorted(package.rglob(f"*.{end}")))]
    files += sorted(path for path in folder.iterdir() if path.is_file())
    return hash_of([sha256_file(path) for path in files])


def score_all(seeds: range, folder: str, workers: int, results: Path) -> list[list]:
    """``score_patient`` of every seed, in their order; those that ``results`` has of this model and code are read."""
    version, done = version_of(Path(folder)), {}
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # half a line, where a run was killed
            row = json.loads(line)
            done |= {row["seed"]: row["scores"]} if row["version"] == version else {}
    print(f"{len(done.keys() & set(seeds))} of {len(seeds)} patients are in {results}", file=sys.stderr)
    with ProcessPoolExecutor(workers) as pool:
        waiting = {pool.submit(score_patient, seed, folder): seed for seed in seeds if seed not in done}
        try:
            for future in as_completed(waiting):
                row = {"version": version, "seed": waiting[future], "scores": future.result()}
                done[row["seed"]] = row["scores"]
                with results.open("a", encoding="utf-8") as file:
                    file.write("\n" + json.dumps(row))
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure what runs is finished, the rest is for the next call
    return [done[seed] for seed in seeds]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=60, help="patients")
    parser.add_argument("--model", default="weights/meshnet16-synthetic", help="model folder")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("builtin_robustness.jsonl"), help="what is done so far")
    parser.add_argument("--table", help="table to write (Markdown)")
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.cases)
    rows = score_all(seeds, arguments.model, arguments.workers, arguments.results)
    scores = np.array([row[2] for row in rows])
    lines = ["| way of scanning | mean Dice | difference |", "|---|---|---|"]
    for way, mean in zip(WAYS, scores.mean(0)):
        lines.append(f"| {way} | {mean:.3f} | {mean - scores[:, 0].mean():+.3f} |")
    for contrast in sorted({row[0] for row in rows}):
        chosen = np.array([row[0] == contrast for row in rows])
        lines.append(f"| 1 mm, {contrast} alone ({chosen.sum()} cases) | {scores[chosen, 0].mean():.3f} | |")
    healthy = np.array([row[3] for row in rows])
    lines.append(f"\n{len(rows)} synthetic patients, lesions of at least 3 mL. Healthy heads: median "
                 f"{np.median(healthy):.2f} mL marked, 90th percentile {np.quantile(healthy, 0.9):.2f} mL.")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if arguments.table:
        write_text(arguments.table, text)
    shifts = np.abs(scores.mean(0) - scores[:, 0].mean())
    return 0 if shifts.max() < 0.05 and np.median(healthy) < 1 else 1


if __name__ == "__main__":
    run_script(main)

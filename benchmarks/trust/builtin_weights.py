"""What the built-in weights find on synthetic heads of anatomies that they were not trained on, for each contrast.

``python benchmarks/trust/builtin_weights.py --model FOLDER --anatomy FOLDER --lesions FOLDER … --out RESULTS.jsonl``

Heads are drawn by ``prepare.py``'s generator from the label maps of ``--anatomy``; ``--heads FOLDER`` keeps them for
the next weights. Every finished head is a line of ``--out``, so the same command resumes: the lesions at each of
``THRESHOLDS``, from which ``decision.py`` chooses the model's decision and writes the tables.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.errors import run_script
from meshnet.files import whole_file

CONTRASTS = ("T1w", "T2w", "FLAIR", "DWI")
WAYS = ("as made", "plain", "3 mm voxels", "5 mm slices", "RAS", "brain-extracted")  # all but the first: no artefacts
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
HEALTHY = 5  # every fifth head has no stroke
EVERYWHERE = np.ones((3, 3, 3))
VOXEL_MM = 2.0


def make(seed: int, contrast: str, way: str, maps: list, masks: list) -> tuple:
    """Scan, mask and what was drawn, at 2 mm."""
    from meshnet.data.synthetic.from_folders import make_labelled_case

    options = {"contrasts": {contrast: 1.0}, "healthy": float(seed % HEALTHY == 0), "inverted": 0.0}
    if way != "as made":
        options |= {"extracted": float(way == "brain-extracted"), "artefacts": 0.0}
    image, mask, info = make_labelled_case(seed, VOXEL_MM, "every", maps, masks, **options)
    if way == "5 mm slices":
        image = taken_in(image, 5.0, (1,))  # from below
    if way == "3 mm voxels":
        image = taken_in(image, 3.0, (0, 1, 2))
    if way == "RAS":
        image, mask = nib.as_closest_canonical(image), nib.as_closest_canonical(mask)
    return image, mask, info


def taken_in(image: nib.Nifti1Image, mm: float, axes: tuple[int, ...]) -> nib.Nifti1Image:
    """``image`` as if taken in voxels of ``mm`` along ``axes``, and stored at its own voxels."""
    from meshnet.data.synthetic.scanner import along, coarsen, refine

    data = np.asarray(image.dataobj, np.float32)
    for axis in axes:
        size, count = float(image.header.get_zooms()[axis]), data.shape[axis]
        data = along(along(data, coarsen(count, size, mm), axis), refine(count, size, mm), axis)
    return nib.Nifti1Image(data, image.affine)


def head_of(path: Path | None, seed: int, contrast: str, way: str, maps: list, masks: list) -> dict:
    """A head, where its stroke is (packed bits), and what was drawn; from ``path`` if there."""
    if path is not None and path.exists():
        return dict(np.load(path))
    image, mask, info = make(seed, contrast, way, maps, masks)
    truth = np.asarray(mask.dataobj) == 1
    found = {"scan": np.asarray(image.dataobj), "truth": np.packbits(truth), "affine": image.affine,
             "map": info["map"], "acute": info["acute"], "extracted": info["extracted"],
             "healthy": not info["lesions"]}
    if path is not None:
        with whole_file(path) as temporary:
            np.savez_compressed(temporary, **found)
    return found


def lesions_of(probability: np.ndarray, truth: np.ndarray, own: np.ndarray,
               thresholds: Sequence[float] = THRESHOLDS) -> tuple[int, dict]:
    """How many lesions there are, and by rising threshold the marked ones, each as its voxels, highest probability, sum
    of the lesion's ``own`` probability (``Marks.of``), voxels that are right, and the true lesions that it touches."""
    parts, count = ndimage.label(truth, EVERYWHERE)
    near = ndimage.find_objects(((probability >= np.float32(thresholds[0])) | truth).astype(np.uint8))
    if not near:
        return count, {f"{threshold:g}": [] for threshold in thresholds}
    probability, truth, own, parts = (one[near[0]] for one in (probability, truth, own, parts))
    rows = {}
    for threshold in thresholds:
        labels, number = ndimage.label(probability >= np.float32(threshold), EVERYWHERE)
        every, touched = np.arange(1, number + 1), {}
        for one, other in np.unique(np.stack([labels[truth], parts[truth]]), axis=1).T.tolist():
            touched.setdefault(one, []).append(other)
        sizes = np.bincount(labels.ravel(), minlength=number + 1)[1:]
        found = zip(every, sizes, *(over(values, labels, every) for over, values in (
            (ndimage.maximum, probability), (ndimage.sum, own), (ndimage.sum, truth))))
        rows[f"{threshold:g}"] = [[int(size), round(float(peak), 4), round(float(total), 2), int(right),
                                   touched.get(int(k), [])] for k, size, peak, total, right in found]
    return count, rows


def row_of(models: list, head: dict, seed: int, contrast: str, way: str) -> dict:
    """What a model finds on a head, as ``infer.py`` asks it."""
    from meshnet.inference.scan import average, read_case

    shape = head["scan"].shape
    truth = np.unpackbits(head["truth"])[:np.prod(shape)].reshape(shape).astype(bool)
    case = read_case([nib.Nifti1Image(head["scan"], head["affine"])], models)
    decision = models[0].card.decision(case.contrast)
    found = average(case, models, decision.also, "head", None, 1)
    count, rows = lesions_of(found[-1], truth, found[0], sorted({*THRESHOLDS, decision.threshold}))
    return {"seed": seed, "contrast": contrast, "way": way, "map": int(head["map"]), "acute": bool(head["acute"]),
            "extracted": bool(head["extracted"]), "healthy": bool(head["healthy"]), "looks": case.contrast,
            "ml": float(truth.sum() * VOXEL_MM ** 3 / 1000), "n": count,
            "sum": float(found[0].sum(dtype=np.float64)), "parts": rows}


def measure(arguments: argparse.Namespace) -> None:
    from meshnet.data.synthetic.labelmaps import find_maps
    from meshnet.inference.scan import load_models

    maps = [str(path) for path in find_maps(arguments.anatomy)]
    masks = [str(path) for folder in arguments.lesions for path in find_maps(folder)]
    models = load_models([arguments.model], device="cpu")
    done = {tuple(row[key] for key in ("seed", "contrast", "way")) for row in read(arguments.out)}
    with Path(arguments.out).open("a", encoding="utf-8") as file:
        for seed in range(arguments.first, arguments.first + arguments.cases):
            for contrast in arguments.contrasts:
                if (seed, contrast, arguments.way) in done:
                    continue
                name = f"{seed}_{contrast}_{arguments.way.replace(' ', '')}.npz"
                path = Path(arguments.heads) / name if arguments.heads else None
                head = head_of(path, seed, contrast, arguments.way, maps, masks)
                file.write(json.dumps(row_of(models, head, seed, contrast, arguments.way)) + "\n")
                file.flush()


def read(path: str) -> list[dict]:
    """The finished lines of a results file."""
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # half a line, where a run was ended
            continue
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--anatomy", required=True, help="label maps that the model was not trained on")
    parser.add_argument("--lesions", nargs="+", required=True, help="folders of lesion masks")
    parser.add_argument("--heads", help="folder to keep the heads in")
    parser.add_argument("--cases", type=int, default=200, help="heads of each contrast")
    parser.add_argument("--first", type=int, default=9_700_000, help="seed of the first")
    parser.add_argument("--contrasts", nargs="+", default=list(CONTRASTS), choices=CONTRASTS)
    parser.add_argument("--way", default="as made", choices=WAYS, help="how a head is scanned")
    parser.add_argument("--out", required=True, help="results, a line for each head")
    measure(parser.parse_args())


if __name__ == "__main__":
    run_script(main)

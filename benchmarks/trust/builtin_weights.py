"""What the built-in weights find on synthetic heads of anatomies that they were not trained on, for each contrast.

``python benchmarks/trust/builtin_weights.py --model FOLDER --anatomy FOLDER --lesions FOLDER … --out RESULTS.jsonl``

Heads are drawn by ``prepare.py``'s generator from the label maps of ``--anatomy``. Every finished head is a line of
``--out`` (Dice, lesion F1 and marked mL at each of ``THRESHOLDS`` and ``SMALLEST``), so the same command resumes.
``--table`` prints what the lines hold.
"""

import argparse
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.errors import UserError, run_script
from meshnet.files import write_json

CONTRASTS = ("T1w", "T2w", "FLAIR", "DWI")
WAYS = ("as made", "5 mm slices", "RAS", "brain-extracted")
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SMALLEST = (0.0, 100.0, 300.0, 1000.0, 2000.0)  # mm³
SIZES = ((0, 1), (1, 5), (5, 20), (20, 1000))  # mL
HEALTHY = 5  # every fifth head has no stroke
EVERYWHERE = np.ones((3, 3, 3))


def make(seed: int, contrast: str, way: str, maps: list, masks: list) -> tuple:
    """Scan, mask and what was drawn, at 2 mm."""
    from meshnet.data.synthetic.from_folders import make_labelled_case

    options = {"contrasts": {contrast: 1.0}, "healthy": float(seed % HEALTHY == 0), "inverted": 0.0}
    if way != "as made":
        options |= {"extracted": float(way == "brain-extracted"), "artefacts": 0.0}
    image, mask, info = make_labelled_case(seed, 2.0, "every", maps, masks, **options)
    if way == "5 mm slices":
        image = thick(image)
    if way == "RAS":
        image, mask = nib.as_closest_canonical(image), nib.as_closest_canonical(mask)
    return image, mask, info


def thick(image: nib.Nifti1Image) -> nib.Nifti1Image:
    """``image`` as if taken in 5 mm slices from below, and stored at its own voxels."""
    from meshnet.data.synthetic.scanner import along, coarsen, refine

    data, size = np.asarray(image.dataobj, np.float32), float(image.header.get_zooms()[1])
    data = along(along(data, coarsen(data.shape[1], size, 5.0), 1), refine(data.shape[1], size, 5.0), 1)
    return nib.Nifti1Image(data, image.affine)


def score(probability: np.ndarray, truth: np.ndarray, voxel_mm3: float) -> dict:
    """Dice, lesion F1 (None without a lesion) and mL for each threshold and smallest lesion, and the summed mL."""
    near = ndimage.find_objects(((probability >= THRESHOLDS[0]) | truth).astype(np.uint8))
    if near:  # the rest has nothing in it
        probability, truth = probability[near[0]], truth[near[0]]
    parts, count = ndimage.label(truth, EVERYWHERE)
    rows = {}
    for threshold in THRESHOLDS:
        found, number = ndimage.label(probability >= threshold, EVERYWHERE)
        sizes = np.bincount(found.ravel(), minlength=number + 1) * voxel_mm3
        hits = np.zeros(number + 1, bool)
        hits[np.unique(found[truth])] = True
        for smallest in SMALLEST:
            keep = sizes >= smallest
            keep[0] = False
            kept = keep[found]
            seen = len(np.setdiff1d(np.unique(parts[kept]), 0))
            false = int((keep & ~hits).sum())
            overlap = 2 * float((kept & truth).sum()) / max(1, kept.sum() + truth.sum())
            f1 = 2 * seen / max(1, seen + count + false) if count else None
            rows[f"{threshold:g} {smallest:g}"] = [round(overlap, 4), None if f1 is None else round(f1, 4),
                                                   round(float(kept.sum() * voxel_mm3 / 1000), 3)]
    return rows


def measure(arguments: argparse.Namespace) -> None:
    from meshnet.data.synthetic.labelmaps import find_maps
    from meshnet.inference.scan import load_models, read_case, segment_case

    maps = [str(path) for path in find_maps(arguments.anatomy)]
    masks = [str(path) for folder in arguments.lesions for path in find_maps(folder)]
    models = load_models([arguments.model], device="cpu")
    done = {tuple(row[key] for key in ("seed", "contrast", "way")) for row in read(arguments.out)}
    with Path(arguments.out).open("a", encoding="utf-8") as file:
        for seed in range(arguments.first, arguments.first + arguments.cases):
            for contrast in arguments.contrasts:
                if (seed, contrast, arguments.way) in done:
                    continue
                image, mask, info = make(seed, contrast, arguments.way, maps, masks)
                truth = np.asarray(mask.dataobj) == 1
                found = segment_case(read_case([image], models), models, probabilities=True, threads=1)
                probability = np.asarray(found.probabilities.dataobj)
                row = {"seed": seed, "contrast": contrast, "way": arguments.way, "map": info["map"],
                       "acute": info["acute"], "extracted": info["extracted"],
                       "lesion_ml": float(truth.sum() * 0.008), "healthy": not info["lesions"],
                       "quality": found.quality, "scores": score(probability, truth, 8.0)}
                file.write(json.dumps(row) + "\n")
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


def summary(rows: list[dict], key: str) -> dict:
    """Mean Dice, mean F1, Dice by size, healthy median and 90th percentile at one setting (a key of ``scores``)."""
    ill = [row for row in rows if row["lesion_ml"] > 0.05]
    healthy = [row["scores"][key][2] for row in rows if row["healthy"]]
    by_size = [[row["scores"][key][0] for row in ill if low <= row["lesion_ml"] < high] for low, high in SIZES]
    f1_by_size = [[row["scores"][key][1] for row in ill if low <= row["lesion_ml"] < high] for low, high in SIZES]
    mean = lambda values: round(float(np.mean(values)), 3) if values else None
    return {"cases": len(ill), "dice": mean([row["scores"][key][0] for row in ill]),
            "f1": mean([row["scores"][key][1] for row in ill]), "dice_by_ml": [mean(v) for v in by_size],
            "f1_by_ml": [mean(v) for v in f1_by_size], "healthy": len(healthy),
            "healthy_median_ml": round(float(np.median(healthy)), 2) if healthy else None,
            "healthy_p90_ml": round(float(np.quantile(healthy, 0.9)), 2) if healthy else None}


def best_setting(rows: list[dict]) -> tuple[str, dict[str, float]]:
    """The threshold and smallest lesion with the highest mean of Dice and F1 over contrasts, less a tenth for each mL
    beyond 0.5 in the median healthy head and beyond 2 in the 90th percentile, and the value of all."""
    values = {}
    for key in rows[0]["scores"]:
        found = [summary([row for row in rows if row["contrast"] == contrast], key) for contrast in CONTRASTS]
        found = [each for each in found if each["cases"]]
        value = np.mean([(each["dice"] + each["f1"]) / 2 for each in found])
        value -= 0.1 * np.mean([max(0, (each["healthy_median_ml"] or 0) - 0.5)
                                + 0.25 * max(0, (each["healthy_p90_ml"] or 0) - 2) for each in found])
        values[key] = round(float(value), 4)
    return max(values, key=values.get), values


def summary_of_all(rows: list[dict], key: str) -> dict:
    """By contrast, by way of scanning, by label map, and how well the quality ranks, at one setting."""
    plain = [row for row in rows if row["way"] == "as made"]
    dice = lambda chosen: round(float(np.mean([row["scores"][key][0] for row in chosen])), 3) if chosen else None
    ill = [row for row in rows if row["lesion_ml"] > 0.05]
    return {"setting": key,
            "contrasts": {name: summary([row for row in plain if row["contrast"] == name], key) for name in CONTRASTS},
            "ways": {name: {way: dice([row for row in ill if (row["contrast"], row["way"]) == (name, way)])
                            for way in WAYS} for name in CONTRASTS},
            "maps": {str(number + 1): dice([row for row in ill if row["map"] == number and row["way"] == "as made"])
                     for number in sorted({row["map"] for row in rows})},
            "quality_auc": ranked(plain, key)}


def ranked(rows: list[dict], key: str) -> float | None:
    """The share of pairs of a success and a failure (Dice below 0.3, or over 1 mL in a healthy head) in which the
    success has the higher quality."""
    failed = [(row["healthy"] and row["scores"][key][2] > 1) or (not row["healthy"] and row["scores"][key][0] < 0.3)
              for row in rows]
    good, bad = ([row["quality"] for row, fail in zip(rows, failed) if fail == wanted] for wanted in (False, True))
    if not good or not bad:
        return None
    pairs = np.array(good)[:, None] - np.array(bad)
    return round(float((pairs > 0).mean() + (pairs == 0).mean() / 2), 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="model folder")
    parser.add_argument("--anatomy", help="label maps that the model was not trained on")
    parser.add_argument("--lesions", nargs="+", help="folders of lesion masks")
    parser.add_argument("--cases", type=int, default=200, help="heads of each contrast")
    parser.add_argument("--first", type=int, default=9_500_000, help="seed of the first")
    parser.add_argument("--contrasts", nargs="+", default=list(CONTRASTS), choices=CONTRASTS)
    parser.add_argument("--way", default="as made", choices=WAYS, help="how a head is scanned")
    parser.add_argument("--out", required=True, help="results, a line for each head")
    parser.add_argument("--table", help="only print: THRESHOLD SMALLEST, or best")
    parser.add_argument("--summary", help="JSON file to write what is printed to")
    arguments = parser.parse_args()
    if not arguments.table:
        if not (arguments.model and arguments.anatomy and arguments.lesions):
            raise UserError("--model, --anatomy, --lesions: expected all three")
        measure(arguments)
    rows = read(arguments.out)
    key, values = best_setting(rows)
    print("best:", key, sorted(values.items(), key=lambda item: -item[1])[:6])
    key = arguments.table if arguments.table in values else key
    print("quality ranks failures (Dice below 0.3) under successes with an AUC of", ranked(rows, key))
    for contrast in CONTRASTS:
        for way in WAYS:
            chosen = [row for row in rows if row["contrast"] == contrast and row["way"] == way]
            if chosen:
                print(contrast, way, key, summary(chosen, key))
    if arguments.summary:
        write_json(arguments.summary, summary_of_all(rows, key))
    return 0


if __name__ == "__main__":
    run_script(main)

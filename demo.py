"""Every step once, on synthetic strokes: prepare, train, score on unseen cases, segment a scan, draw the mask.

``make demo`` runs it. Everything is written to demo/; a second run continues where the first one stopped. All data are
synthetic: no patient's scan is used, and the network is a toy.
"""

import signal
import subprocess
import sys
from pathlib import Path

from meshnet.errors import OneLineParser, run_script
from meshnet.runs.folder import TEST_CASES

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / "demo"
CASES, VOXEL_MM = 100, 6
SCAN_SEED = 987_654  # of a patient that is not in the data set
CONTRASTS, HEAD_SEED = ("T1w", "T2w", "FLAIR", "DWI"), 987_655


def main() -> int:
    OneLineParser("demo.py", description=(__doc__ or "").partition("\n")[0]).parse_args()
    data, run = FOLDER / "data", FOLDER / "run"
    call("prepare.py", "--format", "synthetic", "--cases", CASES, "--voxel_mm", VOXEL_MM, "--outer", 5, "--inner", 8,
         "--out", data)
    call("train.py", "--recipe", ROOT / "recipes/demo.yaml", "--data", data, "--run_dir", run)
    if not (run / TEST_CASES).is_file():
        call("train.py", "--test", "--run_dir", run)
    dice, threshold, cases = held_out_scores(data, run)

    scan = FOLDER / "scan.nii.gz"
    write_scan(scan)
    call("infer.py", scan, "-o", FOLDER / "scan_lesion.nii.gz", "--model", run)
    print(f"\nheld-out lesion Dice {dice:.3f}, mean of {cases} synthetic cases that training never saw")
    print(f"best single intensity threshold on the same cases {threshold:.3f}")
    print("\nthe built-in weights on a new 1 mm head of each contrast, about a minute:", flush=True)
    draw_contrasts(FOLDER / "contrasts.png")
    print("\nmask     demo/scan_lesion.nii.gz\npictures demo/scan_lesion.png, demo/contrasts.png")
    print("run      demo/run (curves.png, metrics.jsonl)")
    return 0


def call(script: str, *arguments: object) -> None:
    """Run one of the scripts as a user would, with paths as a user types them; exit with its code if it fails."""
    given = [str(a.relative_to(ROOT)) if isinstance(a, Path) else str(a) for a in arguments]
    print(f"\n$ python {script} {' '.join(given)}", flush=True)
    with subprocess.Popen([sys.executable, ROOT / script, *given], cwd=ROOT) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt as stop:  # it tidies up and says so itself, once
            process.send_signal(getattr(stop, "number", signal.SIGINT))
            code = process.wait()
    if code:
        sys.exit(code)


def held_out_scores(data: Path, run: Path) -> tuple[float, float, int]:
    """Lesion Dice on the test cases of the run and of the best single intensity threshold, and the number of cases.

    The threshold, and whether lesions are above or below it, is chosen on the same cases, which favours it.
    """
    import csv

    import numpy as np

    from meshnet.data.reader import PreparedData
    from meshnet.scans.metrics import overlap_metrics

    with open(run / TEST_CASES, encoding="utf-8") as handle:
        rows = {row["case"]: float(row["conformed_dice"]) for row in csv.DictReader(handle)}
    prepared = PreparedData(data)
    indices = [i for i, row in enumerate(prepared.rows) if row["case"] in rows]
    volumes = [(prepared.read(i, "image")[0], prepared.read(i, "mask")) for i in indices]
    scores = [np.mean([overlap_metrics(image >= level if above else image <= level, mask)["dice"]
                       for image, mask in volumes])
              for level in range(5, 255, 5) for above in (True, False)]
    return float(np.mean(list(rows.values()))), float(max(scores)), len(rows)


def write_scan(path: Path) -> None:
    """Write a new synthetic scan to a NIfTI file, on a finer and differently oriented grid than the data set."""
    import nibabel as nib
    import numpy as np

    from meshnet.data.synthetic.case import make_case
    from meshnet.files import whole_file

    if path.is_file():
        return
    image, _, _ = make_case(SCAN_SEED, 2.0, "demo")
    image = nib.as_closest_canonical(image)
    with whole_file(path) as temporary:
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), temporary)


def draw_contrasts(path: Path) -> dict[str, float]:
    """Segment a synthetic 1 mm head of each contrast with the built-in weights, print the lesion Dice of each as it is
    found, draw all in one picture, and return the Dice."""
    import nibabel as nib
    import numpy as np

    from meshnet import plots, segment_scan
    from meshnet.data.synthetic.case import make_case
    from meshnet.scans.metrics import overlap_metrics

    figure, scores = plots.new_figure(3 * len(CONTRASTS), 3.6), {}
    for panel, contrast in zip(figure.subplots(1, len(CONTRASTS)), CONTRASTS):
        image, mask, _ = make_case(HEAD_SEED, 1.0, "train", contrasts={contrast: 1.0}, healthy=0.0, extracted=0.0,
                                   artefacts=0.0, acute=0.0, smallest_mm3=30_000.0)
        found = segment_scan(image, device="cpu").mask
        scan, truth, marked = (np.asarray(nib.as_closest_canonical(each).dataobj) for each in (image, mask, found))
        scores[contrast] = overlap_metrics(marked > 0, truth == 1)["dice"]
        print(f"{contrast:8} Dice {scores[contrast]:.2f}", flush=True)
        level = int(np.argmax((truth == 1).sum((0, 1))))
        panel.imshow(scan[..., level].T, origin="lower", cmap="gray", vmin=0, vmax=np.quantile(scan[scan > 0], 0.995))
        for volume, colour in ((truth == 1, "gold"), (marked > 0, "red")):
            if volume[..., level].any():
                panel.contour(volume[..., level].T, [0.5], colors=colour, linewidths=1)
        panel.set_title(f"{contrast}: Dice {scores[contrast]:.2f}", fontsize=9)
        panel.axis("off")
    figure.suptitle("synthetic heads: the stroke as drawn (gold), as the built-in weights mark it (red)", fontsize=10)
    plots.save(figure, path)
    return scores


if __name__ == "__main__":
    run_script(main)

"""Lesions against what surrounds them, generated beside real ones, for each contrast: a table and a picture.

``python benchmarks/trust/lesion_contrast.py --heads FOLDER --out FOLDER [--real T2w=SCAN,MASK …]``

``--heads`` is the folder that ``builtin_weights.py --heads`` filled, so both are measured as the network sees them, at
4 mm. Grey values are counted from the median of the tissue 8 to 20 mm from the lesion, in widths of its 10 to 90 %
range: 0 looks normal, beyond 0.5 or so no longer. For each lesion 10, 50 and 90 % of its voxels, the share of them that
lies within that range, and the 99 % quantile of the tissue.
"""

import argparse
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from builtin_weights import CONTRASTS

from meshnet import plots
from meshnet.errors import UserError, run_script
from meshnet.files import write_json

NAMES = ("10 %", "50 %", "90 %", "looks normal", "99 % of tissue")
FEWEST = 20  # voxels of lesion


def statistics(view: np.ndarray, lesion: np.ndarray) -> list[float] | None:
    """The five numbers of a conformed scan (X, Y, Z) and its lesion; None where it has too few voxels."""
    head = view > 0.5 * np.quantile(view[view > 0], 0.25)
    away = ndimage.distance_transform_edt(~lesion, sampling=4.0)
    around = view[(away > 8) & (away < 20) & head]
    if lesion.sum() < FEWEST or len(around) < FEWEST:
        return None
    low, middle, high, top = np.quantile(around, (0.1, 0.5, 0.9, 0.99))
    width, values = high - low + 1e-6, view[lesion]
    return [*((np.quantile(values, (0.1, 0.5, 0.9)) - middle) / width),
            float(((values > low) & (values < high)).mean()), float((top - middle) / width)]


def of_head(path: Path) -> list[float] | None:
    """Of a generated head."""
    head = np.load(path)
    shape = head["scan"].shape
    truth = np.unpackbits(head["truth"])[:np.prod(shape)].reshape(shape)
    return seen(nib.Nifti1Image(head["scan"], head["affine"]), nib.Nifti1Image(truth, head["affine"]))


def of_scan(scan: str, mask: str) -> list[float] | None:
    """Of a real scan and its mask."""
    return seen(nib.load(scan), nib.load(mask))


def seen(image: nib.Nifti1Image, mask: nib.Nifti1Image) -> list[float] | None:
    """``statistics`` of a scan and its mask on the built-in network's grid."""
    from meshnet.networks.card import read_card
    from meshnet.networks.folder import BUILT_IN
    from meshnet.scans.grid import conform, conform_mask

    grid = read_card(BUILT_IN / "meshnet16-synthetic").grids()[0]
    values = sorted({int(v) for v in np.unique(np.asarray(mask.dataobj)) if v > 0})
    if not values:
        return None
    lesion = conform_mask(mask, grid, dict.fromkeys(values, 1), image, exact=False)
    view = np.asarray(conform(image, grid, "conform_uint8", exact=False).dataobj, np.float64)
    return statistics(view, np.asarray(lesion.dataobj) == 1)


def draw(found: dict, real: dict, path: Path) -> None:
    """For each contrast the three quantiles of all generated lesions as points, of the real ones as crosses."""
    figure = plots.new_figure(11, 3)
    for panel, contrast in zip(figure.subplots(1, len(CONTRASTS), sharey=True), CONTRASTS):
        rows = np.array(found[contrast])
        across = np.linspace(-0.25, 0.25, len(rows))
        for place in range(3):
            panel.plot(place + across, np.sort(rows[:, place]), ".", color="tab:blue", markersize=3)
            for one in real.get(contrast, []):
                panel.plot(place, one[place], "x", color="tab:red", markersize=9)
        panel.axhspan(-0.5, 0.5, color="0.9", zorder=0)
        panel.set_ylim(-1.5, 4)
        panel.set_xticks(range(3), NAMES[:3])
        panel.set_title(f"{contrast}: {len(rows)} generated, {len(real.get(contrast, []))} real", fontsize=9)
    figure.supylabel("grey value, in widths of the tissue's range", fontsize=8)
    figure.suptitle("quantiles of a lesion's voxels: generated (blue), real (red); grey: normal tissue", fontsize=9)
    plots.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=Path, required=True)
    parser.add_argument("--real", nargs="*", default=[], help="CONTRAST=SCAN,MASK")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    real: dict[str, list] = {}
    for one in arguments.real:
        contrast, _, files = one.partition("=")
        if contrast not in CONTRASTS or files.count(",") != 1:
            raise UserError(f"--real {one}: expected CONTRAST=SCAN,MASK")
        if values := of_scan(*files.split(",")):
            real.setdefault(contrast, []).append(values)
    every = {contrast: [values for path in sorted(arguments.heads.glob(f"*_{contrast}_asmade.npz"))
                        if (values := of_head(path))] for contrast in CONTRASTS}
    arguments.out.mkdir(parents=True, exist_ok=True)
    told = {}
    for contrast, rows in every.items():
        spread = np.quantile(np.array(rows), (0.1, 0.5, 0.9), axis=0).round(2).T.tolist()
        told[contrast] = {"lesions": len(rows), **dict(zip(NAMES, spread)),
                          "real": np.round(real.get(contrast, []), 2).tolist()}
    print(json.dumps(told, indent=1))
    write_json(arguments.out / "lesion_contrast.json", told)
    draw(every, real, arguments.out / "lesion_contrast.png")


if __name__ == "__main__":
    run_script(main)

"""``cases.html`` of a prepared data set: every case with its mask and volume to look at, the odd ones first.

One file that opens without a network. Odd is what a person should look at before training: a warning of prepare.py, an
empty mask, a volume far from those of the others, a mask that lies in air.
"""

import base64
import math
from html import escape
from pathlib import Path

import numpy as np

from meshnet.data.reader import PreparedData
from meshnet.data.schema import SPLITS
from meshnet.data.splits import load_splits
from meshnet.display import count
from meshnet.files import write_text
from meshnet.numbers import in_ml, plain

PAGE = "cases.html"
MOST = 120  # pictures on the page; of larger data sets the odd cases and some of the others
FAR = 4.0  # times the spread (median absolute deviation) of the logarithms of the volumes
IN_AIR = 0.2  # share of a mask that may lie where the scan is as dark as air
HEIGHT, QUALITY = 200, 82
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1d1d1f; max-width: 1240px; margin: 0 auto; padding: 1.5rem 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } p { max-width: 85ch; color: #444; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); gap: .9rem; }
figure { margin: 0; } img { width: 100%; height: auto; display: block; background: #0c0c0c; }
figcaption { font-size: 13px; margin-top: .2rem; overflow-wrap: anywhere; } .odd { color: #a33c00; }
"""


def write_page(folder: Path) -> Path | None:
    """Write ``cases.html`` into a prepared data set; None where it is there already and of the same cases."""
    data = PreparedData(folder)
    path, mark = Path(folder) / PAGE, f"<!-- {data.info['fingerprint']} outlined -->"
    if path.is_file() and mark in path.read_text(encoding="utf-8")[:400]:
        return None
    reasons = odd_cases(data)
    order = sorted(range(len(data)), key=lambda i: data.rows[i]["lesion_ml"])
    odd = [i for i in order if reasons[i]]
    rest = [i for i in order if not reasons[i]]
    places = np.linspace(0, len(rest) - 1, max(0, min(len(rest), MOST - len(odd)))).round().astype(int)
    folds = fold_of(folder)
    parts = [("To look at first", odd[:MOST]),
             ("The others, by volume" if odd else "By volume", [rest[k] for k in dict.fromkeys(places)])]
    shown = sum(len(cases) for _, cases in parts)
    info = data.info
    lead = (f"{count(len(data), 'case')} of {count(info['subjects'], 'subject')}, {', '.join(info['channels'])}, "
            f"{plain(info['voxel_mm'])} mm, lesions {info['lesion_ml']}. The outline is the mask, on the planes "
            "through its largest lesion. The left of a picture is the patient's right.")
    if isinstance(source := info.get("source"), dict) and source.get("format") == "synthetic":
        lead += " Some made-up lesions are thinner than real ones: a sheet that a plane cuts looks like a rod."
    if shown < len(data):
        lead += f" Drawn here are {shown}: the odd ones, and others over the whole range of volumes."
    body = "".join(f'<h2>{title}</h2>\n<div class="grid">'
                   + "".join(figure(data, i, reasons[i], folds) for i in cases) + "</div>\n"
                   for title, cases in parts if cases)
    write_text(path, '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
               f"{mark}\n<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; "
               "style-src 'unsafe-inline'\">\n"
               '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
               f"<title>Prepared cases</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>Prepared cases</h1>\n"
               f"<p>{escape(lead)}</p>\n{body}</body></html>\n")
    return path


def odd_cases(data: PreparedData) -> list[list[str]]:
    """For each case the reasons, in words, to look at it first; an empty list for most."""
    volumes = [row["lesion_ml"] for row in data.rows]
    logs = np.log([ml for ml in volumes if ml > 0] or [1.0])
    middle, spread = float(np.median(logs)), max(1.4826 * float(np.median(abs(logs - np.median(logs)))), 0.25)
    warned, found = data.info.get("warnings", {}), []
    for index, (row, ml) in enumerate(zip(data.rows, volumes)):
        reasons = list(warned.get(row["case"], []))
        if ml <= 0:
            reasons.append("the mask is empty")
        elif abs(math.log(ml) - middle) > FAR * spread:
            reasons.append(f"{'larger' if math.log(ml) > middle else 'smaller'} than nearly all others")
        if ml > 0 and (share := share_in_air(data, index)) > IN_AIR:
            reasons.append(f"{share:.0%} of the mask lies in air: do mask and scan fit?")
        found.append(reasons)
    return found


def share_in_air(data: PreparedData, index: int) -> float:
    """The share of a case's mask where all channels are as dark as the border of the volume, or darker."""
    image, mask = data.read(index, "image"), data.read(index, "mask") > 0
    if not mask.any():
        return 0.0
    dark = np.ones(int(mask.sum()), bool)
    for channel in image:
        faces = [channel.take(end, axis).ravel() for axis in range(3) for end in (0, -1)]
        dark &= channel[mask] <= np.median(np.concatenate(faces))
    return float(dark.mean())


def fold_of(folder: Path) -> dict[str, int]:
    """The outer fold that tests each subject; {} where none does."""
    splits = load_splits(Path(folder) / SPLITS)
    return {subject: k for k, fold in enumerate(splits["folds"]) for subject in fold["test"]}


def figure(data: PreparedData, index: int, reasons: list[str], folds: dict[str, int]) -> str:
    """A case as HTML: its picture, name, volume, fold, and what is odd about it."""
    row = data.rows[index]
    fold = f", tested in fold {folds[row['subject']]}" if row["subject"] in folds else ""
    odd = "".join(f'<br><span class="odd">{escape(reason)}</span>' for reason in reasons)
    return (f'<figure><img alt="{escape(row["case"], quote=True)}" src="data:image/jpeg;base64,{picture(data, index)}">'
            f"<figcaption>{escape(row['case'])}: {in_ml(row['lesion_ml'])}{fold}{odd}</figcaption></figure>\n")


def picture(data: PreparedData, index: int) -> str:
    """A small JPEG of the first channel with the outline of the mask, in base64."""
    from meshnet.scans.overlay import thumbnail

    mask = data.marking.truth(data.read(index, "mask"))
    affine = np.array(data.rows[index]["conformed_affine"]).reshape(4, 4)
    drawn = thumbnail(data.image(index)[0], mask, affine, HEIGHT, QUALITY, filled=False)
    return base64.b64encode(drawn).decode("ascii")

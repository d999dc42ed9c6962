"""The page of a cohort: every scan at a glance in one HTML file, the odd ones first."""

import base64
import contextlib
import html
import itertools
import json
import math
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meshnet.cohort.records import Records
from meshnet.display import count
from meshnet.files import write_text

PAGE = "report.html"
ID = "page_id"  # the file in the folder of the records that names the marks' place in a browser
MOST = 5000  # scans on one page
BLOCK = 50  # pictures in one element of the page, which is read when one of them comes into view
ODD = 3.5  # robust deviations from which a scan is odd (Iglewicz & Hoaglin 1993)
DISAGREE = 0.5  # agreement of two looks below which a scan is odd in any company
AGREEMENT = "agreement of two looks"
LEAST = 8  # scans from which "unlike the others" has a meaning
EDGES_ML = (0.0, 0.001, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, math.inf)  # of the histogram's bars
INTRODUCTION = ("{model}{done}, {failed} failed, {empty} with nothing marked; median {median}. Odd scans come "
                "first: volume, extent of the head, brightness{more} unlike those of the others. The half is by the "
                "axes that the file's header declares, and no statement about anatomy.")


def write_pages(out: Path, records: Records, done: Sequence[dict], failed: Sequence[dict], title: str) -> list[Path]:
    """``report.html``, and ``report_2.html`` … where there are more scans than one page holds, the oddest first.

    Args:
        done: records with ``name``, ``key``, ``volume_ml``, ``lesions``, ``largest_ml``, and where they are known
            ``mask``, ``side``, ``head``, ``warnings``, ``remarks``, ``model``, what made the mask in words,
            and ``classes_ml``, the volume of each class.
        failed: records with ``name``, ``key`` and ``error``.
    """
    reasons = oddities(done)
    rows = [row_of(record, why, score) | {"mask": mask_in(out, record)} for record, (score, why) in zip(done, reasons)]
    rows += [{"name": record["name"], "key": record["key"], "error": record["error"], "why": [], "warnings": [],
              "odd": 1e6} for record in failed]
    rows.sort(key=lambda row: (-row["odd"], row["name"]))
    volumes = [record["volume_ml"] for record in done]
    models = "; ".join(dict.fromkeys(record["model"] for record in done if record.get("model")))
    text = INTRODUCTION.format(model=f"{models}. " if models else "", done=count(len(done), "scan"), failed=len(failed),
                               empty=sum(not record["lesions"] for record in done),
                               median=f"{np.median(volumes):.1f} mL" if volumes else "unknown",
                               more=", or agreement of two looks" if any("agreement" in one for one in done) else "")
    pages = max(1, math.ceil(len(rows) / MOST))
    names = [PAGE if i == 0 else PAGE.replace(".", f"_{i + 1}.") for i in range(pages)]
    for i, name in enumerate(names):
        links = "" if pages == 1 else "Pages, the oddest first: " + " ".join(
            f"<b>{j + 1}</b>" if j == i else f'<a href="{other}">{j + 1}</a>' for j, other in enumerate(names))
        write_page(out / name, rows[i * MOST:(i + 1) * MOST], records, title, text, links)
    for i in range(pages, pages + 100):  # of an earlier, larger list
        (out / PAGE.replace(".", f"_{i + 1}.")).unlink(missing_ok=True)
    return [out / name for name in names]


def mask_in(out: Path, record: dict) -> str:
    """Where a mask lies in the output folder, as marks name it; "" where that is unknown."""
    return Path(os.path.relpath(record["mask"], out)).as_posix() if record.get("mask") else ""


def page_id(records: Records) -> str:
    """What a browser keeps the marks of an output folder's pages under: made once, whatever scans come and go."""
    path = records.folder / ID
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if re.fullmatch(r"[0-9a-f]{32}", found := path.read_text(encoding="utf-8").strip()):
            return found
    made = uuid.uuid4().hex
    write_text(path, f"{made}\n")
    return made


def row_of(record: dict, why: list[str], score: float) -> dict:
    """What the page shows of a finished scan."""
    return {"name": record["name"], "key": record["key"], "volume": record["volume_ml"], "lesions": record["lesions"],
            "largest": record["largest_ml"], "side": record.get("side"), "quality": record.get("quality"),
            "agreement": record.get("agreement"), "classes": record.get("classes_ml"), "why": why,
            "odd": round(score, 2),
            "warnings": [*record.get("warnings", []), *record.get("remarks", [])]}


def oddities(records: Sequence[dict]) -> list[tuple[float, list[str]]]:
    """For each scan how odd it is, and in which of its facts, in words.

    A fact is compared by its robust deviation 0.6745 (x - median) / MAD (Iglewicz & Hoaglin 1993), volumes and
    brightness on a logarithmic scale. Of the agreement of two looks only a low one is odd, and one below ``DISAGREE``
    always, however many scans there are. A scan with warnings is a little odder than one without.
    """
    facts = {
        "volume": [math.log10(record["volume_ml"] + 0.1) for record in records],
        "brightness": [math.log10(record["head"]["grey"] + 1e-3) if record.get("head") else None for record in records],
        **{f"extent of the head {axis}": [record["head"]["head_mm"][i] if record.get("head") else None
                                          for record in records]
           for i, axis in enumerate(("from left to right", "from back to front", "from bottom to top"))},
        AGREEMENT: [record.get("agreement") for record in records]}
    found = [(0.1 * bool(record.get("warnings")), []) for record in records]
    for name, values in facts.items():
        for i, deviation in enumerate(deviations(values)):
            score, why = found[i]
            if name == AGREEMENT:
                low = values[i] is not None and values[i] < DISAGREE
                deviation = min(deviation, -ODD if low else 0.0)
            if name == AGREEMENT and deviation <= -ODD:
                why.append(f"{name} {values[i]:.2f}")
            elif abs(deviation) >= ODD:
                why.append(f"{name} {'above' if deviation > 0 else 'below'} the others ({abs(deviation):.1f} "
                           "robust deviations)")
            found[i] = (max(score, abs(deviation)), why)
    return found


def deviations(values: Sequence[float | None]) -> list[float]:
    """Robust deviations; 0 where a value is missing, or too few are known, or all are alike."""
    known = np.array([value for value in values if value is not None])
    if len(known) < LEAST:
        return [0.0] * len(values)
    middle = float(np.median(known))
    spread = float(np.median(np.abs(known - middle)))
    spread = spread or 0.8453 * float(np.mean(np.abs(known - middle)))  # as the source has it where the MAD is 0
    return [0.0 if value is None or spread < 1e-9 else 0.6745 * (value - middle) / spread for value in values]


def write_page(path: Path, rows: Sequence[dict], records: Records, title: str, text: str, links: str) -> None:
    """One page, with everything that it shows in it."""
    pictures = []
    rows = [dict(row) for row in rows]
    for row in rows:
        picture = records.folder / f"{row['key']}.jpg"
        row["picture"] = -1
        if not row.get("error") and picture.is_file():
            row["picture"] = len(pictures)
            pictures.append(base64.b64encode(picture.read_bytes()).decode("ascii"))
        if not row.get("error"):
            row["bin"] = next(i for i, high in enumerate(EDGES_ML[1:]) if row["volume"] < high)
    blocks = [f'<script type="text/plain" id="pictures{i}">\n' + "\n".join(pictures[i * BLOCK:(i + 1) * BLOCK])
              + "\n</script>" for i in range(math.ceil(len(pictures) / BLOCK))]
    counts = [sum(row.get("bin") == i for row in rows) for i in range(len(EDGES_ML) - 1)]
    names = [f"{low:g} to {high:g} mL" for low, high in itertools.pairwise(EDGES_ML)]
    names[0], names[1], names[-1] = "nothing marked", "below 0.5 mL", f"from {EDGES_ML[-2]:g} mL"
    short = ["0", "< 0.5", *[f"{low:g}" for low in EDGES_ML[2:-1]]]
    data = {"id": page_id(records), "per": BLOCK, "rows": rows,
            "bins": [{"label": a, "short": b, "count": c} for a, b, c in zip(names, short, counts)]}
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    for mark, value in (("__TITLE__", html.escape(title)), ("__INTRODUCTION__", html.escape(text)),
                        ("__PAGES__", links), ("__DATA__", json.dumps(data).replace("<", "\\u003c")),
                        ("__PICTURES__", "\n".join(blocks))):
        page = page.replace(mark, value)
    write_text(path, page, errors="backslashreplace")

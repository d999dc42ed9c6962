"""README.md of the built-in weights, written from config.json and results.json beside them.

``python benchmarks/trust/weights_card.py [--folder weights/meshnet16-cascade]``

results.json holds what was measured: ``decision.py table`` writes its synthetic part, ``calibrate.py`` the calibration
of a single network; that of what a cascade tells, by contrast, and figures on real scans, which are not in the
repository, are entered by hand, these with how often each was seen.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.errors import run_script
from meshnet.files import write_text

WAYS = ("as made", "plain", "3 mm voxels", "5 mm slices", "RAS", "brain-extracted")


def table(head: list[str], rows: list[list]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
            *("| " + " | ".join("–" if cell is None else f"{cell}" for cell in row) + " |" for row in rows), ""]


def synthetic(results: dict) -> list[str]:
    rows = [[name, one["cases"], one["dice"], one["f1"], *one["dice_by_ml"], one["healthy"], one["healthy_median_ml"],
             one["healthy_p90_ml"]] for name, one in results["contrasts"].items()]
    lines = table(["contrast", "strokes", "Dice", "lesion F1", "< 1 mL", "1–5", "5–20", "> 20 mL", "healthy heads",
                   "mL marked, median", "90 %"], rows)
    if results.get("ways"):
        ways = [way for way in WAYS if any(way in found for found in results["ways"].values())]
        said = " (without artefacts; plain is the whole head at 2 mm)" if "plain" in ways else ""
        lines += [f"How a head is scanned, mean Dice{said}:", ""]
        lines += table(["contrast", *ways], [[name, *(found.get(way) for way in ways)]
                                             for name, found in results["ways"].items()])
    lines += ["By label map (no network was trained on them), mean Dice over all contrasts: " + ", ".join(
        f"{name} {value}" for name, value in results["maps"].items()) + ".",
        "Share of these heads whose contrast is told right: " + ", ".join(
        f"{name} {value}" for name, value in results["told"].items()) + " (FLAIR and DWI count as one).", ""]
    return lines


def decision(card: dict) -> list[str]:
    """What makes a lesion, for each contrast that a scan may look like."""
    decisions = [*card["contrasts"].items(), ("anything else", card)]
    rows = [[name, own["threshold"], own["sure"] or "–", f"{own['min_lesion_mm3'] / 1000:g}",
             ", ".join(own.get("also", [])) or "–", own.get("first_share", card.get("first_share", 0)),
             f"yes, and {own['veto'].get('sure', own['sure'])} is enough" if own.get("veto") else "–",
             "its own" if own.get("own_weights") else "the common ones"] for name, own in decisions]
    head = ["scan looks like", "lesion from probability", "which somewhere reaches", "and of at least, mL",
            "counts as lesion too", "share of the first network", "veto", "weights of the second"]
    columns = len(head) - 3 * (not card.get("first"))
    return table(head[:columns], [row[:columns] for row in rows])


def real(results: dict) -> list[str]:
    rows = [[one["scan"], one["true_ml"], one["dice"], one["f1"], one["marked_ml"]] for one in results["development"]]
    lines = table(["scan", "mL", "Dice", "lesion F1", "mL marked"], rows)
    return [*lines, results["seen"], ""]


def calibration(results: dict) -> list[str]:
    """What share is lesion of the voxels of each tenth of the probabilities; in a column for each contrast, if so."""
    found = results["calibration"]
    if "after" in found:
        rows = [[one["said"], one["is"], one["voxels"]] for one in found["after"]]
        return table(["probability said, mean", "share that is lesion", "voxels"], rows)
    cells = [{min(9, int(10 * one["said"])): f"{one['said']:.2f}: **{one['is']:.2f}** ({one['voxels']})"
              for one in looks["bins"]} for looks in found.values()]
    rows = [[f"{tenth / 10:g} to {(tenth + 1) / 10:g}", *(one.get(tenth, "–") for one in cells)]
            for tenth in range(10)]
    return table(["probability", *(f"{name}: said, **is lesion** (voxels)" for name in found)], rows)


def readme(name: str, card: dict, results: dict) -> str:
    lines = [f"# {name}", "", *results["intro"], "", "## What it reaches", "",
             "**On synthetic heads.**", "", results["synthetic_note"], "", *synthetic(results),
             "**On real scans.**", "", *real(results),
             "## What it marks", "", *decision(card), *results["decision"], "",
             "## What its probabilities mean", "", results["calibration_note"], "", *calibration(results),
             "## What it can and cannot do", "", *results["limits"], "", "## How it was made", "", *results["made"], ""]
    lines += ["## Fine-tuning", "", *results["fine_tuning"], ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("weights/meshnet16-cascade"))
    folder = parser.parse_args().folder
    card, results = (json.loads((folder / name).read_text(encoding="utf-8"))
                     for name in ("config.json", "results.json"))
    write_text(folder / "README.md", readme(folder.resolve().name, card, results))


if __name__ == "__main__":
    run_script(main)

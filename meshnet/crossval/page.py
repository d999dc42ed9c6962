"""A report as a single HTML file with its pictures inside; no scripts, no network."""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from meshnet.crossval import charts, tables
from meshnet.crossval.results import INCOMPLETE, Results
from meshnet.display import count

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1d1d1f;
  background: #fff; max-width: 1080px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid #ddd; }
p, li { max-width: 78ch; }
.lead { color: #555; margin-top: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; margin: .6rem 0; }
thead th { border-top: 2px solid #333; border-bottom: 1px solid #333; font-weight: 600; text-align: right; }
tbody tr:last-child td { border-bottom: 2px solid #333; }
th, td { position: relative; padding: .28rem 1rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
tbody tr:nth-child(even) { background: #f6f7f9; }
sup { position: absolute; line-height: 1.2; color: #b03a00; }
.wide table { font-size: 12.5px; }
.wide th, .wide td { padding: .28rem .4rem; }
figure { margin: 1rem 0 1.6rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, .note { color: #555; font-size: 13.5px; max-width: 88ch; margin-top: .4rem; }
.warning { background: #fff4e5; border-left: 4px solid #e08600; padding: .5rem .9rem; margin: 1rem 0; }
.warning ul { margin: .3rem 0; }
.worst { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: .8rem; }
.worst figure { margin: 0; }
@media print { body { max-width: none; } figure, table { break-inside: avoid; } }
"""
# Nothing may be loaded from anywhere, whatever a file name or a recipe's name contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def whole(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole file.

    Args:
        title, lead: plain text.
        sections: (heading as plain text, body as HTML).
    """
    body = "".join(f"<section>\n<h2>{escape(heading)}</h2>\n{content}</section>\n" for heading, content in sections)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n'
            f'<body>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}</body>\n</html>\n')


def picture(path: Path | None, caption: str, alt: str) -> str:
    """A PNG inside the page, with a caption (plain text); None where it could not be drawn."""
    if path is None:
        return f"<p>Not drawn: {escape(alt)}</p>\n"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (f'<figure><img alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>\n")


def table(content: str, note: str, kind: str = "scroll") -> str:
    """An HTML table that scrolls where the window is narrow, with a note (plain text) under it.

    ``kind`` is ``scroll`` or, for many columns, ``scroll wide``.
    """
    return f'<div class="{kind}">{content}</div>\n<p class="note">{escape(note)}</p>\n'


def warning(text: str, items: Sequence[str]) -> str:
    """A box with a line and a list, both plain text."""
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<div class="warning">{escape(text)}<ul>{listed}</ul></div>\n'


# ---------------------------------------------------------------------------------------------------------------------
# What a cross-validation's page says

BESIDE = "The columns on the right are the values published in arXiv 2503.05531, measured on its own data."


def caption(found: "Results", grid: str) -> str:
    """What the main table shows, in words."""
    where = "the conformed grid" if grid == "conformed" else "each scan's own grid"
    marked = f" {INCOMPLETE} not every fold is finished." if found.incomplete else ""
    return (f"Mean (SD) over outer folds of the restart with the best validation Dice, in {where}. DICE is the mean "
            f"over background and lesion. Stars: different from {found.reference} (Wilcoxon signed-rank test over "
            f"subjects, Holm-corrected): * p < 0.05, ** p < 0.01, *** p < 0.001.{marked}{nothing_marked(found)}")


def nothing_marked(found: "Results") -> str:
    """A sentence for each model that marks nothing in some of its test cases; "" where none does."""
    words = []
    for model in found.models:
        empty, cases = found.empty(model), len(found.pooled[model])
        unfit = ": its scores are those of an empty mask" if empty == cases else ""
        words += [f" {model} marked nothing in {empty} of {cases} test cases{unfit}."] if empty else []
    return "".join(words)


def compose(found: "Results", parameters: Mapping, missing: Sequence[str], plan: Mapping, drawn: Mapping[str, Path],
            shown: Mapping[str, Sequence[tuple[Path, str]]], why_not: str) -> str:
    """The whole page from results, parameters by model, missing runs in words, the plan and the pictures."""
    subjects = len({row["subject"] for rows in found.pooled.values() for row in rows})
    trained = sum("(ensemble)" not in run.model for run in found.runs)
    lead = (f"{count(len(found.models), 'model')}, {count(plan['folds'], 'outer fold')}, {count(trained, 'run')}, "
            f"{count(subjects, 'test subject')}. Checkpoints and "
            "restarts were selected on validation data; each run was scored on its test fold once. Research software, "
            "not for diagnosis.")
    gaps = warning("Missing runs:", missing) if missing else ""
    sections = [
        ("Results", gaps + table(
            tables.html(found.rows("conformed", parameters)),
            f"Table 1. {caption(found, 'conformed')} {BESIDE}")),
        ("Size and accuracy", picture(
            drawn.get("pareto"), "Parameters against macro Dice (mean and SD over folds). Step line: Pareto front. "
            "Hollow points: published values.", "Parameters against macro Dice")),
        ("Scores on the native grid", table(
            tables.html(found.rows("native", parameters), beside=False), f"Table 2. {caption(found, 'native')}")),
        ("Means over folds, runs and subjects", three_means(found)),
        ("Scores by subject", picture(
            drawn.get("distributions"), "Each dot is a test subject, scored by the selected restart of its fold. Grey "
            "bar: interquartile range; black tick: median. Native grid.", "Distribution of scores by subject")
         + picture(drawn.get("volume_dice"), "True lesion volume against lesion Dice. Black: median of each fifth of "
                   "the cases, by volume.",
                   "Lesion volume against Dice")
         + picture(drawn.get("bland_altman"),
                   "Bland–Altman plot of lesion volumes. Solid: bias; dashed: bias ± 1.96 SD.",
                   "Bland–Altman plot of volumes")),
        ("All scores over subjects", all_scores(found)),
        (f"Tests against {found.reference}", tests_table(found)),
        ("Best, median and worst cases", cases(shown, why_not)),
        ("Provenance", provenance(found, plan)),
    ]
    return whole("Cross-validation of lesion segmentation", lead, sections)


def three_means(found: "Results") -> str:
    """Macro and lesion Dice of each model over folds, over runs and over subjects."""
    lines = []
    for model in found.models:
        for score in ("dice_macro", "dice"):
            s = found.summaries["conformed"][score][model]
            lines.append([escape(model), charts.LABELS[score], tables.cell(s.folds), str(s.folds.n),
                          tables.cell(s.restarts), str(s.restarts.n), tables.cell(s.subjects), str(s.subjects.n),
                          interval(s.low, s.high)])
    titles = ["Model", "Score", "over folds", "n", "over folds and restarts", "n", "over subjects", "n",
              "95 % interval"]
    return table(tables.html_table(titles, lines), "Mean (SD). Over folds: selected restarts, as in the paper. "
                 "Over folds and restarts: all runs. Over subjects: each subject once, scored by the selected restart, "
                 "with a bootstrap interval. Conformed grid.")


def all_scores(found: "Results") -> str:
    """Every score over subjects, in the scan's own grid."""
    scores = found.summaries["native"]
    lines = [[escape(model), *(tables.cell(by_model[model].subjects, 1 if name.endswith("_mm") else 3)
                               for name, by_model in scores.items())] for model in found.models]
    return table(tables.html_table(["Model", *(charts.LABELS[name] for name in scores)], lines),
                 "Mean (SD) over subjects, native grid; lesions are 26-connected. HD95: 95th percentile of the "
                 "surface distances, ASD: their mean, NSD: normalised surface Dice at 2 mm. If only one of "
                 "prediction and truth is empty, both distances are the diagonal of the volume.",
                 "scroll wide")


def tests_table(found: "Results") -> str:
    """Wilcoxon tests of every model against the reference."""
    if len(found.models) == 1:
        return '<p class="note">There is only one model, so there is nothing to test.</p>\n'
    lines = [[escape(model), charts.LABELS[score], str(c.n), number(c.difference, "+.3f"), interval(c.low, c.high),
              p_value(c.p), p_value(c.p_holm), number(c.effect, "+.2f"), c.stars]
             for score, by_model in found.tests["conformed"].items() for model, c in by_model.items()]
    titles = ["Model", "Score", "Subjects", "Difference", "95 % interval", "p", "p (Holm)", "Effect", ""]
    return table(tables.html_table(titles, lines), f"Model minus {found.reference}, paired by subject, conformed "
                      "grid: mean difference with bootstrap interval, Wilcoxon signed-rank test, Holm's correction "
                 "over the models of a score, effect as matched-pairs rank-biserial correlation.")


def cases(shown: Mapping[str, Sequence[tuple[Path, str]]], why_not: str) -> str:
    """The pictures of each model, or why there are none."""
    if why_not:
        return f'<p class="note">No pictures: {escape(why_not)}.</p>\n'
    return "".join(f'<h3>{escape(model)}</h3>\n<div class="worst">'
                   + "".join(picture(path, line, line) for path, line in pictures) + "</div>\n"
                   for model, pictures in shown.items())


def provenance(found: "Results", plan: Mapping) -> str:
    """Data set, splits, selected restarts and everything else that is needed to reproduce the report."""
    chosen = "; ".join(f"{model}: " + ", ".join(f"fold {fold} restart {run.restart}" for (name, fold), run
                                                in sorted(found.chosen.items()) if name == model)
                       for model in plan["models"] if model in found.models)
    items = [f"Data set {plan['data']}, fingerprint {plan['fingerprint']}", f"Splits {plan['split_hash']}",
             f"Seeds {plan['seed']} and up, validation on inner fold {plan['inner_fold']}",
             f"Selected restarts: {chosen}",
             "Recipes: " + "; ".join(" ".join([Path(entry["recipe"]).name, *entry["flags"]])
                                     for entry in plan["models"].values()),
             "Versions: " + ", ".join(f"{name} {version}" for name, version in plan["versions"].items())]
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>\n"


def interval(low: float, high: float) -> str:
    """``0.71 to 0.80``, or a dash."""
    return "–" if math.isnan(low) else f"{number(low, '.3f')} to {number(high, '.3f')}"


def number(value: float, form: str) -> str:
    """A number with a true minus sign, or a dash."""
    return "–" if math.isnan(value) else f"{value:{form}}".replace("-", "−")


def p_value(p: float) -> str:
    """Three decimals, or ``< 0.001``."""
    return "–" if math.isnan(p) else "&lt; 0.001" if p < 0.001 else f"{p:.3f}"

"""What the page of a cross-validation says."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from meshnet import webpage
from meshnet.crossval import charts, tables
from meshnet.crossval.results import INCOMPLETE, Results
from meshnet.display import count

BESIDE = "The columns on the right are the values published in arXiv 2503.05531, measured on its own data."


def caption(found: "Results", grid: str) -> str:
    """What the main table shows, in words."""
    where = "the conformed grid" if grid == "conformed" else "each scan's own grid"
    marked = f" {INCOMPLETE} not every fold is finished." if found.incomplete else ""
    return (f"Mean (SD) over outer folds of the restart with the best validation Dice, in {where}. DICE is the mean "
            f"over background and lesion. Stars: different from {found.reference} (Wilcoxon signed-rank test over "
            f"subjects, Holm-corrected): * p < 0.05, ** p < 0.01, *** p < 0.001.{marked}{nothing_marked(found)}")


def beside(rows: Sequence[tables.Row]) -> str:
    """What the paper's columns are; "" where a table has none."""
    return f" {BESIDE}" if tables.has_published(rows) else ""


def nothing_marked(found: "Results") -> str:
    """A sentence for each model that marks nothing in some of its test cases; "" where none does."""
    words = []
    for model in found.models:
        empty, cases = found.empty(model), len(found.pooled[model])
        unfit = ": its scores are those of an empty mask" if empty == cases else ""
        words += [f" {model} marked nothing in {empty} of {cases} test cases{unfit}."] if empty else []
    if any(map(found.silent, found.models)):
        words.append(" A model that marks nothing is never the best and has no stars, even where its scores are better:"
                     " the AVD of an empty mask is 1, and a model that marks too much has a larger one.")
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
    gaps = webpage.warning("Missing runs:", missing) if missing else ""
    sections = [
        ("Results", gaps + webpage.table(
            tables.html(found.rows("conformed", parameters)),
            f"Table 1. {caption(found, 'conformed')}{beside(found.rows('conformed', parameters))}")),
        ("Size and accuracy", webpage.picture(
            drawn.get("pareto"), "Parameters against macro Dice (mean and SD over folds). "
            f"{front_line(found, parameters)}Hollow points: published values.", "Parameters against macro Dice")),
        ("Scores on the native grid", webpage.table(
            tables.html(found.rows("native", parameters), beside=False), f"Table 2. {caption(found, 'native')}")),
        ("Means over folds, runs and subjects", three_means(found)),
        ("Scores by subject", webpage.picture(
            drawn.get("distributions"), "Each dot is a test subject, scored by the selected restart of its fold. Grey "
            "bar: interquartile range; black tick: median. Native grid.", "Distribution of scores by subject")
         + webpage.picture(
             drawn.get("volume_dice"), "True lesion volume against lesion Dice. Black: median of each fifth of the "
             "cases, by volume.", "Lesion volume against Dice")
         + webpage.picture(
             drawn.get("bland_altman"), "Bland–Altman plot of lesion volumes. Solid: bias; dashed: bias ± 1.96 SD.",
             "Bland–Altman plot of volumes")),
        ("All scores over subjects", all_scores(found)),
        (f"Tests against {found.reference}", tests_table(found)),
        ("Best, median and worst cases", cases(shown, why_not)),
        ("Provenance", provenance(found, plan)),
    ]
    return webpage.whole("Cross-validation of lesion segmentation", lead, sections)


def front_line(found: "Results", parameters: Mapping[str, int | None]) -> str:
    """What the step line of the chart is; "" where no larger model is better than a smaller one, and none is seen."""
    rows = found.rows("conformed", parameters)
    front = charts.pareto_front([(row.parameters, row.scores["dice_macro"].mean) for row in rows if row.parameters])
    return "Step line: Pareto front of the models measured here. " if len(front) > 1 else ""


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
    return webpage.table(
        webpage.html_table(titles, lines), "Mean (SD). Over folds: selected restarts, as in the paper. Over folds and "
        "restarts: all runs. Over subjects: each subject once, scored by the selected restart, with a bootstrap "
        "interval. Conformed grid.")


def all_scores(found: "Results") -> str:
    """Every score over subjects, in the scan's own grid."""
    scores = found.summaries["native"]
    lines = [[escape(model), *(tables.cell(by_model[model].subjects, 1 if name.endswith("_mm") else 3)
                               for name, by_model in scores.items())] for model in found.models]
    return webpage.table(
        webpage.html_table(["Model", *(charts.LABELS[name] for name in scores)], lines),
        "Mean (SD) over subjects, native grid; lesions are 26-connected. HD95: 95th percentile of the surface "
        "distances, ASD: their mean, NSD: normalised surface Dice at 2 mm. If only one of prediction and truth is "
        "empty, both distances are the diagonal of the volume.", "scroll wide")


def tests_table(found: "Results") -> str:
    """Wilcoxon tests of every model against the reference."""
    if len(found.models) == 1:
        return '<p class="note">There is only one model, so there is nothing to test.</p>\n'
    lines = [[escape(model), charts.LABELS[score], str(c.n), number(c.difference, "+.3f"), interval(c.low, c.high),
              p_value(c.p), p_value(c.p_holm), number(c.effect, "+.2f"), c.stars]
             for score, by_model in found.tests["conformed"].items() for model, c in by_model.items()]
    titles = ["Model", "Score", "Subjects", "Difference", "95 % interval", "p", "p (Holm)", "Effect", ""]
    return webpage.table(
        webpage.html_table(titles, lines), f"Model minus {found.reference}, paired by subject, conformed grid: mean "
        "difference with bootstrap interval, Wilcoxon signed-rank test, Holm's correction over the models of a score, "
        "effect as matched-pairs rank-biserial correlation.")


def cases(shown: Mapping[str, Sequence[tuple[Path, str]]], why_not: str) -> str:
    """The pictures of each model, or why there are none."""
    if why_not:
        return f'<p class="note">No pictures: {escape(why_not)}.</p>\n'
    return "".join(f'<h3>{escape(model)}</h3>\n<div class="worst">'
                   + "".join(webpage.picture(path, line, line) for path, line in pictures) + "</div>\n"
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

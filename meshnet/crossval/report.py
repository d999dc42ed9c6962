"""The report of a cross-validation: tables, charts, the worst cases, and one page with all of it.

=========================== ===========================================================================================
report/table.md .csv .tex   the main table, on the conformed grid; table_native.* on the scans' own grids; table.txt is
                            the one that the screen shows
report/summary.csv          every score, with its means over folds, runs and subjects (see meshnet.crossval.stats)
report/tests.csv            every model against the reference: Wilcoxon, Holm, effect, difference with interval
report/cases.csv            the test cases of the selected restarts
report/figures/             PNG and PDF
report/report.html          everything in one file
=========================== ===========================================================================================
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from meshnet import plots
from meshnet.crossval import charts, page, results, stats, tables
from meshnet.crossval.plan import find_planned, run_folder
from meshnet.crossval.results import Results
from meshnet.data.schema import PREPARED
from meshnet.errors import UserError, decoration
from meshnet.files import write_csv, write_text
from meshnet.networks.card import Card, read_card
from meshnet.numbers import in_ml

TABLE = "table.txt"

# ---------------------------------------------------------------------------------------------------------------------
# From a folder

def write_report(out: str | Path, reference: str | None = None, pictures: int = 3) -> Path:
    """Write ``OUT/report/`` from the runs that are finished, and return the page's path.

    Args:
        out: folder of a cross-validation.
        reference: model that the others are tested against; None: ``meshnet26`` if it is there, else the first.
        pictures: how many of the best, of the middle and of the worst cases of the reference are drawn; of every other
            model one each (needs the prepared data set).

    Raises:
        UserError: if nothing is finished, or runs must not be compared (see ``results.read_runs``).
    """
    runs, missing, plan = results.read_runs(out)
    if not runs:
        raise UserError(f"{out}: no run is finished and scored yet ({missing[0]}); run crossval.py again")
    found = Results(runs, reference, plan["folds"])
    folder = Path(out) / "report"
    parameters = parameters_by_model(found, Path(out), plan)
    write_tables(folder, found, parameters)
    drawn, (shown, why_not) = {}, ({}, "they could not be drawn")
    with decoration(f"{folder / 'figures'}", "the tables do not depend on them"):
        drawn = draw_charts(folder / "figures", found, parameters)
    with decoration(f"{folder / 'pictures'}", "the tables do not depend on them"):
        shown, why_not = draw_cases(folder / "pictures", found, Path(out), plan, pictures)
    path = folder / "report.html"
    write_text(path, page.compose(found, parameters, missing, plan, drawn, shown, why_not))
    return path


def parameters_by_model(found: Results, out: Path, plan: Mapping) -> dict[str, int | None]:
    """Trainable parameters of every model, from its card; an ensemble has those of all its members."""
    counts = {}
    for model in found.models:
        name = model.removesuffix(" (ensemble)")
        run = next((run for run in found.runs if run.model == name), None)
        counts[model] = None
        if run is not None:
            members = plan["models"][name]["restarts"] if model != name else 1
            counts[model] = members * parameters_of(run_folder(out, find_planned(plan, run)))
    return counts


def parameters_of(folder: Path) -> int:
    """Trainable parameters of the network in a run folder, without its weights."""
    import torch

    from meshnet.networks.build import build
    from meshnet.networks.memory import count_parameters

    card = read_card(folder)
    with torch.device("meta"):
        return count_parameters(build(card.name, card.arguments))


def write_tables(folder: Path, found: Results, parameters: Mapping[str, int | None]) -> None:
    """The main table on both grids, and the long tables with every number."""
    for grid, name in (("conformed", "table"), ("native", "table_native")):
        rows = found.rows(grid, parameters)
        caption = f"{page.caption(found, grid)}{page.beside(rows)}"
        write_text(folder / f"{name}.md", f"{tables.markdown(rows)}\n{caption}\n")
        write_text(folder / f"{name}.csv", tables.comma_separated(rows))
        write_text(folder / f"{name}.tex", tables.latex(rows, caption, f"tab:{name}"))
    write_text(folder / TABLE, tables.plain(found.rows("conformed", parameters)) + "\n")
    spreads = ("folds", "restarts", "subjects")
    lines = [["model", "grid", "score", *(f"{s}_{part}" for s in spreads for part in ("mean", "sd", "n")),
              "subjects_low", "subjects_high"]]
    for grid, scores in found.summaries.items():
        for score, by_model in scores.items():
            for model, s in by_model.items():
                values = [getattr(getattr(s, name), part) for name in spreads for part in ("mean", "sd", "n")]
                lines.append([model, grid, score, *values, s.low, s.high])
    write_csv(folder / "summary.csv", lines)
    parts = ("n", "difference", "low", "high", "statistic", "p", "p_holm", "effect", "stars")
    write_csv(folder / "tests.csv", [["model", "reference", "grid", "score", *parts]] + [
        [model, found.reference, grid, score, *(getattr(c, part) for part in parts)]
        for grid, scores in found.tests.items() for score, by_model in scores.items() for model, c in by_model.items()])
    columns = list(dict.fromkeys(key for run in found.chosen.values() for row in run.cases for key in row))
    write_csv(folder / "cases.csv", [["model", "fold", "restart", *columns]] + [
        [run.model, run.fold, run.restart, *(row.get(key, "") for key in columns)]
        for run in found.chosen.values() for row in run.cases])


def draw_charts(folder: Path, found: Results, parameters: Mapping[str, int | None]) -> dict[str, Path]:
    """The charts as PNG (returned by name) and PDF."""
    def point(row: tables.Row) -> tuple:
        return row.model, row.parameters, row.scores["dice_macro"].mean, row.scores["dice_macro"].sd

    points = [point(row) for row in found.rows("conformed", parameters) if row.parameters]
    scores = {m: {s: list(stats.by_subject(found.pooled[m], s).values()) for s in ("dice", "mcc", "avd")}
              for m in found.models}
    figures = {
        "pareto": charts.pareto(points, [point(row) for row in tables.PAPER]),
        "distributions": charts.distributions(scores, ("dice", "mcc", "avd")),
        "volume_dice": charts.volume_against_dice(
            {m: (found.column(m, "truth_ml"), found.column(m, "dice")) for m in found.models}),
        "bland_altman": charts.bland_altman_chart(
            {m: (found.column(m, "volume_ml"), found.column(m, "truth_ml")) for m in found.models}),
    }
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png", folder / f"{name}.pdf")
    return {name: folder / f"{name}.png" for name in figures}


def draw_cases(folder: Path, found: Results, out: Path, plan: Mapping,
               count: int) -> tuple[dict[str, list[tuple[Path, str]]], str]:
    """Pictures of the best, the median and the worst case of every model with a caption each (of the reference,
    ``count`` of each), or why there are none; not of ensembles, whose masks are not kept. The cases are segmented
    again. Existing pictures are kept: their names say which run they are from.
    """
    if not count:
        return {}, "none were requested"
    if not (Path(plan["data"]) / PREPARED).is_file():
        return {}, f"the prepared data set is no longer at {plan['data']}"
    drawn, models, data = {}, {}, None
    for model in (model for model in found.models if model in plan["models"]):
        for rank, run, row in found.shown(model, count if model == found.reference else 1):
            place = find_planned(plan, run)
            path = folder / f"{place.name}_{row['case']}.png".replace("/", "_")
            marked = f"{in_ml(row['volume_ml'])} predicted" if row["volume_ml"] else "nothing marked"
            drawn.setdefault(model, []).append((path, f"{rank.capitalize()}: {row['case']}, Dice {row['dice']:.3f}, "
                                                f"{marked}, {in_ml(row['truth_ml'])} true"))
            if path.is_file():
                continue
            if data is None:
                from meshnet.data.reader import PreparedData

                data = PreparedData(plan["data"])
            if place not in models:
                from meshnet.networks.build import load_model

                models = {place: load_model(run_folder(out, place))}
            draw_case(path, data, row["case"], *models[place], model)
    return drawn, ""


def draw_case(path: Path, data, case: str, network, card: Card, model: str) -> None:
    """Draw a case of the prepared data set on three planes of the conformed grid, with prediction and truth."""
    from meshnet.inference import predict
    from meshnet.scans import overlay

    index = next(i for i, row in enumerate(data.rows) if row["case"] == case)
    image = data.image(index)
    labels = card.marking.labels(card.marking.of(predict.predict(network, image)))
    affine = np.array(data.rows[index]["conformed_affine"]).reshape(4, 4)
    overlay.draw_overlay(image[0], labels, path, card.marking.truth(data.read(index, "mask")), affine,
                         f"{model}: {case}")

"""Figures of a study: learning curves by rung, parameters against scores, importance of the parameters."""

import bisect
import math
from pathlib import Path

from meshnet import plots
from meshnet.display import count
from meshnet.search.asha import Asha
from meshnet.search.space import Dimension, Space

MIN_TRIALS = 10  # with scores that differ; the importances of fewer would be noise
NAMED = 6  # the best trials, whose curves carry their number
DASHES = ("-", (0, (6, 2)), (0, (3, 1.5)), (0, (8, 2, 1.5, 2)), (0, (12, 2)), (0, (6, 2, 1.5, 2, 1.5, 2)))  # of those
DOTS = (0, (1, 3))
LINE = 0.045  # height of a line of text, as a share of the axes
STEPS = 4  # of the scale of a parameter that is a number


def draw(folder: Path, study: Asha, space: Space, curves: list, metric: str) -> list[Path]:
    """Write curves.png, parameters.png, parallel.png and, with enough trials, importance.png into ``folder``; returns
    the paths.

    curves: (trial, fold, horizon, epoch, score) as ``Ledger.curves`` returns them.
    """
    figures = {"curves.png": draw_curves(study, curves, metric),
               "parameters.png": draw_parameters(study, space, metric),
               "parallel.png": draw_parallel(study, space, metric)}
    shares = importance(study, space)
    if shares:
        figures["importance.png"] = draw_importance(shares, metric)
    else:  # of an earlier call, when it could be told
        (folder / "importance.png").unlink(missing_ok=True)
    for name, figure in figures.items():
        plots.save(figure, folder / name)
    return [folder / name for name in figures]


@plots.styled
def draw_curves(study: Asha, curves: list, metric: str):
    """A line for each trial and inner fold, coloured by its highest finished rung; the best trials are named."""
    figure = plots.new_figure(8, 5)
    axes = figure.subplots()
    colours = rung_colours(study)
    lines: dict[tuple, list] = {}
    for trial, fold, horizon, epoch, score in curves:
        if score is not None:
            lines.setdefault((trial, fold, horizon), []).append((epoch, score))
    ranked, ends = ranks(study), {}
    named = sorted(ranked, key=ranked.get)[-NAMED:]  # as in parallel.png: where few reach the last rung, others too
    dashes = dict(zip(reversed(named), DASHES))  # the colour says the rung, which most of them share
    for (trial, _, _), points in sorted(lines.items(), key=lambda item: study.trials[item[0][0]].rung):
        rung = max(study.trials[trial].scores, default=study.trials[trial].bracket)
        axes.plot(*zip(*points), color=colours[rung], alpha=0.4 + 0.6 * (rung + 1) / len(study.rungs),
                  linestyle=dashes.get(trial, "-"), linewidth=1.8 if trial in named else 0.9,
                  marker="." if len(points) < 8 else None)
        if trial in named:
            ends.setdefault(trial, []).append(points[-1])
    shown = named_words(len(ends), len(study.trials))
    axes.set_title(f"{count(len(study.trials), 'trial')}: {metric} of each epoch; {shown}")
    axes.margins(x=0.02)
    name_at_the_right(axes, {trial: max(points, key=lambda point: point[1]) for trial, points in ends.items()})
    for epochs, colour in zip(study.rungs, colours):
        axes.axvline(epochs, color=plots.GREY, linewidth=0.8, zorder=0)
        axes.plot([], [], color=colour, label=f"finished {count(epochs, 'epoch')}")
    axes.set(xlabel="Epoch", ylabel=metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return figure


def named_words(named: int, trials: int) -> str:
    """Which of the trials have their names beside their lines."""
    return "all are named" if named == trials else f"the best {named} are named"


def name_at_the_right(axes, ends: dict[int, tuple[float, float]]) -> None:
    """Write the number of each trial right of the axes, as high as its line ends (x, y), but none over another; a thin
    row of dots leads to each, which nobody takes for a curve."""
    low, high = axes.get_ylim()
    order = sorted(ends, key=lambda trial: ends[trial][1])
    places = spread([(ends[trial][1] - low) / (high - low) for trial in order])
    for trial, place in zip(order, places):
        axes.annotate(f"trial {trial}", ends[trial], (1.03, place), textcoords="axes fraction", va="center",
                      fontsize=8, annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": plots.GREY, "linewidth": 0.7, "linestyle": DOTS,
                                  "shrinkA": 1, "shrinkB": 2})


def spread(places: list[float]) -> list[float]:
    """Ascending ``places`` (0..1) moved apart as little as needed for lines of text at them, none above 1."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + LINE) if found else place)
    top = 1.0
    for at in reversed(range(len(found))):
        found[at] = top = min(found[at], top)
        top -= LINE
    return found


def rung_colours(study: Asha) -> list[str]:
    """One colour for each rung, dark to bright, however many there are."""
    from matplotlib import colormaps, colors

    steps = max(len(study.rungs) - 1, 1)
    return [colors.to_hex(colormaps["viridis"](0.85 * rung / steps)) for rung in range(len(study.rungs))]


@plots.styled
def draw_parameters(study: Asha, space: Space, metric: str):
    """A panel for each parameter: its value against the score at the highest finished rung, coloured by that rung."""
    columns = min(3, len(space.dimensions))
    rows = math.ceil(len(space.dimensions) / columns)
    figure = plots.new_figure(4 * columns, 3.2 * rows + 0.3)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    colours = rung_colours(study)
    known = [(t, max(t.scores), t.scores[max(t.scores)]) for t in study.trials if t.scores]
    known = [row for row in known if math.isfinite(row[2])]
    for dimension, axes in zip(space.dimensions, panels.flat):
        values = [trial.parameters[dimension.name] for trial, _, _ in known]
        if dimension.kind == "choices":
            values = [dimension.choices.index(value) for value in values]
            axes.set_xticks(range(len(dimension.choices)), [str(choice) for choice in dimension.choices])
            axes.set_xlim(-0.5, len(dimension.choices) - 0.5)
        elif dimension.kind == "loguniform":
            axes.set_xscale("log")
        axes.scatter(values, [score for *_, score in known], c=[colours[rung] for _, rung, _ in known], s=18)
        axes.set_xlabel(dimension.name)
    for epochs, colour in zip(study.rungs, colours):
        panels[0, 0].scatter([], [], color=colour, s=18, label=count(epochs, "epoch"))
    figure.legend(loc="outside upper center", ncols=len(study.rungs))
    for axes in panels[:, 0]:
        axes.set_ylabel(metric)
    for axes in list(panels.flat)[len(space.dimensions):]:
        axes.axis("off")
    return figure


@plots.styled
def draw_parallel(study: Asha, space: Space, metric: str):
    """A line for each trial across one axis for each parameter, the last one its rank at its highest rung."""
    from matplotlib import colormaps

    figure = plots.new_figure(1.5 * (len(space.dimensions) + 2), 4.5)
    axes = figure.subplots()
    ranked, last = ranks(study), len(space.dimensions)
    best = sorted(ranked, key=ranked.get)[-NAMED:]
    for number, rank in sorted(ranked.items(), key=lambda one: one[1]):  # the best ones lie on top
        places = [*space.encode(study.trials[number].parameters), rank]
        axes.plot(range(len(places)), places, color=colormaps["viridis"](rank), alpha=0.25 + 0.75 * rank,
                  linewidth=0.8 + 1.2 * rank)
    for column, marks in enumerate([*map(marks_of, space.dimensions), [(0.0, "worst"), (1.0, "best")]]):
        axes.axvline(column, color=plots.GREY, linewidth=0.8, zorder=0)
        for unit, value in marks:
            axes.annotate(value, (column, unit), (-4, 0), textcoords="offset points", va="center", ha="right",
                          fontsize=7, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5})
            axes.plot([column - 0.02, column], [unit, unit], color=plots.GREY, linewidth=0.8)
    axes.set_title(f"{count(len(ranked), 'trial')}: values, and rank by {metric}; "
                   f"{named_words(len(best), len(ranked))}")
    axes.set_xticks(range(last + 1), [*(one.name for one in space.dimensions), f"rank by {metric}"])
    axes.set(yticks=[], xlim=(-0.45, last), ylim=(-0.03, 1.03))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    name_at_the_right(axes, {trial: (last, ranked[trial]) for trial in best})
    return figure


def ranks(study: Asha) -> dict[int, float]:
    """0 (worst) to 1 (best) for every trial with a real score: those of higher rungs first, then by their score."""
    known = {trial.number: max((rung for rung, score in trial.scores.items() if math.isfinite(score)), default=-1)
             for trial in study.trials}
    sign = 1 if study.maximize else -1
    order = sorted((number for number, rung in known.items() if rung >= 0),
                   key=lambda number: (known[number], sign * study.trials[number].scores[known[number]]))
    return {number: place / max(len(order) - 1, 1) for place, number in enumerate(order)}


def marks_of(dimension: Dimension) -> list[tuple[float, str]]:
    """(place, value) of what is written on a parameter's axis: its choices, or some values from end to end."""
    if dimension.choices:
        return [(dimension.encode(value), str(value)) for value in dimension.choices]
    values = {dimension.decode(step / STEPS): None for step in range(STEPS + 1)}  # whole numbers may be fewer
    return [(dimension.encode(value), f"{value:.3g}") for value in values]


def importance(study: Asha, space: Space) -> dict[str, float]:
    """How much worse a forest predicts the rank within the first rung when the values of one parameter are shuffled.

    Permutation importance (Breiman, Machine Learning 2001) of scikit-learn's extremely randomised trees, as shares
    that sum to 1; {} where fewer than ``MIN_TRIALS`` scores differ, since equal ones (mostly of 0) rank nothing. All
    trials of a bracket share its first rung, so only equal epochs are compared.
    """
    rows, ranks, different = [], [], 0
    for bracket, rungs in enumerate(study.finished):
        first = [(loss, number) for loss, number in rungs[bracket] if loss < math.inf]
        losses = sorted(loss for loss, _ in first)
        different += len(set(losses))
        for loss, number in first:
            rows.append(space.encode(study.trials[number].parameters))
            ranks.append((bisect.bisect_left(losses, loss) + bisect.bisect_right(losses, loss)) / 2 / len(first))
    if different < MIN_TRIALS:
        return {}
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.inspection import permutation_importance

    forest = ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0).fit(rows, ranks)
    found = permutation_importance(forest, rows, ranks, n_repeats=10, random_state=0).importances_mean.clip(0)
    total = found.sum() or 1.0
    return {dimension.name: float(value / total) for dimension, value in zip(space.dimensions, found)}


@plots.styled
def draw_importance(shares: dict[str, float], metric: str):
    """Horizontal bars, the most important parameter on top."""
    figure = plots.new_figure(6, 0.5 * len(shares) + 1)
    axes = figure.subplots()
    names = sorted(shares, key=shares.get)
    axes.barh(names, [shares[name] for name in names], color=plots.COLOURS[0])
    axes.set(xlabel=f"share of the importance for {metric} at the first rung")
    return figure

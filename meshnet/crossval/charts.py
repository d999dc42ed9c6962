"""Charts of a report: values in, a matplotlib figure out. No global state, no window, matplotlib loaded when used."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from meshnet.crossval.stats import bland_altman
from meshnet.plots import COLOURS, GREY, colour_of, new_figure, styled

LABELS = {"dice": "Lesion Dice", "dice_macro": "Macro Dice", "avd": "AVD", "mcc": "MCC", "precision": "Precision",
          "sensitivity": "Sensitivity", "hd95_mm": "HD95 (mm)", "asd_mm": "ASD (mm)", "nsd": "NSD",
          "lesion_f1": "Lesion F1"}


@styled
def pareto(points: Sequence[tuple[str, int, float, float]], published: Sequence[tuple[str, int, float, float]] = (),
           label: str = LABELS["dice_macro"]):
    """Parameters (logarithmic) against a score.

    Args:
        points: name, parameters, mean and SD (NaN: no bar) of each model measured here.
        published: the same of the paper, drawn pale.
        label: of the score.

    A step line shows the Pareto front of the models measured here: those that no smaller model matches.
    """
    figure = new_figure(7.4, 4.6)
    axes = figure.subplots()
    for group, colour, name in ((published, GREY, "published"), (points, COLOURS[0], "measured here")):
        if group:
            _, x, y, sd = zip(*group)
            bars = [0 if math.isnan(s) else s for s in sd]
            axes.errorbar(x, y, yerr=bars, fmt="none", ecolor=colour, elinewidth=1, alpha=0.45)
            axes.plot(x, y, "o", color=colour, markersize=5, mfc=colour if group is points else "white", label=name)
    front = pareto_front([(x, y) for _, x, y, _ in points])
    if front:
        axes.step(*zip(*front), where="post", color=COLOURS[0], linewidth=1, alpha=0.5)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("Parameters")
    axes.set_ylabel(label)
    if points and published:
        axes.legend(loc="lower right")
    _place_labels(figure, axes, [(n, x, y, "#222222") for n, x, y, _ in points]
                  + [(n, x, y, "#777777") for n, x, y, _ in published])
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points (cost, score) that beat every cheaper one, cheapest first; NaN scores are ignored."""
    front = []
    for cost, score in sorted((p for p in points if not math.isnan(p[1])), key=lambda p: (p[0], -p[1])):
        if not front or score > front[-1][1]:
            front.append((cost, score))
    return front


def _place_labels(figure, axes, labels) -> None:
    """Write each name beside its point, at the first of a few places where it covers no point and no other name."""
    from matplotlib.patheffects import withStroke

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    size = figure.dpi / 72
    spots = axes.transData.transform([(x, y) for _, x, y, _ in labels if not math.isnan(y)])
    taken = [(x - 4 * size, y - 4 * size, x + 4 * size, y + 4 * size) for x, y in spots]
    frame = axes.get_window_extent(renderer)
    places = [(dx * step, dy * step, ha, va) for step in (1, 2, 3) for dx, dy, ha, va in (
        (6, 0, "left", "center"), (0, 7, "center", "bottom"), (0, -7, "center", "top"), (-6, 0, "right", "center"),
        (5, 7, "left", "bottom"), (5, -7, "left", "top"), (-5, 7, "right", "bottom"), (-5, -7, "right", "top"))]
    for name, x, y, colour in labels:
        if math.isnan(y):
            continue
        tried = []
        for dx, dy, ha, va in places:
            text = axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=7.5,
                                 color=colour, path_effects=[withStroke(linewidth=2, foreground="white")])
            b = text.get_window_extent(renderer)
            inside = b.x0 >= frame.x0 and b.x1 <= frame.x1 and b.y0 >= frame.y0 and b.y1 <= frame.y1
            overlap = sum(max(0, min(b.x1, t[2]) - max(b.x0, t[0])) * max(0, min(b.y1, t[3]) - max(b.y0, t[1]))
                          for t in taken)
            tried.append((not inside, overlap, len(tried), text, (b.x0, b.y0, b.x1, b.y1)))
            if inside and not overlap:
                break
        best = min(tried, key=lambda t: t[:3])
        for *_, text, _ in tried:
            if text is not best[3]:
                text.remove()
        taken.append(best[4])


@styled
def distributions(scores: Mapping[str, Mapping[str, Sequence[float]]], metrics: Sequence[str]):
    """One dot a subject and a box (quartiles, median) for each model, a panel for each metric.

    Args:
        scores: ``scores[model][metric]``, a value for each subject; NaN is left out.
        metrics: the panels, from left to right. Values of AVD above 2 are drawn at the edge, and counted there.
    """
    models = list(scores)
    colours = colour_of(models)
    figure = new_figure(2.6 * len(metrics) + 1.2, 0.45 * len(models) + 1.3)
    panels = np.atleast_1d(figure.subplots(1, len(metrics), sharey=True))
    jitter = np.random.default_rng(0)  # for looks alone
    for panel, metric in zip(panels, metrics):
        limit = 2.0 if metric == "avd" else math.inf
        for place, model in enumerate(models):
            values = np.array([v for v in scores[model][metric] if not math.isnan(v)])
            if not len(values):
                continue
            panel.scatter(np.minimum(values, limit), place + jitter.uniform(-0.24, 0.24, len(values)), s=9, alpha=0.45,
                          linewidths=0, color=colours[model])
            low, middle, high = np.minimum(np.percentile(values, [25, 50, 75]), limit)
            panel.plot([low, high], [place, place], color="#222222", linewidth=4, alpha=0.35, solid_capstyle="butt")
            panel.plot(middle, place, "|", color="#222222", markersize=15, markeredgewidth=2)
            beyond = int((values > limit).sum())
            if beyond:
                panel.text(limit, place + 0.26, f"{beyond} beyond", ha="right", va="top", fontsize=7)
        panel.set_xlabel(LABELS.get(metric, metric))
        if metric in ("dice", "dice_macro", "nsd", "lesion_f1"):
            panel.set_xlim(-0.03, 1.03)
        elif metric == "avd":
            panel.set_xlim(-0.06, limit + 0.06)
    panels[0].set_yticks(range(len(models)), models)
    panels[0].set_ylim(len(models) - 0.4, -0.6)
    return figure


def _grid(count: int, width: float = 2.9, height: float = 2.6, shared: bool = True):
    """A figure with ``count`` panels, at most four in a row, by default of shared axes."""
    columns = min(4, count)
    rows = -(-count // columns)
    figure = new_figure(max(width * columns + 0.4, 4.2), height * rows + 0.4)
    panels = figure.subplots(rows, columns, sharex=shared, sharey=shared, squeeze=False).ravel()
    for panel in panels[count:]:
        panel.remove()
    for panel in panels[max(0, count - columns):count]:  # the lowest of each column, also where a row is not full
        panel.tick_params(labelbottom=True)
    return figure, panels[:count]


def _number_ticks(axis, values: Sequence[float]) -> None:
    """Plain numbers on a logarithmic axis: every decade, or 1, 2, 5 of each where there are few."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    few = values and max(values) / min(values) < 100
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


@styled
def volume_against_dice(cases: Mapping[str, tuple[Sequence[float], Sequence[float]]]):
    """True lesion volume (mL, logarithmic) against lesion Dice, a panel for each model, with the median of each fifth.

    Args:
        cases: ``cases[model] = (truth_ml, dice)``. Cases without a lesion have no place on a logarithmic axis.
    """
    figure, panels = _grid(len(cases))
    for panel, (model, (truth_ml, dice)) in zip(panels, cases.items()):
        shown = [(v, d) for v, d in zip(truth_ml, dice) if v > 0]
        if shown:
            volume, score = (np.array(column) for column in zip(*shown))
            panel.scatter(volume, score, s=12, alpha=0.55, linewidths=0, color=colour_of(list(cases))[model])
            fifths = [part for part in np.array_split(np.argsort(volume, kind="stable"), 5) if len(part) >= 3]
            panel.plot([np.median(volume[f]) for f in fifths], [np.median(score[f]) for f in fifths], "-o",
                       color="#222222", markersize=4, linewidth=1.2)
        panel.set_xscale("log")
        _number_ticks(panel.xaxis, [v for truth, _ in cases.values() for v in truth if v > 0])
        panel.set_ylim(-0.03, 1.03)
        panel.set_title(model)
    figure.supxlabel("True lesion volume (mL)", fontsize=9)
    figure.supylabel("Lesion Dice", fontsize=9)
    return figure


@styled
def bland_altman_chart(cases: Mapping[str, tuple[Sequence[float], Sequence[float]]]):
    """Mean of the two volumes against predicted − true, in mL, with the bias and the limits of agreement.

    Args:
        cases: ``cases[model] = (predicted_ml, truth_ml)``.

    Each model has axes of its own: one that is far off would make a speck of all others.
    """
    figure, panels = _grid(len(cases), shared=False)
    for panel, (model, volumes) in zip(panels, cases.items()):
        predicted, true = (np.asarray(v, dtype=np.float64) for v in volumes)
        panel.scatter((predicted + true) / 2, predicted - true, s=12, alpha=0.55, linewidths=0,
                      color=colour_of(list(cases))[model])
        bias, low, high = bland_altman(predicted, true)
        for value, style in ((bias, "-"), (low, "--"), (high, "--")):
            if not math.isnan(value):
                panel.axhline(value, color="#222222", linewidth=1, linestyle=style)
        panel.set_title(f"{model}\nbias {_short(bias)} mL\nlimits {_short(low)} to {_short(high)} mL", fontsize=8.5)
    figure.supxlabel("Mean of predicted and true volume (mL)", fontsize=9)
    figure.supylabel("Predicted − true (mL)", fontsize=9)
    return figure


def _short(value: float) -> str:
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.2f}").replace("-", "−")

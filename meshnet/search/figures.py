"""Pictures of a study: learning curves by rung, parameter against score, importance of the parameters."""

import math
from pathlib import Path

from meshnet.files import whole_file
from meshnet.search.asha import Asha
from meshnet.search.space import Space

ENOUGH = 10  # trials with a score, below which an importance would be noise


def draw(folder: Path, study: Asha, space: Space, curves: list, metric: str) -> list[Path]:
    """Write curves.png, parameters.png and, with enough trials, importance.png into ``folder``; the paths.

    curves: (trial, fold, horizon, epoch, score) as ``Ledger.curves`` gives them.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    paths = [folder / "curves.png", folder / "parameters.png"]
    pictures = [_curves(pyplot, study, curves, metric), _parameters(pyplot, study, space, metric)]
    scored = importance(study, space)
    if scored:
        paths.append(folder / "importance.png")
        pictures.append(_importance(pyplot, scored, metric))
    for path, picture in zip(paths, pictures):
        with whole_file(path) as temporary:
            picture.savefig(temporary, dpi=120, bbox_inches="tight")
        pyplot.close(picture)
    return paths


def _curves(pyplot, study: Asha, curves: list, metric: str):
    """A line for each trial and inner fold, coloured by the highest rung that the trial reached."""
    picture, axes = pyplot.subplots(figsize=(8, 5))
    colours = _colours(pyplot, study)
    lines: dict[tuple, list] = {}
    for trial, fold, horizon, epoch, score in curves:
        if score is not None:
            lines.setdefault((trial, fold, horizon), []).append((epoch, score))
    for (trial, _, _), points in sorted(lines.items(), key=lambda item: study.trials[item[0][0]].rung):
        rung = max(study.trials[trial].scores, default=study.trials[trial].bracket)
        axes.plot(*zip(*points), color=colours[rung], alpha=0.4 + 0.6 * (rung + 1) / len(study.rungs), linewidth=1.2,
                  marker="." if len(points) < 8 else None)
    for rung, epochs in enumerate(study.rungs):
        axes.axvline(epochs, color="0.8", linewidth=0.8, zorder=0)
        axes.plot([], [], color=colours[rung], label=f"reached {epochs} epochs")
    axes.set(xlabel="epoch", ylabel=metric)
    axes.legend(frameon=False)
    return picture


def _colours(pyplot, study: Asha):
    """One colour a rung, dark to bright."""
    return pyplot.get_cmap("viridis")([rung / max(len(study.rungs) - 1, 1) for rung in range(len(study.rungs))])


def _parameters(pyplot, study: Asha, space: Space, metric: str):
    """One panel a parameter: its value against the score at the highest rung, coloured by that rung."""
    columns = min(3, len(space.dimensions))
    rows = math.ceil(len(space.dimensions) / columns)
    size = (4 * columns, 3.2 * rows + 0.3)
    picture, panels = pyplot.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
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
        axes.scatter(values, [score for *_, score in known], c=[rung for _, rung, _ in known], cmap="viridis",
                     vmin=0, vmax=len(study.rungs) - 1, s=18)
        axes.set_xlabel(dimension.name)
    for rung, colour in enumerate(_colours(pyplot, study)):
        panels[0, 0].scatter([], [], color=colour, s=18, label=f"{study.rungs[rung]} epochs")
    picture.legend(loc="outside upper center", ncols=len(study.rungs), frameon=False)
    for axes in panels[:, 0]:
        axes.set_ylabel(metric)
    for axes in list(panels.flat)[len(space.dimensions) :]:
        axes.axis("off")
    return picture


def importance(study: Asha, space: Space) -> dict[str, float]:
    """How much a forest's prediction of the rank within the first rung worsens when one parameter is shuffled.

    Permutation importance (Breiman, Machine Learning 2001) of scikit-learn's extremely randomised trees, as shares
    that sum to 1; {} with fewer than ``ENOUGH`` scored trials. All trials of a bracket share its first rung, so only
    equal epochs are compared.
    """
    rows, ranks = [], []
    for bracket, rungs in enumerate(study.finished):
        first = [(loss, number) for loss, number in rungs[bracket] if loss < math.inf]
        for place, (_, number) in enumerate(first):
            rows.append(space.encode(study.trials[number].parameters))
            ranks.append(place / len(first))
    if len(rows) < ENOUGH:
        return {}
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.inspection import permutation_importance

    forest = ExtraTreesRegressor(200, min_samples_leaf=2, random_state=0).fit(rows, ranks)
    found = permutation_importance(forest, rows, ranks, n_repeats=10, random_state=0).importances_mean.clip(0)
    total = found.sum() or 1.0
    return {dimension.name: float(value / total) for dimension, value in zip(space.dimensions, found)}


def _importance(pyplot, scored: dict[str, float], metric: str):
    """Horizontal bars, the most important on top."""
    picture, axes = pyplot.subplots(figsize=(6, 0.5 * len(scored) + 1))
    names = sorted(scored, key=scored.get)
    axes.barh(names, [scored[name] for name in names], color="tab:blue")
    axes.set(xlabel=f"share of the importance for {metric} at the first rung")
    return picture

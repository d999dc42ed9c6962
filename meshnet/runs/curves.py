"""The curves of a run: loss, Dice and learning rate by epoch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshnet import plots
from meshnet.display import shown_path

CURVES = (  # panel title, then (name in metrics.jsonl, label)
    ("Loss", (("train_loss", "training"), ("val_loss", "validation"),
              ("val_loss_ema", "validation, averaged weights"))),
    ("Dice", (("val_dice_swept", "lesion, at the best threshold"), ("val_dice", "lesion, at 0.5"),
              ("val_dice_swept_ema", "averaged weights, at their best threshold"),
              ("val_dice_ema", "averaged weights, at 0.5"))),
    ("Probability", (("val_highest", "highest of any voxel"), ("val_threshold", "best threshold"))),
    ("Learning rate", (("learning_rate", "learning rate"),)),
)

DECADES = 1e3  # of the learning rate that are shown, below the highest


@plots.styled
def draw_run(rows: Sequence[Mapping], path: str | Path, title: str = "", score: str = "val_dice",
             kept: int | None = None) -> None:
    """Loss, Dice and learning rate by epoch, from the lines of metrics.jsonl.

    Args:
        rows: one mapping an epoch, with ``epoch`` and whatever of ``CURVES`` it has; missing and None are gaps.
        path: PNG, SVG or PDF by its ending, written whole.

    Marked in the Dice panel is the epoch whose weights are ``kept``; without one, the first of the best by ``score``.
    """
    shown = [(name, curves) for name, curves in CURVES
             if any(_known(row.get(key)) for row in rows for key, _ in curves)] or list(CURVES)
    figure = plots.new_figure(7.0, 0.6 + 2.0 * len(shown))
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, curves) in zip(panels, shown):
        for colour, (key, label) in zip(plots.COLOURS, curves):
            points = [(row["epoch"], row[key]) for row in rows if _known(row.get(key))]
            if points:
                panel.plot(*zip(*points), color=colour, label=label, marker="o", markersize=3, linewidth=1.6)
        panel.set_ylabel(name)
        if name in ("Dice", "Probability"):
            panel.set_ylim(-0.03, 1.03)
        if panel.lines:
            panel.legend()
    by_name = dict(zip((name for name, _ in shown), panels))
    validated = [row for row in rows if _known(row.get(score))]
    if validated:
        best = max(validated, key=lambda row: (row["epoch"] == kept, row[score]))
        by_name["Dice"].plot(best["epoch"], best[score], "o", markersize=9, mfc="none", color="#222222")
        by_name["Dice"].set_title(f"best {best[score]:.3f} in epoch {best['epoch']}", loc="right", fontsize=8)
    rates = [row["learning_rate"] for row in rows if _known(row.get("learning_rate"))]
    if rates and min(rates) > 0:
        by_name["Learning rate"].set_yscale("log")
        # The last steps of a schedule end near zero, which would leave the rest a line at the top.
        by_name["Learning rate"].set_ylim(bottom=max(min(rates), max(rates) / DECADES) / 1.5)
    panels[-1].set_xlabel("Epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    plots.save(figure, path)


def title_of(folder: Path, record: Mapping, network: str) -> str:
    """``tiny on data/tiny, fold 0, seed 0``: what was trained, on what.

    record: the section ``run`` of the run's config.yaml. First stands the trial of a search, else the recipe, else the
    ``network``. A data set outside the working folder goes by its name, so that no picture shows somebody's folders.
    """
    parts = Path(folder).resolve().parts
    if len(parts) > 2 and parts[-3] in ("trials", "confirm") and parts[-2].isdigit():
        what, inner = f"trial {int(parts[-2])}", f", inner fold {record.get('inner_fold')}"
    else:
        what, inner = " + ".join(Path(recipe).stem for recipe in record.get("recipe") or ()) or network, ""
    data = shown_path(record["data_path"])
    data = Path(data).name if Path(data).is_absolute() else data
    return f"{what} on {data}, fold {record['fold']}{inner}, seed {record['seed']}"


def _known(value) -> bool:
    return value is not None and math.isfinite(value)

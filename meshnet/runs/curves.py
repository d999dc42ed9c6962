"""The curves of a run: loss, Dice and learning rate by epoch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshnet import plots

CURVES = (  # panel title, then (name in metrics.jsonl, label)
    ("Loss", (("train_loss", "training"), ("val_loss", "validation"),
              ("val_loss_ema", "validation, averaged weights"))),
    ("Dice", (("val_dice", "lesion"), ("val_dice_macro", "with background"),
              ("val_dice_ema", "lesion, averaged weights"))),
    ("Learning rate", (("learning_rate", "learning rate"),)),
)


@plots.styled
def draw_run(rows: Sequence[Mapping], path: str | Path, title: str = "") -> None:
    """Loss, Dice and learning rate by epoch, from the lines of metrics.jsonl.

    Args:
        rows: one mapping an epoch, with ``epoch`` and whatever of ``CURVES`` it has; missing and None are gaps.
        path: PNG, SVG or PDF by its ending, written whole.

    The best epoch by ``val_dice`` is marked in the Dice panel.
    """
    figure = plots.new_figure(7.0, 6.6)
    panels = figure.subplots(len(CURVES), 1, sharex=True)
    for panel, (name, curves) in zip(panels, CURVES):
        for colour, (key, label) in zip(plots.COLOURS, curves):
            points = [(row["epoch"], row[key]) for row in rows if _known(row.get(key))]
            if points:
                panel.plot(*zip(*points), color=colour, label=label, marker="o", markersize=3, linewidth=1.6)
        panel.set_ylabel(name)
        if len(panel.lines) > 1:
            panel.legend()
    validated = [row for row in rows if _known(row.get("val_dice"))]
    if validated:
        best = max(validated, key=lambda row: row["val_dice"])
        panels[1].plot(best["epoch"], best["val_dice"], "o", markersize=9, mfc="none", color="#222222")
        panels[1].set_title(f"best {best['val_dice']:.3f} in epoch {best['epoch']}", loc="right", fontsize=8)
    rates = [row["learning_rate"] for row in rows if _known(row.get("learning_rate"))]
    if rates and min(rates) > 0:
        panels[-1].set_yscale("log")
    panels[-1].set_xlabel("Epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    plots.save(figure, path)


def _known(value) -> bool:
    return value is not None and math.isfinite(value)

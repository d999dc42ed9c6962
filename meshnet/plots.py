"""The look of every figure: colours, style, an empty figure, and how it is saved. matplotlib is loaded when used."""

import functools
from collections.abc import Sequence
from pathlib import Path

from meshnet.files import whole_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F5539", "#666666")  # Okabe & Ito
GREY = "#9A9A9A"
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
         "grid.color": "#E6E6E6", "grid.linewidth": 0.7, "axes.axisbelow": True, "legend.frameon": False,
         "legend.fontsize": 8, "axes.edgecolor": "#555555", "axes.titlesize": 10, "pdf.fonttype": 42,
         "svg.fonttype": "none"}


def styled(function):
    """Run ``function`` under ``STYLE`` without changing matplotlib's global settings."""
    @functools.wraps(function)
    def inner(*arguments, **named):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return function(*arguments, **named)
    return inner


@styled
def new_figure(width: float, height: float):
    """An empty figure, sizes in inches; drawn by Agg, since no window is ever opened."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@styled
def save(figure, *paths: str | Path) -> None:
    """Write ``figure`` to each path, PNG, SVG or PDF by its ending, whole or not at all."""
    for path in paths:
        with whole_file(path) as temporary:
            figure.savefig(temporary, dpi=150, format=Path(path).suffix[1:])
        figure.set_layout_engine("none")  # keep the layout, which halves the time of the next format


def colour_of(models: Sequence[str]) -> dict[str, str]:
    """A colour for each model, by its place in the list."""
    return {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(models)}

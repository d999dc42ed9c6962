"""The table of a paper, model by model: parameters, DICE, AVD, MCC and stars, as Markdown, CSV, LaTeX and HTML."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple

from meshnet import webpage
from meshnet.crossval.stats import Spread
from meshnet.files import csv_text

COLUMNS = (  # name of the score, heading, whether more is better
    ("dice", "Lesion Dice", True), ("dice_macro", "DICE", True), ("avd", "AVD", False), ("mcc", "MCC", True),
)
PAPERS = COLUMNS[1:]  # the scores that the paper gives


@dataclass(frozen=True)
class Row:
    """One model. ``scores`` and ``stars`` by name of the score; ``remark`` is a mark after the model's name.

    A model that is ``silent`` marks nothing in any case: no score of it is the best one or has a star.
    """

    model: str
    parameters: int | None
    scores: Mapping[str, Spread]
    stars: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""
    silent: bool = False


def _paper(model: str, parameters: int, dice: float, dice_sd: float, avd: float, avd_sd: float, mcc: float,
           mcc_sd: float) -> Row:
    spreads = (Spread(dice, dice_sd, 3), Spread(avd, avd_sd, 3), Spread(mcc, mcc_sd, 3))
    return Row(model, parameters, dict(zip((name for name, *_ in PAPERS), spreads)))


PAPER = (  # arXiv 2503.05531: mean (SD) over three outer folds; DICE is the mean over background and lesion
    _paper("MeshNet-26", 147_474, 0.876, 0.016, 0.245, 0.036, 0.760, 0.030),
    _paper("MeshNet-16", 56_194, 0.873, 0.007, 0.249, 0.033, 0.757, 0.013),
    _paper("U-MAMBA-BOT", 7_351_400, 0.870, 0.012, 0.266, 0.053, 0.750, 0.023),
    _paper("MedNeXt-M", 17_548_963, 0.868, 0.017, 0.288, 0.094, 0.745, 0.033),
    _paper("SegResNet", 1_176_186, 0.867, 0.005, 0.268, 0.039, 0.743, 0.011),
    _paper("U-MAMBA-ENC", 7_514_280, 0.865, 0.010, 0.309, 0.080, 0.740, 0.022),
    _paper("MedNeXt-S", 5_201_315, 0.861, 0.012, 0.257, 0.054, 0.729, 0.021),
    _paper("Swin-UNETR", 18_346_844, 0.859, 0.025, 0.425, 0.283, 0.730, 0.048),
    _paper("MedNeXt-B", 10_526_307, 0.855, 0.016, 0.260, 0.039, 0.718, 0.030),
    _paper("U-KAN", 44_070_082, 0.851, 0.013, 0.321, 0.027, 0.717, 0.025),
    _paper("MeshNet-5", 5_682, 0.848, 0.023, 0.280, 0.060, 0.708, 0.042),
    _paper("UNETR", 95_763_682, 0.847, 0.014, 0.397, 0.029, 0.700, 0.027),
    _paper("Residual U-Net", 1_979_610, 0.836, 0.005, 0.562, 0.495, 0.685, 0.010),
    _paper("V-Net", 45_597_898, 0.798, 0.018, 0.387, 0.047, 0.614, 0.033),
)


def published(model: str) -> Row | None:
    """The paper's row for a model or recipe name: ``meshnet26``, ``residual_unet`` … whatever the case and marks."""
    def plain(text):
        return re.sub(r"[^a-z0-9]", "", text.lower())

    return next((row for row in PAPER if plain(row.model) == plain(model)), None)


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Best lesion Dice first; rows without one last."""
    first = columns_of(rows)[0][0]
    return sorted(rows, key=lambda row: (math.isnan(row.scores[first].mean), -row.scores[first].mean))


def cell(spread: Spread | None, digits: int = 3) -> str:
    """``0.876 (0.016)``; no brackets without a deviation, a dash without a value."""
    if spread is None or math.isnan(spread.mean):
        return "–"
    deviation = "" if math.isnan(spread.sd) else f" ({spread.sd:.{digits}f})"
    return f"{spread.mean:z.{digits}f}{deviation}".replace("-", "−")  # z: no minus before what is printed as zero


class Cell(NamedTuple):
    """What stands in one place of the table; each format writes ``best`` and ``stars`` in its own way."""

    text: str
    best: bool = False
    stars: str = ""


def columns_of(rows: Sequence[Row]) -> list[tuple[str, str, bool]]:
    """The ``COLUMNS`` that any of the rows has: the paper gives no lesion Dice."""
    return [column for column in COLUMNS if any(column[0] in row.scores for row in rows)]


def heading(rows: Sequence[Row], beside: bool) -> list[tuple[str, bool | None]]:
    """Column titles, each with whether more is better (None: neither)."""
    own = [(title, more) for _, title, more in columns_of(rows)]
    return [("Model", None), ("Parameters", None), *own,
            *([(f"{title}, paper", None) for _, title, _ in PAPERS] if beside and has_published(rows) else [])]


def has_published(rows: Sequence[Row]) -> bool:
    """Whether the paper has any of the models: its columns would hold dashes alone."""
    return any(published(row.model) for row in rows)


def body(rows: Sequence[Row], beside: bool) -> list[list[Cell]]:
    """The table's lines, best lesion Dice first. What is printed alike is marked alike as best."""
    best, columns = {}, columns_of(rows)
    for name, _, more in columns:
        means = [row.scores[name].mean for row in rows if not (row.silent or math.isnan(row.scores[name].mean))]
        best[name] = cell(Spread((max if more else min)(means), math.nan, 1)) if means else None
    lines = []
    for row in ordered(rows):
        line = [Cell(row.model + row.remark), Cell("–" if row.parameters is None else f"{row.parameters:,}")]
        for name, *_ in columns:
            text = cell(row.scores[name])
            line.append(Cell(text, not row.silent and text.split(" ")[0] == best[name],
                             "" if row.silent else row.stars.get(name, "")))
        theirs = published(row.model)
        line += [Cell(cell(theirs.scores[name] if theirs else None)) for name, *_ in PAPERS
                 ] if beside and has_published(rows) else []
        lines.append(line)
    return lines


def markdown(rows: Sequence[Row], beside: bool = True) -> str:
    """The table as Markdown, best values bold. ``beside`` adds the paper's own figures for models that it has."""
    def write(c: Cell) -> str:
        return (f"**{c.text}**" if c.best else c.text) + c.stars.replace("*", r"\*")

    titles = [title + {True: " ↑", False: " ↓", None: ""}[more] for title, more in heading(rows, beside)]
    return markdown_table(titles, [[write(c) for c in line] for line in body(rows, beside)])


def plain(rows: Sequence[Row]) -> str:
    """The table for a screen, without the paper's figures."""
    lines = [[title for title, _ in heading(rows, beside=False)]]
    lines += [[f"{c.text}{c.stars}" for c in line] for line in body(rows, beside=False)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(text.ljust(width) if place == 0 else text.rjust(width)
                               for place, (text, width) in enumerate(zip(line, widths))).rstrip() for line in lines)


def markdown_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Any Markdown table: the first column to the left, the others to the right."""
    rows = [titles, ["---"] + ["---:"] * (len(titles) - 1), *lines]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def html(rows: Sequence[Row], beside: bool = True) -> str:
    """The table as HTML, best values bold."""
    def write(c: Cell) -> str:
        text = escape(c.text)
        return (f"<b>{text}</b>" if c.best else text) + (f"<sup>{c.stars}</sup>" if c.stars else "")

    titles = [title + {True: " ↑", False: " ↓", None: ""}[more] for title, more in heading(rows, beside)]
    return webpage.html_table(titles, [[write(c) for c in line] for line in body(rows, beside)])


def latex(rows: Sequence[Row], caption: str, label: str = "tab:results", beside: bool = True) -> str:
    """The table as LaTeX (needs ``\\usepackage{booktabs}``), best values bold, stars raised; ``beside`` as above."""
    def write(c: Cell) -> str:
        text = _tex(c.text)
        return (rf"\textbf{{{text}}}" if c.best else text) + (f"$^{{{c.stars}}}$" if c.stars else "")

    titles = [title + {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}[more]
              for title, more in heading(rows, beside)]
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(caption)}}}", rf"\label{{{label}}}",
             rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\toprule", " & ".join(titles) + r" \\",
             r"\midrule", *(" & ".join(write(c) for c in line) + r" \\" for line in body(rows, beside)),
             r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    text = re.sub(r"(?<=\d),(?=\d)", "{,}", re.sub(r"[<>−]", lambda m: f"${m[0].replace('−', '-')}$", text))
    return text.replace("–", "--").replace("†", r"$^\dagger$")


def comma_separated(rows: Sequence[Row]) -> str:
    """The table as CSV with bare numbers: mean, SD, n and stars in columns of their own, the paper's beside them."""
    titles = ["model", "parameters"]
    columns = columns_of(rows)
    for name, *_ in columns:
        titles += [name, f"{name}_sd", f"{name}_n", f"{name}_stars"]
    titles += [f"paper_{name}{end}" for name, *_ in PAPERS for end in ("", "_sd")]
    lines = [titles]
    for row in ordered(rows):
        theirs = published(row.model)
        line = [row.model + row.remark, row.parameters]
        for name, *_ in columns:
            score = row.scores[name]
            line += [score.mean, score.sd, score.n, "" if row.silent else row.stars.get(name, "")]
        for name, *_ in PAPERS:
            line += [theirs.scores[name].mean, theirs.scores[name].sd] if theirs else ["", ""]
        lines.append(line)
    return csv_text(lines)

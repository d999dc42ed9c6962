"""What a page says of its model: from the README.md in its folder, its card and its scores."""

from __future__ import annotations

import html
import re
from pathlib import Path

from meshnet.config import SCORES
from meshnet.networks.card import MENTIONS, OWN, QUALITY, WEIGHTS, Card, read_card
from meshnet.networks.cascade import FIRST
from meshnet.networks.readme import LIMITS, public_source, summarise_cases
from meshnet.numbers import plain
from meshnet.runs.folder import AVERAGED, LAST, TEST_CASES, read_metrics

SECTIONS = ("What it reaches", "What it can and cannot do")  # of a README.md, that belong on a page
DETAILS = "How the model sees a scan"
SHARE = "first network: share of the result"
OTHERS = {AVERAGED: ", averaged over training", LAST: " of the last epoch"}  # weights of a run beside its best ones


def marked_by(card: Card) -> str:
    """What a model marks: ``stroke lesions``, or the names of its classes."""
    marks = card.marks or ", ".join(card.classes[1:])
    about = card.others.get("about") if isinstance(card.others.get("about"), dict) else {}
    if not marks.endswith("lesion"):
        return marks
    return f"{about['disease']} {marks}s" if about.get("disease") else f"{marks}s"


def lead_of(card: Card) -> str:
    """A sentence on what the model marks on which scans."""
    dropped = f", not smaller than {plain(card.min_lesion_mm3 / 1000)} mL" if card.min_lesion_mm3 else ""
    return (f"Marks {marked_by(card)} on {' and '.join(card.channels)} scans{dropped}. An empty mask does not mean "
            "that there are none.")


def about_html(weights: Path, card: Card) -> str:
    """What the model is, what these weights reached and on what, and its limits, as HTML."""
    folder, best = weights.parent, is_best(weights)
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    introduction, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    sections = dict(part.split("\n", 1) for part in rest if "\n" in part)
    parts = [markdown(re.sub(r"^# .*\n", "", introduction))]
    for name in SECTIONS:
        if name in sections and (best or name != SECTIONS[0]):
            parts += [f"<h3>{html.escape(name)}</h3>", markdown(sections[name])]
    scores = summarise_cases(folder / TEST_CASES) if best else []
    if not best:
        parts += ["<h3>Scores</h3>", own_scores(weights, card)]
    elif scores:
        parts += [f"<h3>Scores on held-out {'synthetic ' * is_synthetic(card)}cases: mean (standard deviation)</h3>",
                  data_of(card), table([("score", "value"), *scores])]
    elif SECTIONS[0] not in sections:
        known = [(key.replace("_", " "), str(value)) for key, value in card.metrics.items()
                 if not isinstance(value, dict)]
        parts += ["<h3>Scores</h3>", table([("score", "value"), *known]) if known
                  else "<p>No scores were recorded with this model.</p>"]
    if SECTIONS[1] not in sections:
        parts.append(f"<p>{html.escape(LIMITS)}</p>")
    seen = [("channels", ", ".join(card.channels)), ("classes", ", ".join(card.classes)), *seen_by(card, folder),
            ("marked from a probability of", plain(card.threshold)),
            *[(f"on {name}", ", ".join(setting(key, value) for key, value in own.items()))
              for name, own in card.contrasts.items()],
            ("lesions are dropped",
             f"under {plain(card.min_lesion_mm3 / 1000)} mL" if card.min_lesion_mm3 else "never")]
    return "\n".join([*parts, f"<h3>{DETAILS}</h3>", table([("field", "value"), *seen])])


def setting(key: str, value) -> str:
    """One of a card's ``contrasts`` in words."""
    if key == "veto":
        other = f", and sure {plain(value['sure'])} is enough then" if "sure" in value else ""
        return f"a veto takes back what looks like no lesion{other}"
    if key == MENTIONS:
        return "told where it is seen: " + ", ".join(f"{name} from {plain(ml)} mL on" for name, ml in value.items())
    if key == QUALITY:
        return "quality learned from synthetic heads"
    if key == OWN:
        return "weights of its own" if value else "the common weights"
    name = SHARE if key == "first_share" else key.replace("_", " ")
    return f"{name} {', '.join(value) if key == 'also' else plain(value)}"


def seen_by(card: Card, folder: Path) -> list[tuple[str, str]]:
    """The grids of a model's networks, as rows of a table."""
    if not card.first:
        return grid_rows(card)
    return [("networks", "two: the first sees the whole head, the second what lies around all that the first found"),
            *grid_rows(read_card(folder / FIRST), "first network: "), ("handed on", ", ".join(card.first)),
            *grid_rows(card, "second network: "),
            *([("given as well", "the mirror image of all that")] if card.mirror else []),
            *([(SHARE, plain(card.first_share))] if card.first_share else [])]


def grid_rows(card: Card, of: str = "") -> list[tuple[str, str]]:
    grid = card.grids()[0]
    return [(f"{of}voxels", f"{plain(grid.voxel_mm)} mm"), (f"{of}grid", " x ".join(map(str, grid.size)))]


def source_of(card: Card) -> object:
    """Where the cases of a run are from, as prepare.py recorded it; None where the card does not say."""
    return card.training_data.get("source") if isinstance(card.training_data, dict) else None


def is_synthetic(card: Card) -> bool:
    """Whether the cases were drawn and are of no patient."""
    source = source_of(card)
    return isinstance(source, dict) and source.get("format") == "synthetic"


def data_of(card: Card) -> str:
    """The data set that a run was trained and tested on, as HTML, without paths; "" where the card does not say."""
    if not (source := source_of(card)):
        return ""
    drawn = " No patient's scan is among them." * is_synthetic(card)
    return f"<p>Trained and tested on one data set: {html.escape(public_source(source))}.{drawn}</p>"


def is_best(weights: Path) -> bool:
    """Whether these are the weights of a run whose scores the folder holds."""
    return weights.name == WEIGHTS or not (weights.name in OTHERS or (weights.parent / WEIGHTS).is_file())


def own_scores(weights: Path, card: Card) -> str:
    """What is known of weights that are not the best ones of a run, as HTML."""
    said = (f"<p>This page has the weights <code>{html.escape(weights.name)}</code>{OTHERS.get(weights.name, '')}: the "
            "scores of the run's best weights are not theirs.")
    chosen_by = SCORES["best" if weights.name in card.thresholds else "half"]
    known = metrics_of(weights.name, read_metrics(weights.parent), chosen_by)
    if not known:
        return f"{said} No scores were recorded of these.</p>"
    rows = [(key.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else str(value))
            for key, value in known.items()]
    return f"{said} Theirs on the validation cases:</p>{table([('score', 'value'), *rows])}"


def metrics_of(name: str, rows: list[dict], chosen_by: str) -> dict:
    """The epoch and the validation scores of the averaged weights that a run kept, or of its last ones; {} if unknown.

    ``rows`` are the lines of metrics.jsonl, of which the averaged weights with the highest ``chosen_by`` were kept.
    """
    if name == LAST and rows and "val_dice" in rows[-1]:
        return {"epoch": rows[-1].get("epoch"), **{key: value for key, value in rows[-1].items()
                                                   if key.startswith("val_") and not key.endswith("_ema")}}
    own = [{key.removesuffix("_ema"): value for key, value in row.items()
            if key.startswith("val_") and key.endswith("_ema")} for row in rows]
    if name != AVERAGED or not any(own):
        return {}
    best = max(range(len(rows)), key=lambda i: own[i].get(chosen_by, -1.0))
    return {"epoch": rows[best].get("epoch"), **own[best]}


def markdown(text: str) -> str:
    """Paragraphs, lists, tables, bold and code of a README as HTML; everything else as its text."""
    blocks = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if not lines:
            continue
        if lines[0].startswith("|"):
            rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            blocks.append(table([row for row in rows if not all(set(cell) <= set("-: ") for cell in row)], inline))
        elif lines[0].startswith(("- ", "* ")):
            items = re.split(r"(?:^|\n)[-*] ", "\n".join(lines))[1:]
            blocks.append("<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>")
        elif not lines[0].startswith(("```", "![", "#", "<")):
            blocks.append(f"<p>{inline(' '.join(lines))}</p>")
    return "\n".join(blocks)


def inline(text: str) -> str:
    """Bold, code and links within a line; links become their text, since a page has no need to lead elsewhere."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = html.escape(text.replace("\n", " "))
    text = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def table(rows, cell=html.escape) -> str:
    """The first row as the head; an empty head is left out. It scrolls by itself where it is too wide."""
    head, *body = rows
    top = "".join(f'<th scope="col">{cell(text)}</th>' for text in head) if any(head) else ""
    lines = "".join("<tr>" + "".join(f"<td>{cell(text)}</td>" for text in row) + "</tr>" for row in body)
    return ('<div class="scroll" tabindex="0"><table>'
            f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>")

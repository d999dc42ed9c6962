"""What a page says of its model: from the README.md in its folder, its card and its scores."""

from __future__ import annotations

import html
import re
from pathlib import Path

from meshnet.networks.card import Card
from meshnet.networks.readme import LIMITS, summarise_cases
from meshnet.runs.folder import TEST_CASES

SECTIONS = ("What it reaches", "What it can and cannot do")  # of a README.md, that belong on a page
DETAILS = "How the model sees a scan"


def marked_by(card: Card) -> str:
    """What a model marks: ``stroke lesions``, or the names of its classes."""
    marks = card.marks or ", ".join(card.classes[1:])
    about = card.others.get("about") if isinstance(card.others.get("about"), dict) else {}
    if not marks.endswith("lesion"):
        return marks
    return f"{about['disease']} {marks}s" if about.get("disease") else f"{marks}s"


def lead_of(card: Card) -> str:
    """A sentence on what the model marks on which scans."""
    dropped = f", not smaller than {card.min_lesion_mm3 / 1000:g} mL" if card.min_lesion_mm3 else ""
    return (f"Marks {marked_by(card)} on {' and '.join(card.channels)} scans{dropped}. An empty mask does not mean "
            "that there are none.")


def about_html(folder: Path, card: Card) -> str:
    """What the model is, what it reached and on what, and its limits, as HTML."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    introduction, *rest = re.split(r"^## ", text, flags=re.MULTILINE)
    sections = dict(part.split("\n", 1) for part in rest if "\n" in part)
    parts = [markdown(re.sub(r"^# .*\n", "", introduction))]
    for name in SECTIONS:
        if name in sections:
            parts += [f"<h3>{html.escape(name)}</h3>", markdown(sections[name])]
    scores = summarise_cases(folder / TEST_CASES)
    if scores:
        parts += ["<h3>Scores on held-out cases: mean (standard deviation)</h3>", table([("score", "value"), *scores])]
    elif SECTIONS[0] not in sections:
        known = [(key.replace("_", " "), str(value)) for key, value in card.metrics.items()
                 if not isinstance(value, dict)]
        parts += ["<h3>Scores</h3>", table([("score", "value"), *known]) if known
                  else "<p>No scores were recorded with this model.</p>"]
    if SECTIONS[1] not in sections:
        parts.append(f"<p>{html.escape(LIMITS)}</p>")
    grid = card.grids()[0]
    seen = [("channels", ", ".join(card.channels)), ("classes", ", ".join(card.classes)),
            ("voxels", f"{grid.voxel_mm:g} mm"), ("grid", " x ".join(map(str, grid.size))),
            ("marked from a probability of", f"{card.threshold:g}"),
            *[(f"on {name}", ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in own.items()))
              for name, own in card.contrasts.items()],
            ("lesions are dropped", f"under {card.min_lesion_mm3 / 1000:g} mL" if card.min_lesion_mm3 else "never")]
    return "\n".join([*parts, f"<h3>{DETAILS}</h3>", table([("field", "value"), *seen])])


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

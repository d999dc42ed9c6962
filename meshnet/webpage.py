"""A report as a single HTML file with its pictures inside; no scripts, no network."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1d1d1f;
  background: #fff; max-width: 1080px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid #ddd; }
p, li { max-width: 78ch; }
.lead { color: #555; margin-top: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; margin: .6rem 0; }
thead th { border-top: 2px solid #333; border-bottom: 1px solid #333; font-weight: 600; text-align: right; }
tbody tr:last-child td { border-bottom: 2px solid #333; }
th, td { position: relative; padding: .28rem 1rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
tbody tr:nth-child(even) { background: #f6f7f9; }
sup { position: absolute; line-height: 1.2; color: #b03a00; }
.wide table { font-size: 12.5px; }
.wide th, .wide td { padding: .28rem .4rem; }
figure { margin: 1rem 0 1.6rem; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption, .note { color: #555; font-size: 13.5px; max-width: 88ch; margin-top: .4rem; }
.warning { background: #fff4e5; border-left: 4px solid #e08600; padding: .5rem .9rem; margin: 1rem 0; }
.warning ul { margin: .3rem 0; }
.worst { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: .8rem; }
.worst figure { margin: 0; }
@media print { body { max-width: none; } figure, table { break-inside: avoid; } }
"""
# Nothing may be loaded from anywhere, whatever a file name or a recipe's name contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def whole(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole file.

    Args:
        title, lead: plain text.
        sections: (heading as plain text, body as HTML).
    """
    body = "".join(f"<section>\n<h2>{escape(heading)}</h2>\n{content}</section>\n" for heading, content in sections)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n'
            f'<body>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}</body>\n</html>\n')


def picture(path: Path | None, caption: str, alt: str) -> str:
    """A PNG inside the page, with a caption (plain text); None where it could not be drawn."""
    if path is None:
        return f"<p>Not drawn: {escape(alt)}</p>\n"
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (f'<figure><img alt="{escape(alt, quote=True)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>\n")


def table(content: str, note: str, kind: str = "scroll") -> str:
    """An HTML table that scrolls where the window is narrow, with a note (plain text) under it.

    ``kind`` is ``scroll`` or, for many columns, ``scroll wide``.
    """
    return f'<div class="{kind}">{content}</div>\n<p class="note">{escape(note)}</p>\n'


def warning(text: str, items: Sequence[str]) -> str:
    """A box with a line and a list, both plain text."""
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<div class="warning">{escape(text)}<ul>{listed}</ul></div>\n'


def html_table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Any HTML table; cells are HTML already."""
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in line) + "</tr>\n" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>\n"

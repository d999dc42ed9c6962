"""Text files that people and spreadsheets wrote: encodings, separators and JSON, or one line on what is wrong."""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from meshnet.errors import UserError

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
LARGEST_CELL = 2**24  # characters; csv refuses cells of more than 131,072 without saying where they begin


@dataclass
class Table:
    """A table's columns, and (number of the line, {column: value}) for each line that is not empty."""

    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]
    notes: list[str] = field(default_factory=list)  # what was read in spite of its form
    short: dict[int, int] = field(default_factory=dict)  # number of a line: its cells, fewer than columns


def read_text(path: str | Path) -> tuple[str, str | None]:
    """A file's text, and a note where its encoding is a guess.

    A byte-order mark decides; without one it is UTF-8, or UTF-16 by its zero bytes, or else Windows-1252, of which
    Latin-1 is a part. Raises UserError for what is none of them.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected a text file; check the path") from error
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), None)
    zeros = [content[i:4096:2].count(0) for i in (0, 1)]
    if encoding is None and 4 * sum(zeros) > len(content[:4096]):  # of Latin letters every second byte
        encoding = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    note = None
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1
        try:
            if encoding:
                raise
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {line}: found bytes that are no {encoding or 'UTF-8'}, expected text in "
                            "UTF-8; save the file again as UTF-8") from error
        note = f"{path}, line {line}: found no UTF-8, read as Windows-1252 (Latin-1); save it as UTF-8 to be sure"
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}, line {line}: found a zero byte, expected text in UTF-8; save the file again as UTF-8")
    return text, note


def read_json(path: str | Path, what: str) -> tuple[object, str | None]:
    """A JSON file's value, and a note as ``read_text`` gives it.

    Raises UserError for a malformed file, and for a key that it has twice.
    """
    text, note = read_text(path)

    def once(pairs: list[tuple[str, object]]) -> dict:
        if twice := [key for key, count in Counter(k for k, _ in pairs).items() if count > 1]:
            raise UserError(f"{path}: found the key {twice[0]!r} twice, expected it once; remove one of them")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once), note
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}), expected {what}; repair it") from error


def read_table(path: str | Path, needed: Sequence[str], separators: str = "\t,;") -> Table:
    """A table with a header of which ``needed`` are columns, in any case of letters.

    The separator is the first of ``separators`` that makes these columns of the header. Lines that are too short lack
    their last values. Raises UserError, with the line, for columns of one name and lines with more values than columns.
    """
    text, note = read_text(path)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    said = text[:6].lower().startswith("sep=") and "\n" in text and len(text.split("\n", 1)[0].strip()) <= 5
    if said:  # a spreadsheet's own word on the separator
        separators = text[4] + separators
    header = next((h for h in text.split("\n")[1 if said else 0:] if h.strip()), "")
    separator = next((s for s in separators if set(needed) <= {c.lower() for c in _cells(header, s)}), None)
    if separator is None:  # the one that divides it at all, for the caller's message
        separator = max(separators, key=header.count)
    lines = _lines(path, text, separator)
    if said:
        lines = lines[1:]
    if not lines:
        return Table([], [], [note] if note else [])
    number, cells = lines[0]
    columns = [cell if cell.lower() not in needed else cell.lower() for cell in cells]
    while columns and not columns[-1]:
        columns.pop()
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(f"{path}, line {number}: found {columns.count(twice[0])} columns called {twice[0]!r}, expected "
                        "each name once; rename or remove one of them")
    table = Table(columns, [], [note] if note else [])
    for number, cells in lines[1:]:
        if any(cells[len(columns):]):
            raise UserError(f"{path}, line {number}: found {len(cells)} values, expected {len(columns)} as the header "
                            "has; quote a value that holds a separator, or remove what is too much")
        if len(cells) < len(columns):
            table.short[number] = len(cells)
        cells = cells + [""] * (len(columns) - len(cells))
        table.rows.append((number, dict(zip(columns, cells))))
    return table


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip().strip('"').strip() for cell in line.split(separator)]


def _lines(path: str | Path, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """(number of its first line, stripped values) of every line of a table that is not empty."""
    limit = csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    found, first = [], 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if reader.line_num > first and any(separator in c and "\n" in c for c in cells):
                raise UserError(f"{path}, line {first}: found a quotation mark that nothing closes on its line, "
                                "expected pairs of them; remove or double it")
            if any(cells):
                found.append((first, cells))
            first = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {first}: cannot be read as a table ({error}), expected a line for each case; "
                        "repair the line") from error
    finally:
        csv.field_size_limit(limit)
    return found

"""participants.tsv of a BIDS tree: columns to filter on and to group by."""

from pathlib import Path

from meshnet.data.sources.text import read_table
from meshnet.errors import UserError


def read_participants(path: Path) -> tuple[dict[str, dict[str, str]], list[str]]:
    """participants.tsv as {subject without ``sub-``: {column: value}}, and notes; empty where there is none.

    A subject on several lines keeps the values on which they agree.
    """
    if not path.is_file():
        return {}, []
    table = read_table(path, ("participant_id",))
    if table.columns and "participant_id" not in table.columns:
        raise UserError(f"{path}: found the columns {', '.join(table.columns)}, expected participant_id among them; "
                        "rename the column of the subjects")
    people: dict[str, dict[str, str]] = {}
    notes, first = list(table.notes), {}
    for line, row in table.rows:
        subject = row.pop("participant_id").removeprefix("sub-")
        row = {k: v for k, v in row.items() if k}
        if not subject:
            notes.append(f"{path}, line {line}: found no participant_id, expected one; the line is not used")
            continue
        if line in table.short:
            notes.append(f"{path}, line {line}: found {table.short[line]} values, expected {len(table.columns)}; the "
                         "missing ones are taken as empty")
        if subject not in people:
            people[subject], first[subject] = row, line
            continue
        known = people[subject]
        if different := [k for k, v in row.items() if k in known and known[k] != v]:
            people[subject] = {k: v for k, v in known.items() if k not in different}
            notes.append(f"{path}, line {line}: found {subject} again with another {', '.join(different)} than on line "
                         f"{first[subject]}, expected one line for each subject; not used for this subject")
    return people, notes

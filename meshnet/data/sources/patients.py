"""Which cases are of one patient: what the user says, and what names and files look like."""

import gzip
import hashlib
import os
import re
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from meshnet.data.sources.case import Case, Listing, subject_in
from meshnet.data.sources.text import read_table
from meshnet.display import count
from meshnet.errors import UserError

TAIL_WORDS = ("timepoint", "time", "tp", "t", "session", "ses", "visit", "vis", "v", "followup", "fu", "scan", "exam",
              "study", "day", "d", "week", "wk", "w", "month", "mo", "m", "year", "y", "run", "acq", "aug", "augmented",
              "copy", "rot", "flip")
TAIL_ALONE = ("baseline", "bl", "pre", "post", "preop", "postop", "fu", "followup", "follow-up", "acute", "subacute",
              "chronic", "initial", "final", "first", "second", "left", "right", "lh", "rh", "l", "r", "flip",
              "flipped", "mirror", "mirrored", "aug", "augmented", "copy")
WORDED = re.compile(rf"(.+?)[ _.-]+((?:{'|'.join(TAIL_WORDS)})[ _-]?\d{{1,4}}|{'|'.join(TAIL_ALONE)}|\(\d+\)"
                    r"|(?:19|20)\d\d[-_]?[01]\d[-_]?[0-3]\d)", re.IGNORECASE)
GLUED = re.compile(r"(.*\d)((?:tp|t|ses|v|fu)\d{1,2}|[a-e])", re.IGNORECASE)  # pat01t0, pat01a
NUMBERED = re.compile(r"(.*\d.*?)[_.-](\d{1,2})")  # p01_0, p01-12
RUN_ON = re.compile(r"(.*\d)(\d\d)")  # genius_0800: patient 08, time point 00
RUN_ON_ONE = re.compile(r"(.*\d)(\d)")  # p080
MOST_TAILS = 5  # of one patient, where only numbers tell; more are running numbers
BLOCK, SAMPLE = 2**20, 2**16


def name_patients(listing: Listing, subject: str | None, apart: bool) -> None:
    """Say of which patient each case of a listing is.

    ``subject``, a pattern or a table, renames the subjects. Without it the subjects stay, and where case names look
    like time points of one patient, those are put ``together``. So are subjects that have a scan in common, unless
    they are said to be ``apart``.
    """
    if subject:
        listing.guesses = {words: cases for words, cases in listing.guesses.items() if "--subject" not in words}
        by_table(listing, subject) if subject.lower().endswith((".csv", ".tsv")) else by_pattern(listing, subject)
    if apart:
        return
    _join_spellings(listing)
    if not subject:
        _join_names(listing)
    files = [(case, path) for case in listing.cases if case.loader == "files" for path in case.images]
    join_twins(listing, twins(files), {c.case: c.subject for c in listing.cases})
    _look_at_masks(listing)


def by_pattern(listing: Listing, pattern: str) -> None:
    """The subject of a case is what a regular expression's first group finds in its name, or in its scan's path."""
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UserError(f"--subject {pattern}: no regular expression ({error}), expected one such as 'pat(\\d+)', or a "
                        "table .csv with the columns case and subject") from error
    named, failed = [], []
    for case in listing.cases:
        found = search(case.case) or search(case.images[0])
        name = next((g for g in (*found.groups(), found[0]) if g), "") if found else ""
        if name:
            named.append(replace(case, subject=name))
        else:
            failed.append((case.mask, f"--subject {pattern}: found nothing in {case.case}, expected the patient; widen "
                                      "the pattern, or leave the case out with --exclude case=…"))
    if listing.cases and not named:
        raise UserError(f"--subject {pattern}: found in none of {len(listing.cases)} case names, such as "
                        f"{listing.cases[0].case}, expected a pattern of the patient, such as 'pat(\\d+)'; see --list")
    listing.cases, listing.failed = named, sorted(listing.failed + failed)


def by_table(listing: Listing, path: str) -> None:
    """The subject of a case is what a table with the columns case and subject says."""
    if not os.path.isfile(path):
        raise UserError(f"--subject {path}: no such file, expected a table with the columns case and subject")
    table = read_table(path, ("case", "subject"), "\t,;" if path.lower().endswith(".tsv") else ",;\t")
    if not {"case", "subject"} <= set(table.columns):
        raise UserError(f"{path}: found the columns {', '.join(table.columns) or 'none'}, expected case and subject; "
                        "rename them")
    listing.notes += table.notes
    subjects, lines = {}, {}
    for line, row in table.rows:
        case, subject = row["case"], row["subject"]
        if not case or not subject:
            missing = "subject" if case else "case"
            raise UserError(f"{path}, line {line}: found no {missing}, expected case and subject; complete the line")
        if subjects.setdefault(case, subject) != subject:
            raise UserError(f"{path}, line {line}: found {case} again with the subject {subject}, expected "
                            f"{subjects[case]} as on line {lines[case]}; remove one of the lines")
        lines.setdefault(case, line)
    named = [replace(c, subject=subjects[c.case]) for c in listing.cases if c.case in subjects]
    failed = [(c.mask, f"{path}: found no line for the case {c.case}, expected its subject; add the line")
              for c in listing.cases if c.case not in subjects]
    listing.cases, listing.failed = named, sorted(listing.failed + failed)


def spelling(subject: str) -> str:
    """A patient's name without what people and spreadsheets change: capitals, the form of accents, which separator, the
    zeros before a number, the ``.0`` that tables add, a space before a number, a leading ``sub-``."""
    subject = re.sub(r"(?<=[0-9])\.0+\Z", "", subject.strip())
    plain = re.sub(r"[\s_.-]+", "-", unicodedata.normalize("NFKC", subject).casefold().removeprefix("sub-"))
    plain = re.sub(r"(?<=[a-z])-(?=[0-9]+\Z)", "", plain)
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", plain)


def _join_spellings(listing: Listing) -> None:
    """Put subjects together whose names differ in nothing but their spelling, and say so."""
    names = defaultdict(set)
    for case in listing.cases:
        names[spelling(case.subject)].add(case.subject)
    several = sorted(sorted(same) for same in names.values() if len(same) > 1)
    if not several:
        return
    listing.together += several
    listing.notes.append(f"{len(several)} patient(s) seem to be spelt in several ways, such as "
                         f"{' and '.join(several[0][:4])}: they are kept in one fold; spell them alike, or say --apart "
                         "if they are different patients")
    for same in several:
        for case in sorted(case.case for case in listing.cases if case.subject in same):
            listing.guess(f"{' and '.join(same)} are the same patient (--apart says they are not)", case)


def _join_names(listing: Listing) -> None:
    """Put cases together whose names look like time points of one patient, where the name is all that tells."""
    own = {c.subject for c in listing.cases if c.subject == c.case and not subject_in(c.images[0])}
    stems = defaultdict(list)
    for name, stem in time_points(own).items():
        stems[stem].append(name)
    several = {stem: sorted(names) for stem, names in stems.items() if len(names) > 1}
    if not several:
        return
    listing.together += several.values()
    stem = min(several)
    listing.notes.append(
        f"{len(several)} patient(s) seem to have several cases, such as {', '.join(several[stem][:4])} of the same "
        f"patient {stem}: each patient's cases are kept in one fold; --subject PATTERN names the patient, --apart "
        "counts each case as a patient")
    for stem, names in several.items():
        for name in names:
            listing.guess(f"{', '.join(names)} are of the same patient {stem} by their names (--subject or --apart say "
                          "it otherwise)", name)


def time_points(names: Iterable[str]) -> dict[str, str]:
    """{name: patient} of names that look like time points of patients; empty where they look like patients.

    Endings such as ``_t0``, ``_ses-1`` and ``_baseline`` need two patients. Plain numbers and letters must be alike for
    all patients, few, and count from 0 or 1, so that running numbers are none.
    """
    names = sorted(set(names))
    for form in (WORDED, GLUED, NUMBERED, RUN_ON, RUN_ON_ONE):
        tails = defaultdict(list)
        for name in names:
            if found := form.fullmatch(name):
                tails[found[1]].append(found[2].lower())
        most = max(map(len, tails.values()), default=0)
        if most < 2 or len(tails) < 2 or most > max(MOST_TAILS, len(tails)):
            continue
        plain = form is not WORDED
        if plain and (sum(map(len, tails.values())) < len(names) or not _alike(list(tails.values()), form)):
            continue
        return {name: found[1].rstrip(" _.-") for name in names if (found := form.fullmatch(name))}
    return {}


def _alike(tails: Sequence[list[str]], form: re.Pattern) -> bool:
    """Whether plain endings are those of time points: few, of half the patients or more, and counted from the first."""
    longest = sorted(max(tails, key=len))
    most = MOST_TAILS if form is NUMBERED else min(MOST_TAILS, len(tails))
    if len(longest) > most or 2 * sum(len(t) > 1 for t in tails) < len(tails):
        return False
    if form is RUN_ON_ONE and (len(tails) < 3 or min(map(len, tails)) < len(longest)):
        return False
    if longest[0].isdigit():
        first = int(longest[0])
        counted = first in (0, 1) and [int(t) for t in longest if t.isdigit()] == [*range(first, first + len(longest))]
    else:
        counted = longest[0][-1] in "a01"
    return counted and all(sorted(t) == longest[: len(t)] for t in tails)


def join_twins(listing: Listing, groups: Iterable[Sequence[str]], subject: dict[str, str]) -> None:
    """Put the subjects of cases together that have a scan in common, and say so; ``groups`` are such cases."""
    for cases in sorted(map(sorted, groups)):
        subjects = sorted({subject[c] for c in cases})
        if len(subjects) < 2:
            continue
        shown = f"{', '.join(cases[:4])}{', …' if len(cases) > 4 else ''}"
        everybody = len(set(subject.values()))
        if len(subjects) == everybody or (len(subjects) > 2 and 2 * len(subjects) > everybody):
            listing.notes.append(f"{len(cases)} cases hold the same scan ({shown}), more than half of the data set: "
                                 "they are not kept in one fold; check that these are the scans you meant")
            continue
        listing.together.append(subjects)
        listing.notes.append(f"{shown} hold the same scan under {len(cases)} names: they are kept in one fold; remove "
                             "the duplicates, or say --apart if they are different patients")


def _look_at_masks(listing: Listing) -> None:
    """Say where several subjects have one file as their mask; it may be an empty one of healthy people."""
    users = defaultdict(list)
    for case in listing.cases:
        if case.loader == "files":
            users[os.path.realpath(case.mask)].append(case)
    for mask, cases in sorted(users.items()):
        if len(subjects := sorted({c.subject for c in cases})) > 1:
            listing.notes.append(f"{mask}: is the mask of {count(len(subjects), 'subject')} ({', '.join(subjects[:4])}"
                                 f"{', …' if len(subjects) > 4 else ''}); check whose it is")


def join_rows(listing: Listing, rows: Sequence[dict]) -> list[str]:
    """Put subjects together whose prepared rows have a scan in common; the notes on it, which ``listing`` gets too."""
    cases, known = defaultdict(set), len(listing.notes)
    for row in rows:
        for digest in row["image_sha256"]:
            cases[digest].add(row["case"])
    join_twins(listing, [sorted(c) for c in cases.values() if len(c) > 1], {r["case"]: r["subject"] for r in rows})
    return listing.notes[known:]


def twins(files: Sequence[tuple[Case, str]]) -> list[list[str]]:
    """Groups of case names that have the very same scan, packed or not.

    Files are compared by their lengths and a cheap mark, and by a hash of the content only where those coincide.
    """
    by_size = defaultdict(lambda: defaultdict(list))
    for case, path in files:
        if found := mark(path):
            size, *rest = found
            by_size[size][tuple(rest)].append((case.case, path))
    groups = []
    for marks in by_size.values():
        both = len({packed for packed, _ in marks}) > 1  # a packed file's checksum says nothing of the other's sample
        contents = defaultdict(set)
        for case, path in (pair for pairs in marks.values() if both or len(pairs) > 1 for pair in pairs):
            contents[_content(path)].add(case)
        groups += [sorted(cases) for content, cases in contents.items() if content and len(cases) > 1]
    return groups


def mark(path: str, whole: bool = False) -> tuple[int, bool, int] | None:
    """(bytes when unpacked, modulo 2³²; whether it is a gzip file; a checksum); None for what is empty or unreadable.

    A gzip file ends with length and checksum of its content; of another file, three blocks are summed up, or all.
    """
    try:
        with open(path, "rb") as handle:
            packed = handle.read(2) == b"\x1f\x8b"
            size = handle.seek(0, 2)
            if packed and size >= 18:
                handle.seek(-8, 2)
                tail = handle.read(8)
                return int.from_bytes(tail[4:], "little"), True, int.from_bytes(tail[:4], "little")
            checksum = 0
            for start in range(0, size, SAMPLE) if whole else (0, size // 2, max(0, size - SAMPLE)):
                handle.seek(start)
                checksum = zlib.crc32(handle.read(SAMPLE), checksum)
    except OSError:
        return None
    return (size % 2**32, False, checksum) if size else None


def _content(path: str) -> str | None:
    """SHA-256 of a file's bytes, unpacked; None for what cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as handle:
            packed = handle.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
    except (OSError, EOFError, zlib.error):
        return None
    return digest.hexdigest()

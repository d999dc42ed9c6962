"""Writes docs/checks.md, the page of everything that is checked, refused and said, from the code itself.

    python docs/checks.py            # after a message was added or changed; a test compares
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "checks.md"
PLACES = [  # a heading, the files below it, and what a reader should know
    ("Scans and masks", ["meshnet/scans", "meshnet/inference", "infer.py"],
     "What `infer.py`, `prepare.py` and `segment_scan` ask of a file, and what they say about it."),
    ("Cohorts", ["meshnet/cohort"], "BIDS data sets, DICOM, and many scans by several processes."),
    ("Data sets", ["meshnet/data", "prepare.py"],
     "What `prepare.py` asks of a data set, and training of a prepared one."),
    ("Models", ["meshnet/networks", "meshnet/sharing", "meshnet/hub.py", "share.py"],
     "Model folders, the Hub, and networks of other programs."),
    ("Settings", ["meshnet/config.py", "meshnet/recipe.py", "meshnet/mapping.py", "meshnet/search/space.py"],
     "Recipes, flags, and the space of a search."),
    ("Training", ["meshnet/training", "train.py"], "One run."),
    ("Search", ["meshnet/search", "search.py"], "A study."),
    ("Cross-validation", ["meshnet/crossval", "crossval.py"], "Folds, restarts and their report."),
    ("Everywhere", ["meshnet/runs", "meshnet/kernels", "meshnet/errors.py", "meshnet/files.py", "meshnet/machine.py",
                    "meshnet/plots.py", "meshnet/__init__.py"], "Disks, processes, packages."),
]
INTRODUCTION = """# What is checked, refused and said

Written by `python docs/checks.py` from the code; a test compares the two. Names in braces stand for what is found.

- **Refused**: one line on standard error with what was found, what was expected and what to do; exit code 2, and
  nothing is half-written. In a list of scans or cases the others go on; the exit code is then 1.
- **Said**: what is doubtful is done, and said: `warning: …` on standard error, `warnings` in `infer.py --json`, under
  the picture, in the `warnings` column of a prepared data set and in its `prepared.json`. A sound scan draws none.
"""
SAID = re.compile(r"^(warning|note)\b", re.IGNORECASE)


def words(node: ast.expr) -> str | None:
    """A string expression with its placeholders in braces; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = []
        for part in node.values:
            if isinstance(part, ast.Constant):
                parts.append(str(part.value))
            elif not ast.unparse(part.value).startswith("near("):  # what may be meant is no part of the message
                names = re.findall(r"[A-Za-z_]\w*", ast.unparse(part.value))
                parts.append("{" + (names[-1] if names else "value") + "}")
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        both = [words(side) or "{text}" for side in (node.left, node.right)]
        return "".join(both)
    return None


def messages(path: Path) -> tuple[set[str], set[str]]:
    """What a file refuses, and what it says."""
    refused, said = set(), set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func).split(".")[-1]
            text = words(node.args[0])
            if name in ("UserError", "Surroundings") and text:
                refused.add(text)
            elif text and SAID.match(text.strip()):
                said.add(text)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and (function.name.endswith("_remarks") or function.name in (
                "fitted", "look", "check_channels", "remarks_on")):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "UserError":
                    continue
                for text in _sentences(node):
                    said.add(text)
    return refused, said - refused


def _sentences(node: ast.AST) -> list[str]:
    """Strings that a remark function returns or appends: of a list, or given to ``append``."""
    given = node.elts if isinstance(node, ast.List) else node.args if (
        isinstance(node, ast.Call) and ast.unparse(node.func).endswith("append")) else []
    return [text for text in map(words, given) if text and " " in text]


def compose() -> str:
    """The page."""
    parts, seen = [INTRODUCTION], set()
    for heading, places, about in PLACES:
        files = [file for place in places for file in (sorted((ROOT / place).rglob("*.py")) or [ROOT / place])
                 if file.is_file()]
        refused, said = set(), set()
        for file in files:
            if file not in seen:
                seen.add(file)
                one, two = messages(file)
                refused |= one
                said |= two
        parts.append(f"## {heading}\n\n{about}\n")
        for title, lines in (("Said", said), ("Refused", refused)):
            if lines:
                parts.append(f"### {title}\n\n" + "\n".join(f"- {_one_line(line)}" for line in sorted(lines)) + "\n")
    return "\n".join(parts)


def _one_line(text: str) -> str:
    text = " ".join(text.replace("\t", " ").split())
    return "`" + text.replace("`", "'") + "`"


if __name__ == "__main__":
    PAGE.write_text(compose(), encoding="utf-8")
    print(PAGE)

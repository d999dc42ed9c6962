"""The house: a file imports only from its own room or from rooms that stand before it, and no room has a circle."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

GROUND = ["errors", "files", "machine", "config", "recipe", "hub", "plots"]
ROOMS = ["scans", "kernels", "runs", "data", "networks", "inference", "training", "search", "crossval", "sharing"]
ORDER = [*GROUND, *ROOMS]  # the files of the ground one by one, then the rooms


def modules(root):
    """{dotted name below meshnet: path} of every file that stands in the ground or in a room."""
    found = {}
    for path in sorted((root / "meshnet").rglob("*.py")):
        name = ".".join(path.relative_to(root / "meshnet").with_suffix("").parts).removesuffix(".__init__")
        if name.split(".")[0] in ORDER:
            found[name] = path
    return found


def imported(path, known):
    """The modules among ``known`` that a file imports anywhere: at its top, in functions, under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        below = [name.removeprefix("meshnet.") for name in names if name.startswith("meshnet.")]
        yield from [name for name in below if name in known][:1]


def faults(root):
    """Every import that runs back up, and every circle inside a room, in words."""
    known, graph, found = modules(root), {}, []
    for name, path in known.items():
        graph[name] = set(imported(path, known)) - {name}
        found += [f"{name} imports {other}" for other in sorted(graph[name])
                  if ORDER.index(other.split(".")[0]) > ORDER.index(name.split(".")[0])]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append("circle: " + " -> ".join(error.args[1]))
    return found


def test_imports_run_one_way(root):
    assert not faults(root)


@pytest.mark.parametrize("where, line, fault", [
    ("scans/first.py", "from meshnet.training import loop", "scans.first imports training"),
    ("runs/first.py", "def f():\n    import meshnet.search.second", "runs.first imports search.second"),
    ("data/first.py", "from meshnet.data.second import x", "circle: "),
])
def test_a_wrong_import_is_found(tmp_path, where, line, fault):
    room, other = tmp_path / "meshnet" / where, tmp_path / "meshnet" / "data" / "second.py"
    for path, text in ((room, line), (other, "from meshnet.data.first import y"),
                       (tmp_path / "meshnet" / "search" / "second.py", ""),
                       (tmp_path / "meshnet" / "training" / "__init__.py", "")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "meshnet" / "data" / "first.py").touch()
    assert any(fault in found for found in faults(tmp_path))


def test_rooms_say_what_they_hold_and_import_nothing(root):
    for room in ROOMS:
        for path in (root / "meshnet" / room).rglob("__init__.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert len(tree.body) == 1 and ast.get_docstring(tree), path

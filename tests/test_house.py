"""The house: a file imports only from its own room or from rooms that stand before it, and no room has a circle."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

GROUND = ["numbers", "flags", "colours", "errors", "display", "files", "machine", "mapping", "config", "recipe", "hub",
          "plots", "webpage", "completion"]
GONE = {"modelfolder"}  # says where its one name went, for model cards of earlier versions
ROOMS = ["scans", "kernels", "runs", "data", "networks", "inference", "cohort", "training", "search", "crossval",
         "sharing"]
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
        names = []  # for each imported name what it may be: a module, or something of one
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [(alias.name,) for alias in node.names]
        for either in names:
            below = [name.removeprefix("meshnet.") for name in either if name.startswith("meshnet.")]
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
    ("scans/first.py", "from meshnet import errors, training", "scans.first imports training"),
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


def test_every_file_stands_in_the_ground_or_in_a_room(root):
    names = {path.stem if path.is_file() else path.name for path in (root / "meshnet").iterdir()}
    assert names - {"__init__", "__main__", "__pycache__"} == {*ORDER} | GONE


def test_what_answers_at_once_never_loads_torch(root):
    """Everything but what a network itself needs, so that ``--help`` is quick and a scan is segmented without torch."""
    needs = ("kernels.convolution", "kernels.normalise", "data.batches", "networks.norms", "networks.meshnet",
             "networks.checkpointing", "networks.memory", "networks.baselines", "networks.umamba", "networks.ukan",
             "networks.readme", "networks.gpu_norm", "networks.gpu_step", "networks.gpu_memory",
             "networks.gpu_tuning",
             "inference.by_torch", "inference.on_gpu", "crossval.scoring", "crossval.ensemble", "runs.cluster")
    light = [name for name in modules(root) if not name.startswith((*needs, "training", "sharing", "__"))
             and "__main__" not in name]
    assert len(light) > 60
    code = f"import sys\nfor name in {light}: __import__('meshnet.' + name)\nassert 'torch' not in sys.modules"
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_accelerate_appears_in_training_alone(root):
    """Devices, precision and processes are Accelerate's, in the training loop and what assembles it."""
    for path in [*(root / "meshnet").rglob("*.py"), *root.glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert ".cuda()" not in text and "GradScaler" not in text, path
        if path.parent.name != "training":
            assert "import accelerate" not in text and "from accelerate" not in text, path


def test_search_and_crossval_start_training_as_a_process(root):
    for name, path in modules(root).items():
        if name.startswith(("search", "crossval")):
            assert not [other for other in imported(path, modules(root)) if other.startswith("training")], name


def test_rooms_say_what_they_hold_and_import_nothing(root):
    for room in ROOMS:
        for path in (root / "meshnet" / room).rglob("__init__.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert len(tree.body) == 1 and ast.get_docstring(tree), path


def test_files_and_functions_stay_short(root):
    """Files of at most 350 lines, functions of at most 60: beyond that there are probably two of them."""
    long = []
    for path in [*(root / "meshnet").rglob("*.py"), *root.glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        long += [f"{path}: {text.count(chr(10))} lines"] if text.count("\n") > 350 else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 60:
                long.append(f"{path}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long

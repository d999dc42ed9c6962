"""The house: a module imports only from its own floor or from floors below, and floor 0 never loads torch."""

import ast
import subprocess
import sys

FLOORS = [
    {"errors", "files", "config", "recipe", "schema", "labels", "nifti", "resample", "geometry", "boxes", "air",
     "tiles", "splits", "sources", "sources_bids", "sources_folders", "sources_table", "sources_hub", "rows", "dataset",
     "asha", "space", "sampler", "ledger", "stats", "processes", "launch", "launch_ray", "runfolder", "study",
     "study_view"},
    {"kernels", "operations", "memory", "model", "syncnorm", "ukan", "umamba", "baselines", "loss", "metrics",
     "lesionmask", "optim", "atlas", "lesions", "head", "scanner", "synthetic", "charts", "figures", "search_figures"},
    {"checkpoint", "modelfolder", "augment", "data", "folded", "layers", "segment"},
    {"registry", "hub", "hubcard", "export_stages", "export_tfjs", "export_torch", "export_onnx", "export", "tables",
     "results", "evaluation", "page", "report", "tracking", "ensemble", "runqueue", "validation"},
    {"engine", "setup", "profiling"},
]
# Inside functions only: MeshNet.from_pretrained reaches up, names that are not on disk lead to the Hub, and one source
# makes its cases instead of reading them.
REACH_UP = {("model", "modelfolder"), ("modelfolder", "hub"), ("modelfolder", "registry"), ("sources", "synthetic")}
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}


def imports(path):
    """(module of meshnet, whether the import is at the top level) of every import in a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "meshnet":
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("meshnet."):
            names = [node.module.split(".")[1]]
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("meshnet.")]
        yield from ((name, node in tree.body) for name in names if name in FLOOR)


def test_every_module_has_a_floor(root):
    assert {path.stem for path in (root / "meshnet").glob("*.py")} - {"__init__"} == set(FLOOR)


def test_imports_go_down(root):
    up = [(name, other) for name in FLOOR for other, top in imports(root / "meshnet" / f"{name}.py")
          if FLOOR[other] > FLOOR[name] and (top or (name, other) not in REACH_UP)]
    assert not up


def test_floor_0_never_loads_torch():
    code = (f"import sys\nfor name in {sorted(FLOORS[0] - {'launch_ray'})}: __import__('meshnet.' + name)\n"
            "assert 'torch' not in sys.modules")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_accelerate_appears_only_where_it_owns_something(root):
    """Devices, precision and processes are Accelerate's, in the training loop and what sets it up."""
    allowed = {"engine", "setup"}
    for name in set(FLOOR) - allowed:
        text = (root / "meshnet" / f"{name}.py").read_text()
        assert "import accelerate" not in text and "from accelerate" not in text, name
    for path in [*(root / "meshnet").glob("*.py"), *root.glob("*.py")]:
        assert ".cuda()" not in path.read_text() and "GradScaler" not in path.read_text(), path

"""MeshNet: tiny 3D networks that segment stroke lesions on whole-brain MRI. Research software, not for diagnosis.

    from meshnet import segment_scan
    result = segment_scan("scan.nii.gz")
    result.mask, result.volume_ml, result.lesions

The names in ``__all__`` are all that is promised. They are loaded on first use, so that a scan is segmented without
loading PyTorch. Below them stand the rooms, each importing only from those before it: the ground (errors, display,
files, machine, config, recipe, hub, plots), scans, kernels, runs, data, networks, inference, cohort, training, search,
crossval, sharing. See docs/house.md.
"""

import importlib
import sys
from pathlib import Path

from meshnet.errors import check_packages

__version__ = "0.1.0"
_INSTALLED = Path(__file__).resolve().parent / "root"  # where setup.py puts them
# The folder with the scripts, recipes and built-in weights: of the checkout, or within the installed package.
ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parent.parent
_HOMES = {
    "MeshNet": "networks.meshnet", "load_model": "networks.build", "Card": "networks.card",
    "segment_scan": "inference.scan", "predict": "inference.entrance", "conform": "scans.grid",
    "to_native": "scans.grid", "read_image": "scans.nifti", "save_like": "scans.nifti",
    "case_metrics": "scans.metrics", "UserError": "errors",
}
__all__ = list(_HOMES)

# One of the scripts: here, since it imports the rooms next.
if sys.argv and sys.argv[0].endswith(".py") and Path(sys.argv[0]).resolve().parent == ROOT:
    check_packages()


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"meshnet.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'meshnet' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "ROOT", "__version__"]

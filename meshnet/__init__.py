"""MeshNet: tiny 3D networks that segment stroke lesions on whole-brain MRI. Research software, not for diagnosis.

Names are loaded on first use, so that importing a module without torch does not load torch.
"""

import importlib
from pathlib import Path

__version__ = "0.1.0"
ROOT = Path(__file__).resolve().parent.parent  # of the checkout: the scripts, recipes and built-in weights
_HOMES = {"MeshNet": "meshnet.networks.meshnet"}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'meshnet' has no attribute '{name}'")

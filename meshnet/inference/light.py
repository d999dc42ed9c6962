"""A trained MeshNet for the compiled kernels, read and fused with numpy.

PyTorch is not imported, since that takes longer than a small network takes for a scan.

``load`` returns None for anything out of the ordinary: another network, no kernels, a GPU in the machine, files that
are not as expected. The caller then uses PyTorch, which can run all of these or says what is
wrong.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from meshnet.config import NORMS
from meshnet.kernels import calls
from meshnet.networks.build import Model
from meshnet.networks.card import WEIGHTS, read_card
from meshnet.networks.cascade import FIRST, of_contrast, read_first
from meshnet.networks.folder import find_weights
from meshnet.networks.fuse import Layer, fuse_tensors

GPUS = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, Windows' for Linux


@dataclass(frozen=True)
class FusedMeshNet:
    """The layers of ``networks.fuse``, as numpy arrays; of a cascade's second network, beside the ``first`` one and the
    same network with other weights (``for_contrast``)."""

    layers: list[Layer]
    in_channels: int
    first: Model | None = None
    for_contrast: dict[str, FusedMeshNet] = field(default_factory=dict)


def load(name: str | Path, weights: str = WEIGHTS, device: str | None = None,
         single: bool = False) -> Model | None:
    """``networks.build.load_model`` without PyTorch; None where PyTorch is needed.

    ``single``: the network is for one scan. The kernels then compute it although there is a GPU, since they are done
    (in 1 to 4 s) about when PyTorch has been imported and CUDA has started.

    Raises:
        UserError: where the model's folder or its card is not found or not valid.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if device is None and sys.platform == "linux" and (single or hidden or not any(map(os.path.exists, GPUS))):
        device = "cpu"  # as models.pick_device chooses, but for a single scan
    if device != "cpu":
        return None
    path = find_weights(name, weights)
    card = read_card(path.parent, path.name)
    first = None
    if read_first(path.parent, card) and (first := load(path.parent / FIRST, device=device, single=single)) is None:
        return None
    arguments = card.arguments
    if card.name != "meshnet" or arguments.get("norm", "batch") not in NORMS or not calls.available():
        return None
    if (tensors := read_plain(path)) is None:
        return None
    inputs, fused, known = arguments.get("in_channels", 1), {}, 0
    for contrast in (*card.own_weights, None):
        own = of_contrast(tensors, contrast)
        if (layers := fuse_tensors(own, arguments)) is None:
            return None
        fused[contrast], known = FusedMeshNet(layers, inputs), known + len(own)
    if known != len(tensors):  # weights for a contrast of which the card knows nothing
        return None
    return Model(FusedMeshNet(fused.pop(None).layers, inputs, first, fused), card)


def read_plain(path: Path) -> dict[str, np.ndarray] | None:
    """The tensors of a safetensors file; None where they are not all float32, or the file cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if not name.endswith(".num_batches_tracked")]  # noqa: SIM118 (no dict)
            if any(file.get_slice(name).get_dtype() != "F32" for name in names):
                return None
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None

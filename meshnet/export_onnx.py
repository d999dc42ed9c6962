"""ONNX, with sizes left open, and how far it agrees with PyTorch. Needs requirements-export.txt."""

import copy
import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from meshnet.errors import UserError
from meshnet.files import whole_file

OPSET = 18
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
TRIAL_SIZES = ((24, 32, 28), (40, 24, 32))  # parity is measured on two sizes, neither of them traced


class Served(nn.Module):
    """The network with float32 in and out, whatever precision it computes in."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.network = copy.deepcopy(network).to(dtype).eval()
        self.dtype = dtype

    def forward(self, volume: torch.Tensor) -> torch.Tensor:
        return self.network(volume.to(self.dtype)).float()


def core(model: nn.Module) -> tuple[nn.Module, int]:
    """What is exported, and the multiple that its sizes must be: a baseline goes without the padding around it."""
    return (model.network, model.multiple) if hasattr(model, "multiple") else (model, 1)


def write_onnx(model: nn.Module, card: dict, path: Path, precision: str = "fp32") -> None:
    """Write ``model`` as ONNX: input ``volume`` (B, C, X, Y, Z) and output ``logits``, all sizes but C and K open.

    The card travels in the file's metadata under ``meshnet``.

    Raises:
        UserError: where the ONNX packages are missing, or the network cannot be exported with open sizes.
    """
    if "image_size" in model.arguments or card["name"] not in ("meshnet", "segresnet", "unet", "residual_unet", "vnet",
                                                               "mednext_s", "mednext_b", "mednext_m"):
        raise UserError(f"{card['name']}: cannot be exported with open sizes; expected meshnet or a convolutional "
                        "baseline")
    onnx = import_package("onnx")
    network, multiple = core(model)
    sample = torch.zeros(1, len(card["channels"]), *[max(16, 2 * multiple)] * 3)
    axes = {0: "batch", 2: "x", 3: "y", 4: "z"}
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's notes on constants, which the parity below answers
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(Served(network, PRECISIONS[precision]), (sample,), str(temporary), dynamo=False,
                          opset_version=OPSET, input_names=["volume"], output_names=["logits"],
                          dynamic_axes={"volume": axes, "logits": axes})
        graph = onnx.load(str(temporary))
        entry = graph.metadata_props.add()
        entry.key, entry.value = "meshnet", json.dumps({**card, "size_multiple": multiple, "precision": precision})
        onnx.checker.check_model(graph)
        onnx.save(graph, str(temporary))


def import_package(name: str):
    """An optional package, or one line that says how to get it."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"{name}: not installed; pip install -r requirements-export.txt") from None


def compare(model: nn.Module, path: Path, volumes: list[np.ndarray]) -> dict:
    """How far ONNX Runtime agrees with PyTorch in float32.

    Args:
        volumes: (C, X, Y, Z) float32 each, what the network would see.

    Returns:
        ``relative_difference``: the largest difference of two logits over the largest logit. ``dice``: Dice between
        both arg-max labels, the lowest over the classes but background that either marks; None where neither marks any.
    """
    session = import_package("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network, multiple = core(model)
    difference = largest = 0.0
    dices = []
    for volume in volumes:
        padding = [(0, 0), *((0, -n % multiple) for n in volume.shape[1:])]
        batch = np.pad(volume, padding)[None]
        with torch.inference_mode():
            expected = network(torch.from_numpy(batch)).numpy()
        found = session.run(None, {"volume": batch})[0]
        difference = max(difference, float(np.abs(found - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        ours, theirs = expected.argmax(1), found.argmax(1)
        for label in range(1, expected.shape[1]):
            total = (ours == label).sum() + (theirs == label).sum()
            if total:
                dices.append(float(2 * ((ours == label) & (theirs == label)).sum() / total))
    return {"relative_difference": difference / max(largest, 1e-30), "dice": min(dices, default=None)}


def trial_volumes(channels: int) -> list[np.ndarray]:
    """Smooth blobs on zero background, of the sizes ``TRIAL_SIZES``; the same on every call."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    volumes = []
    for size in TRIAL_SIZES:
        volume = np.stack([gaussian_filter(rng.standard_normal(size), 2) for _ in range(channels)])
        volumes.append(np.clip(volume / volume.max(), 0, 1).astype(np.float32))
    return volumes

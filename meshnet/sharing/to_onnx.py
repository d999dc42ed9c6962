"""ONNX export with dynamic sizes, and how well it agrees with PyTorch. Needs requirements-export.txt."""

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from meshnet.errors import UserError
from meshnet.files import whole_file
from meshnet.inference.cascade import second_volume
from meshnet.inference.scan import conformed_scan, read_case
from meshnet.networks.build import Model, load_model, stages, variants
from meshnet.networks.card import Card
from meshnet.networks.meshnet import MeshNet
from meshnet.networks.readme import public_card
from meshnet.scans.intensity import as_input
from meshnet.sharing.beside import CARD_NAME, write_beside

OPSET = 18
# Keys beside a card, where a second network has several sets of weights, each in a file: the contrast that the set in
# this one is for, and the hash of all of them.
OF, WHOLE = "weights_for", "all_weights"
TRIAL_SIZES = ((24, 32, 28), (40, 24, 32))  # parity is measured on two sizes, neither of them traced


class HalfConvolution(nn.Module):
    """A convolution in half precision, with float32 in and out; the bias is added in float32.

    Rounded biases would cost more than rounded weights: a bias shifts every voxel alike.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.bias = layer.bias
        layer.bias = None
        self.layer = layer.half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x.half()).float()
        return y if self.bias is None else y + self.bias[:, None, None, None]


def served(network: nn.Module, precision: str) -> nn.Module:
    """A copy of ``network`` in eval mode with float32 in and out. In ``fp16`` its convolutions compute in half
    precision and the rest, norms above all, in float32, as autocast does in training."""
    network = copy.deepcopy(fused(network)).eval()
    if precision == "fp16":
        for parent in list(network.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
                    setattr(parent, name, HalfConvolution(layer))
    return network


def fused(network: nn.Module) -> nn.Module:
    """``network`` with a MeshNet's batch norm fused into its convolutions (in float64), so that half precision rounds
    each weight once; others as they are."""
    if not isinstance(network, MeshNet) or network.arguments["norm"] != "batch":
        return network
    from meshnet.networks.fuse import fuse

    plain = MeshNet(**network.arguments | {"norm": "none", "bias": True, "final_bias": True, "dropout": 0.0})
    with torch.no_grad():
        for layer, conv in zip(fuse(network), [*(block.conv for block in plain.blocks), plain.head]):
            conv.weight.copy_(layer.weight)
            conv.bias.copy_(layer.bias)
    return plain


def core(model: nn.Module) -> tuple[nn.Module, int]:
    """The network to export, and what its sizes must be multiples of: baselines are exported without their padding."""
    return (model.network, model.multiple) if hasattr(model, "multiple") else (model, 1)


def write_onnx(model: nn.Module, card: Card, path: Path, precision: str = "fp32", **more) -> None:
    """Write ``model`` as ONNX: input ``volume`` (B, C, X, Y, Z) and output ``logits``, all sizes but C and K dynamic.

    The card travels in the file's metadata under ``meshnet``. Of a cascade this is the second network; the first one
    goes to a file beside it (``first_file``), and so does the second one with other weights (``contrast_file``).
    ``more``: further keys beside the card.

    Raises:
        UserError: if the ONNX packages are missing, or the network cannot be exported with dynamic sizes.
    """
    if "image_size" in model.arguments or card.name not in ("meshnet", "segresnet", "unet", "residual_unet", "vnet",
                                                               "mednext_s", "mednext_b", "mednext_m"):
        raise UserError(f"{card.name}: cannot be exported with dynamic sizes; expected meshnet or a convolutional "
                        "baseline")
    onnx = import_package("onnx")
    network, multiple = core(model)
    sample = torch.zeros(1, len(card.inputs), *[max(16, 2 * multiple)] * 3)
    axes = {0: "batch", 2: "x", 3: "y", 4: "z"}
    with whole_file(path) as temporary, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's notes on constants; agreement is measured below
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(served(network, precision), (sample,), str(temporary), dynamo=False,
                          opset_version=OPSET, input_names=["volume"], output_names=["logits"],
                          dynamic_axes={"volume": axes, "logits": axes})
        graph = onnx.load(str(temporary))
        entry = graph.metadata_props.add()
        own = public_card(card).changed(thresholds={})  # those are of other files
        described = {**own.to_dict(), "size_multiple": multiple, "precision": precision, **more}
        entry.key, entry.value = "meshnet", json.dumps(described)
        onnx.checker.check_model(graph)
        onnx.save(graph, str(temporary))


def import_package(name: str):
    """An optional package, or one line that says how to install it."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"{name}: not installed; pip install -r requirements-export.txt") from None


def compare(model: nn.Module, path: Path, volumes: list[np.ndarray]) -> dict:
    """How well ONNX Runtime agrees with PyTorch in float32.

    Args:
        volumes: (C, X, Y, Z) float32 each, what the network would see.

    Returns:
        ``relative_difference``: the largest difference of two logits over the largest logit, infinite where ONNX
        Runtime returns NaN or infinity. ``dice``: Dice between both arg-max labels, the lowest over the
        classes but background that either marks; None where neither marks any.
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
        if not np.isfinite(found).all():  # float16 ends at 65,504; max() would pass over a NaN
            difference = float("inf")
        difference = max(difference, float(np.abs(found - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
        ours, theirs = expected.argmax(1), found.argmax(1)
        for label in range(1, expected.shape[1]):
            total = (ours == label).sum() + (theirs == label).sum()
            if total:
                dices.append(float(2 * ((ours == label) & (theirs == label)).sum() / total))
    return {"relative_difference": difference / max(largest, 1e-30), "dice": min(dices, default=None)}


def trial_volumes(channels: int) -> list[np.ndarray]:
    """Smooth blobs on a zero background, of the sizes ``TRIAL_SIZES``, identical on every call."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    volumes = []
    for size in TRIAL_SIZES:
        volume = np.stack([gaussian_filter(rng.standard_normal(size), 2) for _ in range(channels)])
        volumes.append(np.clip(volume / volume.max(), 0, 1).astype(np.float32))
    return volumes


def first_file(path: Path) -> Path:
    """The file of the first network of a cascade whose second one is in ``path``."""
    return path.with_name(f"{path.stem}_first{path.suffix}")


def contrast_file(path: Path, contrast: str) -> Path:
    """The file of the second network with the weights for ``contrast``, where that with the others is in ``path``."""
    return path.with_name(f"{path.stem}_for_{contrast.lower().replace(' ', '_')}{path.suffix}")


def digest_of(network: nn.Module) -> str:
    """Of all weights of a network, those for other contrasts as well, as hex digits."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def export(name: str, out: Path, precision: str = "fp32", scan: Sequence[Path] = ()) -> str:
    """Write the model ``name`` as ONNX and measure how well it agrees with PyTorch on ``scan`` (a file for each
    channel) or on made-up volumes; returns the result in words. Of a cascade all networks are written."""
    whole = load_model(name)
    if out.is_dir():
        raise UserError(f"{out}: is a folder, expected a file to write, such as model.onnx")
    lines = []
    for path, each in zip([first_file(out), out] if whole.card.first else [out], stages(whole)):
        seen = seen_by(scan, each)
        own = variants(each)
        more = {WHOLE: digest_of(each.network)} if own else {}
        lines += [export_one(*other, contrast_file(path, contrast), precision, seen, **more, **{OF: contrast})
                  for contrast, other in own.items()]
        lines.append(export_one(*each, path, precision, seen, **more))
    return "\n".join(lines)


def seen_by(scan: Sequence[Path], model: Model) -> list[np.ndarray]:
    """The volume (C, X, Y, Z), float32, that the (last) network of ``model`` is given for a scan; none without one, or
    where the first network of a cascade finds nothing."""
    if not scan:
        return []
    if not model.card.first:
        return [conformed_scan(scan, model.card)]
    case = read_case(scan, [model])
    card = model.card
    found = second_volume(model.network.first, case.inputs[0], case.seconds[0], card.voxel_mm, card.across)
    return [] if found is None else [as_input(found[0])]


def export_one(model: nn.Module, card: Card, out: Path, precision: str, volumes: list[np.ndarray], **more) -> str:
    """``export`` of one network, compared on ``volumes``, or where there are none on made-up ones. ``more`` as for
    ``write_onnx``."""
    write_onnx(model, card, out, precision, **more)
    beside = out.with_suffix(f".{CARD_NAME}")
    write_beside(model, card, beside, out, size_multiple=core(model)[1], precision=precision)
    parity = compare(model, out, volumes or trial_volumes(len(card.inputs)))
    where = "the scan" if volumes else "two made-up volumes"
    dice = "only background on either side" if parity["dice"] is None else f"Dice {parity['dice']:.6f}"
    return (f"{out}, and its card {beside}: {precision}, {out.stat().st_size:,} bytes; against PyTorch on "
            f"{where}: largest logit difference {parity['relative_difference']:.2e} of the largest logit, {dice}")

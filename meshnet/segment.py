"""Run a network over one whole volume: norm folded into the convolutions, air around the head left out, memory capped.

A trained MeshNet is a column of convolutions at full resolution. Three facts make it quick to run:

* In evaluation batch norm is a scale and a shift, so it is folded into the weights beside it (``fold``).
* Air is a constant, and each layer answers a constant with a constant c_l. What lies outside the head needs no
  computing, only c_l wherever a layer looks beyond the part that it computed. Layer l can differ from c_l only within
  R_l (the sum of the dilations so far) of the head, and matters for the head only within R − R_l of it, so each layer
  computes the head's box grown by the smaller of both.
* A part of the output needs only that part of each layer, grown by R − R_l. So any volume can be cut into tiles with
  exact halos, and the peak memory has a ceiling.

The volume's zero padding is not air: near the border each layer's answer to air differs from c_l. How deep that goes
is worked out from the weights (``answer_to_air``), and where c_l would be wrong by more than ``AIR_TOLERANCE`` of the
layer's largest value, the layer is computed instead. What ``crop="head"`` does not reproduce: outside the head's box
the network's answer to endless air is filled in. Scans whose air holds noise have no constant to crop and are computed
in full. ``crop="none"`` is always the full volume.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from meshnet import kernels
from meshnet.errors import UserError
from meshnet.model import MeshNet

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
CROPS = ("head", "none")
AIR_TOLERANCE = 1e-4
ACTIVATIONS = {nn.ReLU: "relu", nn.ELU: "elu", nn.GELU: "gelu"}


@dataclass(frozen=True)
class Layer:
    """One convolution: ``weight`` (out, in, k, k, k) with k 3 or 1, ``bias`` (out,), then ``norm`` if any, then the
    activation (``relu``, ``elu``, ``gelu`` or ``none``)."""

    weight: torch.Tensor
    bias: torch.Tensor
    dilation: int
    activation: str
    norm: nn.Module | None = None

    @property
    def reach(self) -> int:
        """How far, in voxels, this layer looks to each side."""
        return self.dilation if self.weight.shape[-1] == 3 else 0


def fold(model: MeshNet) -> list[Layer]:
    """The layers of ``model`` as it runs in evaluation mode, batch norm folded into weight and bias (in float64).

    Group and instance norm take their statistics from the volume itself and stay as they are. The last layer is the
    1×1×1 convolution to the classes, without an activation. Nothing is shared with ``model`` but those norms.
    """
    layers = []
    for block in model.blocks:
        norm = getattr(block, "norm", None)
        weight = block.conv.weight.detach().double()
        bias = torch.zeros_like(weight[:, 0, 0, 0, 0]) if block.conv.bias is None else block.conv.bias.detach().double()
        if isinstance(norm, nn.BatchNorm3d):
            scale = torch.rsqrt(norm.running_var.double() + norm.eps)
            shift = -norm.running_mean.double() * scale
            if norm.affine:
                gain = norm.weight.detach().double()
                scale, shift = scale * gain, shift * gain + norm.bias.detach().double()
            weight, bias = weight * scale[:, None, None, None, None], bias * scale + shift
            norm = None
        layers.append(Layer(weight.float(), bias.float(), block.conv.dilation[0], ACTIVATIONS[type(block.act)], norm))
    head = model.head
    bias = torch.zeros_like(head.weight[:, 0, 0, 0, 0]) if head.bias is None else head.bias
    layers.append(Layer(head.weight.detach().float().clone(), bias.detach().float().clone(), 1, "none"))
    return layers


# ---------------------------------------------------------------- boxes

def whole(shape: tuple[int, ...]) -> Box:
    """The box of a whole (X, Y, Z) volume."""
    return tuple((0, n) for n in shape)


def grow(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    """``box`` grown by ``by`` voxels to every side, as far as the volume goes."""
    return tuple((max(0, a - by), min(n, b + by)) for (a, b), n in zip(box, shape))


def meet(one: Box, two: Box) -> Box:
    """What two boxes share."""
    return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, two))


def voxels(box: Box) -> int:
    """The number of voxels in ``box``."""
    return int(np.prod([max(0, b - a) for a, b in box]))


def head_box(volume: np.ndarray) -> tuple[Box, np.ndarray]:
    """The smallest box outside of which every voxel of ``volume`` (C, X, Y, Z) equals the corner voxel, and the
    corner's values (C,). Without such air the box is the whole volume; a constant volume gives a box of one voxel."""
    constant = volume[:, 0, 0, 0].copy()
    differs = (volume != constant[:, None, None, None]).any(axis=0)
    if not differs.any():
        return ((0, 1), (0, 1), (0, 1)), constant
    plane = differs.any(axis=2)
    profiles = plane.any(axis=1), plane.any(axis=0), differs.any(axis=(0, 1))
    ends = [np.flatnonzero(p)[[0, -1]] for p in profiles]
    return tuple((int(a), int(b) + 1) for a, b in ends), constant


def layer_boxes(layers: list[Layer], out: Box, head: Box, shape: tuple[int, ...], air: "Air") -> list[Box]:
    """What each layer must compute for ``out``: entry 0 is the input, entry l the output of ``layers[l - 1]``.

    Going backwards, a layer needs what the next one looks at. Where that lies farther from the head than the head
    reaches, air's constant stands in for it, unless the volume's border is so near that the answer to air differs.
    """
    reached = np.cumsum([0] + [layer.reach for layer in layers]).tolist()
    boxes = [out]
    for i in reversed(range(len(layers))):
        need, near = grow(boxes[0], layers[i].reach, shape), grow(head, reached[i], shape)
        sides = []
        for axis, ((a, b), (c, d), n) in enumerate(zip(need, near, shape)):
            low = a if a >= c or a < air.depths[i][axis][0] else c
            high = b if b <= d or n - b < air.depths[i][axis][1] else d
            sides.append((low, max(low, high)))
        boxes.insert(0, tuple(sides))
    return boxes


@dataclass(frozen=True)
class Air:
    """What the layers answer to endless constant air: ``values[l]`` (C,) with entry 0 the air itself and the last one
    the logits, and ``depths[l][axis][side]``: how many voxels the volume's zero padding changes that answer."""

    values: list[torch.Tensor]
    depths: list[list[tuple[int, int]]]


def answer_to_air(layers: list[Layer], constant: np.ndarray, tolerance: float = AIR_TOLERANCE) -> Air:
    """``Air`` for a column of ``layers`` whose air has the values ``constant`` (C,).

    Near one face of the volume the answer depends on the distance to it alone, so one line of voxels through the
    layers, their weights summed over the other two axes, tells how far the face reaches. A difference below
    ``tolerance`` of the layer's largest value counts as none.
    """
    start = torch.from_numpy(np.asarray(constant, dtype=np.float32))
    values, depths = [start], [[(0, 0)] * 3]
    length = 2 * sum(layer.reach for layer in layers) + 1
    lines = [start[None, :, None].expand(1, -1, length)] * 3
    for layer in layers:
        weight, bias = layer.weight.cpu(), layer.bias.cpu()
        values.append(activate(weight.sum(dim=(2, 3, 4)) @ values[-1] + bias, layer.activation))
        per_axis = [weight.sum(dim=[d for d in (2, 3, 4) if d != axis + 2]) for axis in range(3)]
        lines = [activate(functional.conv1d(line, w, bias, padding=layer.reach, dilation=layer.dilation),
                          layer.activation) for line, w in zip(lines, per_axis)]
        sides = []
        for line in lines:
            differs = (line[0] - values[-1][:, None]).abs().amax(dim=0) > tolerance * line.abs().max()
            where = torch.nonzero(differs)[:, 0].tolist()
            half = length // 2
            sides.append((max((i + 1 for i in where if i <= half), default=0),
                          max((length - i for i in where if i >= half), default=0)))
        depths.append(sides)
    return Air(values, depths)


def activate(x: torch.Tensor, kind: str) -> torch.Tensor:
    """The activation ``kind``, in place where torch can."""
    if kind == "relu":
        return x.relu_()
    if kind == "elu":
        return functional.elu_(x)
    return functional.gelu(x) if kind == "gelu" else x


# ---------------------------------------------------------------- PyTorch's path

def pad_input(x: torch.Tensor, have: Box, want: Box, reach: int, air: torch.Tensor,
              shape: tuple[int, ...]) -> torch.Tensor:
    """``x`` (1, C, *have) laid out on ``want`` grown by ``reach`` to every side: zero outside the volume, ``air`` (C,)
    inside the volume where ``x`` has nothing."""
    starts = [a - reach for a, _ in want]
    sizes = [b - a + 2 * reach for a, b in want]
    padded = torch.zeros((1, x.shape[1], *sizes), dtype=x.dtype, device=x.device,
                         ).contiguous(memory_format=torch.channels_last_3d)
    inside = tuple(slice(max(0, -s), min(size, n - s)) for s, size, n in zip(starts, sizes, shape))
    padded[(slice(None), slice(None), *inside)] = air[None, :, None, None, None]
    source = tuple(slice(max(a, s) - a, min(b, s + size) - a) for (a, b), s, size in zip(have, starts, sizes))
    target = tuple(slice(max(a, s) - s, min(b, s + size) - s) for (a, b), s, size in zip(have, starts, sizes))
    padded[(slice(None), slice(None), *target)] = x[(slice(None), slice(None), *source)]
    return padded


def run_box(layers: list[Layer], volume: torch.Tensor, out: Box, head: Box, air: Air) -> torch.Tensor:
    """Logits (K, *out) by PyTorch. ``volume`` (C, X, Y, Z); outside ``head`` every layer is ``air``."""
    shape = tuple(volume.shape[1:])
    boxes = layer_boxes(layers, out, head, shape, air)
    x = volume[(slice(None), *(slice(a, b) for a, b in boxes[0]))][None]
    x = x.contiguous(memory_format=torch.channels_last_3d)
    for i, layer in enumerate(layers):
        weight = layer.weight.contiguous(memory_format=torch.channels_last_3d)
        if layer.reach and not boxes[i] == boxes[i + 1] == whole(shape):
            x = pad_input(x, boxes[i], boxes[i + 1], layer.reach, air.values[i].to(x.device), shape)
            x = functional.conv3d(x, weight, layer.bias, dilation=layer.dilation)
        else:
            x = functional.conv3d(x, weight, layer.bias, dilation=layer.dilation, padding=layer.reach)
        if layer.norm is not None:
            x = layer.norm(x)
        x = activate(x, layer.activation)
    return x[0]


def torch_bytes(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...]) -> int:
    """Working memory of ``run_box``: a layer's input, its padded copy and its output at the widest place."""
    peak = 0
    for i, layer in enumerate(layers):
        outputs, inputs = layer.weight.shape[:2]
        padded = 0 if boxes[i] == boxes[i + 1] == whole(shape) else int(
            np.prod([b - a + 2 * layer.reach for a, b in boxes[i + 1]]))
        peak = max(peak, 4 * (inputs * (voxels(boxes[i]) + padded) + outputs * voxels(boxes[i + 1])))
    return peak


def plan_tiles(layers: list[Layer], head: Box, shape: tuple[int, ...], air: Air, budget: int | None,
               needs=torch_bytes) -> list[Box]:
    """``head`` cut into the tiles that fit ``budget`` bytes (by ``needs``) with the least computing.

    Raises:
        UserError: if not even the smallest tiles fit.
    """
    if budget is None:
        return [head]
    best, smallest = None, None
    for counts in itertools.product(*(range(1, min(12, max(1, (b - a) // 8)) + 1) for a, b in head)):
        # The tile in the middle has its halo on every side: the largest, and the measure of all.
        tiles = cut(head, counts)
        boxes = layer_boxes(layers, tiles[np.ravel_multi_index([c // 2 for c in counts], counts)], head, shape, air)
        need, work = needs(layers, boxes, shape), len(tiles) * sum(voxels(box) for box in boxes[1:])
        smallest = min(need, smallest or need)
        if need <= budget and (best is None or work < best[0]):
            best = work, tiles
    if best is None:
        raise UserError(f"max_memory: found too little room for the network's layers, expected at least "
                        f"{smallest / 1e9:.2f} GB beside what the process already holds; raise it")
    return best[1]


def cut(box: Box, counts: list[int]) -> list[Box]:
    """``box`` cut into ``counts`` nearly equal parts along each axis."""
    edges = [np.linspace(a, b, n + 1).astype(int).tolist() for (a, b), n in zip(box, counts)]
    return [tuple((edges[axis][i], edges[axis][i + 1]) for axis, i in enumerate(index))
            for index in np.ndindex(*counts)]


# ---------------------------------------------------------------- whole volumes

def predict(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
            threads: int | None = None) -> np.ndarray:
    """Class probabilities (K, X, Y, Z), float32.

    Args:
        model: a ``MeshNet`` in evaluation mode, or any other network (run as it is; one with an attribute ``patch``
            by MONAI's sliding window of that size).
        volume: (C, X, Y, Z), scaled as in training (0..1), numpy or torch.
        crop: ``head`` computes the box outside of which the volume is constant and fills the rest with the network's
            answer to that constant; ``none`` computes everything; a box ((x0, x1), (y0, y1), (z0, z1)) is taken as the
            head's. Models with group or instance norm, and other networks, are always run in full.
        max_memory: ceiling in bytes for the whole process, as far as this function adds to it; None means no ceiling.
        device: where to compute; None means where the model is.
        threads: CPU threads; None means ``torch.get_num_threads()``.

    Raises:
        UserError: a volume with the wrong number of axes or channels, NaN or infinite voxels, an unknown crop, or a
            ceiling that is too low.
    """
    return run(model, volume, crop, max_memory, device, threads, "probabilities")


def predict_labels(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
                   threads: int | None = None) -> np.ndarray:
    """The most probable class of each voxel (X, Y, Z), uint8; the lowest one at a tie. Arguments as ``predict``."""
    return run(model, volume, crop, max_memory, device, threads, "labels")


def predict_logits(model: nn.Module, volume, crop: str | Box = "head", max_memory: int | None = None, device=None,
                   threads: int | None = None) -> np.ndarray:
    """Logits (K, X, Y, Z), float32. Arguments as ``predict``."""
    return run(model, volume, crop, max_memory, device, threads, "logits")


def run(model: nn.Module, volume, crop, max_memory, device, threads, output: str) -> np.ndarray:
    """``predict``, ``predict_labels`` and ``predict_logits`` in one; ``output`` names which."""
    volume = check_volume(model, volume)
    device = torch.device(device) if device is not None else next(model.parameters()).device
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            if not isinstance(model, MeshNet):
                return finish(run_other(model, torch.from_numpy(volume), device), output)
            return run_meshnet(model, volume, crop, max_memory, device, output)
    finally:
        torch.set_num_threads(before)


def check_volume(model: nn.Module, volume) -> np.ndarray:
    """``volume`` as float32 numpy (C, X, Y, Z), or a UserError."""
    volume = volume.detach().cpu().numpy() if isinstance(volume, torch.Tensor) else np.asarray(volume)
    channels = model.arguments["in_channels"] if isinstance(model, MeshNet) else volume.shape[0]
    if volume.ndim != 4 or volume.shape[0] != channels or 0 in volume.shape:
        raise UserError(f"volume: found shape {tuple(volume.shape)}, expected (C, X, Y, Z) with C = {channels}; "
                        f"give one channel for each modality that the model was trained on")
    volume = np.ascontiguousarray(volume, dtype=np.float32)
    if not np.isfinite(volume).all():
        raise UserError("volume: found NaN or infinite voxels, expected finite intensities; mend the scan")
    return volume


def run_other(model: nn.Module, volume: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Logits (K, X, Y, Z) of a network that is not a MeshNet."""
    model = model.to(device)
    patch = getattr(model, "patch", None)
    if patch is None:
        return model(volume[None].to(device))[0]
    from monai.inferers import sliding_window_inference

    size = (patch,) * 3 if isinstance(patch, int) else tuple(patch)
    return sliding_window_inference(volume[None].to(device), size, 1, model, overlap=0.5, mode="gaussian")[0]


def finish(logits: torch.Tensor, output: str) -> np.ndarray:
    """Logits (K, …) as the kind of ``output`` asked for."""
    if output == "labels":
        return logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
    return (logits.softmax(dim=0) if output == "probabilities" else logits).float().cpu().numpy()


def run_meshnet(model: MeshNet, volume: np.ndarray, crop, max_memory, device: torch.device, output: str) -> np.ndarray:
    """``run`` for a MeshNet: fold, crop, cut into tiles, compute each, put them together."""
    layers = [replace(layer, weight=layer.weight.to(device), bias=layer.bias.to(device)) for layer in fold(model)]
    shape = volume.shape[1:]
    local = all(layer.norm is None for layer in layers)
    head, constant = (whole(shape), volume[:, 0, 0, 0]) if crop == "none" or not local else find_head(volume, crop)
    air = answer_to_air(layers, constant)
    classes = layers[-1].weight.shape[0]
    fill = finish(air.values[-1][:, None, None, None], output)
    labels = output == "labels"
    result = np.empty(shape if labels else (classes, *shape), np.uint8 if labels else np.float32)
    result[...] = fill
    budget = None if max_memory is None else max_memory - resident_bytes() - result.nbytes
    compiled = local and device.type == "cpu" and layers[0].reach > 0 and kernels.available()
    if local:
        tiles = plan_tiles(layers, head, shape, air, budget, compiled_bytes if compiled else torch_bytes)
    else:
        need, tiles = torch_bytes(layers, [head] * (len(layers) + 1), shape), [head]
        if budget is not None and need > budget:
            raise UserError(f"max_memory: found {max_memory / 1e9:.2f} GB, expected at least "
                            f"{(max_memory - budget + need) / 1e9:.2f} GB, since group and instance norm need whole "
                            f"maps; raise it")
    source = torch.from_numpy(volume).to(device)
    for tile in tiles:
        if compiled:
            run_compiled(layers, source, tile, head, air, torch.from_numpy(result), output)
            continue
        where = tuple(slice(a, b) for a, b in tile)
        logits = run_box(layers, source, tile, head, air)
        result[where if labels else (slice(None), *where)] = finish(logits, output)
    return result


def run_compiled(layers: list[Layer], volume: torch.Tensor, out: Box, head: Box, air: Air, result: torch.Tensor,
                 output: str) -> None:
    """As ``run_box`` and ``finish``, by the compiled kernels, written into ``result`` (K, X, Y, Z) or (X, Y, Z)."""
    *column, last = layers
    boxes = layer_boxes(layers, out, head, tuple(volume.shape[1:]), air)
    kernels.run_column([layer.weight for layer in column], [layer.bias for layer in column],
                       [layer.dilation for layer in column], [layer.activation for layer in column], volume, result,
                       output, boxes[:-1], air.values[:-2], head=(last.weight.flatten(1), last.bias))


def compiled_bytes(layers: list[Layer], boxes: list[Box], shape: tuple[int, ...]) -> int:
    """Working memory of ``run_compiled``."""
    column = layers[:-1]
    widths = [column[0].weight.shape[1], *(layer.weight.shape[0] for layer in column)]
    return kernels.column_bytes(widths, [layer.dilation for layer in column], boxes, shape)


def find_head(volume: np.ndarray, crop) -> tuple[Box, np.ndarray]:
    """The head's box and the air's values (C,), for ``crop`` = ``head`` or a box."""
    if crop == "head":
        return head_box(volume)
    if isinstance(crop, str):
        raise UserError(f"crop: found {crop!r}, expected one of {', '.join(CROPS)} or a box; choose one of them")
    return meet(tuple((int(a), int(b)) for a, b in crop), whole(volume.shape[1:])), volume[:, 0, 0, 0]


def resident_bytes() -> int:
    """What the process holds in memory now (0 where the system does not say)."""
    try:
        with open("/proc/self/statm", encoding="ascii") as handle:
            return int(handle.read().split()[1]) * 4096
    except OSError:
        return 0

"""The common form of foreign networks: a MeshNet as a sequence of convolutions, each with what follows it."""

from dataclasses import dataclass

import torch
from torch import nn

from meshnet.config import ACTIVATIONS
from meshnet.errors import UserError
from meshnet.networks.meshnet import MeshNet

EPSILON = 1e-5  # of batch and group norm in torch; MeshNet has no other


@dataclass
class Stage:
    """A convolution with what follows it, in torch's layout. ``norm`` is None, ``batch`` or ``group``."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    dilation: int = 1
    activation: str | None = None
    norm: str | None = None
    gamma: torch.Tensor | None = None
    beta: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    variance: torch.Tensor | None = None
    groups: int = 0


def assemble(stages: list[Stage], where: str) -> MeshNet:
    """The MeshNet that ``stages`` describe: identical 3×3×3 blocks, then a 1×1×1 layer to the classes.

    Raises:
        UserError: naming ``where`` and the first thing that a MeshNet cannot express.
    """
    blocks, head = stages[:-1], stages[-1] if stages else None
    if not blocks or head.weight.shape[2:] != (1, 1, 1) or head.activation or head.norm:
        raise UserError(f"{where}: expected 3x3x3 convolutions and a plain 1x1x1 convolution at the end; not a MeshNet")
    for i, (stage, before) in enumerate(zip(stages[1:], blocks), start=1):
        if stage.weight.shape[1] != before.weight.shape[0]:
            raise UserError(f"{where}: convolution {i} takes {stage.weight.shape[1]} channels, but the one before "
                            f"gives {before.weight.shape[0]}; not a MeshNet")
    first = blocks[0]
    for i, stage in enumerate(blocks):
        if stage.weight.shape[2:] != (3, 3, 3):
            raise UserError(f"{where}: convolution {i} has a kernel of {tuple(stage.weight.shape[2:])}, expected 3x3x3")
        alike = ("activation", "norm", "groups")
        different = [a for a in alike if getattr(stage, a) != getattr(first, a)]
        different += [a for a in ("bias", "gamma") if (getattr(stage, a) is None) != (getattr(first, a) is None)]
        different += ["channels"] if stage.weight.shape[0] != first.weight.shape[0] else []
        if different:
            raise UserError(f"{where}: block {i} differs from block 0 in {different[0]}; a MeshNet has identical "
                            "blocks")
    if first.activation not in ACTIVATIONS:
        raise UserError(f"{where}: found activation {first.activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    channels = first.weight.shape[0]
    model = MeshNet(channels, first.weight.shape[1], head.weight.shape[0], [stage.dilation for stage in blocks],
                    norm=first.norm or "none", norm_affine=first.gamma is not None,
                    norm_groups=0 if first.groups in (0, channels) else first.groups, activation=first.activation,
                    bias=first.bias is not None, final_bias=head.bias is not None)
    with torch.no_grad():
        for block, stage in zip(model.blocks, blocks):
            fill(block.conv, stage)
            if stage.gamma is not None:
                block.norm.weight.copy_(stage.gamma)
                block.norm.bias.copy_(stage.beta)
            if stage.norm == "batch":
                block.norm.running_mean.copy_(stage.mean)
                block.norm.running_var.copy_(stage.variance)
        fill(model.head, head)
    model.name = "meshnet"
    return model.eval()


def fill(layer: nn.Conv3d, stage: Stage) -> None:
    """Copy a stage's weight and bias into a convolution."""
    layer.weight.copy_(stage.weight)
    if stage.bias is not None:
        layer.bias.copy_(stage.bias)


def stages_of(model: MeshNet) -> list[Stage]:
    """``model`` as stages; batch norm is fused into the convolutions, since brainchop has none."""
    from meshnet.networks.fuse import fuse

    arguments = model.arguments
    norm = arguments["norm"]
    if norm == "batch":
        layers = [(layer.weight, layer.bias) for layer in fuse(model)]
    else:
        layers = [(conv.weight, conv.bias) for conv in [*(block.conv for block in model.blocks), model.head]]
    stages = [Stage(weight, bias, dilation, arguments["activation"])
              for (weight, bias), dilation in zip(layers, [*arguments["dilations"], 1])]
    stages[-1].activation = None
    if norm in ("group", "instance"):  # instance norm is group norm with a group for each channel
        channels = arguments["channels"]
        for stage, block in zip(stages, model.blocks):
            stage.norm = "group"
            stage.groups = (arguments["norm_groups"] if norm == "group" else 0) or channels
            if arguments["norm_affine"]:
                stage.gamma, stage.beta = block.norm.weight.detach(), block.norm.bias.detach()
    return stages

"""The networks that MeshNet is compared with, by name, in the sizes of the paper's table (arXiv 2503.05531).

Most are MONAI's. U-Mamba and U-KAN are written here. ``python -m meshnet.networks`` prints the table.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from meshnet.networks.norms import StatisticsOnceBatchNorm3d, recomputed


def make_segresnet(in_channels: int, classes: int, **options) -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(in_channels=in_channels, out_channels=classes, **options)


def make_mednext(in_channels: int, classes: int, encoder: Sequence[int], decoder: Sequence[int],
                 blocks: Sequence[int], resampling_shortcuts: bool, **options) -> nn.Module:
    """MONAI's MedNeXt, with down blocks that expand like the stage that they lead to, as in the authors' code.

    Args:
        encoder, decoder: expansion ratio of each stage.
        blocks: number of blocks of each stage.
        resampling_shortcuts: whether the down and up blocks have 1×1×1 convolutions beside them.
        options: further arguments of MONAI's constructor.
    """
    from monai.networks.blocks.mednext_block import MedNeXtDownBlock
    from monai.networks.nets.mednext import MedNeXt

    model = MedNeXt(in_channels=in_channels, out_channels=classes, encoder_expansion_ratio=encoder,
                    decoder_expansion_ratio=decoder, bottleneck_expansion_ratio=encoder[-1], kernel_size=3,
                    use_residual_connection=True, blocks_down=blocks, blocks_bottleneck=blocks[-1],
                    blocks_up=blocks[::-1], **options)
    for i, ratio in enumerate([*encoder[1:], encoder[-1]]):
        width = model.down_blocks[i].conv1.in_channels
        model.down_blocks[i] = MedNeXtDownBlock(width, 2 * width, ratio, 3, use_residual_connection=True)
    if not resampling_shortcuts:
        for block in [*model.down_blocks, *model.up_blocks]:
            del block.res_conv
            block.resample_do_res = False
    return model


def make_mednext_s(in_channels: int, classes: int, **options) -> nn.Module:
    return make_mednext(in_channels, classes, (2, 2, 2, 2), (2, 2, 2, 2), (2, 2, 2, 2), False, **options)


def make_mednext_b(in_channels: int, classes: int, **options) -> nn.Module:
    return make_mednext(in_channels, classes, (2, 3, 4, 4), (4, 4, 3, 2), (2, 2, 2, 2), True, **options)


def make_mednext_m(in_channels: int, classes: int, **options) -> nn.Module:
    return make_mednext(in_channels, classes, (2, 3, 4, 4), (4, 4, 3, 2), (3, 4, 4, 4), True, **options)


def make_swin_unetr(in_channels: int, classes: int, feature_size: int = 24, **options) -> nn.Module:
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(in_channels, classes, feature_size=feature_size, use_v2=True, **options)


def make_unetr(in_channels: int, classes: int, image_size: Sequence[int] = (256, 256, 256), **options) -> nn.Module:
    from monai.networks.nets import UNETR

    size = [math.ceil(n / 16) * 16 for n in image_size]
    model = UNETR(in_channels, classes, img_size=size, **options)
    for block in model.vit.blocks:
        block.norm_cross_attn = nn.Identity()  # removes weights that are never used
    return model


def make_vnet(in_channels: int, classes: int, **options) -> nn.Module:
    from monai.networks.nets import VNet

    if 16 % in_channels:
        raise ValueError(f"found {in_channels} input channels, expected 1, 2, 4, 8 or 16")
    return VNet(in_channels=in_channels, out_channels=classes, **options)


def make_unet(in_channels: int, classes: int, num_res_units: int = 0, **options) -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(3, in_channels, classes, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=num_res_units, **options)


def make_residual_unet(in_channels: int, classes: int, num_res_units: int = 2, **options) -> nn.Module:
    return make_unet(in_channels, classes, num_res_units, **options)


def make_umamba_bot(in_channels: int, classes: int, **options) -> nn.Module:
    from meshnet.networks.umamba import UMamba

    return UMamba(in_channels, classes, every_stage=False, **options)


def make_umamba_enc(in_channels: int, classes: int, **options) -> nn.Module:
    from meshnet.networks.umamba import UMamba

    return UMamba(in_channels, classes, every_stage=True, **options)


def make_ukan(in_channels: int, classes: int, **options) -> nn.Module:
    from meshnet.networks.ukan import UKAN

    return UKAN(in_channels, classes, **options)


@dataclasses.dataclass(frozen=True)
class Network:
    """A row of the table."""

    make: Callable[..., nn.Module]
    multiple: int  # the network takes sizes that are multiples of this; others are padded
    stages: tuple[str, ...]  # class names of the modules that layer checkpointing recomputes
    paper_parameters: int
    why: str = ""  # why the count differs from the paper's


MEDNEXT_STAGES = ("MedNeXtBlock", "MedNeXtDownBlock", "MedNeXtUpBlock")
MAMBA_STAGES = ("ResidualBlock", "MambaLayer")
DUMMY = "the authors' code counts one dummy parameter"
HEADS = "the authors' code counts 454 weights of unused deep-supervision heads"
NETWORKS = {
    "umamba_bot": Network(make_umamba_bot, 16, MAMBA_STAGES, 7_351_400, HEADS),
    "mednext_m": Network(make_mednext_m, 16, MEDNEXT_STAGES, 17_548_963, DUMMY),
    "segresnet": Network(make_segresnet, 8, ("ResBlock",), 1_176_186),
    "umamba_enc": Network(make_umamba_enc, 16, MAMBA_STAGES, 7_514_280, HEADS),
    "mednext_s": Network(make_mednext_s, 16, MEDNEXT_STAGES, 5_201_315,
                         DUMMY + "; no shortcuts beside the resampling blocks, as the paper's count implies"),
    "swin_unetr": Network(make_swin_unetr, 32, ("SwinTransformerBlock", "UnetrBasicBlock", "UnetrUpBlock"), 18_346_844),
    "mednext_b": Network(make_mednext_b, 16, MEDNEXT_STAGES, 10_526_307, DUMMY),
    "ukan": Network(make_ukan, 32, ("DoubleConv", "KANBlock"), 44_070_082),
    "unetr": Network(make_unetr, 16, ("TransformerBlock", "UnetrBasicBlock", "UnetrPrUpBlock", "UnetrUpBlock"),
                     95_763_682),
    "unet": Network(make_unet, 16, ("Convolution",), 1_979_610, ""),
    "residual_unet": Network(make_residual_unet, 16, ("Convolution", "ResidualUnit"), 1_979_610,
                             "the paper's count under this name is of the U-Net without residual units (unet)"),
    "vnet": Network(make_vnet, 16, ("InputTransition", "DownTransition", "UpTransition", "OutputTransition"),
                    45_597_898),
}


class Baseline(nn.Module):
    """A network of the table that takes a volume of any size.

    A size that is not a multiple of ``multiple`` is padded with zeros at the far ends, and the result is cropped again.
    Each axis is padded to at least twice that, so that norms always see more than one voxel. A network with an
    ``image_size`` takes nothing larger; larger volumes need ``model.patch`` and sliding windows.

    Input (B, in_channels, X, Y, Z), logits (B, classes, X, Y, Z).
    """

    def __init__(self, network: nn.Module, multiple: int, arguments: dict):
        super().__init__()
        self.network = network
        self.multiple = multiple
        self.arguments = arguments
        self.patch: list[int] | None = None  # size of inference's sliding window; None: the whole volume at once
        if "image_size" in arguments:
            self.patch = self.padded_size(arguments["image_size"])

    def padded_size(self, size: Sequence[int]) -> list[int]:
        """The (X, Y, Z) size that the network sees for an input of ``size``. Raises ValueError if it is too large."""
        if "image_size" in self.arguments:
            fixed = [math.ceil(n / self.multiple) * self.multiple for n in self.arguments["image_size"]]
            if any(n > limit for n, limit in zip(size, fixed)):
                raise ValueError(f"found {tuple(size)} voxels, expected at most {tuple(fixed)}, for which this network "
                                 "was built; use patches")
            return fixed
        return [max(2, math.ceil(n / self.multiple)) * self.multiple for n in size]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        target = self.padded_size(size)
        padding = [v for n, wanted in zip(reversed(size), reversed(target)) for v in (0, wanted - n)]
        y = self.network(functional.pad(x, padding) if any(padding) else x)
        return y[:, :, : size[0], : size[1], : size[2]]


class Recomputed:
    """Mixed into the class of a stage: activations within it are recomputed in the backward pass instead of kept.

    Batch-norm statistics are updated in the first pass only.
    """

    def forward(self, *inputs):
        plain = super().forward
        if not torch.is_grad_enabled():
            return plain(*inputs)
        return recomputed(plain, self, *inputs)


def add_checkpointing(network: nn.Module, stages: Sequence[str]) -> None:
    """Make the outermost modules of the classes ``stages`` recompute; the names of parameters stay the same."""
    for module in network.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = StatisticsOnceBatchNorm3d
    classes: dict[type, type] = {}

    def visit(module: nn.Module) -> None:
        for child in module.children():
            kind = type(child)
            if kind.__name__ in stages:
                classes.setdefault(kind, type(kind.__name__, (Recomputed, kind), {}))
                child.__class__ = classes[kind]
            else:
                visit(child)

    visit(network)


def build_baseline(name: str, in_channels: int = 1, classes: int = 2, checkpointing: bool = False,
                   **options) -> Baseline:
    """The network ``name`` of the table with fresh weights.

    Args:
        name: a key of ``NETWORKS``.
        checkpointing: layer checkpointing, which changes memory and time, but not the results.
        options: further arguments of the network's own constructor (``image_size`` for ``unetr``).

    Raises:
        ValueError, TypeError: for an unknown name, or for options that the network does not take.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown; expected meshnet or one of {', '.join(NETWORKS)}")
    row = NETWORKS[name]
    if name == "unetr":
        options.setdefault("image_size", [256, 256, 256])
    network = row.make(in_channels, classes, **options)
    if checkpointing:
        add_checkpointing(network, row.stages)
    return Baseline(network, row.multiple, {"in_channels": in_channels, "classes": classes, **options})

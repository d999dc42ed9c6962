"""MeshNet: dilated 3×3×3 convolutions one after another, all at full resolution.

The architecture is from arXiv 2503.05531: dilations 1-2-4-8-16-16-8-4-2, then a 1×1×1 layer to the classes. Published
networks differ in norm, activation, bias and dilations, so all of these are arguments.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from meshnet.config import ACTIVATIONS
from meshnet.errors import UserError
from meshnet.files import write_json, write_text
from meshnet.kernels import convolution, normalise
from meshnet.networks import folder, gpu_step, memory
from meshnet.networks.card import CONFIG, WEIGHTS, Card, read_card
from meshnet.networks.cascade import FIRST
from meshnet.networks.checkpointing import run_checkpointed
from meshnet.networks.gpu_tuning import Tuning
from meshnet.networks.norms import make_norm, recomputed

PAPER_DILATIONS = (1, 2, 4, 8, 16, 16, 8, 4, 2)


class Block(nn.Sequential):
    """A dilated 3×3×3 convolution with equal padding, then norm, activation and dropout. The size stays the same."""

    def __init__(self, inputs: int, outputs: int, dilation: int, norm: str, norm_affine: bool, norm_groups: int,
                 activation: str, bias: bool, dropout: float):
        super().__init__()
        self.add_module("conv", nn.Conv3d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias))
        layer = make_norm(norm, outputs, norm_affine, norm_groups)
        if layer is not None:
            self.add_module("norm", layer)
        self.add_module("act", nn.ReLU(inplace=True) if activation == "relu"
                        else normalise.ACTIVATION_LAYERS[activation]())
        if dropout:
            self.add_module("dropout", nn.Dropout3d(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        compiled = torch.is_grad_enabled() and convolution.usable(x, self.conv.weight)
        if not compiled or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        x = convolution.Convolution.apply(x, self.conv.weight, self.conv.bias, self.conv.dilation[0])
        if not normalise.by_channel(self):
            x = self.act(self.norm(x))
        else:
            norm = getattr(self, "norm", None)
            x = normalise.NormActivation.apply(self, x, *(() if norm is None else norm.parameters()))
        return self.dropout(x) if hasattr(self, "dropout") else x


class MeshNet(nn.Module):
    """MeshNet-X.

    Args:
        channels: X, the feature maps of every block.
        in_channels: modalities of a case.
        classes: labels, background included.
        dilations: one per 3×3×3 block; a 1×1×1 convolution to the classes follows the blocks.
        norm: ``batch``, ``instance``, ``group`` or ``none``.
        norm_affine: whether the norm has a weight and a bias.
        norm_groups: groups of the group norm; 0 means as many as channels.
        activation: ``relu``, ``elu`` or ``gelu``.
        bias: of the 3×3×3 convolutions (the last layer's is ``final_bias``).
        dropout: probability of dropping a whole channel after each block.
        checkpointing: recompute parts of the blocks in the backward pass instead of keeping them. Results stay the
            same. The attribute ``memory_budget`` (bytes that a step may take, None at first) does so only as far as a
            step needs it.

    Input (B, in_channels, X, Y, Z), of any size. Output: logits (B, classes, X, Y, Z).

    Raises:
        ValueError: for an argument that is not as described above.
    """

    def __init__(self, channels: int = 26, in_channels: int = 1, classes: int = 2,
                 dilations: Sequence[int] = PAPER_DILATIONS, norm: str = "batch", norm_affine: bool = True,
                 norm_groups: int = 0, activation: str = "relu", bias: bool = True, final_bias: bool = True,
                 dropout: float = 0.0, checkpointing: bool = False):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if min(channels, in_channels, classes, *dilations) < 1:
            raise ValueError("channels, in_channels, classes and every dilation must be at least 1")
        if norm_groups and channels % norm_groups:
            raise ValueError(f"norm_groups {norm_groups} does not divide channels {channels}")
        self.arguments = {
            "channels": channels, "in_channels": in_channels, "classes": classes, "dilations": list(dilations),
            "norm": norm, "norm_affine": norm_affine, "norm_groups": norm_groups, "activation": activation,
            "bias": bias, "final_bias": final_bias, "dropout": dropout,
        }
        self.card: Card | None = None  # of the model folder it was loaded from
        self.checkpointing = checkpointing
        self.memory_budget: int | None = None
        self.tuning, self.by_modules = Tuning(), False  # of a training step on a GPU, and whether it is PyTorch's own
        widths = [in_channels] + [channels] * len(dilations)
        self.blocks = nn.ModuleList(
            Block(widths[i], widths[i + 1], dilation, norm, norm_affine, norm_groups, activation, bias, dropout)
            for i, dilation in enumerate(dilations))
        self.head = nn.Conv3d(channels, classes, 1, bias=final_bias)

    @property
    def receptive_radius(self) -> int:
        """How far, in voxels, an input voxel influences the output (61 for the paper's dilations)."""
        return sum(self.arguments["dilations"])

    @property
    def recomputes_exactly(self) -> bool:
        """Whether single convolutions can be computed again: not with dropout, nor with norms over processes."""
        return not self.arguments["dropout"] and all(map(normalise.without_state, self.blocks))

    def checkpoint_plan(self, shape: Sequence[int], bytes_per_value: int, device: torch.device | None = None,
                        ) -> tuple[int, ...] | None:
        """The numbers of the blocks that keep their convolution's output in a training step on an input of ``shape``
        (B, C, X, Y, Z); None where everything is kept."""
        if not self.checkpointing and self.memory_budget is None:
            return None
        return memory.plan_checkpoints(self, shape, bytes_per_value, self.memory_budget, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and not self.by_modules and gpu_step.usable(self, x):
            return gpu_step.run(self, memory.plan_on_gpu(self, x.shape, map_bytes(x)), x)
        plan = self.checkpoint_plan(x.shape, map_bytes(x)) if torch.is_grad_enabled() else None
        if plan is not None and self.recomputes_exactly:
            return run_checkpointed(self.blocks, self.head, plan, x)
        for block in self.blocks:  # with a plan: torch's own checkpointing, one block at a time
            x = block(x) if plan is None else recomputed(block, block, x)
        return self.head(x)

    @classmethod
    def from_pretrained(cls, name: str | Path, weights: str = WEIGHTS) -> "MeshNet":
        """A trained network, on the CPU and in evaluation mode. Its attribute ``card`` says how to prepare a scan.

        Args:
            name: a model or run folder, a ``.safetensors`` file, a built-in name, or a Hub name
                ``user/name[@revision]``.
            weights: which file of the folder.

        Raises:
            UserError: one line, where there is no such model, its files are not valid, or it is not a MeshNet.
        """
        path = folder.find_weights(name, weights)
        card = read_card(path.parent, path.name)
        if card.name != "meshnet":
            raise UserError(f"{path.parent}: is a {card.name}, expected a MeshNet; load it with meshnet.load_model")
        if card.first:
            raise UserError(f"{path.parent}: is a cascade of two networks, expected one; load it with "
                            "meshnet.load_model")
        try:
            model = cls(**card.arguments)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path.parent / CONFIG}: model meshnet: {error}") from error
        model.name = "meshnet"
        folder.load_into(model, path)
        model.card = card
        return model

    def save_pretrained(self, path: str | Path, card: Card | None = None) -> None:
        """Write a model folder: ``model.safetensors`` and ``config.json``, each whole or not at all.

        Args:
            path: the folder.
            card: how a scan must be prepared; by default the card of the model that this one was loaded from, else
                ``plain_card()``.
        """
        folder.save_model(path, self, card or self.card or self.plain_card())

    def push_to_hub(self, repository: str, card: Card | None = None, private: bool = True, licence: str = "mit") -> str:
        """Push the network with a generated model card to the Hub. Returns the address of the commit.

        Args:
            repository: ``user/name``.
            card: as in ``save_pretrained``.
            private: of a repository that is new.
            licence: named in the model card.

        Raises:
            UserError: for a name or a token that the Hub refuses, without a connection, or for a cascade without its
                first network.
        """
        from meshnet import hub
        from meshnet.networks.readme import model_readme, public_card

        card = public_card(card or self.card or self.plain_card())
        if card.first and getattr(self, "first", None) is None:
            raise UserError(f"push_to_hub {repository}: found no first network of this cascade (given the "
                            f"probabilities of {', '.join(card.first)}), expected it as the attribute first; load the "
                            "cascade with meshnet.load_model")
        hub.check_push(repository)
        with tempfile.TemporaryDirectory() as temporary:
            self.save_pretrained(temporary, card)
            if card.first:  # the first network's card may name files of this machine as well
                first = Path(temporary) / FIRST
                write_json(first / CONFIG, public_card(read_card(first)).to_dict())
            text = model_readme(self, read_card(temporary), repository, Path(temporary) / "none", None, licence)
            write_text(Path(temporary) / "README.md", text)
            return hub.upload(Path(temporary), repository, "model", private, hub.MODEL_FILES)

    def plain_card(self) -> Card:
        """A card with numbered channels and classes and the default grid."""
        inputs, classes = self.arguments["in_channels"], self.arguments["classes"]
        return Card([f"channel {i}" for i in range(1, inputs + 1)],
                    ["background", *(f"class {i}" for i in range(1, classes))])


def map_bytes(x: torch.Tensor) -> int:
    """The bytes of one value of the maps that a network computes from ``x``."""
    kind = x.device.type
    return (torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype).itemsize

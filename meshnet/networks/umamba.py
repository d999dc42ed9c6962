"""U-Mamba: a residual U-Net with selective state-space (Mamba) layers at the bottleneck or after every encoder stage.

Sources: U-Mamba, arXiv 2401.04722; Mamba, arXiv 2312.00752. Written from the papers and the published layer sizes. The
selective scan is plain PyTorch and runs anywhere; on a GPU the kernel of ``mamba_ssm`` is used, if installed.
"""

import importlib.util
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

FEATURES = (16, 32, 64, 128, 256)
# Blocks in each encoder stage, and in each decoder stage from the deepest up: the rule of the U-Mamba code.
ENCODER_BLOCKS, DECODER_BLOCKS = (2, 2, 2, 1, 1), (2, 2, 2, 1)
STATES, CONV_WIDTH, EXPANSION = 16, 4, 2
SCAN_BLOCK = 16384  # tokens whose states are kept at a time; states are recomputed in the backward pass


def scan_recurrence(decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """``h[t] = decay[t] * h[t-1] + inputs[t]`` with ``h[-1] = 0``, along dimension 1 of (B, L, M), without a gradient.

    The sequence is cut into about √L chunks. All chunks advance side by side, then each adds the final state of the one
    before. This takes 2√L vector steps instead of L, without dividing by a product of decays, which may vanish.
    """
    batch, length, width = inputs.shape
    step = max(1, math.isqrt(length))
    padding = -length % step
    product = functional.pad(decay, (0, 0, 0, padding), value=1.0).view(batch, -1, step, width).clone()
    state = functional.pad(inputs, (0, 0, 0, padding)).view(batch, -1, step, width).clone()
    for t in range(1, step):
        state[:, :, t].addcmul_(product[:, :, t], state[:, :, t - 1])
        product[:, :, t].mul_(product[:, :, t - 1])
    for chunk in range(1, state.shape[1]):
        state[:, chunk].addcmul_(product[:, chunk], state[:, chunk - 1, -1:])
    return state.view(batch, -1, width)[:, :length]


class Recurrence(torch.autograd.Function):
    """``scan_recurrence`` with its gradient, which is the same recurrence run backwards."""

    @staticmethod
    def forward(ctx, decay: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        states = scan_recurrence(decay, inputs)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        decay, states = ctx.saved_tensors
        later_decay = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1)
        flow = scan_recurrence(later_decay.flip(1), gradient.flip(1)).flip(1)
        previous = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
        return flow * previous, flow


def scan_block(u: torch.Tensor, step: torch.Tensor, decay_rates: torch.Tensor, into: torch.Tensor, out: torch.Tensor,
               state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One block of ``selective_scan`` from ``state`` (B, D, N): outputs (B, L, D) and the last state (B, D, N)."""
    batch, length, width = u.shape
    decay = torch.exp(step.unsqueeze(-1) * decay_rates)
    inputs = (step * u).unsqueeze(-1) * into.unsqueeze(2)
    inputs = torch.cat([inputs[:, :1] + (decay[:, :1] * state.unsqueeze(1)), inputs[:, 1:]], 1)
    states = Recurrence.apply(decay.flatten(2), inputs.flatten(2)).view(batch, length, width, -1)
    return torch.einsum("bldn,bln->bld", states, out), states[:, -1]


def selective_scan(u: torch.Tensor, step: torch.Tensor, decay_rates: torch.Tensor, into: torch.Tensor,
                   out: torch.Tensor) -> torch.Tensor:
    """The selective state-space recurrence (arXiv 2312.00752, equation 2 with zero-order hold).

    ``h[t] = exp(step[t]·A) h[t-1] + step[t]·B[t]·u[t]``, ``y[t] = C[t]·h[t]``; always in float32.

    Args:
        u, step: (B, L, D) inputs and positive step sizes.
        decay_rates: A, (D, N), negative.
        into, out: B and C, (B, L, N).
    """
    u, step, decay_rates, into, out = (x.float() for x in (u, step, decay_rates, into, out))
    state = u.new_zeros(u.shape[0], u.shape[2], decay_rates.shape[1])
    outputs = []
    for start in range(0, u.shape[1], SCAN_BLOCK):
        part = slice(start, start + SCAN_BLOCK)
        arguments = (u[:, part], step[:, part], decay_rates, into[:, part], out[:, part], state)
        if torch.is_grad_enabled():
            y, state = checkpoint(scan_block, *arguments, use_reentrant=False)
        else:
            y, state = scan_block(*arguments)
        outputs.append(y)
    return torch.cat(outputs, 1)


class Mamba(nn.Module):
    """One Mamba layer on tokens (B, L, width). Parameters have the names and sizes of ``mamba_ssm.Mamba``."""

    def __init__(self, width: int):
        super().__init__()
        inner, self.rank = EXPANSION * width, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, CONV_WIDTH, groups=inner, padding=CONV_WIDTH - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * STATES, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, STATES + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -self.rank**-0.5, self.rank**-0.5)
            # Step sizes start log-uniform between 0.001 and 0.1; the bias is their inverse softplus.
            steps = torch.exp(torch.empty(inner).uniform_(math.log(1e-3), math.log(0.1)))
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        inputs, gate = self.in_proj(tokens).chunk(2, dim=-1)
        mixed = self.conv1d(inputs.transpose(1, 2))[..., : tokens.shape[1]].transpose(1, 2)
        u = functional.silu(mixed)
        low, into, out = self.x_proj(u).split([self.rank, STATES, STATES], dim=-1)
        step = functional.softplus(self.dt_proj(low).float())
        decay_rates = -torch.exp(self.A_log.float())
        scan = kernel_scan if u.is_cuda and importlib.util.find_spec("mamba_ssm") else selective_scan
        y = scan(u, step, decay_rates, into, out) + u * self.D
        return self.out_proj((y * functional.silu(gate)).to(tokens.dtype))


def kernel_scan(u: torch.Tensor, step: torch.Tensor, decay_rates: torch.Tensor, into: torch.Tensor,
                out: torch.Tensor) -> torch.Tensor:
    """``selective_scan`` by the CUDA kernel of ``mamba_ssm``, which takes (B, D, L)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    arguments = (x.float().transpose(1, 2).contiguous() for x in (u, step))
    states = (x.float().transpose(1, 2).contiguous() for x in (into, out))
    return selective_scan_fn(*arguments, decay_rates, *states).transpose(1, 2)


class MambaLayer(nn.Module):
    """Layer norm and Mamba on the voxels of (B, C, X, Y, Z), in C order, without a residual, as published."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mamba = Mamba(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.mamba(self.norm(x.flatten(2).transpose(1, 2)))
        return tokens.transpose(1, 2).reshape(x.shape)


class ResidualBlock(nn.Module):
    """Two 3×3×3 convolutions with instance norm, and a shortcut, which has a 1×1×1 convolution if ``project``."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, project: bool = False):
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride, 1)
        self.norm1 = nn.InstanceNorm3d(outputs, affine=True)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, 1, 1)
        self.norm2 = nn.InstanceNorm3d(outputs, affine=True)
        self.shortcut = nn.Conv3d(inputs, outputs, 1, stride) if project else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.leaky_relu(self.norm1(self.conv1(x)))
        return functional.leaky_relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def residual_stage(inputs: int, outputs: int, blocks: int, stride: int = 1) -> nn.Sequential:
    """A block with a projecting shortcut, then ``blocks - 1`` without."""
    plain = [ResidualBlock(outputs, outputs) for _ in range(blocks - 1)]
    return nn.Sequential(ResidualBlock(inputs, outputs, stride, project=True), *plain)


class UMamba(nn.Module):
    """U-Mamba.

    Args:
        in_channels, classes: of the data.
        every_stage: Mamba after each encoder stage (Enc), or at the bottleneck only (Bot).
        features: channels of each stage; every stage after the first halves the size.

    Input (B, in_channels, X, Y, Z) with sizes that are multiples of 2 ** (stages - 1). Output: logits of the same size.
    """

    def __init__(self, in_channels: int, classes: int, every_stage: bool, features: Sequence[int] = FEATURES):
        super().__init__()
        if len(features) != len(FEATURES):
            raise ValueError(f"features {list(features)} must have {len(FEATURES)} entries")
        self.stem = residual_stage(in_channels, features[0], ENCODER_BLOCKS[0])
        widths = [features[0], *features]
        self.encoder = nn.ModuleList(
            residual_stage(widths[s], widths[s + 1], ENCODER_BLOCKS[s], 1 if s == 0 else 2)
            for s in range(len(features)))
        with_mamba = features if every_stage else features[-1:]
        self.mamba = nn.ModuleList(MambaLayer(width) for width in with_mamba)
        upwards = list(zip(features[:0:-1], features[-2::-1]))
        self.reduce = nn.ModuleList(nn.Conv3d(below, skip, 1) for below, skip in upwards)
        self.decoder = nn.ModuleList(
            residual_stage(2 * skip, skip, blocks) for (_, skip), blocks in zip(upwards, DECODER_BLOCKS))
        self.head = nn.Conv3d(features[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        first = len(self.encoder) - len(self.mamba)
        skips = []
        for s, stage in enumerate(self.encoder):
            x = stage(x)
            if s >= first:
                x = self.mamba[s - first](x)
            skips.append(x)
        for reduce, stage, skip in zip(self.reduce, self.decoder, reversed(skips[:-1])):
            x = reduce(functional.interpolate(x, scale_factor=2, mode="nearest"))
            x = stage(torch.cat([x, skip], 1))
        return self.head(x)

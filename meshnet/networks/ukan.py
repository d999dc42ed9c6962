"""U-KAN in three dimensions: a convolutional U-Net whose deepest levels are tokenised Kolmogorov-Arnold layers.

Sources: U-KAN, arXiv 2406.02918, with each of its two-dimensional operations in 3D. KAN, arXiv 2404.19756, for the
splines: cubic, five intervals on [-1, 1].
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from meshnet.networks.norms import StatisticsOnceBatchNorm3d

WIDTHS = (256, 320, 512)
INTERVALS, DEGREE = 5, 3


def spline_basis(x: torch.Tensor, knots: torch.Tensor, degree: int = DEGREE) -> torch.Tensor:
    """All B-spline basis functions on uniform ``knots`` (Cox-de Boor): (…) → (…, len(knots) - degree - 1)."""
    x = x.unsqueeze(-1)
    basis = ((x >= knots[:-1]) & (x < knots[1:])).to(x.dtype)
    for k in range(1, degree + 1):
        left = (x - knots[: -k - 1]) / (knots[k:-1] - knots[: -k - 1])
        right = (knots[k + 1 :] - x) / (knots[k + 1 :] - knots[1:-k])
        basis = left * basis[..., :-1] + right * basis[..., 1:]
    return basis


class KANLinear(nn.Module):
    """A learned function of every input for every output, summed over inputs: a weighted SiLU plus a weighted cubic
    spline."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        h = 2 / INTERVALS
        self.register_buffer("knots", torch.arange(-DEGREE, INTERVALS + DEGREE + 1) * h - 1, persistent=False)
        self.base = nn.Parameter(torch.empty(outputs, inputs))
        self.spline = nn.Parameter(torch.randn(outputs, inputs, INTERVALS + DEGREE) * 0.1 / INTERVALS)
        self.scale = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.kaiming_uniform_(self.base, a=5**0.5)
        nn.init.kaiming_uniform_(self.scale, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        basis = spline_basis(x, self.knots.to(x.dtype)).flatten(-2)
        spline = (self.spline * self.scale.unsqueeze(-1)).flatten(1)
        return functional.linear(functional.silu(x), self.base) + functional.linear(basis, spline)


class KANBlock(nn.Module):
    """x + three rounds of KAN over channels and a depth-wise 3×3×3 convolution, on layer-normed voxels."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.ModuleList(KANLinear(width, width) for _ in range(3))
        self.depthwise = nn.ModuleList(
            nn.Sequential(nn.Conv3d(width, width, 3, padding=1, groups=width), StatisticsOnceBatchNorm3d(width),
                          nn.ReLU()) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        for linear, depthwise in zip(self.linear, self.depthwise):
            y = depthwise(linear(y.movedim(1, -1)).movedim(-1, 1))
        return x + y


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, X, Y, Z)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class DoubleConv(nn.Sequential):
    """Two 3×3×3 convolutions with batch norm and ReLU; the channels change in the first or in the second."""

    def __init__(self, inputs: int, outputs: int, middle: int):
        layers = []
        for a, b in ((inputs, middle), (middle, outputs)):
            layers += [nn.Conv3d(a, b, 3, padding=1), StatisticsOnceBatchNorm3d(b), nn.ReLU()]
        super().__init__(*layers)


class UKAN(nn.Module):
    """U-KAN; sizes must be multiples of 32. (B, in_channels, X, Y, Z) → logits (B, classes, X, Y, Z)."""

    def __init__(self, in_channels: int, classes: int, widths: Sequence[int] = WIDTHS):
        super().__init__()
        a, b, c = widths
        down = [in_channels, a // 8, a // 4, a]
        self.encoder = nn.ModuleList(DoubleConv(i, o, middle=o) for i, o in itertools.pairwise(down))
        self.embed = nn.ModuleList(
            nn.Sequential(nn.Conv3d(i, o, 3, 2, 1), ChannelNorm(o)) for i, o in ((a, b), (b, c)))
        self.kan_down = nn.ModuleList(nn.Sequential(KANBlock(w), ChannelNorm(w)) for w in (b, c))
        self.kan_up = nn.ModuleList(nn.Sequential(KANBlock(w), ChannelNorm(w)) for w in (b, a))
        up = [c, b, a, a // 4, a // 8, a // 8]
        self.decoder = nn.ModuleList(DoubleConv(i, o, middle=i) for i, o in itertools.pairwise(up))
        self.head = nn.Conv3d(a // 8, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for stage in self.encoder:
            x = functional.max_pool3d(stage(x), 2)
            skips.append(x)
        for embed, kan in zip(self.embed, self.kan_down):
            x = kan(embed(x))
            skips.append(x)
        for level, stage in enumerate(self.decoder):
            x = functional.interpolate(stage(x), scale_factor=2, mode="trilinear")
            if level < len(skips) - 1:
                x = x + skips[-level - 2]
            if level < len(self.kan_up):
                x = self.kan_up[level](x)
        return self.head(x)

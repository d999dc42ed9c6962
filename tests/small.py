"""Small networks and volumes that several test files share."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from meshnet.kernels import calls
from meshnet.networks.meshnet import MeshNet

CARD = {"channels": ["T1w"], "classes": ["background", "lesion"]}
VARIANTS = [
    {}, {"activation": "elu", "norm": "none"}, {"activation": "gelu", "bias": False, "final_bias": False},
    {"in_channels": 3, "classes": 4, "norm_affine": False}, {"norm": "group"}, {"norm": "instance"},
]


def network(channels=5, dilations=(1, 2, 4, 2), seed=0, **arguments) -> MeshNet:
    """A MeshNet in evaluation mode whose batch norms have something to fold."""
    torch.manual_seed(seed)
    model = MeshNet(channels, dilations=dilations, **arguments).eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm3d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.05, 0.2)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
    return model


def scan(channels: int, shape, box=None, air=0.0, seed=1) -> np.ndarray:
    """Random voxels in ``box`` (everywhere where None), ``air`` around them."""
    values = np.random.default_rng(seed).random((channels, *shape), dtype=np.float32)
    if box is None:
        return values
    volume = np.full_like(values, air)
    inside = (slice(None), *(slice(a, b) for a, b in box))
    volume[inside] = values[inside]
    return volume


def by_model(model: nn.Module, volume: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(volume)[None])[0].numpy()


def randomise(model: nn.Module) -> nn.Module:
    """Running statistics and affine weights that are not their defaults."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, nn.BatchNorm3d | nn.GroupNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return model.eval()


ORIENTATIONS = ["".join(c) for axes in itertools.permutations(("LR", "AP", "IS")) for c in itertools.product(*axes)]


def image_of(data, affine=None, dtype=None) -> nib.Nifti1Image:
    data = np.asarray(data, dtype)
    data = data.astype(np.int32) if data.dtype == np.int64 else data
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    return image


def rotation(x, y, z) -> np.ndarray:
    def about(axis, angle):
        c, s = np.cos(angle), np.sin(angle)
        matrix = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        matrix[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        return matrix

    return about(0, x) @ about(1, y) @ about(2, z)


def affine_of(voxel_mm, angles=(0, 0, 0), origin=(0, 0, 0)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation(*angles) @ np.diag(voxel_mm)
    affine[:3, 3] = origin
    return affine


def array(image) -> np.ndarray:
    return np.asarray(image.dataobj)


CONVOLUTIONS = [  # in, out, dilation, (X, Y, Z): odd sizes, axes of one voxel, dilations past the volume, many channels
    (1, 5, 1, (5, 6, 7)), (3, 5, 2, (9, 40, 33)), (26, 26, 16, (18, 70, 65)), (5, 5, 4, (1, 33, 1)),
    (4, 31, 3, (1, 1, 40)), (2, 1, 7, (8, 3, 130)), (6, 13, 1, (4, 9, 16)),
]
needs_kernels = pytest.mark.skipif(not calls.available(), reason="no C++ compiler here: PyTorch does the work")


def draw(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def smearing(toward: tuple[int, int, int], dilations=(1, 2, 4, 8), marked=1) -> MeshNet:
    """A network that gives class ``marked`` to each voxel above 0.5, and to what lies up to ``sum(dilations)`` voxels
    beyond it."""
    model = MeshNet(1, dilations=dilations, norm="none", bias=False, final_bias=True).eval()
    for block in model.blocks:
        nn.init.zeros_(block.conv.weight)
        block.conv.weight.data[0, 0, 1, 1, 1] = 1
        block.conv.weight.data[(0, 0, *(1 - t for t in toward))] = 1
    model.head.weight.data[:] = 0
    model.head.weight.data[marked] = 20
    model.head.bias.data = torch.zeros(2)
    model.head.bias.data[marked] = -10
    return model

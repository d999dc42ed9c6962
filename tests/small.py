"""Small networks and volumes that several test files share."""

import numpy as np
import torch
from torch import nn

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

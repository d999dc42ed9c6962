"""Whether a step on this GPU gives what PyTorch's modules give: asked once before training, on a tiny network."""

import copy

import torch
from torch.nn import functional

from meshnet.networks.meshnet import MeshNet

SIZE = 16  # voxels of a side
ALIKE = {torch.float32: 0.999, torch.float16: 0.99, torch.bfloat16: 0.97}  # cosine of the gradients


def agrees(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``gpu_step`` and the modules have the same gradients on ``device``, to rounding in ``dtype``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for arguments in ({}, {"norm": "group", "norm_groups": 2}):
            model = MeshNet(8, dilations=(1, 2), **arguments)
            model = model.to(device, memory_format=torch.channels_last_3d)
            x = torch.rand(1, 1, SIZE, SIZE, SIZE).to(device)
            ours, theirs = (gradients(model, x, dtype, by_modules) for by_modules in (False, True))
            if not functional.cosine_similarity(ours, theirs, 0) >= ALIKE[dtype]:  # NaN is not alike
                return False
    return True


def gradients(model: MeshNet, x: torch.Tensor, dtype: torch.dtype, by_modules: bool) -> torch.Tensor:
    """All gradients of one step of a copy of ``model``, but those of biases before norms, which are rounding alone."""
    model = copy.deepcopy(model)
    model.by_modules = by_modules
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        logits = model(x)
    functional.cross_entropy(logits.float(), (x[:, 0] > 0.8).long()).backward()
    return torch.cat([p.grad.flatten() for name, p in model.named_parameters() if not name.endswith("conv.bias")])

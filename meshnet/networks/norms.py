"""Norms whose running statistics are updated once per step, recomputed or not, on one process or several.

torch's SyncBatchNorm works only on GPUs, and updates its running statistics again when a checkpointed block is
recomputed. ``SyncedBatchNorm3d`` uses differentiable all-reduces, so that CPU processes (gloo) compute what one process
with the whole batch computes. On GPUs it is what SyncBatchNorm is made of; it has not been run on one.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from meshnet.config import NORMS


class StatisticsOnceBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm3d whose running statistics are not updated a second time when a checkpointed block is recomputed."""

    recomputing = False
    scales_channels = True  # ``kernels.normalise`` may compute it; looked up in this very class, so not inherited

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.recomputing and self.track_running_stats):
            return super().forward(x)
        # Uses batch statistics, as in the first pass, but updates copies of the buffers. Without any buffers, fewer
        # tensors would be saved than in the first pass, which torch's checkpointing refuses.
        return nn.functional.batch_norm(
            x, self.running_mean.clone(), self.running_var.clone(), self.weight, self.bias, True, 0.0, self.eps)


def recomputed(function: Callable, module: nn.Module, *inputs: torch.Tensor):
    """``function(*inputs)``, computed again in the backward pass instead of kept. The running statistics of the batch
    norms in ``module`` are updated in the first pass only."""
    norms = [m for m in module.modules() if isinstance(m, StatisticsOnceBatchNorm3d)]
    calls = 0

    def run(*values):
        nonlocal calls
        calls += 1
        for norm in norms:
            norm.recomputing = calls > 1
        try:
            return function(*values)
        finally:
            for norm in norms:
                norm.recomputing = False

    return checkpoint(run, *inputs, use_reentrant=False)


def make_norm(kind: str, channels: int, affine: bool, groups: int = 0) -> nn.Module | None:
    """A norm layer over ``channels``; None for the kind ``none``.

    ``groups`` 0 means one group per channel, as in brainchop's group-norm networks.
    """
    if kind == "batch":
        return StatisticsOnceBatchNorm3d(channels, affine=affine)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=affine)
    if kind == "group":
        return nn.GroupNorm(groups or channels, channels, affine=affine)
    if kind == "none":
        return None
    raise ValueError(f"norm {kind!r} is not one of {', '.join(NORMS)}")


class SyncedBatchNorm3d(StatisticsOnceBatchNorm3d):
    """BatchNorm3d with statistics over the batches of all processes. With one process it is BatchNorm3d."""

    over_processes = True  # read by ``gpu_norm``

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or torch.distributed.get_world_size() == 1:
            return super().forward(x)
        if x.device.type == "cuda":
            return self.on_gpu(x)
        from torch.distributed.nn.functional import all_reduce

        axes = (0, 2, 3, 4)
        values = x.float()
        local = torch.cat([values.sum(axes), values.new_tensor([values.numel() / values.shape[1]])])
        total = all_reduce(local)
        count = total[-1].detach()
        centred = values - (total[:-1] / count).view(1, -1, 1, 1, 1)
        # Squares of centred values: E[x²] − E[x]² would lose digits where the mean is large.
        variance = all_reduce((centred * centred).sum(axes)) / count
        if not self.recomputing and self.track_running_stats:
            with torch.no_grad():
                self.running_mean.lerp_(total[:-1] / count, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
                self.num_batches_tracked += 1
        y = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1, 1)
        if self.affine:
            y = y * self.weight.view(1, -1, 1, 1, 1) + self.bias.view(1, -1, 1, 1, 1)
        return y.to(x.dtype)

    def on_gpu(self, x: torch.Tensor) -> torch.Tensor:
        """``forward`` on a GPU by what PyTorch's SyncBatchNorm consists of, which keeps maps in their own type; without
        moving the running statistics when a block is recomputed. (A MeshNet does not come here: ``gpu_norm``.)"""
        from torch.nn.modules._functions import SyncBatchNorm

        mean, variance, momentum = self.running_mean, self.running_var, self.momentum
        if self.recomputing and self.track_running_stats:
            mean, variance, momentum = mean.clone(), variance.clone(), 0.0
        elif self.track_running_stats:
            self.num_batches_tracked.add_(1)
        group = torch.distributed.group.WORLD
        return SyncBatchNorm.apply(x, self.weight, self.bias, mean, variance, self.eps, momentum, group,
                                   torch.distributed.get_world_size())


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` with every batch norm replaced by one over all processes.

    Parameters, buffers and their names stay the same.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm3d):
                new = SyncedBatchNorm3d(child.num_features, child.eps, child.momentum, child.affine,
                                        child.track_running_stats).to(device)
                if child.affine:
                    new.weight, new.bias = child.weight, child.bias
                new.load_state_dict(child.state_dict())
                new.train(child.training)
                setattr(module, name, new)
    return model

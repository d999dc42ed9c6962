"""Batch norm over all processes, on any device.

torch's SyncBatchNorm works on GPUs alone, and moves its running statistics again when a checkpointed block is
recomputed. This one is made of differentiable all-reduces, so that CPU processes (gloo) give what one process with the
whole batch gives. On GPUs it has not been tried.
"""

import torch
from torch import nn

from meshnet.model import StatisticsOnceBatchNorm3d


class SyncedBatchNorm3d(StatisticsOnceBatchNorm3d):
    """BatchNorm3d whose batch statistics are taken over the batches of all processes; alone, it is BatchNorm3d."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or torch.distributed.get_world_size() == 1:
            return super().forward(x)
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


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` with every batch norm over all processes.

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

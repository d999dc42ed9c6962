"""Optimizer, learning-rate schedule and averaged weights of a run, by the names that recipes use."""

import re

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from meshnet.config import EmaConfig, OptimizerConfig, SchedulerConfig
from meshnet.errors import UserError

NORM_LAYERS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def group_parameters(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Param groups: one for each pattern (a regular expression searched in parameters' names), one for the others.

    Parameters that no pattern matches take ``optimizer.lr``. With ``decay_norm_and_bias`` off, each group is divided
    in two, and the weights of norms and all biases get no weight decay.

    Raises:
        UserError: for a pattern that matches nothing, two that match the same parameter, or an invalid one.
    """
    plain = {id(p) for module in model.modules() if isinstance(module, NORM_LAYERS) for p in module.parameters()}
    groups: dict[tuple, dict] = {}
    matched = [0] * len(config.param_groups)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        hits = [i for i, group in enumerate(config.param_groups) if search(group["match"], name, i)]
        if len(hits) > 1:
            first, second = (config.param_groups[i]["match"] for i in hits[:2])
            raise UserError(f"optimizer.param_groups: '{name}' is matched by both '{first}' and '{second}', expected "
                            "one; make the patterns exclusive")
        own = config.param_groups[hits[0]] if hits else {}
        for i in hits:
            matched[i] += 1
        decays = config.decay_norm_and_bias or not (name.endswith("bias") or id(parameter) in plain)
        group = groups.setdefault((hits[0] if hits else -1, decays), {
            "params": [], "lr": own.get("lr", config.lr),
            "weight_decay": own.get("weight_decay", config.weight_decay) if decays else 0.0})
        group["params"].append(parameter)
    for group, count in zip(config.param_groups, matched):
        if not count:
            names = [name.split(".") for name, _ in model.named_parameters()]
            depth = 1 if len({parts[0] for parts in names}) > 1 else 2  # those of a baseline all begin with network.
            first = ", ".join(dict.fromkeys(".".join(parts[:depth]) for parts in names))
            raise UserError(f"optimizer.param_groups: '{group['match']}' matches no parameter; names begin with "
                            f"{first}")
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], not key[1]))]


def search(pattern: str, name: str, index: int) -> bool:
    """Whether ``pattern`` is found in ``name``; a UserError if it is not a regular expression."""
    try:
        return re.search(pattern, name) is not None
    except re.error as error:
        where = f"optimizer.param_groups[{index}].match"
        raise UserError(f"{where}: found '{pattern}', expected a regular expression ({error})") from None


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over ``model``'s param groups; a new one needs an entry here and in config.OPTIMIZERS."""
    groups = group_parameters(model, config)
    makers = {"AdamW": lambda: torch.optim.AdamW(
        groups, lr=config.lr, betas=tuple(config.betas), eps=config.eps, weight_decay=config.weight_decay,
        amsgrad=config.amsgrad)}
    return makers[config.name]()


class Schedule:
    """The learning rate of every step: linear warm-up by epochs, then the schedule of the config.

    Its position is the number of optimizer steps that the loop has taken, whatever the number of processes, the
    accumulation, or steps that fp16 skipped on an overflow, so a schedule ends where it should. Call
    ``begin_epoch(epoch)``, after every optimizer step ``end_step()``, and after every validated epoch
    ``end_epoch(metric)``.

    Warm-up: in epoch e < warmup_epochs the rate is ``lr * (e + 1) / warmup_epochs``; the schedule covers the remaining
    epochs. OneCycleLR rises for at least one step, and with fewer than three steps in all the rate stays at its peak.
    Plateaus are counted in validated epochs, and not during warm-up.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: SchedulerConfig, steps_per_epoch: int,
                 max_epochs: int, warmup_epochs: int = 0):
        self.optimizer, self.config, self.warmup_epochs = optimizer, config, warmup_epochs
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.total_steps = (max_epochs - warmup_epochs) * steps_per_epoch
        self.steps, self.epoch = 0, 0
        self.torch = self.build(max_epochs - warmup_epochs)
        self.first = [group["lr"] for group in optimizer.param_groups]  # set by torch's scheduler

    def build(self, epochs: int):
        """torch's scheduler, or None where the rate is constant."""
        config = self.config
        if config.name == "OneCycleLR" and self.total_steps >= 3:
            # torch peaks at index pct_start * total - 1, which must be at least 1, or else it divides by zero or skips
            # the rise (1 % of 100 steps, or of 12).
            rise = min(1.0, max(config.pct_start, 2 / self.total_steps))
            return OneCycleLR(self.optimizer, max_lr=self.peaks, total_steps=self.total_steps, pct_start=rise,
                              anneal_strategy=config.anneal_strategy, cycle_momentum=config.cycle_momentum,
                              div_factor=config.div_factor, final_div_factor=config.final_div_factor)
        if config.name == "ReduceLROnPlateau":
            return ReduceLROnPlateau(self.optimizer, mode=config.mode, factor=config.factor, patience=config.patience,
                                     threshold=config.threshold, threshold_mode=config.threshold_mode,
                                     cooldown=config.cooldown, min_lr=config.min_lr)
        if config.name == "cosine":
            return CosineAnnealingLR(self.optimizer, T_max=config.T_max or epochs, eta_min=config.eta_min)
        return None

    def begin_epoch(self, epoch: int) -> None:
        """Set the rate of a warm-up epoch, and the schedule's first rate after the warm-up."""
        self.epoch = epoch
        if epoch < self.warmup_epochs:
            self.set_rates([peak * (epoch + 1) / self.warmup_epochs for peak in self.peaks])
        elif epoch == self.warmup_epochs and self.steps == 0:
            self.set_rates(self.first)

    def end_step(self) -> None:
        """After an optimizer step, taken or skipped."""
        if self.epoch < self.warmup_epochs:
            return
        self.steps += 1
        if self.config.name == "OneCycleLR" and self.torch is not None and self.steps < self.total_steps:
            self.torch.step()

    def end_epoch(self, metric: float | None) -> str | None:
        """After an epoch; ``metric`` is None if it was not validated. Returns a line to print on a reduction."""
        if self.epoch < self.warmup_epochs or self.torch is None or self.config.name == "OneCycleLR":
            return None
        if self.config.name == "cosine":
            self.torch.step()
            return None
        if metric is None:
            return None
        before = self.rates()
        self.torch.step(metric)
        if self.rates() != before and self.config.verbose:
            return f"epoch {self.epoch + 1}: learning rate {before[0]:.3g} reduced to {self.rates()[0]:.3g}"
        return None

    def rates(self) -> list[float]:
        """The current rate of every param group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def set_rates(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate

    def state_dict(self) -> dict:
        return {"steps": self.steps, "epoch": self.epoch, "torch": self.torch.state_dict() if self.torch else {}}

    def load_state_dict(self, state: dict) -> None:
        self.steps, self.epoch = state["steps"], state["epoch"]
        if self.torch is not None:
            self.torch.load_state_dict(state["torch"])


class Average(AveragedModel):
    """Averaged weights: new = decay * old + (1 - decay) * current at each step, buffers copied.

    With warm-up the decay of update n is ``min(decay, (1 + n) / (10 + n))``, so that early weights are forgotten. The
    updates are counted on the host, so that a GPU is never waited for, and it averages all weights at once.
    """

    def __init__(self, model: nn.Module, config: EmaConfig):
        super().__init__(model)
        self.config = config

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of ``model`` after a step."""
        count, config = int(self.n_averaged), self.config
        decay = min(config.decay, (1 + count) / (10 + count)) if config.warmup else config.decay
        ours, theirs = list(self.module.parameters()), list(model.parameters())
        if count == 0:
            torch._foreach_copy_(ours, theirs)
        elif ours[0].device.type == "cuda":
            torch._foreach_lerp_(ours, theirs, 1 - decay)
        else:  # the other way round, as resume points of earlier versions were averaged
            torch._foreach_copy_(ours, torch._foreach_lerp(theirs, ours, decay))
        buffers = list(zip(self.module.buffers(), model.buffers()))
        for kind in {one.dtype for one, _ in buffers}:
            torch._foreach_copy_(*zip(*(pair for pair in buffers if pair[0].dtype == kind)))
        self.n_averaged += 1


def build_ema(model: nn.Module, config: EmaConfig) -> Average | None:
    """``Average`` of ``model``, or None where it is off."""
    return Average(model, config) if config.enabled else None

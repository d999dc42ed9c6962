"""The configuration: defaults, and settings that follow each other."""

from meshnet.config import Config, validate


def test_what_is_left_out_is_torch_own_default():
    import torch

    defaults = torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).defaults
    found = validate(Config()).optimizer
    assert (found.lr, tuple(found.betas), found.eps, found.weight_decay, found.amsgrad) == (
        defaults["lr"], defaults["betas"], defaults["eps"], defaults["weight_decay"], defaults["amsgrad"])


def test_monitor_and_mode_follow_each_other():
    def plateau(**values):
        config = Config()
        for key, value in values.items():
            setattr(config.scheduler, key, value)
        return validate(config).scheduler

    assert (plateau().monitor, plateau().mode) == ("val_dice", "max")
    assert plateau(mode="min").monitor == "val_loss"
    assert plateau(monitor="val_loss").mode == "min"

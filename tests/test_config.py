"""The configuration: defaults, and settings that follow each other."""

import dataclasses
import typing

import pytest

from meshnet.config import Config, parse_size, resolve, to_dict
from meshnet.errors import UserError


def test_what_is_left_out_is_torch_own_default():
    import torch

    defaults = torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).defaults
    found = resolve(Config()).optimizer
    assert (found.lr, tuple(found.betas), found.eps, found.weight_decay, found.amsgrad) == (
        defaults["lr"], defaults["betas"], defaults["eps"], defaults["weight_decay"], defaults["amsgrad"])


def test_monitor_and_mode_follow_each_other():
    def plateau(**values):
        config = Config()
        for key, value in values.items():
            setattr(config.scheduler, key, value)
        return resolve(config).scheduler

    assert (plateau().monitor, plateau().mode) == ("val_dice", "max")
    assert plateau(mode="min").monitor == "val_loss"
    assert plateau(monitor="val_loss").mode == "min"


NUMBERS = {  # what is taken where nothing is said, and what may be said; a bracket takes its own number in
    "data.workers": (None, "[0, 256]"),
    "model.channels": (26, "[1, inf)"),
    "model.dilations": ([1, 2, 4, 8, 16, 16, 8, 4, 2], "[1, inf)"),
    "model.norm_groups": (0, "[0, inf)"),
    "model.dropout": (0.0, "[0, 1)"),
    "model.patch": ([], "[1, inf)"),
    "optimizer.lr": (None, "(0, inf)"),
    "optimizer.betas": ([0.9, 0.999], "[0, 1)"),
    "optimizer.eps": (1e-08, "(0, inf)"),
    "optimizer.weight_decay": (0.01, "[0, inf)"),
    "scheduler.max_lr": (None, "(0, inf)"),
    "scheduler.pct_start": (0.01, "[0, 1]"),
    "scheduler.div_factor": (100.0, "(0, inf)"),
    "scheduler.final_div_factor": (10000.0, "(0, inf)"),
    "scheduler.factor": (0.1, "(0, 1)"),
    "scheduler.patience": (10, "[0, inf)"),
    "scheduler.threshold": (0.0001, "[0, inf)"),
    "scheduler.cooldown": (0, "[0, inf)"),
    "scheduler.min_lr": (0.0, "[0, inf)"),
    "scheduler.T_max": (None, "[1, inf)"),
    "scheduler.eta_min": (0.0, "[0, inf)"),
    "loss.background_weight": (0.5, "[0, inf)"),
    "loss.lesion_weight": (1.0, "[0, inf)"),
    "loss.label_smoothing": (0.01, "[0, 1)"),
    "loss.dice_weight": (1.0, "[0, inf)"),
    "training.max_epochs": (50, "[1, inf)"),
    "training.batch_size": (1, "[1, 1024]"),
    "training.accumulation": (1, "[1, 1024]"),
    "training.max_grad_norm": (1.0, "(0, inf)"),
    "training.warmup_epochs": (0, "[0, inf)"),
    "training.early_stopping_patience": (20, "[1, inf)"),
    "training.validate_every": (1, "[1, inf)"),
    "training.save_every_steps": (0, "[0, inf)"),
    "training.keep_states": (2, "[1, inf)"),
    "ema.decay": (0.999, "[0, 1)"),
    "augment.flip": (0.0, "[0, 1]"),
    "augment.affine": (0.0, "[0, 1]"),
    "augment.rotate_degrees": (15.0, "[0, 180]"),
    "augment.scale": (0.15, "[0, 1)"),
    "augment.shift_mm": (10.0, "[0, inf)"),
    "augment.intensity": (0.0, "[0, 1]"),
    "augment.contrast": (0.0, "[0, 1]"),
    "augment.bias_field": (0.0, "[0, 1]"),
    "augment.noise": (0.0, "[0, 1]"),
    "augment.blur": (0.0, "[0, 1]"),
}


def test_every_limit_of_a_number_is_in_the_table():
    limited = {f"{section.name}.{item.name}" for section in dataclasses.fields(Config)
               for item in dataclasses.fields(section.default_factory)
               if {"low", "above", "high", "below"} & set(item.metadata)}
    assert limited == set(NUMBERS)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_has_its_default_and_its_limits(name):
    default, interval = NUMBERS[name]
    section, field = name.split(".")
    assert getattr(getattr(Config(), section), field) == default

    def accepted(value):
        config = Config()
        size = {"optimizer.betas": 2, "model.patch": 3}.get(name, 1)
        setattr(getattr(config, section), field, [value] * size if isinstance(default, list) else value)
        try:
            resolve(config)
        except UserError as error:
            assert str(error).startswith(name), error
            return False
        return True

    whole = typing.get_type_hints(type(getattr(Config(), section)))[field] in (int, int | None, list[int])
    for edge, outward in zip(interval[1:-1].split(", "), (-1, 1)):
        if edge == "inf":
            continue
        at = int(edge)
        outside, inside = (at + way if whole else at + way * 1e-9 for way in (outward, -outward))
        assert accepted(at) == (interval[0 if outward < 0 else -1] in "[]"), at
        assert accepted(inside) and not accepted(outside)


@pytest.mark.parametrize("text, expected", [
    ("7B", 7), ("2KB", 2_000), ("800MB", 800_000_000), ("1.5 GB", 1_500_000_000), ("3KiB", 3_072),
    ("1.5mib", 1_572_864), (" 2GiB ", 2_147_483_648)])
def test_sizes_in_bytes(text, expected):
    assert parse_size(text, "--max_memory") == expected


@pytest.mark.parametrize("text", ["2", "GB", "2TB", "-2GB", "2GB more", ""])
def test_what_is_no_size_is_one_line(text):
    with pytest.raises(UserError, match=r"--max_memory: found .*, expected a size such as 2GB"):
        parse_size(text, "--max_memory")


REST = {  # what is taken where nothing is said, of all that is no number
    "data.crop": "head",
    "data.scaling": None,
    "model.name": "meshnet",
    "model.norm": "batch",
    "model.norm_affine": True,
    "model.activation": "relu",
    "model.bias": True,
    "model.final_bias": True,
    "model.checkpointing": False,
    "model.options": {},
    "optimizer.name": "AdamW",
    "optimizer.amsgrad": False,
    "optimizer.decay_norm_and_bias": True,
    "optimizer.param_groups": [],
    "scheduler.name": "OneCycleLR",
    "scheduler.anneal_strategy": "cos",
    "scheduler.cycle_momentum": False,
    "scheduler.monitor": None,
    "scheduler.mode": None,
    "scheduler.threshold_mode": "rel",
    "scheduler.verbose": False,
    "loss.name": "ce",
    "training.gradient_clipping": False,
    "training.early_stopping": False,
    "training.score_at": None, "training.precision": "auto",
    "training.memory_budget": None,
    "training.fold_bias": "auto",
    "training.pad_channels": "auto",
    "training.cudnn_benchmark": "auto",
    "training.sync_batch_norm": True,
    "training.freeze_batch_norm": False,
    "ema.enabled": False,
    "ema.warmup": True,
    "tracking.trackers": [],
    "tracking.project": "meshnet",
    "tracking.pictures": True,
}


def test_every_other_setting_has_its_default():
    found = {f"{section}.{name}": value for section, part in to_dict(Config()).items() for name, value in part.items()}
    assert {name: value for name, value in found.items() if name not in NUMBERS} == REST


def test_a_network_without_blocks_is_refused():
    config = Config()
    config.model.dilations = []
    with pytest.raises(UserError, match=r"^model\.dilations: found \[\], expected one for each block"):
        resolve(config)

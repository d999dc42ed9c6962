"""The configuration of a run: one tree of dataclasses. The comment behind a field is its help text.

Torch-free, so that ``--help`` answers at once. Recipes and flags leave values as they were written; ``resolve`` makes a
checked configuration of them. ``meshnet.recipe`` reads files and flags into this tree.
"""

import argparse
import contextlib
import copy
import dataclasses
import types
import typing
from dataclasses import dataclass, field

from meshnet.errors import UserError
from meshnet.machine import parse_size
from meshnet.numbers import expected, read_number

MODELS = ("meshnet", "segresnet", "mednext_s", "mednext_b", "mednext_m", "swin_unetr", "unetr", "vnet",
          "residual_unet", "unet", "umamba_bot", "umamba_enc", "ukan")
ACTIVATIONS = ("relu", "elu", "gelu")  # of a MeshNet; kernels.calls numbers them in this order
NORMS = ("batch", "instance", "group", "none")
OPTIMIZERS = ("AdamW",)
SCHEDULERS = ("OneCycleLR", "ReduceLROnPlateau", "cosine", "constant")
SCALINGS = ("conform_uint8", "minmax", "quantile", "brainchop_quantile", "lesions_bright", "window")  # see ``scans.grid``
LOSSES = ("ce", "dice", "dice_ce")
TUNED = ("auto", "true", "false")  # switches that a measurement may decide
MONITORS = ("train_loss", *(f"val_{name}{ema}" for ema in ("", "_ema") for name in ("loss", "dice", "dice_swept", "dice_macro", "avd", "mcc")))


def knob(default, choices=None, low=None, above=None, high=None, below=None):
    """A field with its allowed values: ``low <= value <= high``, ``above < value < below``, or one of ``choices``."""
    limits = {"choices": choices, "low": low, "above": above, "high": high, "below": below}
    metadata = {key: value for key, value in limits.items() if value is not None}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class DataConfig:
    """How prepared cases reach the network."""

    crop: str = knob("head", choices=("head", "none"))  # train on one box around all heads, or on whole volumes (always for a MeshNet with instance or group norm)
    scaling: str | None = knob(None, choices=SCALINGS)  # refuse data prepared with another scaling; null: accept any
    workers: int | None = knob(None, low=0, high=256)  # processes that read and augment cases; null: 2, and on a GPU as many as its training process has cores, at most 8, or 16 where cases are augmented


@dataclass
class ModelConfig:
    """Which network. Inputs and classes come from the data set."""

    name: str = knob("meshnet", choices=MODELS)  # the network
    channels: int = knob(26, low=1)  # MeshNet-X: feature maps of every block
    dilations: list[int] = knob([1, 2, 4, 8, 16, 16, 8, 4, 2], low=1)  # MeshNet's blocks, one dilation each
    norm: str = knob("batch", choices=NORMS)  # MeshNet's norm
    norm_affine: bool = knob(True)  # whether the norm has weights
    norm_groups: int = knob(0, low=0)  # groups of the group norm; 0: as many as channels
    activation: str = knob("relu", choices=ACTIVATIONS)  # MeshNet's activation
    bias: bool = knob(True)  # whether MeshNet's 3x3x3 convolutions have a bias
    final_bias: bool = knob(True)  # whether MeshNet's last layer has a bias
    dropout: float = knob(0.0, low=0, below=1)  # probability of dropping a channel after a block
    checkpointing: bool = knob(False)  # recompute layers in the backward pass instead of keeping them
    patch: list[int] = knob([], low=1)  # train on patches of this size (voxels) instead of the whole box; []: no patches
    options: dict = knob({})  # further constructor arguments of a baseline (recipe files only)


@dataclass
class OptimizerConfig:
    """The optimizer. Values that are left out are PyTorch's defaults."""

    name: str = knob("AdamW", choices=OPTIMIZERS)  # the optimizer
    lr: float | None = knob(None, above=0)  # (peak) learning rate; null: scheduler.max_lr, else 0.001
    betas: list[float] = knob([0.9, 0.999], low=0, below=1)  # momentum coefficients
    eps: float = knob(1e-8, above=0)  # numerical stability; the paper uses 1e-4 for fp16
    weight_decay: float = knob(0.01, low=0)  # decoupled weight decay
    amsgrad: bool = knob(False)  # the AMSGrad variant
    decay_norm_and_bias: bool = knob(True)  # false: no weight decay on norms and biases
    param_groups: list[dict] = knob([])  # layer-wise settings: [{match: pattern, lr: 1e-5, weight_decay: 0.1}, ...]


@dataclass
class SchedulerConfig:
    """The learning-rate schedule."""

    name: str = knob("OneCycleLR", choices=SCHEDULERS)  # the schedule
    max_lr: float | None = knob(None, above=0)  # OneCycleLR: the peak, another way to set optimizer.lr
    pct_start: float = knob(0.01, low=0, high=1)  # OneCycleLR: fraction of the steps in which the rate rises (at least one step)
    div_factor: float = knob(100.0, above=0)  # OneCycleLR: the rate starts at max_lr / div_factor
    final_div_factor: float = knob(1e4, above=0)  # OneCycleLR: the rate ends at its start / final_div_factor
    anneal_strategy: str = knob("cos", choices=("cos", "linear"))  # OneCycleLR: shape of the rise and the fall
    cycle_momentum: bool = knob(False)  # OneCycleLR: lower beta1 while the learning rate rises
    monitor: str | None = knob(None, choices=MONITORS)  # metric to monitor (ReduceLROnPlateau, early stopping); null: the Dice of training.score_at, or val_loss with mode min
    mode: str | None = knob(None, choices=("max", "min"))  # whether more or less of it is better; null: by the metric
    factor: float = knob(0.1, above=0, below=1)  # ReduceLROnPlateau: factor that the learning rate is multiplied by
    patience: int = knob(10, low=0)  # ReduceLROnPlateau: epochs without improvement before reducing
    threshold: float = knob(1e-4, low=0)  # ReduceLROnPlateau: smallest change that counts as an improvement
    threshold_mode: str = knob("rel", choices=("rel", "abs"))  # ReduceLROnPlateau: relative or absolute threshold
    cooldown: int = knob(0, low=0)  # ReduceLROnPlateau: epochs to wait after a reduction
    min_lr: float = knob(0.0, low=0)  # ReduceLROnPlateau: lowest learning rate
    verbose: bool = knob(False)  # ReduceLROnPlateau: print each reduction
    T_max: int | None = knob(None, low=1)  # cosine: epochs to the minimum; null: all after the warm-up
    eta_min: float = knob(0.0, low=0)  # cosine: lowest learning rate


@dataclass
class LossConfig:
    """The loss. Each case is normalised on its own, so that batches, accumulation and processes give the same gradient."""

    name: str = knob("ce", choices=LOSSES)  # weighted cross-entropy, soft Dice, or their sum
    background_weight: float = knob(0.5, low=0)  # class weight of the background
    lesion_weight: float = knob(1.0, low=0)  # class weight of every other class
    label_smoothing: float = knob(0.01, low=0, below=1)  # fraction of the target spread over all classes
    dice_weight: float = knob(1.0, low=0)  # dice_ce: weight of the Dice term


@dataclass
class EmaConfig:
    """Exponential moving average of the weights."""

    enabled: bool = knob(False)  # also keep, evaluate and save averaged weights
    decay: float = knob(0.999, low=0, below=1)  # fraction of the old average kept at each optimizer step
    warmup: bool = knob(True)  # start with a smaller decay: min(decay, (1 + step) / (10 + step))


@dataclass
class AugmentConfig:
    """Augmentation, off by default as in the paper. A transform's number is its probability for each case."""

    flip: float = knob(0.0, low=0, high=1)  # mirror left and right
    affine: float = knob(0.0, low=0, high=1)  # rotate, scale and shift
    rotate_degrees: float = knob(15.0, low=0, high=180)  # affine: largest rotation about each axis
    scale: float = knob(0.15, low=0, below=1)  # affine: largest relative change of size
    shift_mm: float = knob(10.0, low=0)  # affine: largest shift
    intensity: float = knob(0.0, low=0, high=1)  # scale and shift intensities
    contrast: float = knob(0.0, low=0, high=1)  # gamma
    bias_field: float = knob(0.0, low=0, high=1)  # smooth multiplicative field
    noise: float = knob(0.0, low=0, high=1)  # Gaussian noise
    blur: float = knob(0.0, low=0, high=1)  # Gaussian smoothing


@dataclass
class TrainingConfig:
    """The training loop."""

    max_epochs: int = knob(50, low=1)  # length of the schedule; --stop_epoch stops a run earlier
    batch_size: int = knob(1, low=1, high=1024)  # cases per batch on each process
    accumulation: int = knob(1, low=1, high=1024)  # batches for each optimizer step
    gradient_clipping: bool = knob(False)  # limit the norm of the gradient
    max_grad_norm: float = knob(1.0, above=0)  # gradient_clipping: the largest norm
    warmup_epochs: int = knob(0, low=0)  # epochs of linear warm-up before the schedule begins
    early_stopping: bool = knob(False)  # stop when scheduler.monitor no longer improves
    early_stopping_patience: int = knob(20, low=1)  # early_stopping: epochs to wait
    score_at: str | None = knob(None, choices=("best", "half"))  # threshold of the validation Dice that chooses the weights to keep: best: the one with the highest mean Dice, which the model keeps (val_dice_swept); half: 0.5, as in the paper (val_dice); null: half
    validate_every: int = knob(1, low=1)  # epochs between validations; the last epoch is always validated
    precision: str | None = knob("auto", choices=("auto", "no", "fp16", "bf16"))  # auto (or null): bf16 or fp16 on a GPU, by what it is good at, or the one that accelerate launch says; float32 on CPUs. no: float32
    memory_budget: str | None = knob(None)  # e.g. 6GB: recompute as many layers in the backward pass as it takes to fit (MeshNet)
    fold_bias: str = knob("auto", choices=TUNED)  # GPUs: batch and other norms take the bias of the convolution before them; auto: on
    pad_channels: str = knob("auto", choices=TUNED)  # GPUs: maps padded to a multiple of 8 channels; auto: measured once a machine
    cudnn_benchmark: str = knob("auto", choices=TUNED)  # GPUs: cuDNN tries its algorithms on the first step; auto: measured once a machine
    sync_batch_norm: bool = knob(True)  # batch-norm statistics over all processes
    freeze_batch_norm: bool = knob(False)  # keep the running statistics of batch norm: for fine-tuning on few cases
    save_every_steps: int = knob(0, low=0)  # also write a resume point every so many steps within an epoch; 0: after epochs only
    keep_states: int = knob(2, low=1)  # number of resume points to keep


@dataclass
class TrackingConfig:
    """Experiment trackers, through Accelerate; metrics.jsonl is always written."""

    trackers: list[str] = knob([], choices=("wandb", "mlflow", "tensorboard", "trackio"))  # trackers to log to
    project: str = knob("meshnet")  # the project's name in the tracker
    pictures: bool = knob(True)  # log pictures of the worst and the median validation case


@dataclass
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)  # how cases reach the network
    model: ModelConfig = field(default_factory=ModelConfig)  # which network
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)  # the optimizer
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)  # the learning-rate schedule
    loss: LossConfig = field(default_factory=LossConfig)  # the loss
    training: TrainingConfig = field(default_factory=TrainingConfig)  # the loop
    ema: EmaConfig = field(default_factory=EmaConfig)  # averaged weights
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # augmentation
    tracking: TrackingConfig = field(default_factory=TrackingConfig)  # trackers

    written = None  # no field: of a resolved configuration, the same without what follows from other values


EARLIER = {"training.score_at": "half"}  # what a later field meant before it existed, for what began then
SCORES = {"best": "val_dice_swept", "half": "val_dice"}  # of training.score_at, by name in metrics.jsonl
# What does not change the weights that come out, and so may differ between a run and its resumption.
NOT_IDENTITY = ("data.workers", "data.scaling", "tracking", "training.keep_states", "training.save_every_steps",
                "training.memory_budget", "training.fold_bias", "training.pad_channels", "training.cudnn_benchmark", "model.checkpointing", "scheduler.verbose")

SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def describe_limits(metadata: dict) -> str:
    """The allowed values of a field in words, e.g. ``a number above 0``."""
    if "choices" in metadata:
        return "one of " + ", ".join(map(str, metadata["choices"]))
    words = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
    return " and ".join(f"{words[key]} {metadata[key]:g}" for key in words if key in metadata)


def coerce(value, kind, where: str):
    """``value`` as ``kind`` (a type hint of this file), or a UserError that names ``where``.

    A text becomes the number or switch that it spells, so that files, flags and overrides mean the same. Booleans are no
    numbers.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("null", "none") and str not in arguments):
            return None
        return coerce(value, next(a for a in arguments if a is not type(None)), where)
    if origin is list:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: found {value!r}, expected a list")
        return [coerce(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is bool and isinstance(value, str) and value.lower() in SWITCHES:
        return SWITCHES[value.lower()]
    if kind is str and isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if kind in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(argparse.ArgumentTypeError, ValueError):  # ValueError: an int of thousands of digits
            return read_number(str(value), kind)
    names = expected(value) | {bool: "true or false", str: "a text", dict: "a mapping with names as keys"}
    raise UserError(f"{where}: found {value!r}, expected {names.get(kind, kind)}")


def check_limits(value, metadata: dict, where: str) -> None:
    """Raise a UserError that names ``where`` unless ``value`` (each item of a list) lies within ``metadata``."""
    for item in value if isinstance(value, list) else [value]:
        if item is None or isinstance(item, dict | bool):
            continue
        wrong = (("choices" in metadata and item not in metadata["choices"])
                 or ("low" in metadata and item < metadata["low"]) or ("above" in metadata and item <= metadata["above"])
                 or ("high" in metadata and item > metadata["high"]) or ("below" in metadata and item >= metadata["below"]))
        if wrong:
            raise UserError(f"{where}: found {item!r}, expected {describe_limits(metadata)}")


def resolve(config: Config) -> Config:
    """The configuration that a run uses: a copy in which every value has its field's type, all is checked, and what
    was left open follows from the rest. ``config`` stays as it was written, so that a later recipe may still set it.

    Raises:
        UserError: naming the field, the value found and what is allowed.
    """
    written = with_types(config)
    validate(written)
    resolved = copy.deepcopy(written)
    derive_values(resolved)
    resolved.written = written
    return resolved


def with_types(config: Config) -> Config:
    """A copy in which every value has its field's type and lies within its limits."""
    typed = copy.deepcopy(config)
    for section in dataclasses.fields(typed):
        part = getattr(typed, section.name)
        hints = typing.get_type_hints(type(part))
        for item in dataclasses.fields(part):
            where = f"{section.name}.{item.name}"
            value = coerce(getattr(part, item.name), hints[item.name], where)
            check_limits(value, item.metadata, where)
            setattr(part, item.name, value)
    for index, group in enumerate(typed.optimizer.param_groups):
        where = f"optimizer.param_groups[{index}]"
        unknown = set(group) - {"match", "lr", "weight_decay"}
        if unknown or "match" not in group:
            raise UserError(f"{where}: found keys {sorted(map(str, group))}, expected match and any of lr, weight_decay")
        group["match"] = coerce(group["match"], str, f"{where}.match")
        for key in set(group) - {"match"}:
            group[key] = coerce(group[key], float, f"{where}.{key}")
            check_limits(group[key], {"above": 0} if key == "lr" else {"low": 0}, f"{where}.{key}")
    return typed


def validate(config: Config) -> None:
    """Check what must agree between values of the right types; changes nothing.

    Raises:
        UserError: naming the field, the value found and what is expected.
    """
    scheduler, optimizer, model = config.scheduler, config.optimizer, config.model
    if scheduler.max_lr is not None and optimizer.lr is not None and scheduler.max_lr != optimizer.lr:
        raise UserError(f"scheduler.max_lr: found {scheduler.max_lr:g} beside optimizer.lr {optimizer.lr:g}, expected "
                        "the same; set optimizer.lr alone")
    if scheduler.monitor and scheduler.monitor.endswith("_ema") and not config.ema.enabled:
        raise UserError(f"scheduler.monitor: found {scheduler.monitor}, expected averaged weights to be on for it; set "
                        "ema.enabled true")
    if config.training.warmup_epochs >= config.training.max_epochs:
        raise UserError(f"training.warmup_epochs: found {config.training.warmup_epochs}, expected fewer than "
                        f"training.max_epochs ({config.training.max_epochs})")
    if config.training.memory_budget is not None:
        parse_size(config.training.memory_budget, "training.memory_budget")
        if model.name != "meshnet":
            raise UserError(f"training.memory_budget: is for meshnet, found {model.name}; use model.checkpointing true")
    if len(config.optimizer.betas) != 2:
        raise UserError(f"optimizer.betas: found {config.optimizer.betas}, expected two numbers")
    if not model.dilations:
        raise UserError("model.dilations: found [], expected one for each block, such as [1, 2, 4, 2, 1]")
    if len(model.patch) not in (0, 3):
        raise UserError(f"model.patch: found {model.patch}, expected three sizes in voxels, or none")
    if model.norm == "group" and model.norm_groups and model.channels % model.norm_groups:
        raise UserError(f"model.norm_groups: found {model.norm_groups}, expected a divisor of channels {model.channels}")
    if config.loss.background_weight == 0 and config.loss.lesion_weight == 0:
        raise UserError("loss.background_weight: found 0 beside loss.lesion_weight 0, expected one above 0")


def derive_values(config: Config) -> None:
    """Set what was left open and follows from other values: the learning rate, the monitored metric and its direction.

    ``scheduler.max_lr`` is another way to write ``optimizer.lr`` and becomes None.
    """
    scheduler, optimizer, training = config.scheduler, config.optimizer, config.training
    if optimizer.lr is None:
        optimizer.lr = scheduler.max_lr if scheduler.max_lr is not None else 0.001
    scheduler.max_lr = None  # from here on optimizer.lr, and each param group's own, is the peak
    training.precision, training.score_at = training.precision or "auto", training.score_at or "half"
    if scheduler.monitor is None:
        scheduler.monitor = "val_loss" if scheduler.mode == "min" else SCORES[training.score_at]
    scheduler.mode = scheduler.mode or direction(scheduler.monitor)


def direction(monitor: str) -> str:
    """Whether more or less of a monitored metric is better: ``max`` or ``min``."""
    return "min" if monitor.removesuffix("_ema").endswith(("loss", "avd")) else "max"


def to_dict(config: Config) -> dict:
    """The tree as plain dictionaries and lists."""
    return dataclasses.asdict(config)


def identity(config: Config) -> dict[str, object]:
    """Flat ``{"optimizer.lr": 0.001, …}`` of everything that decides the weights a run ends with."""
    flat = {f"{section}.{name}": value for section, part in to_dict(config).items() for name, value in part.items()}
    return {key: value for key, value in flat.items() if key not in NOT_IDENTITY and key.split(".")[0] not in NOT_IDENTITY}

"""Trained networks by name, on a device: without PyTorch where the kernels can run all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meshnet.errors import UserError
from meshnet.inference import light
from meshnet.networks.build import Model, load_model, stages
from meshnet.networks.card import WEIGHTS, Card
from meshnet.networks.cascade import check_first
from meshnet.networks.folder import default_model

if TYPE_CHECKING:
    import torch


def load_models(names: Sequence[str | Path | Model | None], weights: str = WEIGHTS, device: str | None = None,
                threads: int | None = None, single: bool = False) -> list[Model]:
    """Trained networks on the device, in evaluation mode; without PyTorch where the kernels can run all of them.

    Args:
        names: each like ``model`` of ``segment_scan``; None is the built-in model.
        weights: which file of the folders; ``model_ema.safetensors`` holds averaged weights.
        device: as in ``segment_scan``.
        threads: sets PyTorch's number of threads for the whole process.
        single: as in ``light.load``.

    Raises:
        UserError: where one is not found or not valid, or they differ in classes or channels.
    """
    names = [default_model() if name is None else name for name in names]
    labels = [f"model {i}" if isinstance(name, Model) else str(name) for i, name in enumerate(names, 1)]
    models = [name if isinstance(name, Model) else light.load(name, weights, device, single) for name in names]
    if None in models or any(hasattr(network, "parameters") for network, _ in models):
        import torch

        if threads:
            torch.set_num_threads(threads)
        models = [name if isinstance(name, Model) else load_model(name, weights) for name in names]
        for given, model in zip(names, models):
            for network, _ in stages(model):
                if hasattr(network, "to") and (device or not isinstance(given, Model)):  # whoever loaded it placed it
                    network.to(pick_device(device)).eval()
    for label, model in zip(labels, models):
        check_whole(label, model)
        check_alike(label, model.card, labels[0], models[0].card)
    return models


def as_model(given) -> str | Path | Model | None:
    """What ``segment_scan`` is given as a model, with a ``MeshNet`` from ``from_pretrained`` and its card as a Model.

    Raises:
        UserError: for a network without a card, of which nobody knows how a scan must look.
    """
    if given is None or isinstance(given, (str, Path, Model)):
        return given
    card = getattr(given, "card", None)
    if card is None:
        raise UserError(f"model: found a {type(given).__name__} without a card, expected a name, what load_model "
                        "returned, or a MeshNet of MeshNet.from_pretrained")
    return Model(given.eval(), card)


def check_whole(name: str, model: Model) -> None:
    """Raise UserError for the second network of a cascade that comes without the first one, or with another one."""
    *first, (_, card) = stages(model)
    if card.first and not first:
        raise UserError(f"{name}: is the second network of a cascade without the first one, expected both; give its "
                        "folder, or what load_model returned")
    for _, before in first:
        check_first(f"the first network of {name}", before, card)


def check_alike(name: str, card: Card, first_name: str, first: Card) -> None:
    """Raise UserError for a model whose probabilities cannot be averaged with those of the first one."""
    another_order = card.channels != first.channels and sorted(card.channels) == sorted(first.channels)
    if card.marks != first.marks:
        raise UserError(f"{name}: marks {card.marks or 'all of its classes'}, expected {first.marks or 'all'} as "
                        f"{first_name}; the field marks of config.json decides it")
    if card.classes != first.classes or another_order or len(card.channels) != len(first.channels):
        raise UserError(f"{name}: has classes {card.classes} and channels {card.channels}, expected "
                        f"{first.classes} and {first.channels} as {first_name}")


def pick_device(name: str | None) -> torch.device:
    """The torch device of that name; for None the fastest one available.

    Raises:
        UserError: where this machine has no such device.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("mps"):
        raise UserError(f"--device {name}: left aside, since PyTorch's 3D convolutions have been wrong on Apple GPUs, "
                        "expected cpu or cuda; leave it out for the CPU")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and os.environ.get("LOCAL_RANK", "").isdecimal():
            # torchrun: a GPU for each process, in turn where there are fewer
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"--device {name}: not available here; leave it out for the fastest there is") from None
    return device

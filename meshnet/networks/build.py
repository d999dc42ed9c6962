"""From a name to a network, with fresh or trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from meshnet.errors import UserError
from meshnet.networks.card import CONFIG, OWN, WEIGHTS, Card, read_card
from meshnet.networks.cascade import FIRST, FOR_CONTRAST, read_first
from meshnet.networks.folder import find_weights, load_into

if TYPE_CHECKING:
    from torch import nn

MESHNET_FIELDS = ("channels", "dilations", "norm", "norm_affine", "norm_groups", "activation", "bias", "final_bias",
                  "dropout")


class Model(NamedTuple):
    """A trained network and its card. ``network`` is a module, or a ``FusedMeshNet`` of ``inference.light``."""

    network: Any
    card: Card


def stages(model: Model) -> list[Model]:
    """The networks of a model in the order in which they run: one, or the two of a cascade."""
    first = getattr(model.network, "first", None)
    return [model] if first is None else [first, model]


def network_for(network: Any, contrast: str | None) -> Any:
    """``network``, or of a cascade's second one that with the weights for a scan that looks like ``contrast``."""
    others = getattr(network, FOR_CONTRAST, {})
    return others[contrast] if contrast in others else network  # noqa: SIM401 (a ModuleDict has no get)


def variants(model: Model) -> dict[str, Model]:
    """The second network of a cascade for each contrast for which it has weights of its own. Their cards say nothing of
    other contrasts."""
    network, card = model
    return {name: Model(network_for(network, name), card.changed(contrasts={
        name: {key: value for key, value in card.contrasts[name].items() if key != OWN}})) for name in card.own_weights}


def add_variants(network: nn.Module, others: dict[str, nn.Module]) -> None:
    """Make ``others``, by contrast, what ``network_for`` finds in ``network``, and its tensors a part of its own."""
    from torch.nn import ModuleDict

    setattr(network, FOR_CONTRAST, ModuleDict(others))


def build(name: str, arguments: dict) -> nn.Module:
    """The network ``name`` with fresh weights.

    Args:
        name: ``meshnet`` or one of ``meshnet.networks.baselines.NETWORKS`` (imported only when asked for).
        arguments: of the constructor; ``in_channels``, ``classes`` and ``checkpointing`` are common to all.

    The module's attributes ``name`` and ``arguments`` are what ``build`` needs to make the same network again.

    Raises:
        UserError: for an unknown name or arguments that the network does not take.
    """
    try:
        if name == "meshnet":
            from meshnet.networks.meshnet import MeshNet

            model = MeshNet(**arguments)
        else:
            from meshnet.networks import baselines

            model = baselines.build_baseline(name, **arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"model {name}: {error}") from error
    model.name = name
    return model


def arguments_from_config(model_config, in_channels: int, classes: int, shape: tuple[int, int, int]) -> dict:
    """The ``arguments`` of ``build`` for a ``ModelConfig``.

    Args:
        model_config: ``meshnet.config.ModelConfig``.
        in_channels, classes: of the data set.
        shape: (X, Y, Z) of a training case after cropping. UNETR learns a position for every patch of its input, so it
            is built for ``model.patch``, or for this shape if there is none.
    """
    common = {"in_channels": in_channels, "classes": classes, "checkpointing": model_config.checkpointing}
    if model_config.name == "meshnet":
        if model_config.options:
            raise UserError(f"model.options: found {model_config.options}, expected none for meshnet, whose arguments "
                            "are fields of their own")
        return common | {key: getattr(model_config, key) for key in MESHNET_FIELDS}
    if model_config.name == "unetr":
        common["image_size"] = list(model_config.patch or shape)
    return common | model_config.options


def config_of(card: Card) -> dict:
    """The ``model`` section of a recipe for the architecture of ``card``, the other way round than
    ``arguments_from_config``. What may differ in a training from the weights (dropout) is not in it."""
    given = dict(card.arguments)
    if card.name == "meshnet":
        return {"name": card.name} | {key: given[key] for key in MESHNET_FIELDS if key in given and key != "dropout"}
    for key in ("in_channels", "classes", "checkpointing"):
        given.pop(key, None)
    size = given.pop("image_size", None)
    return {"name": card.name, "options": given} | ({"patch": size} if size else {})


def load_model(name: str | Path, weights: str = WEIGHTS) -> Model:
    """A trained network, ready for inference.

    Args:
        name: a model or run folder, a ``.safetensors`` file beside its ``config.json``, a built-in name, or a Hub name
            ``user/name[@revision]``.
        weights: which file of the folder: ``model.safetensors`` (best), ``last.safetensors`` or
            ``model_ema.safetensors``. Ignored if ``name`` is a ``.safetensors`` file.

    Returns:
        The network, on the CPU, in float32 and in evaluation mode, and its card:
        ``network, card = load_model(name)``. Of a cascade it is the second network, whose attribute ``first`` holds
        the first one and its card; ``network_for`` has it with the weights for a contrast.

    Raises:
        UserError: one line, where there is no such model or its files are not valid.
    """
    path = find_weights(name, weights)
    card = read_card(path.parent, path.name)
    cascade = read_first(path.parent, card) is not None
    try:
        model = build(card.name, card.arguments)
        if card.own_weights:
            add_variants(model, {name: build(card.name, card.arguments) for name in card.own_weights})
    except UserError as error:
        raise UserError(f"{path.parent / CONFIG}: {error}") from None
    load_into(model, path)
    whole = Model(model, card)
    for each, own in (whole, *variants(whole).values()):
        if card.patch and card.name != "meshnet":  # a MeshNet needs no patches: its tiles are exact
            each.patch = card.patch
        each.card = own  # by which the public ``predict`` knows what a volume must be
    if cascade:
        model.first = load_model(path.parent / FIRST)
    return whole

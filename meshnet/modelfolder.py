"""A model folder: weights (safetensors) beside ``config.json``, in and out.

A run folder, ``weights/NAME/`` and a Hub repository have the same form. ``config.json`` holds all that is needed to use
the weights: the architecture, and how a scan must look before it reaches the network.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from meshnet import ROOT, __version__
from meshnet.errors import UserError
from meshnet.files import whole_file, write_json

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 1
CARD, WEIGHTS = "config.json", "model.safetensors"
BUILT_IN = ROOT / "weights"
DEFAULT_NAME = "meshnet16-synthetic"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
DEFAULTS = {
    "voxel_mm": 1.0, "shape": None, "orientation": "LIA", "centre": "n/2", "averaged": False,
    "scaling": "conform_uint8", "window": None,
    "shifted": False,  # whether a second grid, half a voxel further, is looked at as well and the mean is taken
    "crop": None, "patch": None, "threshold": 0.5, "min_lesion_mm3": 0, "training_data": None, "metrics": {},
    "version": None,
    "marks": None,  # the only class that is marked, by the threshold, where others are there to tell it from them
}
MESHNET_FIELDS = ("channels", "dilations", "norm", "norm_affine", "norm_groups", "activation", "bias", "final_bias",
                  "dropout")


def build(name: str, arguments: dict) -> nn.Module:
    """The network ``name`` with fresh weights.

    Args:
        name: ``meshnet`` or one of ``meshnet.baselines.NETWORKS`` (imported only when asked for).
        arguments: of the constructor; ``in_channels``, ``classes`` and ``checkpointing`` are common to all.

    The module carries ``name`` and ``arguments``, from which ``build`` makes the same network again.

    Raises:
        UserError: for an unknown name or arguments that the network does not take.
    """
    try:
        if name == "meshnet":
            from meshnet.model import MeshNet

            model = MeshNet(**arguments)
        else:
            from meshnet import baselines

            model = baselines.build(name, **arguments)
    except (ValueError, TypeError) as error:
        raise UserError(f"model {name}: {error}") from error
    model.name = name
    return model


def arguments_from_config(model_config, in_channels: int, classes: int, shape: tuple[int, int, int]) -> dict:
    """What ``build`` needs for a ``ModelConfig``.

    Args:
        model_config: ``meshnet.config.ModelConfig``.
        in_channels, classes: of the data set.
        shape: voxels of one training case after the crop. Networks with a learned position for every patch of the
            input (UNETR) are built for ``model.patch``, or for this shape where there are no patches.
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


def save_model(folder: str | Path, model: nn.Module, card: dict, weights: str = WEIGHTS) -> None:
    """Write ``folder/weights`` and ``folder/config.json``, each whole or not at all, the card last.

    Args:
        model: a network from ``build`` or a ``MeshNet``; its tensors are written as they are, from any device.
        card: ``channels`` and ``classes`` (names, background first) and whatever of ``DEFAULTS`` differs;
            ``format``, ``name``, ``arguments`` and ``version`` are filled in.
    """
    assert card.get("classes") and card.get("channels"), "a card names its channels and classes"
    full = {"format": FORMAT, "name": getattr(model, "name", "meshnet"), "arguments": model.arguments}
    full |= DEFAULTS | {"version": __version__} | card
    save_weights(Path(folder) / weights, model.state_dict())
    write_json(Path(folder) / CARD, full)


def save_weights(path: str | Path, state: dict[str, torch.Tensor]) -> None:
    """Write tensors to a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary)


def read_card(folder: str | Path) -> dict:
    """``config.json`` of a model folder, with ``DEFAULTS`` filled in.

    Raises:
        UserError: where it is missing, not JSON, of another format, or lacks what a network needs.
    """
    path = Path(folder) / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not found; a model folder holds {CARD} beside its weights. Give a run folder, a "
                        "model folder or a Hub name") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); copy the model folder again") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise UserError(f"{path}: found format {found!r}, expected {FORMAT}; this file is not from this program or "
                        "from a newer version of it")
    for key, kind in (("name", str), ("arguments", dict), ("channels", list), ("classes", list)):
        if not isinstance(card.get(key), kind) or not card[key]:
            raise UserError(f"{path}: found {key} = {card.get(key)!r}, expected a {kind.__name__} that is not empty")
    for key, listed in (("in_channels", "channels"), ("classes", "classes")):
        number = card["arguments"].get(key, len(card[listed]))
        if number != len(card[listed]):
            raise UserError(f"{path}: found {len(card[listed])} {listed}, expected {number} as arguments.{key} says")
    for key in ("averaged", "shifted"):
        if not isinstance(card.get(key, False), bool):
            raise UserError(f"{path}: found {key} = {card[key]!r}, expected true or false")
    if card.get("marks") is not None and card["marks"] not in card["classes"][1:]:
        raise UserError(f"{path}: found marks = {card['marks']!r}, expected one of {', '.join(card['classes'][1:])}")
    return DEFAULTS | card


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        UserError: where it is missing or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.safetensors")))
        raise UserError(f"{path}: not found; {'there is ' + others if others else 'the folder has no weights'}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again, or import other formats with "
                        "python -m meshnet.export import") from None


def check_weights(state: dict[str, torch.Tensor], model: nn.Module, path: Path) -> None:
    """Raise a one-line UserError unless ``state`` has exactly the names and shapes of ``model``."""
    expected = model.state_dict()
    for kind, names in (("lacks", expected.keys() - state.keys()), ("has unknown", state.keys() - expected.keys())):
        if names:
            some = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            raise UserError(f"{path}: {kind} {len(names)} tensors ({some}); it does not belong to the {CARD} beside it")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(f"{path}: found {name} of shape {tuple(tensor.shape)}, expected "
                            f"{tuple(expected[name].shape)}; it does not belong to the {CARD} beside it")


def default_model() -> Path:
    """The folder of the built-in model.

    Raises:
        UserError: where this copy of the program has none.
    """
    folder = BUILT_IN / DEFAULT_NAME
    if not (folder / CARD).is_file():
        raise UserError(f"{folder}: no built-in model here; name one with --model (a run folder or a Hub name)")
    return folder


def find_folder(name: str | Path) -> Path:
    """The local folder of a model, run, built-in name, registry name, or Hub name ``user/name[@revision]``.

    What exists on disk goes before names; a Hub or registry name may be downloaded.

    Raises:
        UserError: where nothing of that name can be had.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.suffix == ".safetensors":
        return path.parent
    text = str(name)
    if path.name == text and (BUILT_IN / text / CARD).is_file():
        return BUILT_IN / text
    from meshnet import (
        hub,  # one floor up: only names that are not on disk lead there
        registry,
    )

    if text in registry.PUBLIC:
        return registry.fetch(text)
    if HUB_NAME.fullmatch(text) and not path.is_file():
        return hub.pull_missing(text)
    built_in = sorted(p.parent.name for p in BUILT_IN.glob(f"*/{CARD}"))
    raise UserError(f"{text}: found no such model; expected a model or run folder, a .safetensors file beside its "
                    f"{CARD}, a Hub name user/name[@revision], or one of {', '.join([*built_in, *registry.PUBLIC])}")


def find_weights(name: str | Path, weights: str) -> Path:
    """The weights file of a model, as ``load_model`` describes ``name`` and ``weights``."""
    is_file = Path(name).suffix == ".safetensors" and not Path(name).is_dir()
    return find_folder(name) / (Path(name).name if is_file else weights)


def load_model(name: str | Path, weights: str = WEIGHTS) -> tuple[nn.Module, dict]:
    """A trained network, ready for inference.

    Args:
        name: a model or run folder, a ``.safetensors`` file beside its ``config.json``, a built-in or registry name
            (``infer.py --list_models``), or a Hub name ``user/name[@revision]``.
        weights: which file of the folder: ``model.safetensors`` (best), ``last.safetensors``,
            ``model_ema.safetensors``. A ``.safetensors`` path given as ``name`` decides by itself.

    Returns:
        The module on the CPU, in float32 and in eval mode, and the card (``config.json`` with defaults filled in).

    Raises:
        UserError: one line, for every way in which the files can be wrong.
    """
    path = find_weights(name, weights)
    folder = path.parent
    card = read_card(folder)
    state = read_weights(path)
    try:
        model = build(card["name"], card["arguments"])
    except UserError as error:
        raise UserError(f"{folder / CARD}: {error}") from None
    check_weights(state, model, path)
    model.load_state_dict(state)
    if card["patch"] and card["name"] != "meshnet":  # a MeshNet sees the same in patches and in the whole
        model.patch = card["patch"]
    return model.eval(), card

"""Model folders: weights (safetensors) beside ``config.json``, written, read and found by name.

Run folders, ``weights/NAME/`` and repositories on the Hub have this form. ``config.json`` holds all that is needed to
use the weights: the architecture, and how a scan must be prepared for it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meshnet import ROOT
from meshnet.errors import UserError
from meshnet.files import near, whole_file, write_json
from meshnet.flags import alike
from meshnet.hub import pull_missing
from meshnet.networks.card import CONFIG, WEIGHTS, Card
from meshnet.networks.cascade import FIRST, FOR_CONTRAST

if TYPE_CHECKING:
    import torch
    from torch import nn

BUILT_IN = ROOT / "weights"
DEFAULT_NAME = "meshnet16-cascade"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def save_model(folder: str | Path, model: nn.Module, card: Card, weights: str = WEIGHTS) -> None:
    """Write ``folder/weights`` and ``folder/config.json``, each whole or not at all, the card last. The first network
    of a cascade that ``load_model`` returned is written as well.

    Args:
        model: a network from ``build`` or a ``MeshNet``; its tensors are written as they are, from any device.
        card: how a scan must be prepared; ``name`` and ``arguments`` are filled in from the model.

    Raises:
        UserError: where the model has other weights for other contrasts than the card says.
    """
    if set(own := getattr(model, FOR_CONTRAST, {})) != set(card.own_weights):
        said = ", ".join(card.own_weights) or "no contrast"
        raise UserError(f"{folder}: found a card with other weights for {said}, expected {', '.join(own) or 'none'} as "
                        "the network has; save a cascade as load_model returned it")
    card = card.changed(name=getattr(model, "name", "meshnet"), arguments=model.arguments)
    if card.first and getattr(model, "first", None) is not None:
        save_model(Path(folder) / FIRST, *model.first)
    save_weights(Path(folder) / weights, model.state_dict())
    write_json(Path(folder) / CONFIG, card.to_dict())


def save_weights(path: str | Path, state: dict[str, torch.Tensor]) -> None:
    """Write the tensors of ``state`` to a safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary)


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
                        "python share.py import") from None


def check_weights(state: dict[str, torch.Tensor], model: nn.Module, path: Path) -> None:
    """Raise a one-line UserError unless ``state`` has exactly the names and shapes of ``model``."""
    expected = model.state_dict()
    for kind, names in (("lacks", expected.keys() - state.keys()), ("has unknown", state.keys() - expected.keys())):
        if names:
            some = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
            raise UserError(f"{path}: {kind} {len(names)} tensors ({some}); it does not belong to the {CONFIG} beside "
                            "it")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(f"{path}: found {name} of shape {tuple(tensor.shape)}, expected "
                            f"{tuple(expected[name].shape)}; it does not belong to the {CONFIG} beside it")


def load_into(model: nn.Module, path: Path) -> nn.Module:
    """``model`` with the weights of a safetensors file, in evaluation mode.

    Raises:
        UserError: where the file is not valid or belongs to another network.
    """
    state = read_weights(path)
    check_weights(state, model, path)
    model.load_state_dict(state)
    return model.eval()


def default_model() -> Path:
    """The folder of the built-in model.

    Raises:
        UserError: where it is missing from this copy of the program.
    """
    folder = BUILT_IN / DEFAULT_NAME
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no built-in model here; name one with --model (a run folder or a Hub name)")
    return folder


def find_folder(name: str | Path) -> Path:
    """The local folder of a model: a folder, a ``.safetensors`` file, a built-in name or a Hub name.

    A folder on disk goes before a name. A Hub name ``user/name[@revision]`` is downloaded if it is not in the cache.

    Raises:
        UserError: where there is no such model.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.suffix == ".safetensors":
        return path.parent
    text = str(name)
    if path.name == text and (BUILT_IN / text / CONFIG).is_file():
        return BUILT_IN / text
    if HUB_NAME.fullmatch(text) and not path.is_file():
        return pull_missing(text)
    built_in = sorted(p.parent.name for p in BUILT_IN.glob(f"*/{CONFIG}"))
    raise UserError(f"{text}: found no such model; expected a model or run folder, a .safetensors file beside its "
                    f"{CONFIG}, a Hub name user/name[@revision], or one of {', '.join(built_in)}; fetch a published "
                    f"network of infer.py --list_models with: python share.py pull NAME FOLDER{meant(text, built_in)}")


def meant(text: str, built_in: Sequence[str]) -> str:
    """``; did you mean meshnet16-synthetic?`` for the name of no model: a path nearly so called, a built-in name, or a
    run of that name in ``runs``, where they are trained."""
    if beside := near(text):
        return beside
    like = alike(text, built_in)
    with contextlib.suppress(OSError):
        runs = {one.name: one for one in sorted(Path("runs").iterdir()) if (one / CONFIG).is_file()}
        like += [runs[text].as_posix()] if text in runs else [runs[name].as_posix() for name in alike(text, list(runs))]
    return f"; did you mean {' or '.join(like)}?" if like else ""


def find_weights(name: str | Path, weights: str = WEIGHTS) -> Path:
    """The path of a model's weights. Arguments as ``build.load_model``."""
    is_file = Path(name).suffix == ".safetensors" and not Path(name).is_dir()
    return find_folder(name) / (Path(name).name if is_file else weights)

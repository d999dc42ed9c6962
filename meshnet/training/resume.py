"""Resume points: the exact state of a run, written whole or not at all; the newest are kept.

A state is one file, ``state/step-00000120.pt``, of tensors and plain values, read with ``weights_only=True``.
"""

import io
import pickle
from pathlib import Path

import torch

from meshnet.errors import Surroundings, UserError
from meshnet.files import whole_file
from meshnet.networks.card import WEIGHTS, read_card
from meshnet.training.agree import by_main


def save_state(folder: Path, step: int, state: dict, keep: int) -> Path:
    """Write ``state`` as the resume point of ``step``; older ones are deleted only after the new one is in place."""
    path = folder / f"step-{step:08d}.pt"
    with whole_file(path) as temporary:
        torch.save(state, temporary)
    for old in list_states(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def list_states(folder: Path) -> list[Path]:
    """Resume points, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def load_state(folder: Path, accelerator=None) -> dict | None:
    """The newest resume point, on the CPU, or None where there is none.

    Of several processes (``accelerator``) the main one reads it and sends it to the others, so that all of them go on
    from the same one, also where the folder is not shared.

    Raises:
        Surroundings: if it cannot be read (a disk fault; not a kill, since files are renamed into place).
    """
    if accelerator is None or accelerator.num_processes == 1:
        path = next(reversed(list_states(folder)), None)
        return None if path is None else read_state(path, path)
    path, content = by_main(accelerator, lambda: newest_file(folder))
    return None if path is None else read_state(path, io.BytesIO(content))


def newest_file(folder: Path) -> tuple[Path | None, bytes]:
    """Path and content of the newest resume point; None and nothing where there is none."""
    path = next(reversed(list_states(folder)), None)
    return path, b"" if path is None else path.read_bytes()


def read_state(path: Path, source: Path | io.BytesIO) -> dict:
    """The resume point in ``source``, called ``path``."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise Surroundings(f"{path}: cannot be read ({type(error).__name__}); delete it to continue from the "
                        "previous one, or use another --run_dir") from None


def check_kept(folder: Path, best_epoch: int) -> None:
    """Whether the weights of the best epoch so far (0 or below: there is none) lie beside their card.

    Raises:
        UserError: where one is not there: training on would write it again only after a still better epoch.
    """
    if best_epoch < 1:
        return
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder / WEIGHTS}: not there, expected the weights of epoch {best_epoch}, the best so "
                        "far; bring the file back, or begin anew with --no-resume or another --run_dir")
    read_card(folder)


def random_state(device: torch.device | None = None) -> dict:
    """The state of torch's generators: the CPU's and, on a GPU, that of this process's own ``device`` alone, since a
    run may go on where other GPUs are visible. Cases draw from generators of their own."""
    state = {"cpu": torch.get_rng_state()}
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict, device: torch.device | None = None) -> None:
    """Put torch's generators where ``random_state`` found them."""
    torch.set_rng_state(state["cpu"])
    kept = state.get("cuda")
    if kept is not None and device is not None and device.type == "cuda":
        if isinstance(kept, list | tuple):  # of every GPU that was visible: resume points of earlier versions
            kept = kept[min(device.index or 0, len(kept) - 1)]
        torch.cuda.set_rng_state(kept, device)

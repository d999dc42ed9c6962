"""Resume points: the exact state of a run, written whole or not at all; the newest are kept.

A state is one file, ``state/step-00000120.pt``, of tensors and plain values, read with ``weights_only=True``.
"""

import pickle
from pathlib import Path

import torch

from meshnet.errors import Surroundings
from meshnet.files import whole_file


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


def load_state(folder: Path) -> dict | None:
    """The newest resume point, on the CPU, or None where there is none.

    Raises:
        Surroundings: if it cannot be read (a disk fault; not a kill, since files are renamed into place).
    """
    states = list_states(folder)
    if not states:
        return None
    try:
        return torch.load(states[-1], map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise Surroundings(f"{states[-1]}: cannot be read ({type(error).__name__}); delete it to continue from the "
                        "previous one, or use another --run_dir") from None


def random_state() -> dict:
    """The state of torch's generators (CPU and every visible GPU). Cases draw from generators of their own."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict) -> None:
    """Put torch's generators where ``random_state`` found them."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])

"""What the processes of a run must agree on: the main one decides, and the others hear it."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list, gather_object

from meshnet.errors import UserError

T = TypeVar("T")


def by_main(state, decide: Callable[[], T]) -> T:
    """What ``decide`` gives on the main process, on every process; what it raises ends all of them.

    ``state`` is Accelerate's, or an accelerator. All processes must call this. Without it each would look at the disk
    for itself, and a folder that is not shared, or a listing that comes late, would let them go different ways.
    """
    if state.num_processes == 1:
        return decide()
    said: list = [None, None]
    if state.is_main_process:
        try:
            said[0] = decide()
        except (UserError, OSError) as error:
            said[1] = error
    broadcast_object_list(said)
    if said[1] is not None:
        raise said[1]
    return said[0]


def with_others(state, loss: torch.Tensor) -> torch.Tensor:
    """(2,), on the device of ``loss``: this process's loss, and on how many processes it is NaN or infinite.

    All processes must call this. Without it the others would wait in the backward pass for the one that ends.
    """
    wrong = (~torch.isfinite(loss)).float()
    return torch.stack([loss.float(), wrong if state.num_processes == 1 else state.reduce(wrong, "sum")])


def first_line_of(state, line: str | None) -> str:
    """The first ``line`` that is not None, of all processes; all must call this, and one at least has one."""
    lines = [line] if state.num_processes == 1 else gather_object([line])
    return next(each for each in lines if each is not None)

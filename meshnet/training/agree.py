"""What the processes of a run must agree on: the main one decides, and the others hear it."""

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import broadcast_object_list

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

"""What goes wrong with one scan of many: recorded as its failure, or the end of the process that did it."""

import re
import sys
import traceback

from meshnet.cohort.records import label
from meshnet.errors import GPU, UserError, explain, first_line, is_memory


def ends_all(error: Exception) -> bool:
    """Whether every scan after this one would fail as well: of a disk that is full or away, and of a lost GPU."""
    return not isinstance(error, UserError) and (breaks_gpu(error) or bool(explain(error)))


def breaks_gpu(error: Exception) -> bool:
    """Whether this process can no longer compute on its GPU, perhaps because of the scan."""
    return isinstance(error, RuntimeError) and not is_memory(error) and bool(
        re.search(f"CUDA error|{GPU}", str(error), re.IGNORECASE))


def failure_of(case: dict, error: Exception) -> UserError:
    """An error as the failure of one scan, in one line. One that nobody foresaw keeps its traceback on standard error.
    """
    if isinstance(error, UserError):
        return error
    if is_memory(error):
        empty_gpu()
        return UserError(f"{label(case)}: out of memory ({type(error).__name__}), expected enough for this scan; give "
                         "more, --max_memory or --device cpu, then run the same command again")
    traceback.print_exception(error, file=sys.stderr)
    words = "" if "name" in case else f": {first_line(error)}"  # of DICOM they may hold the patient's
    return UserError(f"{label(case)}: found {type(error).__name__}{words}, a fault of this program; report it with the "
                     "lines printed above it")


def empty_gpu() -> None:
    """Give the memory back that the failed scan left in PyTorch's store, for the next one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()

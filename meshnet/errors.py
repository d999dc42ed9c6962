"""How a script ends: one line on stderr and an exit code; a fault of ours keeps its traceback.

0    done
2    the user can correct it: a wrong flag, file or data set
3    train.py: the loss became NaN or infinite
4    the surroundings failed: disk full, data set or share away, shared memory, GPU lost. Only where search.py or
     crossval.py started the process, which then tries again later; a person reads the line, and the code is 2
5    out of memory
128+ a signal: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP
"""

import contextlib
import errno
import importlib.util
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from meshnet.colours import open_streams
from meshnet.flags import Guessing, add_version, help_text, meant
from meshnet.numbers import add_numbers

if TYPE_CHECKING:
    import socket

# The packages of requirements.txt by the names under which they are imported. Scripts load the first ones at their top.
LOADED_FIRST = ("numpy", "scipy", "nibabel")
REQUIRED = (*LOADED_FIRST, "yaml", "simple_parsing", "torch", "accelerate", "datasets", "huggingface_hub",
            "safetensors", "pandas", "sklearn", "threadpoolctl", "nilearn", "monai", "einops", "matplotlib", "tqdm",
            "wandb")
USER_ERROR, DIVERGED, SURROUNDINGS, OUT_OF_MEMORY = 2, 3, 4, 5  # exit codes
TOKEN = "MESHNET_JOB"  # in the environment of every process that search.py or crossval.py started
WORD = "MESHNET_WORD"  # likewise: the file that takes exit code and last line of the first of a job's processes to fail
ELASTIC = "TORCHELASTIC_ERROR_FILE"  # likewise of torchrun and accelerate launch, for each process
GRACE = 10.0  # seconds that a script has to end after a signal

SPACE, AGAIN = "free some space", "then run the same command again"
DISK = f"check the disk or the share, {AGAIN}"
RIGHTS = f"check who may write there, or choose another folder, {AGAIN}"
REMEDIES = {  # what a failing system call says about the surroundings, and what to do
    errno.ENOSPC: f"{SPACE}, {AGAIN}", errno.EDQUOT: f"{SPACE}, {AGAIN}", errno.EFBIG: f"raise ulimit -f, {AGAIN}",
    errno.EACCES: RIGHTS, errno.EPERM: RIGHTS, errno.EROFS: RIGHTS,
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT,
                     errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
                     getattr(errno, "EREMOTEIO", errno.EIO)), DISK),  # Linux alone has the last one
    errno.EMFILE: f"raise ulimit -n, {AGAIN}", errno.ENFILE: f"close other programs, {AGAIN}",
}
GONE = (errno.ENOENT, errno.ENOTDIR)  # a file that is named in the error
# What libraries say instead of an error number. Compiled on use, as all patterns here: --help must answer at once.
WORDS = (
    (r"no space left on device|database or disk is full|PytorchStreamWriter failed|unexpected pos \d+ vs|"
     r"iostream error", errno.ENOSPC),
    (r"disk quota exceeded", errno.EDQUOT),
    (r"read-only file system|readonly database", errno.EROFS),
    (r"stale (NFS )?file handle", errno.ESTALE),
    (r"disk I/O error|input/output error", errno.EIO),
    (r"too many open files", errno.EMFILE),
)
NUMBER = r"\[Errno (\d+)\]|os error (\d+)"  # as Python and Rust write it into a message
MEMORY = r"out of memory|OutOfMemoryError|can't allocate memory|bad_alloc"
GPU = (r"CUDA-capable device|unspecified launch failure|uncorrectable|GPU is lost|NVML|NCCL error|driver shutting down|"
       r"CUDA error: (unknown error|initialization error)")


class UserError(Exception):
    """Something the user can correct: one line with the path or flag, what was found, what was expected, what to do."""


class Surroundings(UserError):
    """As ``UserError``, where neither the command nor the run is at fault but what surrounds it: the same command goes
    on once that is right again."""


class Diverged(Exception):
    """Training came to NaN or infinite numbers. The message says where and what to try."""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end; ``number`` is the signal's."""

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(number)
        self.number = number


def check_packages() -> None:
    """End a script that runs outside the project's environment with one line, before its imports end it with many."""
    missing = [name for name in LOADED_FIRST if importlib.util.find_spec(name) is None]
    if missing:
        open_streams()
        print(f"error: {explain_missing(', '.join(missing))}", file=sys.stderr)
        sys.exit(2)


def explain_missing(names: str) -> str:
    """What to do about required packages that the running Python does not have."""
    return (f"{sys.executable}: found no Python package {names}, expected those of requirements.txt; run the script "
            "with .venv/bin/python, which 'make test' sets up, or pip install -r requirements.txt")


# ---------------------------------------------------------------------- the end of a script

def run_script(main: Callable[[], int | None], grace: float = GRACE, continues: bool = False) -> None:
    """Call ``main`` and leave the process with its exit code.

    What the user can correct, what the surroundings do and a signal become one line on stderr and an exit code, see the
    top of this file. A reader of standard output that has left, as ``head`` does, ends the script without a word, exit
    code 141. Everything else keeps its traceback.

    grace: seconds after a signal in which ``main`` may tidy up. continues: whether the same command goes on then.
    """
    open_streams()
    with ended_by_signals(grace):
        try:
            code = main() or 0
            sys.stdout.flush()
        except BrokenPipeError:
            mute()
            code = 141  # as the shell names a process that SIGPIPE ended
        except BaseException as error:
            code, line = describe_end(error)
            leave_word(code, line or f"{type(error).__name__}: {first_line(error)}")
            if not line:
                raise
            say_last(line + "; the same command continues" * (continues and code >= 128))
    sys.exit(code)


def describe_end(error: BaseException) -> tuple[int, str]:
    """Exit code and the line to print for what ended a script; ``(1, "")`` for a fault of ours."""
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "number", signal.SIGINT)
        by = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
        return 128 + number, f"interrupted{by}"
    if isinstance(error, UserError):
        return code_of(isinstance(error, Surroundings)), f"error: {' '.join(str(error).split())}"
    if isinstance(error, Diverged):
        return DIVERGED, f"error: {' '.join(str(error).split())}"
    if isinstance(error, ModuleNotFoundError) and error.name in REQUIRED:
        return USER_ERROR, f"error: {explain_missing(error.name)}"
    line = explain(error) if isinstance(error, Exception) else ""
    if line:
        return code_of(True), f"error: {line}"
    if is_memory(error):
        return OUT_OF_MEMORY, (f"error: out of memory ({first_line(error)}); use a smaller batch or patch, "
                               "--training.memory_budget or fewer --workers, or more memory")
    return 1, ""


def code_of(surroundings: bool) -> int:
    """The exit code for a person, or for the driver that started this process."""
    return SURROUNDINGS if surroundings and os.environ.get(TOKEN) else USER_ERROR


def explain(error: BaseException) -> str:
    """One line if an error, or one that led to it, comes from the surroundings; "" otherwise."""
    seen, one = [], error
    while one is not None and one not in seen:
        number = number_of(one)
        name = getattr(one, "filename", None) if isinstance(one, OSError) else None
        if number in REMEDIES:
            return f"{name or 'output'}: {os.strerror(number)}; {REMEDIES[number]}"
        if number in GONE and name and one is error:
            return f"{name}: {os.strerror(number)}; {DISK}"
        if isinstance(one, RuntimeError) and re.search(GPU, str(one), re.IGNORECASE):
            return f"GPU: {first_line(one)}; check it (nvidia-smi), {AGAIN}"
        seen.append(one)
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return ""


def number_of(error: BaseException) -> int | None:
    """The system's error number behind an error, from its words where it has no other; None where it has none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, UserError | KeyError):
        return None
    text = str(error)
    if found := re.search(NUMBER, text):
        return int(found[1] or found[2])
    return next((number for words, number in WORDS if re.search(words, text, re.IGNORECASE)), None)


def is_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of its GPU, was not enough."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(re.search(MEMORY, str(error), re.IGNORECASE))) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM)


def first_line(error: BaseException) -> str:
    """The first line of an error's words, at most 200 characters; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__


def say_last(line: str) -> None:
    """Print the last line of a script on stderr; a log on a full disk keeps neither it nor the exit code back."""
    try:
        print(line, file=sys.stderr, flush=True)
        sys.stdout.flush()
    except (OSError, ValueError):
        mute()


def leave_word(code: int, line: str, ended: bool = True) -> None:
    """Leave exit code and last line for the driver that started this job, if it ``ended`` there; launchers of several
    processes hide them. And for torchrun, which then ends with that line instead of with a link.

    The first process that fails is the cause; what the others then say of a lost connection, or of the launcher that
    ends them, is kept out.
    """
    told = {"message": line, "extraInfo": {"timestamp": str(int(time.time()))}}
    for name, word in ((WORD, {"code": code, "line": line}), (ELASTIC, {"message": told})):
        if (path := os.environ.get(name)) and code < 128 and (ended or name == ELASTIC):
            with contextlib.suppress(OSError), open(path, "x", encoding="utf-8") as file:
                json.dump(word, file)


def mute() -> None:
    """Send what is still to be printed nowhere: Python complains otherwise, and changes the exit code, as it leaves."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                os.dup2(nowhere, stream.fileno())


@contextlib.contextmanager
def decoration(what: str, without: str = "goes on without it") -> Iterator[None]:
    """Around pictures and trackers: whatever goes wrong is said in one line, and ends nothing.

    what: names it, the path first where there is one.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - a picture or a tracker is never worth a run
        with contextlib.suppress(OSError):
            print(f"warning: {what}: {type(error).__name__}: {first_line(error)}; {without}", file=sys.stderr,
                  flush=True)


@contextlib.contextmanager
def surrounding() -> Iterator[None]:
    """Around what depends on files that no setting of a run can mend: a ``UserError`` there is ``Surroundings``."""
    try:
        yield
    except UserError as error:
        raise Surroundings(str(error)) from error


# ---------------------------------------------------------------------- signals

def ending_signals() -> list[int]:
    """The signals that ask a script to end: SIGINT and SIGTERM always, whatever a shell set for its background jobs;
    SIGHUP unless it is ignored, as nohup has it."""
    hup = getattr(signal, "SIGHUP", None)
    kept = [hup] if hup is not None and signal.getsignal(hup) is not signal.SIG_IGN else []
    return [signal.SIGINT, signal.SIGTERM, *kept]


@contextlib.contextmanager
def ended_by_signals(grace: float) -> Iterator[None]:
    """Raise ``Interrupted`` in the main thread for a signal that asks to end. Python drops an exception that is raised
    while it forks or frees an object, so it is raised again up to three times within ``grace`` seconds; after them the
    process ends all the same, as out of a long computation outside Python."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    heard, process = [], os.getpid()

    def stop(number, frame):
        if os.getpid() == process and _is_dropped(frame):
            again = threading.Timer(0.1, os.kill, (process, number))
            again.daemon = True
            again.start()
        elif not heard:  # a second one must not disturb what the first one tidies up
            heard.append(number)
            raise Interrupted(number)

    before = {number: signal.signal(number, stop) for number in ending_signals()}
    import socket

    theirs, ours = socket.socketpair()
    ours.setblocking(False)
    fd_before = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    over = threading.Event()
    threading.Thread(target=_end_late, args=(theirs, over, grace, set(before), heard), daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(fd_before)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        ours.close()


def _is_dropped(frame) -> bool:
    """Whether Python would drop, and print, an exception raised in ``frame``: within a fork or a ``__del__``."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code.co_filename.endswith("popen_fork.py"):
            return True
        frame = frame.f_back
    return False


def _end_late(told: "socket.socket", over: threading.Event, grace: float, numbers: set[int], heard: list[int]) -> None:
    """End the process ``grace`` seconds after the first of ``numbers`` arrived, unless it is ``over`` by then."""
    main = threading.main_thread().ident
    with told:
        while (byte := told.recv(1)) and byte[0] not in numbers:
            pass
        if not byte:
            return
        for _ in range(3):
            if over.wait(grace / 4):
                return
            heard.clear()
            signal.raise_signal(byte[0]) if os.name == "nt" else signal.pthread_kill(main, byte[0])
        if not over.wait(grace / 4):
            workers = sys.modules.get("multiprocessing")  # they hold the lock of a run folder with it
            for child in workers.active_children() if workers else ():
                child.kill()
            os.write(2, f"interrupted by {signal.Signals(byte[0]).name}\n".encode())
            os._exit(128 + byte[0])


class OneLineParser(Guessing):
    """An argument parser whose errors are one line, and whose numbers are those of ``read_number``."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        add_numbers(self)
        add_version(self)

    def format_help(self) -> str:
        return help_text(self, super().format_help)

    def error(self, message: str):
        raise UserError(f"{message}{meant(self, message)}; see {self.prog} --help")

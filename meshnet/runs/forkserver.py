"""Runs that start without importing anything: they are forked from a process that has imported it all already.

A short run spends most of its time on imports. ``ForkServer`` keeps one process that has imported what train.py needs
and has computed nothing: no pool of threads, no device. For each run it forks. The child takes the run's environment,
arguments and log, leads a process group of its own and runs the script as ``__main__``, as if it had been started
alone. Linux only: elsewhere libraries do not allow a fork after they were loaded.

A run outlives the server and the driver: it is found again by its process id and by the token in its environment (see
``processes``), which /proc shows as it was when the program was started. So the server is started with a token of
zeros, and the child overwrites that memory with its own; its command line, as ``ps`` shows it, likewise.

Run as a program (``python -c "..." ROOT SCRIPT FD DRIVER``), ``main`` is the server: it calls the script's function
``preload``, then reads a JSON line for each run from the socket FD, with the log's descriptor beside it, and answers
with lines ``{"pid": ...}`` and ``{"ended": ..., "code": ...}``. It ends with the process DRIVER.
"""

import contextlib
import ctypes
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from typing import BinaryIO

from meshnet import ROOT
from meshnet.errors import TOKEN
from meshnet.runs.processes import PROC, die_with_parent

SCRIPTS = ("train.py",)  # what is worth it: their imports take seconds; each has a function preload
NO_TOKEN = "0" * 32  # as long as a token
LONGEST = 2000  # characters of a command line that ps can show
PATIENCE = 300.0  # seconds until a server that does not answer is given up
START = "import sys; sys.path[0] = sys.argv[1]; from meshnet.runs.forkserver import main; main()"


def available() -> bool:
    """Whether runs can be forked on this system."""
    return sys.platform.startswith("linux") and PROC.joinpath("self", "environ").exists()


# ---------------------------------------------------------------------- the driver's side
class Forked:
    """A forked run, as far as ``subprocess.Popen`` is needed of it."""

    def __init__(self, server: "ForkServer", pid: int):
        self.server, self.pid, self.returncode = server, pid, None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        self.server.listen()
        self.returncode = self.server.codes.get(self.pid, self.returncode)
        return self.returncode

    def wait(self) -> int | None:
        """The exit code once it has ended; None if the server has gone, which alone could tell it."""
        while self.poll() is None and not self.lost():
            select.select([self.server.socket], [], [], 1)
        return self.returncode

    def lost(self) -> bool:
        """Whether the server has gone, so that no exit code will come."""
        return self.returncode is None and self.server.gone


class ForkServer:
    """The process that runs of ``script`` are forked from.

    environment: of the server; of it only what libraries read as they are loaded matters, such as ``OMP_NUM_THREADS``.
    """

    def __init__(self, script: str, environment: dict[str, str]):
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, str(ROOT), script, str(theirs.fileno()), str(os.getpid()), " " * LONGEST],
                env={**environment, TOKEN: NO_TOKEN}, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        self.rest, self.codes, self.pids, self.gone = b"", {}, [], False

    def start(self, command: list[str], environment: dict[str, str], output: BinaryIO) -> Forked | None:
        """Fork a run of ``command`` (Python, script, arguments) that prints into ``output``.

        The first call waits until the server has imported everything. None if the server has gone.
        """
        request = {"command": command, "environment": environment, "folder": os.getcwd()}
        with contextlib.suppress(OSError):
            socket.send_fds(self.socket, [b"\n"], [output.fileno()])
            self.socket.sendall(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + PATIENCE
        while not self.pids and not self.gone:
            select.select([self.socket], [], [], 1)
            self.listen()
            if time.monotonic() > deadline:
                self.close()
        if not self.pids:
            return None
        return Forked(self, self.pids.pop())

    def listen(self) -> None:
        """Take what the server has said, without waiting."""
        while not self.gone:
            try:
                text = self.socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                text = b""
            self.gone = not text
            *lines, self.rest = (self.rest + text).split(b"\n")
            for said in map(json.loads, lines):
                if "pid" in said:
                    self.pids.append(said["pid"])
                    self.codes.pop(said["pid"], None)  # of an earlier run, where the system uses its number again
                else:
                    self.codes[said["ended"]] = said["code"]

    def close(self) -> None:
        """End the server; runs that were forked from it go on."""
        self.gone = True
        self.socket.close()
        self.process.kill()
        self.process.wait()


# ---------------------------------------------------------------------- the server's side
def main() -> None:
    """Serve until the driver has gone; in a child, run the script and leave as Python leaves."""
    script, descriptor, driver = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    die_with_parent()  # a request that a killed driver has left behind must not become a run
    if os.getppid() != driver:
        return
    with contextlib.suppress(ImportError):  # the run itself says what is missing
        runpy.run_path(str(ROOT / script), run_name="preloaded")["preload"]()
    command = serve(socket.socket(fileno=descriptor))
    if command:
        sys.argv = command[1:]
        runpy.run_path(sys.argv[0], run_name="__main__")


def serve(line: socket.socket) -> list[str] | None:
    """Fork a child for each request: there, return its command; None once the driver has closed the socket."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([line, wake], [], [])
        if wake in ready:
            os.read(wake, 1 << 12)
        report_ends(line)
        if line not in ready:
            continue
        text, descriptors, _, _ = socket.recv_fds(line, 1, 1)
        if not text:
            return None
        with line.makefile("rb", buffering=0) as whole:
            request = json.loads(whole.readline())
        leads, says = os.pipe()
        if not (pid := os.fork()):
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            become(request, descriptors[0])
            for one in (line.detach(), wake, waker, leads, says):  # closing says wakes the server
                os.close(one)
            return request["command"]
        os.close(says)
        os.close(descriptors[0])
        os.read(leads, 1)  # until the child can be found by its group and its token
        os.close(leads)
        tell(line, {"pid": pid})


def report_ends(line: socket.socket) -> None:
    """Say which children have ended, and how."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            tell(line, {"ended": ended[0], "code": os.waitstatus_to_exitcode(ended[1])})


def tell(line: socket.socket, what: dict) -> None:
    """Send a line to the driver, if it still listens."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        line.sendall(json.dumps(what).encode() + b"\n")


def become(request: dict, log: int) -> None:
    """Take the run's group, output (a descriptor), folder, environment and name."""
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(request["folder"])
    show_as(request["environment"][TOKEN], request["command"])
    os.environ.clear()
    os.environ.update(request["environment"])


def show_as(token: str, command: list[str]) -> None:
    """Write the token and the command line over those that this process was started with, where /proc reads them."""
    fields = PROC.joinpath("self", "stat").read_text().rpartition(")")[2].split()
    arguments, end, environment, last = (int(field) for field in fields[45:49])  # fields 48 to 51 of proc(5)
    found = ctypes.string_at(environment, last - environment).find(f"{TOKEN}={NO_TOKEN}\0".encode())
    if found >= 0:
        ctypes.memmove(environment + found + len(TOKEN) + 1, token.encode(), len(NO_TOKEN))
    shown = b"\0".join(os.fsencode(word) for word in command)[: end - arguments - 1]
    ctypes.memmove(arguments, shown.ljust(end - arguments, b"\0"), end - arguments)

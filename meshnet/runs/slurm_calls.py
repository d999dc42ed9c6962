"""SLURM's commands and their words, and the script of a job."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

from meshnet.errors import UserError
from meshnet.runs.folder import METRICS, STATES
from meshnet.runs.jobs import Job

PATIENCE = 60.0  # seconds that a command of SLURM may take
JOB_FILE, END_FILE, STARTED, SCRIPT = ".slurm_job", ".slurm_end", ".slurm_started", ".slurm.sh"  # in the run folder
OURS = ("job-name", "output", "error", "open-mode", "dependency", "array", "wrap", "parsable", "requeue", "no-requeue",
        "chdir", "export", "ntasks", "nodes")
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
        "REVOKED", "TIMEOUT")
BY_SLURM = {"BOOT_FAIL": "lost its node while that booted", "CANCELLED": "was cancelled", "NODE_FAIL": "lost its node",
            "DEADLINE": "reached its deadline", "PREEMPTED": "was preempted", "REVOKED": "was revoked",
            "TIMEOUT": "reached its time limit", "": "is gone, and SLURM does not know how it ended"}
SIGNALLED = {128 + number for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL, signal.SIGHUP)}
# What sbatch says about flags that no waiting will mend.
WRONG = re.compile(r"invalid|unrecognized|unknown option|not permitted|requires an argument|ambiguous|must specify|"
                   r"requested node configuration|more processors requested|no partition", re.IGNORECASE)
# What it says where waiting does mend it: a full queue, a controller that is busy, away or restarting.
BUSY = re.compile(r"submit limit|submitjob|temporarily|try again|timed out|does not answer|unable to contact|"
                  r"connect failure|connection|controller|zero bytes|communication|not responding", re.IGNORECASE)
LIMITS = re.compile(r"\b(?:QOS|Assoc)[A-Z]\w*")  # the limit that a job is over, where sbatch names it
SCRIPT_TEXT = """#!/bin/bash
{directives}
cd {folder} || exit 4
rm -f {end}
touch {started}
export OMP_NUM_THREADS=$(( ${{SLURM_CPUS_PER_TASK:-${{SLURM_CPUS_ON_NODE:-1}}}} / {processes} ))
[ "$OMP_NUM_THREADS" -ge 1 ] || export OMP_NUM_THREADS=1
{command} &
child=$!
asked=
trap 'asked=138; kill -USR1 $child 2>/dev/null' USR1
trap 'asked=143; kill -TERM $child 2>/dev/null' TERM
while wait $child; kill -0 $child 2>/dev/null; do :; done
wait $child
code=$?
[ -n "$asked" ] && [ "$code" != 0 ] && code=$asked  # bash itself may make -1 of it
echo "$SLURM_JOB_ID ${{SLURM_RESTART_COUNT:-0}} $code" > {end}.$$ && mv {end}.$$ {end}
exit $code
"""


def parse_options(text: str | None) -> dict[str, str]:
    """``partition=gpu,gres=gpu:1,time=4:00:00`` as flags of sbatch; a name without a value is a flag by itself.

    Raises:
        UserError: for a form that is none of them, and for flags that the launcher sets.
    """
    found = {}
    for part in re.split(r",(?=[A-Za-z][\w-]*(?:=|,|$))", text or ""):
        name, _, value = part.strip().removeprefix("--").partition("=")
        if not name and not value:
            continue
        if not re.fullmatch(r"[A-Za-z][\w-]*", name) or "\n" in value:
            raise UserError(f"--slurm: found {part!r}, expected flags of sbatch as NAME=VALUE joined by commas, such "
                            "as partition=gpu,gres=gpu:1,time=4:00:00")
        if name in OURS:
            raise UserError(f"--slurm: found {name}, which the launcher sets itself, expected other flags of sbatch; "
                            "leave it out")
        found[name] = value
    return found


def gpus_of(options: dict[str, str]) -> int:
    """How many GPUs the flags of sbatch ask for on a node."""
    for name in ("gpus-per-node", "gpus", "gpus-per-task"):
        if name in options:
            return int(re.search(r"(\d+)$", options[name])[1]) if re.search(r"\d+$", options[name]) else 1
    found = re.search(r"\bgpu(?::[A-Za-z][\w.-]*)?(?::(\d+))?(?:$|,|\()", options.get("gres", ""))
    return int(found[1] or 1) if found else 0


def minutes_of(limit: str) -> float:
    """A time limit of sbatch (``MIN``, ``MIN:SEC``, ``H:M:S``, ``D-H``, ``D-H:M``, ``D-H:M:S``) in minutes; 0 for none.
    """
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", limit):
        return 0.0
    days, _, rest = limit.rpartition("-")
    parts = [float(part) for part in rest.split(":")]
    if days:
        hours, minutes, seconds = [*parts, 0.0, 0.0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0.0, [*parts, 0.0][:2]
    return float(days or 0) * 1440 + hours * 60 + minutes + seconds / 60


def command_of(words: Sequence[str], environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, output and errors of a command of SLURM; 1 where it is missing or does not answer."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL,
                              timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", f"{words[0]} does not answer ({type(error).__name__})"
    return done.returncode, done.stdout, done.stderr


def is_busy(line: str) -> bool:
    """Whether a refusal of sbatch is one that ends by itself. "Job violates accounting/QOS policy (job submit limit,
    user's size and/or time limits)" stands for a full queue and for a job that is too large; where a limit is named
    beside it, that says which."""
    limits = LIMITS.findall(line)
    return any("Submit" in name for name in limits) if limits else bool(BUSY.search(line))


def cancel_left(job: Job) -> None:
    """Cancel what an earlier driver with the SLURM launcher has left in the queue for a job."""
    with contextlib.suppress(OSError, ValueError):
        cancel([int((job.run_dir / JOB_FILE).read_text(encoding="utf-8"))])


def cancel(numbers: list[int]) -> None:
    """Have SLURM end jobs: SIGTERM first, SIGKILL after the cluster's own patience."""
    if not numbers:
        return
    code, _, err = command_of(["scancel", *map(str, numbers)])
    if code != 0:
        print(f"warning: scancel of {' '.join(map(str, numbers))}: {' '.join(err.split())[:200]}", file=sys.stderr)


def account(number: int) -> tuple[str, int | None]:
    """How a job ended, in SLURM's word ("" where it does not say), and its exit code, negative for a signal."""
    code, out, _ = command_of(["sacct", "-n", "-X", "-P", "-j", str(number), "-o", "State,ExitCode"])
    last = out.strip().splitlines()[-1].split("|") if code == 0 and out.strip() else []
    if len(last) < 2:
        code, out, _ = command_of(["scontrol", "show", "job", "-o", str(number)])
        fields = dict(part.split("=", 1) for part in out.split() if "=" in part) if code == 0 else {}
        last = [fields.get("JobState", ""), fields.get("ExitCode", "")]
    state = last[0].split()[0] if last[0].split() else ""
    found = re.fullmatch(r"(\d+):(\d+)", last[1])
    return state, (-int(found[2]) if int(found[2]) else int(found[1])) if found else None


def end_of(job: Job, number: int) -> int | None:
    """The exit code that the script of job ``number`` left; None where it has left none."""
    try:
        said = (job.run_dir / END_FILE).read_text(encoding="utf-8").split()
        return int(said[2]) if int(said[0]) == number else None
    except (OSError, ValueError, IndexError):
        return None


def mark_of(job: Job) -> tuple:
    """What changes when a run gets on: its lines of metrics and its resume points."""
    states = [(path.name, path.stat().st_mtime_ns) for path in sorted((job.run_dir / STATES).glob("*"))]
    with contextlib.suppress(OSError):
        return (job.run_dir / METRICS).stat().st_size, *states
    return (0, *states)


def quoted(value: str) -> str:
    """A value as a directive of sbatch takes it."""
    return f'"{value}"' if re.search(r"[\s#]", value) else value

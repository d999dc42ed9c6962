"""Which of how many processes with the same command this one is, by what launchers leave in the environment."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from meshnet.errors import UserError
from meshnet.runs.processes import start_time

SHARD = "MESHNET_SHARD"  # in the environment of the jobs of one command (``shards``): their place among each other


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is, and a name that all processes of one command share ("" alone).

    lines: for a job of a launcher, the file that takes a line of JSON for each item that it has done; "" for others.
    together: whether one process that ends with an error has the others ended, as torchrun does, and srun may.
    """

    index: int = 0
    count: int = 1
    command: str = ""
    lines: str = ""
    together: bool = False

    @property
    def shared(self) -> bool:
        """Whether other processes do the same list, or have begun it."""
        return self.count > 1 or bool(self.lines)

    def part(self, number: int) -> slice:
        """This process's part of a list of ``number`` items."""
        return slice(number * self.index // self.count, number * (self.index + 1) // self.count)

    def tell(self, **what) -> None:
        """Add a line for the driver of a launcher's jobs."""
        if self.lines:
            with open(self.lines, "a", encoding="utf-8") as file:
                file.write(json.dumps(what) + "\n")


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process among the jobs of a launcher, else among those of torchrun, of a SLURM array, of the steps of a
    SLURM job, or of both of these.

    Raises:
        UserError: where the variables contradict each other, or do not tell this launch from others.
    """
    if SHARD in environment:
        return shard_of(environment[SHARD])
    index, count, command = 0, 1, []
    if "SLURM_ARRAY_TASK_ID" in environment:
        first, step = number(environment, "SLURM_ARRAY_TASK_MIN", 0), number(environment, "SLURM_ARRAY_TASK_STEP", 1)
        index = max(0, number(environment, "SLURM_ARRAY_TASK_ID", 0) - first) // max(1, step)
        last = number(environment, "SLURM_ARRAY_TASK_MAX", first + index * step)
        count = max(number(environment, "SLURM_ARRAY_TASK_COUNT", 1), (last - first) // max(1, step) + 1, index + 1)
        command.append(f"array {environment.get('SLURM_ARRAY_JOB_ID', '')}")
    if "RANK" in environment and "WORLD_SIZE" in environment:
        inner, size = number(environment, "RANK", 0), number(environment, "WORLD_SIZE", 1)
        run, parent = environment.get("TORCHELASTIC_RUN_ID", ""), ""
        # Every launch without an id of its own has the same one, and often the same port. Then its launcher tells it
        # apart, where all processes have the same one, or the job of SLURM that it runs in.
        if run in ("", "none"):
            if environment.get("LOCAL_WORLD_SIZE", environment["WORLD_SIZE"]) == environment["WORLD_SIZE"]:
                parent = f" {os.getppid()} {start_time(os.getppid())}"
            elif environment.get("SLURM_JOB_ID"):
                parent = f" job {environment['SLURM_JOB_ID']} {environment.get('SLURM_STEP_ID', '')}"
            else:
                raise UserError("torchrun: found several machines and no name of this launch, expected one that tells "
                                "it from an earlier launch; add --rdzv_id NAME, another one each time")
        command.append(f"torchrun {run} {environment.get('MASTER_PORT', '')}{parent}")
    elif "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        inner, size = number(environment, "SLURM_PROCID", 0), number(environment, "SLURM_NTASKS", 1)
        command.append(f"step {environment.get('SLURM_JOB_ID', '')} {environment['SLURM_STEP_ID']}")
    else:
        inner, size = 0, 1
    if not 0 <= inner < size:
        raise UserError(f"RANK, SLURM_PROCID: found {inner} of {size} processes, expected a number below it; unset the "
                        "variable, or start the command with torchrun or srun")
    return Place(index * size + inner, count * size, "; ".join(command), together=size > 1)


def shard_of(text: str) -> Place:
    """The place that the driver of a launcher's jobs gave to one of them.

    Raises:
        UserError: where nobody of this version did.
    """
    try:
        found = Place(**json.loads(text))
        if not 0 <= found.index < found.count or not isinstance(found.command + found.lines, str):
            raise ValueError
        return found
    except (ValueError, TypeError):
        raise UserError(f"{SHARD}: found {text!r} in the environment, expected what --launcher sets; unset it"
                        ) from None


def check_environment(environment: Mapping[str, str]) -> None:
    """Refuse what torchrun, accelerate or a person left in the environment and Accelerate cannot read.

    Raises:
        UserError: naming the variable.
    """
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        number(environment, name, 0)
    switch = environment.get("ACCELERATE_USE_CPU", "false")
    if switch.lower() not in ("1", "true", "t", "yes", "y", "on", "0", "false", "f", "no", "n", "off"):
        raise UserError(f"ACCELERATE_USE_CPU: found {switch!r} in the environment, expected true or false; unset it")


def number(environment: Mapping[str, str], name: str, default: int) -> int:
    """A whole number from the environment.

    Raises:
        UserError: where it is none.
    """
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not text.removeprefix("-").isdecimal():
        raise UserError(f"{name}: found {text!r} in the environment, expected a whole number; unset it")
    return int(text)

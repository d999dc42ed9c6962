"""How a job is started: its command, and what stands in its environment.

A job without a GPU, or with one, is a plain Python process: a launcher above it would hide its exit code and its last
line. Only a job of several GPUs goes by ``accelerate launch``, with a configuration file that is always named, since
the launcher otherwise takes the user's own ``default_config.yaml``, whose ``gpu_ids`` send every slot to the same GPU.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from meshnet import ROOT
from meshnet.errors import TOKEN, WORD, UserError
from meshnet.machine import cpu_wanted
from meshnet.mapping import read_file
from meshnet.runs.folder import WORD_FILE
from meshnet.runs.jobs import Job

QUIETLY = Path(__file__).with_name("quietly.py")
MANY_GPUS = ROOT / "accelerate_configs" / "many_gpus.yaml"
# What torchrun leaves for its processes: a job that inherited it would look for their group instead of being alone.
GROUP = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
         "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def visible_gpus() -> list[str]:
    """GPU ids this process may use: ``CUDA_VISIBLE_DEVICES`` if set, else what nvidia-smi lists; [] without any, or
    where ``ACCELERATE_USE_CPU`` asks for the CPU."""
    if cpu_wanted():
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() and gpu.strip() != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def check_config(path: str | None) -> str | None:
    """The absolute path of ``--accelerate_config``.

    Raises:
        UserError: where it is no file, or no mapping.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise UserError(f"--accelerate_config: found no file {path}")
    precision_of(path)
    return os.path.abspath(path)


def precision_of(config: str | Path) -> str | None:
    """``fp16`` or ``bf16`` where a configuration file of Accelerate asks for it, else None: ``training.precision``
    decides."""
    found = read_file(Path(config), "accelerate configuration", "examples are in accelerate_configs/")
    asked = str(found.get("mixed_precision", "")).lower()
    return asked if asked in ("fp16", "bf16") else None


def job_command(job: Job, gpus: int, config: str | None) -> list[str]:
    """One plain process, or ``accelerate launch`` where the job takes several GPUs.

    config: a configuration file for the latter; None: the project's own.
    """
    script = [str(ROOT / job.script), *job.arguments]
    if gpus < 2 or job.alone:
        return [sys.executable, *script]
    with socket.socket() as probe:  # a port of its own: two jobs on one machine must not meet
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [sys.executable, str(QUIETLY), "accelerate", "launch", "--config_file", str(config or MANY_GPUS),
            "--multi_gpu", "--gpu_ids", "all", "--num_machines", "1", "--machine_rank", "0", "--num_processes",
            str(gpus), "--main_process_ip", "127.0.0.1", "--main_process_port", str(port), *script]


def job_environment(job: Job, token: str, threads: int, config: str | None) -> dict[str, str]:
    """The environment of a job, but for its GPUs.

    threads: CPU threads of each of its processes. config: as for ``job_command``; of it a plain process takes the
    precision.
    """
    kept = {name: value for name, value in os.environ.items()
            if name not in GROUP and not name.startswith("TORCHELASTIC_")}
    asked = precision_of(config) if config else None
    return {**kept, TOKEN: token, WORD: str(job.run_dir / WORD_FILE), "OMP_NUM_THREADS": str(threads),
            **({"ACCELERATE_MIXED_PRECISION": asked} if asked else {}), **dict(job.variables)}

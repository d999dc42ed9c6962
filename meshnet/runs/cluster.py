"""Runs as Ray tasks on a Ray cluster; project, data and study lie on storage that all nodes share, at the same path.

Each job is one task that asks for GPUs, or for a share of a node's cores, and runs the script under the guard of
``meshnet.runs.processes``: when Ray loses or cancels the task's worker process, the guard ends the script with all its
descendants, and the next attempt waits for that. Ray's own retries are off; whether to retry is up to the caller.
"""

import os
import socket
import subprocess
import sys
import time

from meshnet import ROOT
from meshnet.errors import UserError
from meshnet.runs.command import job_command, job_environment
from meshnet.runs.jobs import Handle, Job, Launcher
from meshnet.runs.slurm_calls import cancel_left

STARTED = ".started"  # in the run folder: the task has left Ray's queue


def run_on_node(job: Job, token: str, gpus: int, cpus: float, accelerate_config: str | None) -> tuple[int, str]:
    """The body of a Ray task, to which Ray has given its GPUs: exit code and host."""
    (job.run_dir / STARTED).touch()
    environment = job_environment(job, token, max(1, int(cpus) // max(1, gpus)), accelerate_config)
    environment |= {"PYTHONPATH": str(ROOT), **({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})}
    guard = [
        sys.executable, "-m", "meshnet.runs.processes", str(os.getpid()), str(job.run_dir / ".guard"), str(job.log),
        *job_command(job, gpus, accelerate_config),
    ]
    done = subprocess.run(guard, env=environment, cwd=job.folder or ROOT, stdin=subprocess.DEVNULL, check=False)
    return done.returncode, socket.gethostname()


def largest_share(cores: list[int], slots: int) -> int:
    """The most cores that ``slots`` tasks can each have on nodes with so many ``cores``; at least 1."""
    shares = range(max(cores, default=1), 0, -1)
    return next((share for share in shares if sum(node // share for node in cores) >= slots), 1)


def share_of_gpu_nodes(nodes: list[tuple[int, int]], gpus: int) -> tuple[int, int]:
    """How many tasks of ``gpus`` GPUs fit on ``nodes`` (cores, GPUs), and the cores that each of them can have.

    A task lies on one node: GPUs that are left over on several nodes do not make another one.
    """
    fitting = [(cores, offered // gpus) for cores, offered in nodes if offered >= gpus]
    return sum(tasks for _, tasks in fitting), max(1, min((cores // tasks for cores, tasks in fitting), default=1))


def check_reachable(address: str, seconds: float = 5.0) -> None:
    """Refuse an address where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), seconds).close()
    except (OSError, ValueError) as error:
        raise UserError(f"--ray_address: found {address}, where no Ray cluster answers ({error}); expected HOST:PORT "
                        "of one started with 'ray start --head'") from None


class RayLauncher(Launcher):
    """Slots on a Ray cluster. ``workers`` None: as many as its GPUs (or cores, four each) allow when it is joined."""

    def __init__(
        self, workers: int | None, gpus_per_worker: int | None, accelerate_config: str | None, address: str | None
    ):
        try:
            import ray
        except ImportError:
            raise UserError(
                "--launcher ray: Ray is not installed; pip install -r requirements-ray.txt, or --launcher local"
            ) from None
        self.ray = ray
        if not ray.is_initialized():
            if address:
                check_reachable(address)
            environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
            try:
                ray.init(address=address or "auto", runtime_env=environment, log_to_driver=False, logging_level="error")
            except (ConnectionError, ValueError, RuntimeError) as error:
                first = str(error).splitlines()[0]
                raise UserError(
                    f"--ray_address: found no Ray cluster at {address or 'this machine'} ({first}); start one with "
                    "'ray start --head', or --launcher local"
                ) from None
        self.gpus, slots, self.cpus = self._shares(workers, gpus_per_worker)
        super().__init__(slots)
        self.accelerate_config = accelerate_config
        self.tasks: dict[str, object] = {}

    def _shares(self, workers: int | None, gpus_per_worker: int | None) -> tuple[int, int, int]:
        """GPUs of a task, number of slots, and cores of a task."""
        living = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        nodes = [(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in living]
        most = max((offered for _, offered in nodes), default=0)
        gpus = min(1, most) if gpus_per_worker is None else gpus_per_worker
        if gpus > most:
            raise UserError(f"--gpus_per_worker: found {gpus}, expected at most what one node of the Ray cluster has: "
                            f"{most} GPUs; a run lies on one node")
        if gpus:
            fitting, cores = share_of_gpu_nodes(nodes, gpus)
            return gpus, workers or fitting, cores
        slots = workers or max(1, sum(cores for cores, _ in nodes) // 4)
        return 0, slots, largest_share([cores for cores, _ in nodes], slots)

    def _start(self, handle: Handle) -> None:
        remote = self.ray.remote(num_gpus=self.gpus, num_cpus=self.cpus, max_retries=0)(run_on_node)
        handle.host = "ray"
        (handle.job.run_dir / STARTED).unlink(missing_ok=True)
        self.tasks[handle.token] = remote.remote(
            handle.job, handle.token, self.gpus, self.cpus, self.accelerate_config
        )

    def _look(self, handle: Handle) -> tuple[int | None, bool]:
        ready, _ = self.ray.wait([self.tasks[handle.token]], timeout=0)
        if not ready:
            return None, False
        task = self.tasks.pop(handle.token)
        try:
            code, handle.host = self.ray.get(task)
        except self.ray.exceptions.RayError:  # the node or the task's worker is lost
            return None, True
        return (code - 256 if code >= 192 else code), True  # the guard's exit code is a byte: 247 is signal 9

    def _stop(self, handle: Handle, patience: float) -> None:
        task = self.tasks.pop(handle.token, None)
        if task is not None:
            self.ray.cancel(task, force=True)

    def waits_for(self, handle: Handle) -> bool:
        """As in ``Launcher``."""
        return not (handle.job.run_dir / STARTED).exists()

    def _silent(self, handle: Handle) -> bool:
        """As in ``Launcher``; a task that waits for a node needs no heartbeat."""
        if self.waits_for(handle):
            handle.beat_seen = time.monotonic()
        return super()._silent(handle)

    def close(self, patience: float = 0.0) -> None:
        """End every task and leave the cluster."""
        super().close(patience)
        self.ray.shutdown()

    def adopt(self, job: Job, identity: dict) -> Handle | None:
        """None: Ray ends the tasks of a driver that died, and their guards end the scripts."""
        if identity.get("host") == "slurm":
            cancel_left(job)
        return None


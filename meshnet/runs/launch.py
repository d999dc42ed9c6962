"""The choice of a launcher."""

from meshnet.errors import UserError
from meshnet.runs.command import check_config
from meshnet.runs.jobs import Launcher
from meshnet.runs.local import LocalLauncher

LAUNCHERS = ("local", "ray", "slurm")


def make_launcher(
    name: str,
    workers: int | None = None,
    gpus_per_worker: int | None = None,
    accelerate_config: str | None = None,
    address: str | None = None,
    slurm: str | None = None,
    say=print,
    flag: str = "--workers",
) -> "Launcher":
    """The launcher called ``name``.

    workers: slots; None: one for each GPU, else one for every four CPU cores (ray: of the cluster).
    gpus_per_worker: None: 1 where there are GPUs, else 0. accelerate_config: a configuration file for runs of
        several GPUs; runs of one take its precision.
    address: of the Ray cluster; None: the one that this machine belongs to.
    slurm: flags of sbatch, such as partition=gpu,gres=gpu:1,time=4:00:00. say: prints what the scheduler did to a job.
    flag: what gives ``workers``.

    Raises:
        UserError: unknown name, no such file, more GPUs requested than there are, Ray or its cluster missing.
    """
    if workers is not None and workers < 1:
        raise UserError(f"{flag}: found {workers}, expected at least 1")
    if gpus_per_worker is not None and gpus_per_worker < 0:
        raise UserError(f"--gpus_per_worker: found {gpus_per_worker}, expected at least 0")
    accelerate_config = check_config(accelerate_config)
    if slurm and name != "slurm":
        raise UserError(f"--slurm: found beside --launcher {name}, expected --launcher slurm; leave it out")
    if name == "local":
        return LocalLauncher(workers, gpus_per_worker, accelerate_config, flag)
    if name == "ray":
        from meshnet.runs.cluster import RayLauncher

        return RayLauncher(workers, gpus_per_worker, accelerate_config, address)
    if name == "slurm":
        from meshnet.runs.slurm import SlurmLauncher

        return SlurmLauncher(workers, gpus_per_worker, accelerate_config, slurm, say)
    raise UserError(f"--launcher: found '{name}', expected one of {', '.join(LAUNCHERS)}")

"""A SLURM cluster of one node on this machine: munged, slurmctld and slurmd of Debian, as root, on loopback."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from stand_in import wait_for

CONF = """
ClusterName=meshnet
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=4
MinJobAge=600
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=low Nodes=n1 Default=YES PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=high Nodes=n1 PriorityTier=10 PreemptMode=OFF State=UP
"""


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Cluster:
    """The three daemons; ``environment`` lets SLURM's commands find them."""

    def __init__(self, folder: Path):
        self.folder, self.daemons = folder, {}
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(CONF.format(host=socket.gethostname(), folder=folder, ports=free_ports(2)))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.start("munged", "-F", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}",
                   f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed",
                   f"--log-file={folder}/munged.log")
        wait_for((folder / "munge.socket").exists)
        self.start("slurmctld", "-D", "-f", folder / "slurm.conf")
        self.start("slurmd", "-D", "-N", "n1", "-f", folder / "slurm.conf")
        wait_for(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T", check=False), pause=0.2)

    def start(self, name: str, *flags) -> None:
        with open(self.folder / f"{name}.out", "ab") as output:
            self.daemons[name] = subprocess.Popen([shutil.which(name) or f"/usr/sbin/{name}", *map(str, flags)],
                                                  env=self.environment, stdout=output, stderr=output)

    def restart_slurmd(self) -> None:
        self.daemons["slurmd"].send_signal(signal.SIGKILL)
        self.daemons["slurmd"].wait()
        self.start("slurmd", "-D", "-N", "n1", "-f", self.folder / "slurm.conf")

    def ask(self, *words, check: bool = True) -> str:
        done = subprocess.run(list(map(str, words)), env=self.environment, capture_output=True, text=True, check=False,
                              timeout=60)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self, *states: str, name: str = "meshnet-") -> dict[int, str]:
        """Name by number of the jobs in one of the states."""
        found = [line.split("|") for line in self.ask("squeue", "-h", "-o", "%i|%T|%j", check=False).split()]
        return {int(number): job for number, state, job in found if state in states and job.startswith(name)}

    def close(self) -> None:
        self.ask("scancel", "--me", check=False)
        for name in ("slurmd", "slurmctld", "munged"):
            if name in self.daemons:
                self.daemons[name].terminate()
                try:
                    self.daemons[name].wait(20)
                except subprocess.TimeoutExpired:
                    self.daemons[name].kill()


def needs_slurm() -> None:
    """Skip a test where SLURM is not installed or this is not root."""
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch")
               if not (shutil.which(name) or os.path.exists(f"/usr/sbin/{name}"))]
    if missing or os.geteuid():
        pytest.skip(f"needs root and {', '.join(missing) or 'slurm'}: apt-get install slurm-wlm munge")

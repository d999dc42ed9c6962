"""Ray: the cores of a task, and clusters that do not answer."""

import socket
import sys
from types import SimpleNamespace

import pytest

from meshnet.errors import UserError
from meshnet.runs import cluster, jobs
from meshnet.runs.cluster import RayLauncher, check_reachable, largest_share


@pytest.mark.parametrize(
    ("cores", "slots", "share"),
    [([8], 2, 4), ([4, 4], 2, 4), ([1, 3], 2, 1), ([6, 3], 3, 3), ([2], 5, 1), ([], 2, 1)],
)
def test_the_cores_that_each_ray_task_can_have(cores, slots, share):
    assert largest_share(cores, slots) == share


def test_an_address_without_a_ray_cluster_is_refused_at_once(monkeypatch):
    tried, connect = [], socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *given: tried.append(given) or connect(*given))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # bound, but nobody listens
        with pytest.raises(UserError, match=rf"--ray_address: found 127.0.0.1:{port}, where no Ray cluster answers"):
            check_reachable(f"127.0.0.1:{port}")
        assert len(tried) == 1  # refused, and not tried again
        probe.listen()
        check_reachable(f"127.0.0.1:{port}")
    with pytest.raises(UserError, match="expected HOST:PORT"):
        check_reachable("head-node")


class Lost(Exception):
    """Ray's own complaint about a node that is gone."""


@pytest.fixture
def ray(monkeypatch):
    """A stand-in for Ray's module: a cluster of two living nodes, one dead, and tasks that end when told."""
    def nodes():
        living = [{"Resources": {"CPU": cores, "GPU": gpus}, "Alive": True} for cores, gpus in fake.living]
        return [*living, {"Resources": {"CPU": 64, "GPU": 64}, "Alive": False}]

    fake = SimpleNamespace(asked=[], ends={}, cancelled=[], living=[(8, 0), (4, 0)], is_initialized=lambda: True,
                           nodes=nodes,
                           exceptions=SimpleNamespace(RayError=Lost))

    def remote(**wanted):
        fake.asked.append(wanted)
        return lambda function: SimpleNamespace(remote=lambda *given: len(fake.asked))

    def get(task):
        if isinstance(fake.ends[task], Exception):
            raise fake.ends[task]
        return fake.ends[task]

    fake.remote, fake.get = remote, get
    fake.wait = lambda tasks, timeout: ([task for task in tasks if task in fake.ends], [])
    fake.cancel = lambda task, force: fake.cancelled.append(task)
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_ray_tasks_share_the_cores_of_the_living_nodes_or_take_one_beside_their_gpus(ray):
    launcher = RayLauncher(None, None, None, None)
    assert (launcher.slots, launcher.gpus, launcher.cpus) == (3, 0, 4)  # a task for each four cores
    assert RayLauncher(6, None, None, None).cpus == 2
    ray.living = [(2, 0)]
    assert RayLauncher(None, 0, None, None).slots == 1 and RayLauncher(None, None, None, None).gpus == 0
    ray.living = [(8, 1), (4, 2), (64, 0)]
    launcher = RayLauncher(None, None, None, None)
    assert (launcher.slots, launcher.gpus, launcher.cpus) == (3, 1, 2)  # loader processes want cores as well


def test_a_ray_task_lies_on_one_node(ray):
    """GPUs of two nodes would wait for ever."""
    ray.living = [(8, 1), (9, 3), (16, 5)]
    launcher = RayLauncher(None, 2, None, None)
    assert (launcher.slots, launcher.gpus, launcher.cpus) == (3, 2, 8)
    with pytest.raises(UserError, match=r"--gpus_per_worker: found 6, expected at most what one node .* has: 5 GPUs"):
        RayLauncher(None, 6, None, None)


def test_how_ray_tasks_end(ray, job):
    launcher = RayLauncher(4, 0, None, None)
    handles = [launcher.submit(job(name, "")) for name in ("good", "shot", "lost", "running")]
    assert [cluster.RayLauncher._look(launcher, handle) for handle in handles] == [(None, False)] * 4
    assert ray.asked == [{"num_gpus": 0, "num_cpus": 2, "max_retries": 0}] * 4 and launcher.poll() == []
    ray.ends |= {1: (0, "one"), 2: (247, "two"), 3: Lost()}
    ended = launcher.poll()
    assert [(end.code, end.reason) for end in ended] == [
        (0, ""), (-9, "killed by SIGKILL"), (None, "ended, exit code unknown")]
    assert [end.handle.host for end in ended] == ["one", "two", "ray"]
    assert launcher.free() == 3 and launcher.adopt(handles[0].job, {}) is None
    launcher.kill(handles[3])
    assert ray.cancelled == [4] and launcher.running() == []


@pytest.mark.parametrize("byte, code", [(191, 191), (192, -64), (255, -1), (2, 2)])
def test_a_byte_from_192_on_is_a_signal(ray, job, byte, code):
    launcher = RayLauncher(1, 0, None, None)
    launcher.submit(job("one", ""))
    ray.ends[1] = (byte, "node")
    assert [end.code for end in launcher.poll()] == [code]


def test_a_ray_task_that_waits_for_a_node_is_not_silent(ray, job, monkeypatch):
    clock = [0.0]
    for module in (cluster, jobs):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    launcher = RayLauncher(1, 0, None, None)
    handle = launcher.submit(job("waiting", "", silent_after=60))
    clock[0] = 1000
    assert launcher.poll() == []
    (handle.job.run_dir / cluster.STARTED).touch()
    clock[0] = 1060
    assert launcher.poll() == []
    clock[0] = 1061
    assert [end.reason for end in launcher.poll()] == ["silent for 60 s"]

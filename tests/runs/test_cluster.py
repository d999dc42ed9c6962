"""Ray: the cores of a task, and clusters that do not answer."""

import socket

import pytest

from meshnet.errors import UserError
from meshnet.runs.cluster import check_reachable, largest_share


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

"""Which launcher, and what cannot be launched."""

import sys

import pytest

from meshnet.errors import UserError
from meshnet.runs.launch import make_launcher


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "cloud"}, "--launcher: found 'cloud'"),
        ({"name": "local", "workers": 0}, "--workers: found 0"),
        ({"name": "local", "gpus_per_worker": -1}, "--gpus_per_worker"),
        ({"name": "local", "workers": 3, "gpus_per_worker": 1}, "expected at most 2"),
        ({"name": "local", "gpus_per_worker": 3}, "has 2 GPUs"),
    ],
)
def test_impossible_slots_are_refused(options, words, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match=words):
        make_launcher(**options)


def test_ray_missing_or_without_a_cluster_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="requirements-ray"):
        make_launcher("ray")

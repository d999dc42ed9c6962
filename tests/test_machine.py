"""What the machine offers: cores, memory, and a folder to keep things in."""

import os
from pathlib import Path

import pytest

from meshnet import machine


def test_the_cache_lies_where_it_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("MESHNET_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    assert machine.cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("MESHNET_CACHE")
    assert machine.cache_folder() == tmp_path / "users" / "meshnet"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert machine.cache_folder() == Path.home() / ".cache" / "meshnet"


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6} if pid == 0 else {}, raising=False)
    assert machine.usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cores() == 1


def test_memory_is_what_the_system_counts():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("there is no /proc here")
    held = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    assert machine.resident_bytes() == pytest.approx(1024 * held, rel=0.05)

"""Fixtures that the launchers' tests share."""

import textwrap

import pytest

from meshnet.runs.jobs import Job


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def job(tmp_path):
    """Makes a job out of a few lines of Python; its run folder is named for it."""

    def make(name: str, code: str, **options) -> Job:
        script = tmp_path / f"{name}.py"
        script.write_text(textwrap.dedent(code))
        return Job(str(script), (str(tmp_path),), tmp_path / name, tmp_path / name / "log.txt", **options)

    return make

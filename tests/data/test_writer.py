"""Cases written by processes of their own."""

import os

import pytest

from meshnet.data.writer import run_jobs
from meshnet.errors import UserError


class Bomb:
    """Ends the worker process that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_worker_that_is_killed_is_said_to_be_one(tmp_path):
    with pytest.raises(UserError, match=r"worker process was killed.*fewer --workers than 2"):
        list(run_jobs([(0, (Bomb(),)), (1, (Bomb(),))], 2, tmp_path))

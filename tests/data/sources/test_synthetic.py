"""Synthetic cases by their seeds."""

import pytest
from trees import names

from meshnet.data.sources.case import Filters
from meshnet.data.sources.find import find_cases
from meshnet.errors import UserError


def test_synthetic_seeds_never_share_a_case():
    def listed(seed):
        return find_cases("synthetic", None, [], Filters(), cases=50, voxel_mm=4.0, seed=seed, preset="demo")

    assert len(listed(0).cases) == 50 and not set(names(listed(0))) & set(names(listed(1)))
    with pytest.raises(UserError, match="--cases 0"):
        find_cases("synthetic", None, [], Filters(), cases=0, voxel_mm=4.0, seed=0, preset="demo")

"""Filters of cases by their entities."""

import pytest

from meshnet.data.sources.case import Filters
from meshnet.errors import UserError


def test_filters_of_another_form_are_refused():
    with pytest.raises(UserError, match="expected ENTITY=VALUE"):
        Filters.parse(["acq"])
    parsed = Filters.parse(exclude=["run=1,2", "run=3"])
    assert parsed.exclude == {"run": frozenset("123")}
    assert parsed.rejects({"run": "3"}) == "--exclude run=3" and parsed.rejects({"run": "4"}) is None

"""Mask values that become classes, and the names of these."""

import pytest

from meshnet.data.labels import class_names, parse_labels
from meshnet.errors import UserError


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (None, None),
        (["1,2,3"], {1: 1, 2: 1, 3: 1}),
        (["1", "2"], {1: 1, 2: 2}),
        (["1,2=2", "4=1"], {1: 2, 2: 2, 4: 1}),
    ],
)
def test_labels(items, expected):
    assert parse_labels(items) == expected


@pytest.mark.parametrize("items", [["1", "1"], ["1=2"], ["a"], ["1=1", "2"], ["0"], ["1,"], ["1=x"]])
def test_wrong_labels_are_one_line(items):
    with pytest.raises(UserError, match="--labels"):
        parse_labels(items)


def test_names_of_classes():
    assert class_names(None, None, ["kidney", "tumour"]) == ["background", "lesion"]
    assert class_names({1: 1, 2: 2}, None, ["kidney", "tumour"]) == ["background", "kidney", "tumour"]
    assert class_names({1: 1, 2: 1, 3: 2}, None, ["a", "b", "c"]) == ["background", "class_1", "class_2"]
    assert class_names({2: 1}, ["core"], None) == ["background", "core"]
    with pytest.raises(UserError, match="--classes"):
        class_names({1: 1, 2: 2}, ["x"], None)
    with pytest.raises(UserError, match="--classes"):
        class_names(None, ["background"], None)

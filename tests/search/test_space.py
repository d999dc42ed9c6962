"""Orion's notation: what it means, what it refuses, and that nothing in it is ever executed."""

import json
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnet import ROOT
from meshnet.config import Config
from meshnet.errors import UserError
from meshnet.recipe import load_search
from meshnet.search.space import SHORT_NAMES, parse_space

PAPER_SPACE = load_search([ROOT / "recipes" / "search_space.yaml"])


def one(text: str, name: str = "optimizer.lr"):
    return parse_space({name: text}).dimensions[0]


def test_the_papers_block_as_it_stands():
    space = parse_space(PAPER_SPACE)
    assert space.fidelity == (15, 50)
    assert [d.field for d in space.dimensions] == [
        "model.channels", "optimizer.lr", "optimizer.weight_decay", "loss.background_weight", "scheduler.pct_start",
    ]
    generator = random.Random(0)
    draws = [space.sample(generator) for _ in range(4000)]
    channels = [draw["channels"] for draw in draws]
    assert set(channels) == set(range(5, 22))  # both ends, whole numbers
    assert all(type(value) is int for value in channels)
    rates = [draw["lr"] for draw in draws]
    assert min(rates) >= 1e-4 and max(rates) <= 4e-2
    # half of a log-uniform range lies below its geometric mean: 0.002
    assert statistics.mean(rate < 2e-3 for rate in rates) == pytest.approx(0.5, abs=0.03)
    assert statistics.mean(draw["bg_weight"] for draw in draws) == pytest.approx(0.5, abs=0.02)
    for choice in (0.02, 0.1, 0.2):
        assert statistics.mean(draw["warmup_pct"] == choice for draw in draws) == pytest.approx(1 / 3, abs=0.03)


def test_the_source_documents_block_has_no_fidelity():
    block = {name: text for name, text in PAPER_SPACE.items() if name != "epochs"}
    assert parse_space(block).fidelity is None


def test_fields_names_the_config_fields():
    space = parse_space({"lr": "uniform(0.1, 0.2)", "loss.dice_weight": "uniform(0, 2)"})
    assert space.fields({"lr": 0.15, "loss.dice_weight": 1}) == {"optimizer.lr": 0.15, "loss.dice_weight": 1}


def test_every_short_name_is_a_config_field():
    config = Config()
    for field in SHORT_NAMES.values():
        section, name = field.split(".")
        assert hasattr(getattr(config, section), name)


def test_discrete_values_are_equally_likely():
    dimension = one("uniform(5, 8, discrete=True)", "channels")
    units = [(i + 0.5) / 1000 for i in range(1000)]
    assert [dimension.decode(unit) for unit in units].count(5) == 250
    assert [dimension.decode(unit) for unit in units].count(8) == 250


@given(unit=st.floats(0, 1, exclude_max=True), which=st.integers(0, 5))
def test_decode_of_encode_is_the_value(unit, which):
    space = parse_space({**PAPER_SPACE, "model.norm_groups": "loguniform(1, 64, discrete=True)"})
    dimension = space.dimensions[which]
    value = dimension.decode(unit)
    assert dimension.decode(dimension.encode(value)) == value
    assert 0 <= dimension.encode(value) <= 1
    if dimension.kind != "choices":
        assert dimension.low <= value <= dimension.high


@given(st.floats(1e-9, 1e9), st.floats(1.001, 1e6), st.floats(0, 1))
def test_four_significant_digits_inside_the_range(low, ratio, unit):
    dimension = one(f"loguniform({low!r}, {low * ratio!r})", "optimizer.weight_decay")
    value = dimension.decode(unit)
    assert dimension.low <= value <= dimension.high
    exact = math.exp(math.log(low) + unit * math.log(ratio))
    assert value == pytest.approx(exact, rel=1e-3)
    assert value in (dimension.low, dimension.high) or float(f"{value:.4g}") == value


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("lr", "__import__('os').system('true')", "expected uniform"),
        ("lr", "uniform(print(1), 2)", "expected uniform"),
        ("lr", "uniform(1, 2", "expected uniform"),
        ("lr", "0.1", "expected uniform"),
        ("lr", 0.1, "expected uniform"),
        ("lr", "", "expected uniform"),
        ("lr", "lognormal(1, 2)", "unknown distribution 'lognormal'"),
        ("lr", "uniform(1)", "two numbers"),
        ("lr", "uniform('a', 2)", "two numbers"),
        ("lr", "uniform(True, 2)", "two numbers"),
        ("lr", "uniform(1e-3, 1e999)", "two numbers"),
        ("lr", "uniform(2, 1)", "low < high"),
        ("lr", "uniform(1, 1)", "low < high"),
        ("lr", "uniform(1, 2, shape=3)", "unknown option 'shape'"),
        ("lr", "uniform(1, 2, discrete=3)", "True or False"),
        ("lr", "uniform(-1, 1)", "optimizer.lr: found -1"),
        ("lr", "loguniform(0, 1)", "above 0"),
        ("channels", "uniform(5, 21)", "discrete=True"),
        ("channels", "uniform(5.5, 21, discrete=True)", "whole numbers"),
        ("channels", "uniform(0, 21, discrete=True)", "model.channels: found 0"),
        ("channels", "choices([5, 'six'])", "'six'"),
        ("warmup_pct", "choices([0.1, 1.5])", "found 1.5"),
        ("warmup_pct", "choices([])", "choices"),
        ("warmup_pct", "choices([0.1, 0.1])", "twice"),
        ("warmup_pct", "choices({'a': 0.5})", "choices"),
        ("warmup", "uniform(0, 1)", "no config field 'warmup'; did you mean 'warmup_pct'"),
        ("optimizer.lrr", "uniform(0, 1)", "did you mean 'optimizer.lr'"),
        ("training.max_epochs", "uniform(1, 5, discrete=True)", "fidelity"),
        ("epochs", "fidelity(0, 5)", "at least 1"),
        ("epochs", "fidelity(1.5, 5)", "whole epochs"),
        ("epochs", "fidelity(5, 5)", "low < high"),
        ("epochs", "fidelity(1, 5)", "nothing to search"),
    ],
)
def test_what_is_refused_names_the_line(name, text, words):
    with pytest.raises(UserError) as error:
        parse_space({name: text}, "recipes/a.yaml: search")
    assert words in str(error.value)
    assert "recipes/a.yaml: search" in str(error.value)


def test_one_field_by_two_names_and_two_fidelities_are_refused():
    with pytest.raises(UserError, match=r"'lr' and 'optimizer.lr' both set optimizer\.lr"):
        parse_space({"lr": "uniform(0.1, 1)", "optimizer.lr": "uniform(0.1, 1)"})
    with pytest.raises(UserError, match="2 fidelities"):
        parse_space({"lr": "uniform(0.1, 1)", "a": "fidelity(1, 2)", "b": "fidelity(1, 2)"})


def test_choices_of_sequences_come_back_from_a_ledger_as_they_were():
    space = parse_space({"model.dilations": "choices([(1, 2, 1), [1, 2, 4, 2, 1]])"})
    for unit in (0.25, 0.75):
        parameters = json.loads(json.dumps(space.decode([unit])))
        assert parameters == space.decode([unit])
        assert space.encode(parameters) == [unit]
    with pytest.raises(UserError, match="named twice"):
        parse_space({"model.dilations": "choices([(1, 2), [1, 2]])"})

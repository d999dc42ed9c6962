"""Points that cannot be: found before a study starts, and no trial."""

import pytest

from meshnet.config import Config, resolve
from meshnet.errors import UserError
from meshnet.search.points import MOST, Points, values_of, with_fields
from meshnet.search.sampler import RandomSampler
from meshnet.search.space import parse_space


def points(space, horizons=(4,), **fields):
    config = Config()
    for name, value in fields.items():
        section, _, key = name.partition("__")
        setattr(getattr(config, section), key, value)
    return Points(resolve(config), parse_space(space), horizons)


GROUPS = {"model__norm": "group", "model__channels": 4, "model__norm_groups": 2}
REFUSED = [
    # one value in no point at all, whatever the others are
    ({"channels": "choices([3, 4])"}, (4,), GROUPS, "search: channels = 3: model.norm_groups: found 2"),
    ({"channels": "uniform(3, 8, discrete=True)", "lr": "uniform(0.1, 0.2)"}, (4,), GROUPS, "search: channels = 3: "),
    ({"scheduler.monitor": "choices(['val_dice', 'val_dice_ema'])"}, (4,), {}, "ema.enabled"),
    # all of them
    ({"lr": "uniform(0.1, 0.2)", "bg_weight": "choices([0.1, 1.0])"}, (1, 2, 4), {"training__warmup_epochs": 2},
     "search: found no point that can be: training.warmup_epochs: found 2, expected fewer than training.max_epochs"),
    ({"training.warmup_epochs": "choices([1, 4])"}, (2, 4), {}, "search: training.warmup_epochs = 4: "),
    ({"scheduler.max_lr": "uniform(0.1, 0.2)"}, (4,), {"optimizer__lr": 0.5}, "scheduler.max_lr: found 0.1 beside"),
]


@pytest.mark.parametrize(("space", "horizons", "fields", "words"), REFUSED)
def test_what_can_never_be_is_refused_before_anything_starts(space, horizons, fields, words):
    with pytest.raises(UserError) as error:
        points(space, horizons, **fields).check(print)
    assert words in str(error.value) and "\n" not in str(error.value)


ALLOWED = [
    ({"channels": "uniform(2, 6, discrete=True)"}, (4,), GROUPS, 2, 5),
    ({"model.norm_groups": "choices([1, 2, 3])", "channels": "choices([2, 3, 4])"}, (4,), GROUPS, 3, 9),
    ({"ema.enabled": "choices([True, False])", "scheduler.monitor": "choices(['val_dice', 'val_dice_ema'])"}, (4,), {},
     1, 4),
    ({"bg_weight": "choices([0.0, 1.0])", "loss.lesion_weight": "choices([0.0, 1.0])"}, (4,), {}, 1, 4),
]


@pytest.mark.parametrize(("space", "horizons", "fields", "wrong", "of"), ALLOWED)
def test_a_point_that_cannot_be_is_drawn_again_and_that_is_said(space, horizons, fields, wrong, of):
    some, said = points(space, horizons, **fields), []
    some.check(said.append)
    assert len(said) == 1 and said[0].startswith(f"note: search: {wrong} of {of} points cannot be, such as ")
    assert said[0].endswith("; a trial that falls on one is drawn again")
    sampler, told = RandomSampler(some.space, 0), []
    drawn = [some.suggest(sampler, number, None, 0, told.append) for number in range(60)]
    assert all(some.fault(each) == "" for each in drawn)
    plain = [sampler.suggest(number, None) for number in range(60)]
    redrawn = [number for number in range(60) if some.fault(plain[number])]
    assert redrawn and [line.split(":")[0] for line in told] == [f"trial {number}" for number in redrawn]
    # the others are what they always were, and the same seed draws the same again
    assert all(drawn[number] == plain[number] for number in range(60) if number not in redrawn)
    assert drawn == [some.suggest(sampler, number, None, 0, told.append) for number in range(60)]


def test_a_space_without_a_fault_is_silent():
    said = []
    points({"lr": "loguniform(1e-4, 1e-2)", "channels": "uniform(5, 21, discrete=True)"}).check(said.append)
    assert said == []


def test_a_large_space_is_looked_at_in_part_with_every_end_and_choice():
    some = points({"channels": "uniform(1, 399, discrete=True)", "loss.dice_weight": "uniform(0, 1)",
                   "bg_weight": "choices([0.1, 0.2])"})
    seen = list(some.look())
    assert MOST <= len(seen) <= 3 * MOST
    assert {point["channels"] for point in seen} >= {1, 399} and len({point["channels"] for point in seen}) == 399
    assert values_of(some.space.dimensions[1]) == [0, 0.5, 1]


def test_a_study_without_one_point_ends_in_a_line():
    some = points({"channels": "uniform(2, 6, discrete=True)"}, **GROUPS)
    some.config.written.model.norm_groups = 7
    with pytest.raises(UserError, match=r"search: found no point that can be in 1000 draws, the last one: model.norm"):
        some.suggest(RandomSampler(some.space, 0), 0, None, 0, print)


def test_a_searched_metric_brings_its_direction_and_a_searched_peak_its_rate():
    config = resolve(Config())
    found = with_fields(config, {"scheduler.monitor": "val_loss", "scheduler.max_lr": 0.5}, 7)
    assert (found.scheduler.mode, found.optimizer.lr, found.training.max_epochs) == ("min", 0.5, 7)

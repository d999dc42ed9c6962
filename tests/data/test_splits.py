"""Nested splits: who is where, how even the strata are, and that the same data give the same folds."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnet.data.splits import (
    content_hash,
    fewer_folds,
    fold_subjects,
    load_splits,
    make_splits,
    make_strata,
    merge_strata,
)
from meshnet.errors import UserError


def cohort(n, groups=("spc3", "spc3p2"), seed=0):
    rng = np.random.default_rng(seed)
    subjects = [f"M{i:04d}" for i in range(n)]
    return subjects, rng.lognormal(3, 1.5, n).tolist(), [(str(rng.choice(groups)),) for _ in range(n)]


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9), st.integers(1, 6))
@settings(max_examples=80, deadline=None)
def test_folds_partition_the_subjects(n, outer, inner, seed, groups):
    subjects, volumes, columns = cohort(n, [f"g{i}" for i in range(groups)], seed)
    try:
        splits = make_splits(subjects, volumes, columns, outer, inner, seed)
    except UserError:
        assert n < outer or (n if outer == 1 else n - -(-n // outer)) < inner
        return
    everybody = set(subjects)
    tests = [f["test"] for f in splits["folds"]]
    if outer > 1:
        assert sorted(s for t in tests for s in t) == sorted(everybody)
        assert max(map(len, tests)) - min(map(len, tests)) <= 1
    else:
        assert tests == [[]]
    for fold in splits["folds"]:
        training = everybody - set(fold["test"])
        validated = [s for i in fold["inner"] for s in i["val"]]
        assert sorted(validated) == sorted(training)
        for part in fold["inner"]:
            assert part["val"] and part["train"]
            assert set(part["train"]) == (training - set(part["val"]) if inner > 1 else training)


def test_strata_are_spread_evenly_over_the_folds():
    subjects, volumes, groups = cohort(223, seed=3)
    splits = make_splits(subjects, volumes, groups)
    strata = make_strata(subjects, dict(zip(subjects, volumes)), dict(zip(subjects, groups)))
    assert len(strata) == 10
    for members in strata.values():
        counts = [len(set(members) & set(f["test"])) for f in splits["folds"]]
        assert max(counts) - min(counts) <= 1
    medians = [np.median([volumes[subjects.index(s)] for s in f["test"]]) for f in splits["folds"]]
    assert max(medians) < 1.5 * min(medians)


def test_strata_are_quintiles_of_the_volume_within_a_group():
    names = [f"s{i}" for i in range(10)]
    volume = {s: 100.0 - i for i, s in enumerate(names)}
    group = {s: ("b",) if s == "s9" else ("a",) for s in names}
    assert make_strata(names, volume, group) == {
        (("a",), 0): ["s8"], (("a",), 1): ["s6", "s7"], (("a",), 2): ["s4", "s5"], (("a",), 3): ["s2", "s3"],
        (("a",), 4): ["s0", "s1"], (("b",), 0): ["s9"],
    }


def test_small_strata_are_merged_by_hand_worked_rules():
    def strata(**groups):
        return {((g,), q): [f"{g}{q}{i}" for i in range(n)] for g, sizes in groups.items() for q, n in enumerate(sizes)
                if n}

    def sizes(**groups):
        merged = []
        return [len(s) for s in merge_strata(strata(**groups), 3, merged)], merged

    assert sizes(a=[3, 3, 4, 3, 3]) == ([3, 3, 4, 3, 3], [])
    # The smallest goes to its smaller neighbour.
    assert sizes(a=[4, 2, 3, 5, 6]) == ([4, 5, 5, 6], ["a: quintiles 2 and 3"])
    assert sizes(a=[1, 1, 1, 0, 3])[0] == [3, 3]
    # A group too small for itself is pooled with other small ones, or joins the last stratum.
    assert sizes(a=[3, 3, 0, 0, 0], b=[1, 0, 0, 0, 0], c=[0, 2, 0, 0, 0])[0] == [3, 3, 3]
    counts, merged = sizes(a=[3, 4, 0, 0, 0], b=[1, 0, 0, 0, 0])
    assert counts == [3, 5] and merged[-1] == "pool of small groups: into the last stratum"
    assert sizes(a=[1, 0, 0, 0, 0])[0] == [1]


def test_the_order_of_cases_does_not_matter_and_the_seed_does():
    rows = list(zip(*cohort(40)))
    first = make_splits(*zip(*rows))
    random.Random(1).shuffle(rows)
    assert make_splits(*zip(*rows)) == first
    assert make_splits(*zip(*rows), seed=1)["hash"] != first["hash"]
    assert make_splits(*zip(*rows), seed=1)["folds"] != first["folds"]


def test_a_subjects_cases_stay_together():
    subjects = [f"s{i // 3}" for i in range(60)]
    groups = [("a" if i % 3 else "b",) for i in range(60)]
    splits = make_splits(subjects, np.arange(60.0), groups)
    for fold in (0, 1, 2):
        for inner in (0, 1, 2):
            parts = fold_subjects(splits, fold, inner)
            assert sorted(parts["train"] + parts["val"] + parts["test"]) == sorted(set(subjects))


def test_one_outer_and_one_inner_fold_train_on_everybody():
    splits = make_splits(["a", "b"], [1, 2], [(), ()], outer=1, inner=1)
    assert fold_subjects(splits, 0) == {"train": ["a", "b"], "val": ["a", "b"], "test": []}


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--outer 3 --inner 3: found 2 subject"):
        make_splits(["a", "b"], [1, 2], [(), ()])
    with pytest.raises(UserError, match="at least 1"):
        make_splits(["a", "b"], [1, 2], [(), ()], outer=0)
    splits = make_splits(*cohort(12))
    with pytest.raises(UserError, match="--fold: found 3, expected 0 to 2"):
        fold_subjects(splits, 3)
    with pytest.raises(UserError, match="--inner_fold: found -1"):
        fold_subjects(splits, 0, -1)
    path = tmp_path / "splits.json"
    with pytest.raises(UserError, match="no such file"):
        load_splits(path)
    path.write_text("{")
    with pytest.raises(UserError, match="JSON"):
        load_splits(path)
    path.write_text("{}")
    with pytest.raises(UserError, match="no hash"):
        load_splits(path)


def test_the_way_out_of_too_few_subjects_still_tests_where_there_are_two():
    assert "--outer 3 --inner 1 tests each subject once" in fewer_folds(3)
    assert "--outer 5" in fewer_folds(9) and "tests" not in fewer_folds(1)


def test_a_change_by_hand_is_noticed(tmp_path):
    splits = make_splits(*cohort(12))
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(splits, indent=2))
    assert load_splits(path) == splits and splits["hash"] == content_hash(splits)
    moved = splits["folds"][0]["test"].pop()
    splits["folds"][1]["test"].append(moved)
    path.write_text(json.dumps(splits))
    with pytest.raises(UserError, match="was edited"):
        load_splits(path)


def test_subjects_that_may_be_one_patient_share_their_folds():
    subjects, volumes, groups = cohort(24)
    together = [subjects[0:2], subjects[5:8], [subjects[7], subjects[20]], ["nobody", "else"]]
    splits = make_splits(subjects, volumes, groups, together=together)
    assert splits["together"] == [subjects[0:2], [*subjects[5:8], subjects[20]]]
    for fold in range(3):
        for inner in range(3):
            parts = fold_subjects(splits, fold, inner)
            assert sorted(parts["train"] + parts["val"] + parts["test"]) == subjects
            for group in splits["together"]:
                assert sum(bool(set(group) & set(part)) for part in parts.values()) == 1


def test_subjects_by_themselves_are_divided_as_ever():
    assert make_splits(*cohort(24), together=[["M0001"]]) == make_splits(*cohort(24))
    assert make_splits(*cohort(24))["hash"] == "94876c6f3b9ce5fe40c9111bcc9e8d2182137419058cd125b74453b6e3c0e9fd"


def test_patients_kept_together_count_as_one():
    with pytest.raises(UserError, match=r"found 2 subjects, those kept together counted as one \(3 with --apart\)"):
        make_splits(["a", "b", "c"], [1, 2, 3], [()] * 3, together=[["a", "c"]])

"""Nested cross-validation: outer and inner folds by subject, stratified by lesion volume and acquisition."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from meshnet.data.schema import read_own_json
from meshnet.display import count
from meshnet.errors import UserError
from meshnet.files import hash_of, near

QUANTILES = 5


def make_splits(
    subjects: Sequence[str],
    volumes_ml: Sequence[float],
    groups: Sequence[Sequence[str]],
    outer: int = 3,
    inner: int = 3,
    seed: int = 0,
    together: Sequence[Sequence[str]] = (),
) -> dict:
    """Divide subjects into ``outer`` test folds and, within the rest, ``inner`` validation folds.

    The three sequences have an entry for each case; a subject's volume is the mean over its cases, its group the most
    frequent one. The same input in any order gives the same folds. A stratum is a volume quintile within a group
    (``groups[i]`` = values of the group columns); strata with fewer subjects than folds are merged, see
    ``merge_strata``. Fold sizes differ by at most one.

    ``outer`` = 1 trains on all subjects and leaves none to test on; ``inner`` = 1 validates on the training subjects:
    for final models and for overfitting on purpose, not for a score to report.

    The subjects of each list in ``together`` may be one patient: they are counted and placed as one. splits.json then
    names them under ``together``.

    Returns what splits.json holds. Raises UserError for fewer subjects than folds.
    """
    if outer < 1 or inner < 1:
        raise UserError(f"--outer {outer} --inner {inner}: expected whole numbers of at least 1")
    units = units_of(subjects, together)
    first = {subject: unit[0] for unit in units for subject in unit}  # a unit has the name of its first subject
    members = {unit[0]: unit for unit in units}
    volume, group = _by_subject([first[s] for s in subjects], volumes_ml, groups)
    names = sorted(volume)
    check_number(units, outer, inner)
    merged = []
    tests = _deal(names, volume, group, outer, np.random.default_rng([seed, 0]), merged)
    folds = []
    for f, test in enumerate(tests):
        test = test if outer > 1 else []
        training = sorted(set(names) - set(test))
        parts = _deal(training, volume, group, inner, np.random.default_rng([seed, f + 1]), [])
        folds.append({
            "test": _all(test, members),
            "inner": [
                {"train": _all(set(training) - set(part) if inner > 1 else training, members),
                 "val": _all(part, members)}
                for part in parts
            ],
        })
    splits = {
        "outer": outer,
        "inner": inner,
        "seed": seed,
        "stratify": {"volume_quantiles": QUANTILES, "merged": merged},
        "folds": folds,
    }
    if len(first) > len(names):
        splits["together"] = [unit for unit in units if len(unit) > 1]
    return {"hash": content_hash(splits), **splits}


def units_of(subjects: Sequence[str], together: Sequence[Sequence[str]]) -> list[list[str]]:
    """The subjects in sorted lists, one for each patient: lists of ``together`` that share a subject are one."""
    unit = {subject: [subject] for subject in subjects}
    for group in together:
        joined = sorted({s for subject in group if subject in unit for s in unit[subject]})
        unit |= dict.fromkeys(joined, joined)
    return sorted({unit[0]: unit for unit in unit.values()}.values())


def check_number(units: Sequence[Sequence[str]], outer: int, inner: int) -> None:
    """Refuse fewer patients than folds."""
    fewest_training = len(units) if outer == 1 else len(units) - -(-len(units) // outer)
    if len(units) < outer or fewest_training < inner:
        raise UserError(
            f"--outer {outer} --inner {inner}: found {count(len(units), 'subject')}{shown_units(units)}, expected at "
            f"least {outer} for the outer folds and {inner} training subjects for the inner ones; "
            f"{fewer_folds(len(units))}"
        )


def fewer_folds(subjects: int) -> str:
    """What to do about too few subjects: folds that still test on some, if there are two, and none at all."""
    way = f"--outer {min(subjects, 5)} --inner 1 tests each subject once, " if subjects > 1 else ""
    return f"use fewer folds ({way}--outer 1 --inner 1 trains and validates on all subjects) or add subjects"


def shown_units(units: Sequence[Sequence[str]]) -> str:
    """What to add to a number of patients where it is smaller than that of subjects."""
    total = sum(map(len, units))
    return f", those kept together counted as one ({total} with --apart)" if total > len(units) else ""


def _all(names: Iterable[str], members: dict[str, list[str]]) -> list[str]:
    """Every subject of the units of these names, sorted."""
    return sorted(subject for name in names for subject in members[name])


def _by_subject(subjects, volumes_ml, groups) -> tuple[dict[str, float], dict[str, tuple[str, ...]]]:
    volumes, seen = defaultdict(list), defaultdict(Counter)
    for subject, ml, values in zip(subjects, volumes_ml, groups, strict=True):
        volumes[subject].append(float(ml))
        seen[subject][tuple(str(v) for v in values)] += 1
    # Ties between a subject's groups go to the first in the alphabet, so that the order of cases does not matter.
    group = {s: min(c, key=lambda g: (-c[g], g)) for s, c in seen.items()}
    return {s: sum(sorted(v)) / len(v) for s, v in volumes.items()}, group


def _deal(names, volume, group, folds, rng, merged) -> list[list[str]]:
    """Shuffle each stratum and deal it out to the folds in turn; each stratum continues where the last one stopped."""
    hands = [[] for _ in range(folds)]
    if folds == 1:
        return [list(names)]
    order = rng.permutation(folds)
    dealt = 0
    for stratum in merge_strata(make_strata(names, volume, group), folds, merged):
        for i in rng.permutation(len(stratum)):
            hands[order[dealt % folds]].append(stratum[i])
            dealt += 1
    return hands


def make_strata(names, volume, group) -> dict[tuple[tuple[str, ...], int], list[str]]:
    """Subjects by (group, volume quintile over all of ``names``), by rank, so that equal volumes fill all quintiles."""
    ranked = sorted(names, key=lambda s: (volume[s], s))
    strata = defaultdict(list)
    for rank, subject in enumerate(ranked):
        strata[group[subject], rank * QUANTILES // len(ranked)].append(subject)
    return {key: sorted(strata[key]) for key in sorted(strata)}


def merge_strata(strata: dict, folds: int, merged: list[str] | None = None) -> list[list[str]]:
    """Merge strata of fewer than ``folds`` subjects: with a neighbouring quintile of their group, the smaller first.

    Groups that are too small as a whole are pooled, quintile by quintile, and merged in the same way; what is
    still too small joins the last stratum. ``merged`` collects a line on each merger. Every subject is in one stratum.
    """
    merged = [] if merged is None else merged
    by_group = defaultdict(dict)
    for (group, quintile), members in strata.items():
        by_group[group][quintile] = members
    result, pool = [], defaultdict(list)
    for group, quintiles in sorted(by_group.items()):
        if sum(map(len, quintiles.values())) < folds:
            merged.append(f"{_name(group)}: all quintiles, into the pool of small groups")
            for quintile, members in quintiles.items():
                pool[quintile] += members
        else:
            result += _merge_quintiles(quintiles, folds, _name(group), merged)
    if pool:
        rest = _merge_quintiles(dict(sorted(pool.items())), folds, "pool of small groups", merged)
        if len(rest[0]) < folds and result:
            merged.append("pool of small groups: into the last stratum")
            result[-1] = sorted(result[-1] + rest[0])
        else:
            result += rest
    return result


def _merge_quintiles(quintiles: dict[int, list[str]], folds: int, name: str, merged: list[str]) -> list[list[str]]:
    parts = [([q], members) for q, members in sorted(quintiles.items())]
    while len(parts) > 1 and min(len(m) for _, m in parts) < folds:
        i = min(range(len(parts)), key=lambda k: (len(parts[k][1]), k))
        neighbours = [k for k in (i - 1, i + 1) if 0 <= k < len(parts)]
        j = min(neighbours, key=lambda k: (len(parts[k][1]), k))
        low, high = sorted((i, j))
        merged.append(f"{name}: quintiles {_shown(parts[low][0])} and {_shown(parts[high][0])}")
        parts[low : high + 1] = [(parts[low][0] + parts[high][0], sorted(parts[low][1] + parts[high][1]))]
    return [sorted(members) for _, members in parts]


def _name(group: tuple[str, ...]) -> str:
    return " × ".join(group) or "all subjects"


def _shown(quintiles: list[int]) -> str:
    return "+".join(str(q + 1) for q in quintiles)


def content_hash(splits: dict) -> str:
    """SHA-256 (64 hex digits) over everything in ``splits`` but the hash itself."""
    return hash_of({key: value for key, value in splits.items() if key != "hash"})


def load_splits(path: str | Path) -> dict:
    """Read splits.json and verify its hash. Raises UserError where it is missing, damaged or was edited."""
    path = Path(path)
    missing = f"{path}: no such file, expected the splits that prepare.py writes; run it first{near(path.parent)}"
    splits = read_own_json(path, missing)
    if not isinstance(splits, dict) or not {"hash", "outer", "inner", "seed", "folds"} <= set(splits):
        raise UserError(f"{path}: found no hash, outer, inner, seed and folds; run prepare.py again")
    if splits["hash"] != content_hash(splits):
        raise UserError(
            f"{path}: its content does not match its hash {str(splits['hash'])[:12]}…, so it was edited; run "
            "prepare.py again"
        )
    return splits


def fold_subjects(splits: dict, fold: int, inner_fold: int = 0) -> dict[str, list[str]]:
    """The subjects of one fold: ``train`` and ``val`` of the inner fold, ``test`` of the outer one."""
    for flag, value, folds in (("--fold", fold, splits["outer"]), ("--inner_fold", inner_fold, splits["inner"])):
        if not 0 <= value < folds:
            raise UserError(f"{flag}: found {value}, expected 0 to {folds - 1}, since the data set has "
                            f"{count(folds, 'fold')}")
    chosen = splits["folds"][fold]
    return {**chosen["inner"][inner_fold], "test": chosen["test"]}

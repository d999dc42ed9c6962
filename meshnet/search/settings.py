"""What makes a study the same study: everything that decides its scores, and no path.

The data set is known by its fingerprint and its splits, the recipe by the configuration that it leads to without what
changes no weights and without the searched fields. What an earlier version recorded is brought to this form first: a
field that it did not know has the default, and the data set is the one that its trials recorded.
"""

from collections.abc import Mapping
from pathlib import Path

from meshnet.config import Config, identity, resolve
from meshnet.errors import UserError
from meshnet.recipe import fill_defaults, load_text, read_mapping
from meshnet.runs.folder import CONFIG_YAML, differences
from meshnet.search.space import Space, parse_space

DATA = {"fingerprint": "data set", "split_hash": "division into folds"}


def recipe_of(config: Config, space: Space) -> dict:
    """What of a configuration decides the scores of a study that searches ``space``."""
    return without_searched(identity(config), space)


def without_searched(flat: Mapping, space: Space) -> dict:
    """Without what every trial sets."""
    searched = {dimension.field for dimension in space.dimensions} | {"training.max_epochs"}  # the rungs say it
    if "optimizer.lr" in searched or "scheduler.max_lr" in searched:
        searched |= {"optimizer.lr", "scheduler.max_lr"}
    return {key: value for key, value in flat.items() if key not in searched}


def renew(found: dict, wanted: Mapping, space: Space, folder: Path) -> dict:
    """Recorded settings as this version records them.

    Args:
        found: those of the ledger. wanted: those of this call, searching ``space``.
        folder: the study's, whose trials say what they were trained on.
    """
    found = dict(found)
    recipe = found.get("recipe", {})
    if any(isinstance(part, dict) for part in recipe.values()) and not any("." in key for key in recipe):
        known, unknown = Config(), {}
        for section, part in recipe.items():
            for name, value in part.items():
                if hasattr(getattr(known, section, None), name):
                    setattr(getattr(known, section), name, value)
                else:
                    unknown |= {f"{section}.{name}": value}
        recipe = identity(resolve(known)) | unknown
    found["recipe"] = without_searched(fill_defaults(recipe), space)
    found.pop("data", None)  # a path
    if "fingerprint" not in found:
        found |= trained_on(folder) or {key: wanted[key] for key in ("fingerprint", "split_hash")}
    if same_space(found.get("space"), space):
        found["space"] = wanted["space"]
    return {**wanted, **found}  # what was not recorded came later


def same_space(block: object, space: Space) -> bool:
    """Whether a recorded search section means ``space``, however it is written."""
    try:
        found = parse_space(block).dimensions
    except (UserError, AttributeError):
        return False
    return {each.name: each for each in found} == {each.name: each for each in space.dimensions}


def trained_on(folder: Path) -> dict:
    """Fingerprint and splits of the data set that a trial of the study was trained on; {} where none has begun."""
    for path in sorted(folder.glob(f"trials/*/*/{CONFIG_YAML}")):
        run = read_mapping(path).get("run", {})
        if run.get("data") and run.get("split_hash"):
            return {"fingerprint": run["data"], "split_hash": run["split_hash"]}
    return {}


def changes(old: Mapping, new: Mapping) -> list[str]:
    """Everything that changed, each on its own and in words."""
    said = []
    for key in dict.fromkeys([*old, *new]):
        one, other = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            prefix = "search: " if key == "space" else ""
            said += [prefix + text for text in differences(one, other).values()]
        elif key in DATA and one != other:
            said.append(f"the {DATA[key]} was {str(one)[:12]} and is now {str(other)[:12]}: prepared anew, with other "
                        "cases or otherwise")
        else:
            said += differences({key: one}, {key: other}).values()
    return said


def refuse_lost_ledger(folder: Path, ledger: Path) -> None:
    """Refuse to take the trials that an earlier study left in the folder for those of a new ledger."""
    left = sorted(path.name for path in folder.glob("trials/*") if path.is_dir())
    if left:
        raise UserError(f"{folder / 'trials'}: found {len(left)} trials of an earlier study that {ledger} knows "
                        "nothing of, expected its ledger; bring it back or name it with --ledger, or begin anew in "
                        "another --study")


def refuse_other_trial(path: Path, text: str) -> None:
    """Refuse a trial's recipe on disk that leads to another configuration than ``text``, the one of the ledger."""
    found = path.read_text(encoding="utf-8")
    if found == text:
        return
    changed = differences(*(identity(resolve(load_text(each, str(path)))) for each in (found, text)))
    if changed:
        raise UserError(f"{path}: is the recipe of another trial than the ledger's: {'; '.join(changed.values())}; "
                        f"bring back the ledger that belongs to it, or remove {path.parent}")

"""What makes a study the same study: everything that decides its scores, and no path.

The data set is known by its fingerprint and its splits, the recipe by the configuration that it leads to without what
changes no weights and without the searched fields. What an earlier version recorded is brought to this form first: a
field that it did not know has the default, and the data set is the one that its trials recorded.
"""

from collections.abc import Mapping
from pathlib import Path

from meshnet.config import Config, identity, resolve
from meshnet.errors import UserError
from meshnet.mapping import parse_yaml
from meshnet.recipe import as_begun, fill_defaults, load_text, read_mapping
from meshnet.runs.folder import CONFIG_YAML, differences
from meshnet.search.space import Space, parse_space

DATA = {"fingerprint": "data set", "split_hash": "division into folds"}


def recipe_of(config: Config, space: Space) -> dict:
    """What of a configuration decides the scores of a study that searches ``space``, by sections."""
    return by_sections(identity(config), space)


def by_sections(flat: Mapping, space: Space) -> dict:
    """``{"loss.name": "ce"}`` as ``{"loss": {"name": "ce"}}``, without what every trial sets."""
    searched = {dimension.field for dimension in space.dimensions} | {"training.max_epochs"}  # the rungs say it
    if searched & {"optimizer.lr", "scheduler.max_lr"}:
        searched |= {"optimizer.lr", "scheduler.max_lr"}
    found: dict = {}
    for key in flat.keys() - searched:
        section, _, name = key.partition(".")
        found.setdefault(section, {})[name] = flat[key]
    return found


def flat_of(recipe: Mapping) -> dict:
    """The other way round."""
    return {f"{section}.{name}": part[name] for section, part in sorted(recipe.items()) for name in sorted(part)}


def renew(found: dict, wanted: Mapping, space: Space, folder: Path) -> dict:
    """Recorded settings as this version records them.

    Args:
        found: those of the ledger, in which ``recipe`` was once the whole configuration.
        wanted: those of this call, searching ``space``.
        folder: the study's, whose trials say what they were trained on.
    """
    found = dict(found)
    found["recipe"] = by_sections(fill_defaults(flat_of(found.get("recipe", {}))), space)
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
        if key == "recipe":
            said += differences(flat_of(one), flat_of(other)).values()
        elif key == "space":
            said += [f"search: {text}" for text in differences(one, other).values()]
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
    configs = [as_begun(resolve(load_text(each, str(path))), flat_of(parse_yaml(each, str(path))[0]))
               for each in (found, text)]
    changed = differences(*map(identity, configs))
    if changed:
        raise UserError(f"{path}: is the recipe of another trial than the ledger's: {'; '.join(changed.values())}; "
                        f"bring back the ledger that belongs to it, or remove {path.parent}")

"""Push a run, a model folder or a prepared data set to the Hugging Face Hub."""

import json
import shutil
import tempfile
from pathlib import Path

from meshnet.data.schema import PREPARED
from meshnet.errors import UserError
from meshnet.files import write_json, write_text
from meshnet.hub import DATASET_FILES, MODEL_FILES, check_push, upload
from meshnet.networks.card import CONFIG, WEIGHTS, Card, read_card
from meshnet.networks.cascade import FIRST
from meshnet.runs.folder import AVERAGED, CONFIG_YAML, CURVES, METRICS, TEST_CASES


def push_run(run_dir: str | Path, repository: str, private: bool = True, licence: str = "mit",
             report: Path | None = None) -> str:
    """Push a run or model folder: weights, ``config.json``, a generated model card, the recipe, a picture.

    Args:
        repository: ``user/name``; created if it does not exist.
        private: visibility of a new repository; an existing one keeps its own.
        report: folder of a cross-validation whose table goes into the card; by default the one that the run is in.

    Returns:
        The address of the commit.

    Raises:
        UserError: for a folder that is not a model, a refused token, a missing permission, or no network.
    """
    from meshnet.networks.build import load_model

    folder = Path(run_dir)
    check_push(repository)
    if not folder.is_dir():
        raise UserError(f"{folder}: not found; expected a run folder, a model folder or a prepared data set")
    model, card = load_model(folder)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        stage_model(folder, staged, model, card, repository, licence, report)
        return upload(staged, repository, "model", private, MODEL_FILES)


def stage_model(folder: Path, staged: Path, model, card: Card, repository: str, licence: str,
                report: Path | None) -> None:
    """Collect in ``staged`` what goes to the Hub: no case names, no paths, no resume points."""
    import yaml

    from meshnet.networks.readme import model_readme, public_card

    card = public_card(card)
    write_json(staged / CONFIG, card.to_dict())
    if card.first:
        stage_first(folder / FIRST, staged / FIRST)
    weights = [folder / name for name in (WEIGHTS, AVERAGED)]
    # A picture of a case is pushed only if its owner named it picture.png.
    pictures = [folder / name for name in ("picture.png", CURVES) if (folder / name).is_file()][:1]
    for path in [folder / METRICS, *weights, *pictures]:
        if path.is_file():
            shutil.copyfile(path, staged / path.name)
    recipes = [folder / name for name in (CONFIG_YAML, "recipe.yaml") if (folder / name).is_file()]
    if recipes:
        recipe = yaml.safe_load(recipes[0].read_text(encoding="utf-8"))
        recipe.pop("run", None)  # paths and the machine
        write_text(staged / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    picture = pictures[0].name if pictures else None
    readme = model_readme(model, card, repository, folder / TEST_CASES, picture, licence,
                          read_report(folder, report))
    write_text(staged / "README.md", readme)


def stage_first(folder: Path, staged: Path) -> None:
    """Collect in ``staged`` the first network of a cascade from its ``folder``, as it may leave this machine."""
    from meshnet.networks.readme import public_card

    staged.mkdir()
    write_json(staged / CONFIG, public_card(read_card(folder)).to_dict())
    shutil.copyfile(folder / WEIGHTS, staged / WEIGHTS)


def read_report(folder: Path, report: Path | None) -> str:
    """The table of a cross-validation: of ``report``, or of the one that the run ``folder`` lies in; else empty."""
    if report is not None:
        path = report / "report" / "table.md"
        if not path.is_file():
            raise UserError(f"--report {report}: has no report/table.md, expected the folder of a cross-validation; "
                            f"write it with crossval.py --out {report} --report")
        return path.read_text(encoding="utf-8")
    from meshnet.crossval.plan import PLAN

    tables = [parent / "report" / "table.md" for parent in folder.resolve().parents[:4] if (parent / PLAN).is_file()]
    return next((path.read_text(encoding="utf-8") for path in tables if path.is_file()), "")


def push_dataset(folder: str | Path, repository: str, private: bool = True, licence: str = "other") -> str:
    """Push a prepared data set with a card, in one commit. Its rows hold case names and file paths, which are
    pushed; the source folder and the filters are not."""
    from meshnet.networks.readme import dataset_readme, safe_source

    folder = Path(folder)
    if not (folder / PREPARED).is_file():
        raise UserError(f"{folder}: found no {PREPARED}; expected a folder that prepare.py wrote")
    check_push(repository)
    info = json.loads((folder / PREPARED).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        for path in folder.rglob("*"):
            inside = path.relative_to(folder).parts
            if inside[0] != FIRST and path.suffix in (".arrow", ".json") and path.is_file() and inside[-1][0] != ".":
                link = staged / path.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        if info.get("first"):
            stage_first(folder / FIRST, staged / FIRST)
        (staged / PREPARED).unlink()
        write_json(staged / PREPARED, info | {"source": safe_source(info["source"])})
        write_text(staged / "README.md", dataset_readme(info, repository, licence))
        return upload(staged, repository, "dataset", private, DATASET_FILES)

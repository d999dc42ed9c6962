"""Models and prepared data sets to and from the Hugging Face Hub.

    python -m meshnet.hub push RUN user/name [--public] [--licence mit] [--report FOLDER]
    python -m meshnet.hub pull user/name[@revision] [FOLDER]

The token comes from the usual place (``hf auth login`` or ``HF_TOKEN``). Repositories are private unless asked
otherwise. Case names, paths and per-case scores stay at home.
"""

import argparse
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from meshnet.errors import UserError, run_script
from meshnet.files import write_json, write_text

MODEL_FILES = ["config.json", "*.safetensors", "README.md", "*.png", "recipe.yaml", "metrics.jsonl"]
DATASET_FILES = ["*.json", "*.arrow", "README.md"]
# What an earlier push may have left and a new one lacks: these go in the same commit. A user's own files stay.
STALE = {"model": ["model_ema.safetensors", "recipe.yaml", "metrics.jsonl", "picture.png", "curves.png"],
         "dataset": ["*.arrow"]}
ATTEMPTS, WAIT_S = 3, 2.0
TOO_MANY = 429  # the status of a client that asks too often


def split_name(name: str) -> tuple[str, str | None]:
    """``user/name@revision`` → (``user/name``, revision or None)."""
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"{name}: found no Hub name, expected user/name or user/name@revision")
    return repository, revision or None


@contextlib.contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn the client's errors about ``what`` into one line each. No line holds a token."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise UserError(f"{what}: the repository has no such revision; see its history on the Hub") from None
    except errors.GatedRepoError:
        raise UserError(f"{what}: access must be asked for on its page on the Hub first") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{what}: not found on the Hub, or private and not open to your token; check the name, or log "
                        "in with: hf auth login") from None
    except errors.HFValidationError as error:
        raise UserError(f"{what}: not a name that the Hub takes ({str(error).splitlines()[0]})") from None
    except errors.OfflineModeIsEnabled:
        raise UserError(f"{what}: the Hub cannot be reached, since HF_HUB_OFFLINE is set; unset it") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(f"{what}: not in the cache, and the Hub cannot be reached (no network, or HF_HUB_OFFLINE is "
                        "set); go online once, then it works offline") from None
    except errors.LocalTokenNotFoundError:
        raise UserError(f"{what}: needs a token; log in with: hf auth login") from None
    except errors.HfHubHTTPError as error:
        raise UserError(f"{what}: {explain_status(error.response.status_code)}") from None
    except httpx2.HTTPError as error:
        raise UserError(f"{what}: the connection to the Hub failed ({type(error).__name__}); the same command again "
                        "goes on where it stopped") from None
    except errors.XetDownloadError as error:
        raise UserError(f"{what}: the Hub's file store failed ({str(error)[:120].partition(chr(10))[0]}); the same "
                        "command again goes on where it stopped") from None
    except ValueError as error:
        if "Invalid metadata" not in str(error):  # the client's, for a card that the Hub does not take
            raise
        raise UserError(f"{what}: {' '.join(str(error).split())}; choose another --licence") from None


def explain_status(status: int) -> str:
    """An HTTP status of the Hub in words."""
    if status == 401:
        return "the Hub refuses the token; log in again with: hf auth login"
    if status == 403:
        return "your token has no right to this; it needs write access to that user or organisation"
    if status == TOO_MANY:
        return "too many requests from here; wait a few minutes, the same command again goes on where it stopped"
    if status >= 500:
        return f"the Hub answers with an error of its own ({status}); the same command again goes on where it stopped"
    return f"the Hub answers with status {status}"


def with_retries(action: Callable):
    """``action()``, tried again a few times when the connection breaks or the Hub has an error of its own."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, XetDownloadError

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (httpx2.TransportError, XetDownloadError):
            if attempt == ATTEMPTS:
                raise
        except HfHubHTTPError as error:
            passing = error.response.status_code >= 500 or error.response.status_code == TOO_MANY
            if not passing or attempt == ATTEMPTS:
                raise
        time.sleep(WAIT_S * attempt)


# ---------------------------------------------------------------------------------------------------------- up

def check_push(repository: str) -> None:
    """Raise a UserError if pushing to ``repository`` cannot succeed, as far as that shows without a network."""
    from huggingface_hub import get_token

    if split_name(repository)[1]:
        raise UserError(f"{repository}: pushing goes to the main branch, expected user/name")
    if not get_token():
        raise UserError(f"{repository}: needs a token; log in with: hf auth login")


def push_run(run_dir: str | Path, repository: str, private: bool = True, licence: str = "mit",
             report: Path | None = None) -> str:
    """Push a run or model folder: weights, ``config.json``, a generated model card, the recipe, a picture.

    Args:
        repository: ``user/name``; made where it does not exist.
        private: visibility of a new repository; an existing one keeps its own.
        report: a cross-validation's folder whose table goes into the card; the one that the run lies in by default.

    Returns:
        The address of the commit.

    Raises:
        UserError: for a folder that is no model, a refused token, a missing right, or no network.
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


def stage_model(folder: Path, staged: Path, model, card: dict, repository: str, licence: str,
                report: Path | None) -> None:
    """Gather in ``staged`` what goes to the Hub: no case name, no path, no resume state."""
    import yaml

    from meshnet.hubcard import model_readme, public_training_data

    card = card | {"training_data": public_training_data(card["training_data"])}
    write_json(staged / "config.json", card)
    weights = [folder / name for name in ("model.safetensors", "model_ema.safetensors")]
    # A picture of a case is not taken by itself: whoever wants one in the card calls it picture.png.
    pictures = [folder / name for name in ("picture.png", "curves.png") if (folder / name).is_file()][:1]
    for path in [folder / "metrics.jsonl", *weights, *pictures]:
        if path.is_file():
            shutil.copyfile(path, staged / path.name)
    recipes = [folder / name for name in ("config.yaml", "recipe.yaml") if (folder / name).is_file()]
    if recipes:
        recipe = yaml.safe_load(recipes[0].read_text(encoding="utf-8"))
        recipe.pop("run", None)  # paths and the machine
        write_text(staged / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    picture = pictures[0].name if pictures else None
    readme = model_readme(model, card, repository, folder / "test_cases.csv", picture, licence,
                          read_report(folder, report))
    write_text(staged / "README.md", readme)


def read_report(folder: Path, report: Path | None) -> str:
    """The table of a cross-validation: of ``report``, or of the one that the run ``folder`` lies in; else empty."""
    if report is not None:
        path = report / "report" / "table.md"
        if not path.is_file():
            raise UserError(f"--report {report}: has no report/table.md, expected crossval.py's folder; write it with "
                            f"crossval.py --out {report} --report")
        return path.read_text(encoding="utf-8")
    from meshnet.crossval.plan import PLAN

    tables = [parent / "report" / "table.md" for parent in folder.resolve().parents[:4] if (parent / PLAN).is_file()]
    return next((path.read_text(encoding="utf-8") for path in tables if path.is_file()), "")


def push_dataset(folder: str | Path, repository: str, private: bool = True, licence: str = "other") -> str:
    """Push a prepared data set with a card, in one commit. The rows hold case names and the paths of their files, which
    go with it; the folder that was searched and the filters stay at home."""
    from meshnet.hubcard import dataset_readme, safe_source

    folder = Path(folder)
    if not (folder / "prepared.json").is_file():
        raise UserError(f"{folder}: has no prepared.json; expected a folder that prepare.py wrote")
    check_push(repository)
    info = json.loads((folder / "prepared.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix in (".arrow", ".json") and not path.name.startswith("."):
                link = staged / path.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path.resolve())
        (staged / "prepared.json").unlink()
        write_json(staged / "prepared.json", info | {"source": safe_source(info["source"])})
        write_text(staged / "README.md", dataset_readme(info, repository, licence))
        return upload(staged, repository, "dataset", private, DATASET_FILES)


def upload(folder: Path, repository: str, kind: str, private: bool, patterns: list[str]) -> str:
    """Create the repository where it is missing and commit the files of ``folder``; returns the commit's address.

    The card is checked before anything large is sent. What an earlier push left and this one lacks is deleted with it.
    """
    from huggingface_hub import HfApi

    api = HfApi()

    def act():
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repository, folder_path=folder, repo_type=kind, allow_patterns=patterns,
                                 ignore_patterns=[".*"], delete_patterns=STALE[kind],
                                 commit_message="Push from meshnet")

    with plain_errors(repository):
        return str(with_retries(act).commit_url)


# ---------------------------------------------------------------------------------------------------------- down

def pull(name: str, kind: str = "model") -> Path:
    """The folder of ``user/name[@revision]`` in the cache, downloaded as far as it is not there.

    With no network the cached copy is used. A broken download goes on where it stopped.

    Raises:
        UserError: one line for each way in which it can fail.
    """
    import httpx2
    from huggingface_hub import snapshot_download

    repository, revision = split_name(name)
    wanted = {"repo_type": kind, "revision": revision,
              "allow_patterns": MODEL_FILES if kind == "model" else DATASET_FILES}
    with plain_errors(name):
        try:
            return Path(with_retries(lambda: snapshot_download(repository, **wanted)))
        except httpx2.TransportError:  # the client itself takes to the cache only where no connection begins
            return Path(snapshot_download(repository, **wanted, local_files_only=True))


def pull_missing(name: str, kind: str = "model") -> Path:
    """``pull``, for a name that could also have been a path: what is wrong then names both."""
    try:
        return pull(name, kind)
    except UserError as error:
        raise UserError(f"{name}: no such folder here, and as a {kind} on the Hub: "
                        f"{str(error).removeprefix(name + ': ')}") from None


def data_folder(name: str) -> str:
    """The folder of a prepared data set: ``name`` where it is one here, else that of ``user/name[@revision]``."""
    path = Path(name)
    if path.exists() or path.is_absolute() or name.count("/") != 1 or name.startswith((".", "~")):
        return name
    return str(pull_missing(name, "dataset"))


def copy_to(source: Path, target: Path) -> None:
    """Copy a pulled folder out of the cache, links resolved."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not empty; give another folder")
    shutil.copytree(source, target, dirs_exist_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m meshnet.hub", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="push a run, a model folder or a prepared data set")
    push.add_argument("folder", type=Path)
    push.add_argument("repository", metavar="user/name")
    push.add_argument("--public", action="store_true", help="make a new repository public (default: private)")
    push.add_argument("--licence", help="licence tag of the card (default: mit; other for data sets)")
    push.add_argument("--report", type=Path, metavar="FOLDER",
                      help="a cross-validation's folder, whose table goes into the card (the run's own by default)")
    get = commands.add_parser("pull", help="download into the cache, and to FOLDER if given")
    get.add_argument("name", metavar="user/name[@revision]")
    get.add_argument("folder", type=Path, nargs="?")
    get.add_argument("--dataset", action="store_true", help="a prepared data set")
    arguments = parser.parse_args()
    if arguments.command == "push":
        where = {"repository": arguments.repository, "private": not arguments.public}
        if (arguments.folder / "prepared.json").is_file():
            print(push_dataset(arguments.folder, **where, licence=arguments.licence or "other"))
        else:
            print(push_run(arguments.folder, **where, licence=arguments.licence or "mit", report=arguments.report))
        return
    folder = pull(arguments.name, "dataset" if arguments.dataset else "model")
    if arguments.folder:
        copy_to(folder, arguments.folder)
    print(arguments.folder or folder)


if __name__ == "__main__":
    run_script(main)

"""The Hugging Face Hub's client: folders up and down, its errors in words.

The token comes from ``hf auth login`` or ``HF_TOKEN``. Repositories are private by default. Case names, paths and the
scores of single cases are never uploaded.
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import near

# Of a cascade the first network's folder as well.
MODEL_FILES = ["config.json", "*.safetensors", "README.md", "*.png", "recipe.yaml", "metrics.jsonl",
               "first/config.json"]
DATASET_FILES = ["*.json", "*.arrow", "README.md", "first/model.safetensors"]
# What an earlier push may have left and a new one lacks: deleted in the same commit. A user's own files stay.
STALE = {"space": [], "model": ["model_ema.safetensors", "recipe.yaml", "metrics.jsonl", "picture.png", "curves.png",
                             "first/config.json", "first/model.safetensors"],
         "dataset": ["*.arrow", "first/config.json", "first/model.safetensors"]}
ATTEMPTS, WAIT_S = 3, 2.0
SHOWN = 5  # folders beside one that is missing
TOO_MANY = 429  # the status of a client that asks too often


def split_name(name: str) -> tuple[str, str | None]:
    """``user/name@revision`` → (``user/name``, revision or None)."""
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise UserError(f"{name}: expected a Hub name, user/name or user/name@revision")
    return repository, revision or None


@contextlib.contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turn the client's errors about ``what`` into a UserError of one line each. No message holds a token."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise UserError(f"{what}: the repository has no such revision; see its history on the Hub") from None
    except errors.GatedRepoError:
        raise UserError(f"{what}: access must first be requested on its page on the Hub") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{what}: not found on the Hub, or private and not accessible with your token; check the name, "
                        "or log in with: hf auth login") from None
    except errors.HFValidationError as error:
        raise UserError(f"{what}: not a valid name on the Hub ({str(error).splitlines()[0]})") from None
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
                        "continues where it stopped") from None
    except errors.XetDownloadError as error:
        raise UserError(f"{what}: the Hub's file storage failed ({str(error)[:120].partition(chr(10))[0]}); the same "
                        "command again continues where it stopped") from None
    except ValueError as error:
        if "Invalid metadata" not in str(error):  # the client's, for a model card that the Hub does not accept
            raise
        raise UserError(f"{what}: {' '.join(str(error).split())}; choose another --licence") from None


def explain_status(status: int) -> str:
    """An HTTP status of the Hub in words."""
    if status == 401:
        return "the Hub rejects the token; log in again with: hf auth login"
    if status == 403:
        return "your token is not allowed to do this; it needs write access to that user or organisation"
    if status == TOO_MANY:
        return "too many requests; wait a few minutes, the same command again continues where it stopped"
    if status >= 500:
        return f"the Hub has an error of its own ({status}); the same command again continues where it stopped"
    return f"the Hub answers with status {status}"


def with_retries(action: Callable):
    """``action()``, retried a few times when the connection breaks or the Hub has an error of its own."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, XetDownloadError

    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (httpx2.TransportError, XetDownloadError):
            if attempt == ATTEMPTS:
                raise
        except HfHubHTTPError as error:
            temporary = error.response.status_code >= 500 or error.response.status_code == TOO_MANY
            if not temporary or attempt == ATTEMPTS:
                raise
        time.sleep(WAIT_S * attempt)


def check_push(repository: str) -> None:
    """Raise a UserError if pushing to ``repository`` cannot succeed, as far as that can be known without a network."""
    from huggingface_hub import get_token

    if split_name(repository)[1]:
        raise UserError(f"{repository}: pushing goes to the main branch, expected user/name")
    if not get_token():
        raise UserError(f"{repository}: needs a token; log in with: hf auth login")


def upload(folder: Path, repository: str, kind: str, private: bool, patterns: list[str]) -> str:
    """Create the repository where it is missing and commit the files of ``folder``; returns the commit's address.

    The card is checked before anything large is sent. Files of an earlier push that this one lacks are deleted.
    """
    from huggingface_hub import HfApi

    api = HfApi()

    def act():
        api.create_repo(repository, repo_type=kind, private=private, exist_ok=True,
                        space_sdk="static" if kind == "space" else None)
        return api.upload_folder(repo_id=repository, folder_path=folder, repo_type=kind, allow_patterns=patterns,
                                 ignore_patterns=[".*"], delete_patterns=STALE[kind],
                                 commit_message="Push from meshnet")

    with plain_errors(repository):
        return str(with_retries(act).commit_url)


# ---------------------------------------------------------------------------------------------------------- down

def pull(name: str, kind: str = "model") -> Path:
    """The folder of ``user/name[@revision]`` in the cache; what is missing there is downloaded.

    Without a network the cached copy is used. An interrupted download continues where it stopped.

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
        except httpx2.TransportError:  # the client itself uses the cache only where no connection can be opened
            return Path(snapshot_download(repository, **wanted, local_files_only=True))


def pull_missing(name: str, kind: str = "model") -> Path:
    """``pull``, for a name that could also have been a path: the error message then names both, and what there is
    instead where its folder is here, since then hardly anyone thought of the Hub."""
    try:
        return pull(name, kind)
    except UserError as error:
        parent = Path(name).parent
        if parent.is_dir():
            there = sorted(one.name for one in parent.iterdir() if one.is_dir() and not one.name.startswith("."))
            holds = f"{parent} holds {', '.join(there[:SHOWN]) + ', …' * (len(there) > SHOWN) or 'no folder'}"
            reason = str(error).removeprefix(f"{name}: ").partition(";")[0]  # going online would not help
            raise UserError(f"{name}: no such folder, and as a {kind} on the Hub: {reason}; {holds}"
                            f"{near(name)}") from None
        raise UserError(f"{name}: no such folder, and as a {kind} on the Hub: "
                        f"{str(error).removeprefix(name + ': ')}") from None


def data_folder(name: str) -> str:
    """The folder of a prepared data set: ``name`` where it exists, else the copy of ``user/name[@revision]``."""
    path = Path(name)
    if path.exists() or path.is_absolute() or name.count("/") != 1 or name.startswith((".", "~")):
        return name
    return str(pull_missing(name, "dataset"))


def copy_to(source: Path, target: Path) -> None:
    """Copy a pulled folder out of the cache, following its links."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target}: exists and is not empty; give another folder")
    shutil.copytree(source, target, dirs_exist_ok=True)


if __name__ == "__main__":  # what model cards of earlier versions say
    print("error: python -m meshnet.hub is now share.py: python share.py push FOLDER user/name, and python share.py "
          "pull user/name FOLDER", file=sys.stderr)
    sys.exit(2)

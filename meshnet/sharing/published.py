"""Pretrained models by name: the built-in ones, and public MeshNets that are downloaded and imported on first use.

A public model is pinned to a commit of the repository that publishes it, so that a name always means the same network.
"""

import dataclasses
import hashlib
import math
import os
from pathlib import Path

from meshnet.errors import UserError
from meshnet.files import whole_file
from meshnet.machine import cache_folder

SOURCE = "https://raw.githubusercontent.com/neuroneural/brainchop"
TIMEOUT_S = 30
NOT_FOUND = 404


@dataclasses.dataclass(frozen=True)
class Public:
    """A published network in brainchop's TensorFlow.js layout."""

    segments: str
    channel: str
    folder: str  # in the repository
    commit: str
    binary: str
    licence: str = "MIT"
    scaling: str | None = None  # as the file says, else minmax
    sha256: str | None = None  # of the binary
    checked: str = "not tested by this project"
    disease: str = "any brain"


PUBLIC = {
    "brainchop-tissue-light": Public(
        "grey and white matter", "T1w", "FullVolumeInference/ModelToLoad/model5_gw_ae",
        "8520f5c39d73e1ebc7ff4da2ed2354bbb884e4a1", "group1-shard1of1.bin",
        sha256="ca0d1b8ff72f8719d9525acaf9a1f1cb66dbb173b4ee1d7540f99e022cf4bfd8",
        checked="imported, labels equal to the published ones"),
    "brainchop-t2-lesion": Public(
        "lesions", "T2w", "public/models/model_11ch_ARC", "914d81e95296776d33e05cc6d6f6e1fb40489334",
        "model.bin", scaling="brainchop_quantile", disease="chronic stroke"),
    "brainchop-subcortical": Public(
        "17 regions: grey and white matter, subcortical areas", "T1w", "public/models/model30chan18cls",
        "5c540411d4a1c6b24c36d1c938cb23251617aa05", "model.bin"),
}


def find(name: str | Path) -> str | Path:
    """``name``, or for one of ``PUBLIC`` (unless a file of that name exists) the folder that it is downloaded to, as
    ``networks.folder.find_folder`` accepts it. Scripts that take a model by name call this first."""
    return fetch(str(name)) if str(name) in PUBLIC and not Path(name).exists() else name


def fetch(name: str) -> Path:
    """The model folder of a public model, downloaded and imported if it is not cached.

    Raises:
        UserError: without a network, or if the download is not the pinned file.
    """
    from meshnet.networks.card import CONFIG
    from meshnet.networks.folder import save_model
    from meshnet.sharing.importing import imported_card
    from meshnet.sharing.tfjs import read_tfjs

    model = PUBLIC[name]
    folder = cache_folder() / f"{name}-{cache_key(model)}"
    if (folder / CONFIG).is_file():
        return folder
    raw = folder / "published"
    for file in (model.binary, "model.json"):
        if not (raw / file).is_file():
            download(f"{SOURCE}/{model.commit}/{model.folder}/{file}", raw / file)
    if not (raw / "colormap.json").is_file():  # the classes' names; not every network has one
        download(f"{SOURCE}/{model.commit}/{model.folder}/colormap.json", raw / "colormap.json", optional=True)
    if model.sha256 and hashlib.sha256((raw / model.binary).read_bytes()).hexdigest() != model.sha256:
        (raw / model.binary).unlink()
        raise UserError(f"{name}: the downloaded weights are not the pinned ones (sha256 differs); try again")
    try:
        network, info = read_tfjs(raw / "model.json")
    except UserError:  # a damaged download: the next call repeats it
        for file in (model.binary, "model.json"):
            (raw / file).unlink(missing_ok=True)
        raise
    origin = {"published_by": "neuroneural/brainchop", "commit": model.commit, "licence": model.licence}
    card = imported_card(raw / "model.json", network, info, [model.channel], scaling=model.scaling)
    save_model(folder, network, card.changed(training_data=origin))
    return folder


def cache_key(model: Public) -> str:
    """Eight hex digits of everything in ``model`` that decides what its model folder holds."""
    made_of = (model.commit, model.folder, model.binary, model.channel, model.scaling, model.sha256)
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:8]


def download(url: str, path: Path, optional: bool = False) -> None:
    """Download ``url`` to ``path``, whole or not at all; a missing ``optional`` file is skipped.

    Raises:
        UserError: naming the host and what went wrong.
    """
    import http.client
    import urllib.error
    import urllib.parse
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError(f"{path.name}: not in the cache and HF_HUB_OFFLINE is set; unset it to download")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            content = answer.read()
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if optional and (getattr(error, "code", None) == NOT_FOUND or isinstance(reason, FileNotFoundError)):
            return
        host = urllib.parse.urlparse(url).hostname
        raise UserError(f"{url}: could not be downloaded ({reason}); check the network to {host}, or import a copy "
                        "with python share.py import") from None
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def list_models() -> str:
    """The models available by name as text, a line each, built-in ones first."""
    from meshnet.networks.card import CONFIG, read_card
    from meshnet.networks.folder import BUILT_IN

    rows = [("name", "marks", "of", "contrast", "parameters", "licence", "how good")]
    for path in sorted(BUILT_IN.glob(f"*/{CONFIG}")):
        card = read_card(path.parent)
        about = card.others.get("about", {})
        rows.append((path.parent.name, card.marks or ", ".join(card.classes[1:]), about.get("disease", "not stated"),
                     about.get("contrasts") or " + ".join(card.channels), parameters_of(path.parent, card), "MIT",
                     f"built in; {about.get('score', 'no score on its card')}"))
    for name, model in PUBLIC.items():
        rows.append((name, model.segments, model.disease, model.channel, "after download", model.licence,
                     f"neuroneural/brainchop; {model.checked}"))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0])).rstrip() for row in rows]
    return "\n".join([*lines, "", "Use one: python infer.py scan.nii.gz --model NAME. Models on the Hugging Face Hub: "
                      "--model user/name[@revision].", "Research software, not for diagnosis."])


def parameters_of(folder: Path, card) -> str:
    """The number of trainable values of the model in ``folder``; of a cascade those of both networks, and how many sets
    the second one has."""
    from meshnet.networks.card import WEIGHTS
    from meshnet.networks.cascade import FIRST

    own = parameters_in(folder / WEIGHTS)
    sets = f"{len(card.own_weights) + 1} x " * bool(card.own_weights)
    return f"{parameters_in(folder / FIRST / WEIGHTS)} + {sets}{own}" if card.first else own


def parameters_in(path: Path) -> str:
    """The number of trainable values in a weights file, of the weights for no contrast in particular, from its header
    alone."""
    from safetensors import SafetensorError, safe_open

    from meshnet.networks.cascade import of_contrast

    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in of_contrast(dict.fromkeys(file.keys()), None)
                     if "running_" not in name and "num_batches" not in name]
            return f"{sum(math.prod(file.get_slice(name).get_shape()) for name in names):,}"
    except (OSError, SafetensorError):
        return "not known"

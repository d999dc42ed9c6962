"""README.md of a model or a data set on the Hub, written from the files beside it."""

import csv
import json
import math
import re
from pathlib import Path

from meshnet.networks.card import Card
from meshnet.networks.memory import count_parameters
from meshnet.numbers import plain

CENTRES = {"n/2": "voxel n/2 on the scan's", "middle": "middle on the scan's middle"}
AVERAGED = ", each voxel the mean of what it covers"
SHIFTED = "segmented a second time on a grid moved by half a voxel, with averaged probabilities, "
FIRST = ", with the probabilities of the network in `first` as further channels"
MIRROR = ", and the mirror image of all channels"
SCORES = (("dice", "Dice (lesion)"), ("dice_macro", "Dice (mean of background and lesion)"), ("avd", "AVD"),
          ("mcc", "MCC"), ("precision", "precision"), ("sensitivity", "sensitivity"))
CITATION = """```bibtex
@article{fedorov2025meshnet,
  title  = {State-of-the-Art Stroke Lesion Segmentation at 1/1000th of Parameters},
  author = {Fedorov, Alex and Bu, Yutong and Hu, Xiao and Rorden, Chris and Plis, Sergey},
  year   = {2025},
  eprint = {2503.05531},
  archivePrefix = {arXiv}
}
```"""
PUBLIC = ("suffix", "cases", "voxel_mm", "seed", "preset")  # of a source: cannot name a subject or a path
# A path in free text: absolute, from home or from a parent folder. It begins after a space or punctuation and ends
# before the next one, except that a space within belongs to it if a slash follows.
LOCAL_PATH = re.compile(
    r"(?<![\w.-])(?:file:/*|~?/|\.\.?/|[A-Za-z]:[\\/]|\\\\)(?=[\w.~-])[^\s,;:)\]}'\"]*(?: [^\s/,;]+/\S*)*"
)
LIMITS = """Research software. It is not a medical device and must not be used for diagnosis or treatment.
It was tested only on the data named above; on other scanners, sequences, ages or kinds of lesion it may fail without
warning. Look at every mask."""


def front_matter(**fields) -> str:
    """The YAML block at the top of a README, which the Hub reads."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items()]
    return "---\n" + "".join(lines) + "---\n"


def summarise_cases(path: Path) -> list[tuple[str, str]]:
    """Label and mean (standard deviation) of each score in a ``test_cases.csv``; NaN and infinity are left out."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    lines = []
    for key, label in SCORES:
        values = [float(row[key]) for row in rows if row.get(key)]
        values = [value for value in values if math.isfinite(value)]
        if values:
            mean = sum(values) / len(values)
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0
            lines.append((label, f"{mean:.3f} ({deviation:.3f}), {len(values)} cases"))
    return lines


def safe_source(source):
    """What prepare.py recorded about the source of a data set, without paths, subjects and files of this machine."""
    if not isinstance(source, dict):
        return public_source(source)
    return {"format": source.get("format")} | {key: source[key] for key in PUBLIC if source.get(key)}


def public_source(source) -> str:
    """The source of a data set in words, without paths of this machine."""
    if not isinstance(source, dict):
        return LOCAL_PATH.sub("a local path", str(source))
    details = ", ".join(f"{key} {source[key]}" for key in PUBLIC if source.get(key))
    form = source.get("format") or "not recorded"
    return f"{form} ({details})" if details else form


def public_training_data(known):
    """A card's ``training_data`` without paths of this machine and without filters, which may name a subject."""
    if not isinstance(known, dict):
        return known if known is None else public_source(known)
    clean = {key: LOCAL_PATH.sub("a local path", value) if isinstance(value, str) else value
             for key, value in known.items()}
    return clean | ({"source": public_source(known["source"])} if "source" in known else {})


def public_card(card: Card) -> Card:
    """``card`` as it may leave this machine: without local paths and filters, which may name a subject."""
    return card.changed(training_data=public_training_data(card.training_data))


def describe_training(card: Card) -> str:
    """What the network was trained on, one fact per line."""
    known = card.training_data
    if not known:
        return "Not recorded."
    if not isinstance(known, dict):
        return str(known)
    return "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in known.items() if value is not None)


def model_readme(model, card: Card, repository: str, tests: Path, picture: str | None, licence: str,
                 report: str = "") -> str:
    """The README of a model.

    Args:
        model: the network, for its number of parameters.
        card: of the model.
        repository: ``user/name``.
        tests: the run's ``test_cases.csv``, which may be absent.
        picture: name of a picture beside the README.
        licence: named in the README.
        report: Markdown of a cross-validation's table, or "".
    """
    targets = card.marks or ", ".join(card.classes[1:])
    scores = summarise_cases(tests)
    head = "Scores on the test cases, mean (standard deviation over cases), on each scan's own grid:"
    if not scores:
        scores = [(key, f"{value:.3f}" if isinstance(value, float) else str(value))
                  for key, value in (card.metrics or {}).items()]
        head = "No test scores are recorded. Validation:" if scores else "No scores are recorded."
    table = "\n".join(["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in scores)]) if scores else ""
    shape = "×".join(map(str, card.shape)) if card.shape else f"{round(256 / card.voxel_mm)}³"
    return "\n\n".join(part for part in [
        front_matter(license=licence, library_name="meshnet", pipeline_tag="image-segmentation",
                     tags=["medical", "mri", "segmentation", "stroke", "meshnet"]) +
        f"# {repository}",
        f"Segments {targets} on {' + '.join(card.channels)} head scans. A {card.name} of "
        f"{count_parameters(model) // (1 + len(card.own_weights)):,} parameters{own_weights(card.own_weights)}"
        f"{in_cascade(model, card.mirror)}.",
        f"![]({picture})" if picture else "",
        "## How to use it", f"```\npython infer.py scan.nii.gz -o mask.nii.gz --model {repository}\n```",
        f"The scan may have any grid: it is resampled to {shape} voxels of {plain(card.voxel_mm)} mm in orientation "
        f"{card.orientation} ({CENTRES[card.centre]}{AVERAGED * card.averaged}), scaled by "
        f"`{card.scaling}`, {SHIFTED * card.shifted}and the mask comes back on the scan's own grid.",
        "```python\nfrom meshnet import load_model\n"
        f'model, card = load_model("{repository}")  # logits (B, {len(card.classes)}, X, Y, Z)\n```',
        "## Trained on", describe_training(card),
        "## Scores", head, table,
        f"### Cross-validation\n\n{report.strip()}" if report else "",
        "## Intended use and limits", LIMITS,
        "## Licence and citation", f"{licence}. If you use it, cite the paper of the architecture:", CITATION,
    ] if part) + "\n"


def in_cascade(model, mirror: bool) -> str:
    """What is said of the first network of a cascade, and of the mirror image; empty for other models."""
    first = getattr(model, "first", None)
    return "" if first is None else (
        f", the second of a cascade: it is given the probabilities of a first one, a {first.card.name} of "
        f"{count_parameters(first.network):,} parameters that sees the whole head in voxels of "
        f"{plain(first.card.voxel_mm)} mm (in the folder `first`){MIRROR * mirror}")


def own_weights(names: list[str]) -> str:
    """What is said of a cascade that has other weights for the contrasts ``names``; empty for other models."""
    return f", with other weights for scans that look like {' and like '.join(names)}" if names else ""


def dataset_readme(info: dict, repository: str, licence: str) -> str:
    """The README of a prepared data set.

    Args:
        info: content of its ``prepared.json``.
        repository: ``user/name``.
        licence: named in the README.
    """
    shape = "×".join(map(str, info["shape"]))
    return "\n\n".join([
        front_matter(license=licence, task_categories=["image-segmentation"], tags=["medical", "mri", "meshnet"]) +
        f"# {repository}",
        f"{info['cases']} cases of {info['subjects']} subjects, prepared from {public_source(info['source'])}: "
        f"channels {', '.join(info['channels'])}, classes {', '.join(info['classes'])}"
        f"{' of which ' + info['marks'] + ' alone is marked' if info.get('marks') else ''}, {shape} voxels of "
        f"{plain(info['voxel_mm'])} mm, orientation {info['orientation']}{AVERAGED * info.get('averaged', False)}, "
        f"scaling `{info['scaling']}`{FIRST * bool(info.get('first'))}"
        f"{MIRROR * bool(info.get('mirror'))}. Splits are in `splits.json`.",
        "Check that the licence of the source and the consent of the subjects allow sharing before making it public.",
        f"```\npython share.py pull {repository} data/here --dataset\npython train.py --data data/here …\n```",
    ]) + "\n"

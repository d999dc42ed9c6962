"""What a model's ``config.json`` may not say: one line for each of what cannot be used."""

from __future__ import annotations

import math
from pathlib import Path

from meshnet.errors import UserError
from meshnet.numbers import plain
from meshnet.scans.contrast import CONTRASTS
from meshnet.scans.quality import COUNTS
from meshnet.scans.second import SCALINGS, given_names
from meshnet.scans.veto import count_of

SHARE = "first_share"  # a field of the card, and a key of its ``contrasts``
VETO = "veto"  # another key of these
OWN = "own_weights"  # another one: of a cascade, the second network has other weights for this contrast
MENTIONS = "mentions"  # another one: from how many mL on other classes are mentioned, by name
QUALITY = "quality"  # another one: how that of a result is told (``scans.quality.Learned``)


def check_first_classes(values: dict, path: Path) -> None:
    """Raise UserError where ``first``, ``first_share`` and ``mirror`` of the file ``path`` cannot be: see
    ``scans.second``."""
    names = values.get("first")
    check_share(values.get(SHARE, 0), values, path)
    mirror = values.get("mirror", False)
    if not isinstance(mirror, bool) or (mirror and names is None):
        raise UserError(f"{path}: found mirror = {mirror!r}, expected true in a cascade, or false")
    if names is None:
        return
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: found first = {names!r}, expected the names of the first network's classes, or null")
    if values.get("scaling", "conform_uint8") not in SCALINGS:
        raise UserError(f"{path}: found scaling {values['scaling']!r} of a cascade, expected {' or '.join(SCALINGS)}; "
                        "train one of these")
    if values.get("shifted", False):
        raise UserError(f"{path}: found shifted = {values['shifted']!r} of a cascade, expected false: only its first "
                        "network may see a scan on two grids")


def check_share(share, values: dict, path: Path, key: str = SHARE) -> None:
    """Raise UserError where the ``share`` that the file ``path`` gives the first network of a cascade cannot be."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise UserError(f"{path}: found {key} = {share!r}, expected a number from 0 to below 1")
    names = values.get("first")
    if share and (not isinstance(names, list) or not set(values["classes"][1:]) <= set(names)):
        raise UserError(f"{path}: found {key} = {share!r}, expected it only in a cascade whose first network has all "
                        "of its classes")


def check_veto(veto, values: dict, path: Path, key: str) -> None:
    """Raise UserError where the ``veto`` of the file ``path`` cannot be."""
    if values.get("first") is None or (values.get("marks") is None and len(values["classes"]) > 2):
        raise UserError(f"{path}: found {key}, expected it only in a cascade that marks one class; remove it")
    needed = count_of(len(given_names(values["channels"], values["first"], values.get("mirror", False))))
    known = isinstance(veto, dict) and set(veto) - {"sure"} == {"bias", "weights"} and isinstance(veto["weights"], list)
    numbers = [veto["bias"], *veto["weights"]] if known else []
    sure = veto.get("sure", 0) if known else 0
    if isinstance(sure, bool) or not isinstance(sure, (int, float)) or not 0 <= sure <= 1:
        raise UserError(f"{path}: found {key} with sure = {sure!r}, expected a number from 0 to 1; correct it")
    if len(numbers) != needed + 1 or not all(map(is_number, numbers)):
        raise UserError(f"{path}: found {key} = {veto!r}, expected a bias and {needed} weights, numbers up to 1e9; "
                        "copy the model folder again, or remove it")


def check_quality(quality, path: Path, key: str) -> None:
    """Raise UserError where what the file ``path`` says of a ``quality`` cannot be: see ``scans.quality.Learned``."""
    if not isinstance(quality, dict) or quality.keys() != COUNTS.keys() or not all(
            isinstance(quality[name], list) and len(quality[name]) == count + 1 and all(map(is_number, quality[name]))
            for name, count in COUNTS.items()):
        counts = " and ".join(f"{name} of {count + 1}" for name, count in COUNTS.items())
        raise UserError(f"{path}: found {key} = {quality!r}, expected {counts} numbers up to 1e9; copy the model "
                        "folder again, or remove it")


def check_mentions(mentions, values: dict, others: list[str], path: Path, key: str) -> None:
    """Raise UserError where what the file ``path`` says of classes beside the one that is marked cannot be."""
    if values.get("first") is None:
        raise UserError(f"{path}: found {key}, expected it only in a cascade; remove it")
    if not isinstance(mentions, dict) or not set(mentions) <= set(others) or not all(
            is_number(ml) and ml >= 1 for ml in mentions.values()):
        raise UserError(f"{path}: found {key} = {mentions!r}, expected at least 1 mL for classes beside the one that "
                        f"is marked ({', '.join(others) or 'there are none'}); correct it, or remove it")


def is_number(value) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) <= 1e9


def check_decision(values: dict, path: Path) -> None:
    """Raise UserError for what cannot decide about a mask: ``sure`` and ``contrasts`` of the file ``path``."""
    several = values.get("marks") is None and len(values["classes"]) > 2
    given = values.get("contrasts", {})
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise UserError(f"{path}: found contrasts = {given!r}, expected settings by contrast")
    if given and (values.get("scaling") != "lesions_bright" or len(values["channels"]) > 1):
        raise UserError(f"{path}: found contrasts, expected one channel and the scaling lesions_bright with them, "
                        "which looks at the contrast")
    if unknown := set(given) - set(CONTRASTS):
        raise UserError(f"{path}: found contrasts for {min(unknown)!r}, expected some of {', '.join(CONTRASTS)}")
    others = [] if values.get("marks") is None else [name for name in values["classes"][1:] if name != values["marks"]]
    for name, one in (("", {"sure": values.get("sure", 0)}), *given.items()):
        for key, value in one.items():
            if key == SHARE:
                check_share(value, values, path, f"{SHARE} for {name}")
                continue
            if key == OWN:
                if not isinstance(value, bool) or (value and values.get("first") is None):
                    raise UserError(f"{path}: found {OWN} = {value!r} for {name}, expected true in a cascade, or false")
                continue
            if key == MENTIONS:
                check_mentions(value, values, others, path, f"{MENTIONS} for {name}")
                continue
            if key == QUALITY:
                check_quality(value, path, f"{QUALITY} for {name}")
                continue
            if key == VETO:
                check_veto(value, values, path, f"{VETO} for {name}")
                if not one.get("threshold", values.get("threshold", 0.5)):
                    raise UserError(f"{path}: found {VETO} for {name} and threshold = 0, expected a threshold above "
                                    "it, below which a veto lowers; remove one of them")
                continue
            if key == "also":
                if not isinstance(value, list) or not all(each in others for each in value) or (
                        len(set(value)) < len(value)):
                    raise UserError(f"{path}: found also = {value!r}, expected a list of classes beside the one that "
                                    "is marked, each once")
                continue
            top = {"threshold": 1, "sure": 1, "min_lesion_mm3": math.inf}.get(key, -1)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= top:
                raise UserError(f"{path}: found {key} = {value!r}, expected a threshold or sure from 0 to 1, or a "
                                "min_lesion_mm3 from 0 on")
            if key == "sure" and value and several:
                raise UserError(f"{path}: found sure = {plain(value)} beside several classes that are marked, expected "
                                "it with marks, where one probability decides")

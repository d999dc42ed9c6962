"""Which kind of scan a name says: of a model's channel, or of a file."""

import re
from collections.abc import Sequence
from pathlib import Path

from meshnet.scans.contrast import OTHER, T1W, T2W

ALIASES = {"dwi": "DWI", "trace": "DWI", "adc": "ADC", "t2starw": "T2starw", "swi": "T2starw", "ct": "CT", "t1": "T1w",
           "t2": "T2w", "t1w": "T1w", "t2w": "T2w", "flair": "FLAIR", "pdw": "PDw"}
TOKENS = ALIASES | {"mprage": "T1w", "mp2rage": "T1w", "spgr": "T1w", "t1c": "T1w", "t1ce": "T1w", "t1gd": "T1w",
                    "t1wi": "T1w", "t2wi": "T2w", "t2tse": "T2w", "t2flair": "FLAIR", "b1000": "DWI", "b800": "DWI",
                    "t2star": "T2starw", "pd": "PDw", "bold": "BOLD"}
LAST = ("ct", "pd")  # which are initials as well: only at the end of a name
ENTITY = re.compile(r"(sub|ses|acq|ce|rec|run|space|desc|res|den|from|to|mode|task|dir|part|echo|inv|chunk)-",
                    re.IGNORECASE)  # of BIDS, which name other things than the scan's own kind: space-T1w
LOOK = {"T1w": T1W, "T2w": T2W, "FLAIR": OTHER, "DWI": OTHER}  # of scans.contrast, for the kinds that it tells apart


def kinds_of(channel: str) -> list[str]:
    """The kinds of scan that a model takes for a channel, the preferred first: three of "T1w, T2w or FLAIR"."""
    names = re.split(r"\s*,\s*(?:or\s+)?|\s+or\s+", channel.strip())
    return [ALIASES.get(name.lower(), name) for name in names if name] or [channel]


def kind_in_name(path: str | Path) -> str | None:
    """The kind of scan that a file's name says, such as T2w; None where it says none, or several."""
    stem = re.sub(r"\.nii(\.gz)?$", "", Path(path).name, flags=re.IGNORECASE)
    plain = "_".join(part for part in stem.split("_") if not ENTITY.match(part)).lower()
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"t2[_.\s-]?flair", "flair", plain)) if word]
    found = {TOKENS[word] for place, word in enumerate(words, 1)
             if word in TOKENS and (word not in LAST or place == len(words))}
    return found.pop() if len(found) == 1 else None


def name_remarks(scans: Sequence[str | Path], channels: Sequence[str], looks: str | None) -> list[str]:
    """Where the names of a case's files say another kind of scan than the model is for, or than the scan looks like.

    Args:
        scans: a file for each of the model's ``channels``.
        looks: what the scan looks like, one of ``scans.contrast.CONTRASTS``; None where that was not asked.
    """
    if len(scans) != len(channels):
        return []
    remarks = []
    for path, channel in zip(scans, channels):
        said, wanted = kind_in_name(path), kinds_of(channel)
        if said is None or not set(wanted) <= set(TOKENS.values()):
            continue  # a channel called "image" takes anything
        if said not in wanted:
            remarks.append(f"its name says {said}, but the model is for {channel} scans{where(channels, channel)}; do "
                           "not trust the mask, or take another model")
        elif looks and LOOK.get(said, looks) != looks:
            remarks.append(f"its name says {said}, but it looks like {looks} and was segmented as such; check the scan")
    return remarks


def asks_for_another_model(remark: str) -> bool:
    """Whether a line of ``name_remarks`` says that the model is for another kind of scan."""
    return remark.startswith("its name says ") and remark.endswith("take another model")


def where(channels: Sequence[str], channel: str) -> str:
    """Which channel, if there are several."""
    return f" in this place (channel {channel})" if len(channels) > 1 else ""

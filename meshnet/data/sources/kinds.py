"""What a mask in a BIDS tree is of: by its JSON file, by its own name, and only then by the folder that it lies in."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnet.data.sources.text import read_json
from meshnet.errors import UserError

MASK_SUFFIXES = frozenset({"mask", "msk", "roi", "dseg", "lesion", "lesionmask"})
# What a name says that is no lesion, though it may hold the word or lie beside lesions.
NO_LESION = re.compile(r"(?:non?|peri|contra|without|minus|not)-?lesion|lesion-?(?:free|less|fill|inpaint)|healthy")
OTHER_WORDS = (
    "brain", "tissue", "skull", "head", "face", "ventricle", "cortex", "cortical", "cerebellum", "cerebrum",
    "hippocamp", "thalam", "aparc", "aseg", "ribbon", "vessel", "artery", "vein", "hemisphere", "intracranial",
    "parenchyma", "eyes", "orbit", "scalp", "bone", "background", "white", "grey", "gray", "foreground", "fieldofview",
    "spine", "cord", "territor", "atlas", "defac", "coverage",
)
OTHER_NAMES = frozenset({"wm", "gm", "csf", "gmwm", "icv", "tiv", "fov", "cgm", "scgm", "bet", "ctx", "vent", "air",
                         "valid", "eye", "nawm", "bm"})
OTHER_LABELS = frozenset({"B", "V", "ST", "NS", "BS", "CR", "BG"})  # BIDS's words for bone, vein, …; L is a lesion


@dataclass(frozen=True)
class Kind:
    """Whether a file is a lesion mask, how sure that is, and what says so."""

    lesion: bool
    sure: bool  # False where only the folder's name speaks of lesions
    why: str


def word_kind(word: str) -> bool | None:
    """What one word of a name says: True a lesion, False something else, None neither."""
    lower = word.lower()
    if NO_LESION.search(lower):
        return False
    if "lesion" in lower or "stroke" in lower or "infarct" in lower:
        return True
    if lower in OTHER_NAMES or any(other in lower for other in OTHER_WORDS):
        return False
    return None


def kind_of(entities: dict[str, str], words: Sequence[str], derivative: str, kind: str | None) -> Kind | None:
    """What a file under derivatives/ is; None for what has no mask's suffix, or speaks of lesions nowhere.

    ``words`` are the parts of its name without a dash, the suffix last; ``kind`` is ``Type`` of its JSON file.
    """
    if not derivative or not words or words[-1] not in MASK_SUFFIXES:
        return None
    said = word_kind(kind) if kind else None
    if said is not None:
        return Kind(said, True, f"Type {kind!r} of its JSON file")
    spoken = [(f"{key}-{entities[key]}", entities[key]) for key in ("label", "desc", "seg", "atlas") if key in entities]
    spoken += [(word, word) for word in words[::-1]]
    spoken += [(f"{k}-{v}", v) for k, v in entities.items() if k not in ("sub", "ses") and word_kind(v)]
    for shown, word in spoken:
        said = True if shown in ("label-L", "msk") else word_kind(word)
        if shown.startswith("label-") and word in OTHER_LABELS:
            said = False
        if said is not None:
            return Kind(said, True, f"{shown!r} in its name")
    folders = [part for part in derivative.split("/")[:-1] if not part.startswith(("sub-", "ses-"))]
    folder = next((part for part in folders if word_kind(part)), None)
    if folder and "lesion" in folder.lower():
        return Kind(True, False, f"the folder {folder!r}, since neither its name nor a JSON file says of what it is")
    return None


class Sidecars:
    """The JSON files of a tree, for ``Type`` of a mask: the one beside it, or one further up that it inherits from."""

    def __init__(self) -> None:
        self.by_folder: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._read: dict[str, dict] = {}

    def add(self, folder: str, names: Iterable[str]) -> None:
        """Remember a folder's JSON files that may speak of masks."""
        found = [n for n in names if n.endswith(".json") and n[:-5].split("_")[-1] in MASK_SUFFIXES]
        if found:
            self.by_folder[folder] = found

    def kind(self, path: str, root: str) -> str | None:
        """``Type`` of the nearest JSON file that applies to a mask, else None."""
        kind = self.value(path, root, "Type", lambda value: isinstance(value, str) and bool(value.strip()))
        return kind and kind.strip()

    def value(self, path: str, root: str, key: str, holds: Callable[[object], bool]) -> object:
        """What the nearest JSON file that applies to a mask says of ``key``, where ``holds`` of it; else None."""
        stem = Path(path).name.removesuffix(".gz").removesuffix(".nii")
        parts = stem.split("_")
        folder = Path(path).parent
        while self.by_folder:
            applies = [n for n in self.by_folder.get(str(folder), ()) if _applies(n[:-5].split("_"), parts)]
            for name in sorted(applies, key=lambda n: -n.count("_")):
                value = self._content(str(folder / name)).get(key)
                if holds(value):
                    return value
            if folder == Path(root) or folder == folder.parent:
                return None
            folder = folder.parent
        return None

    def _content(self, path: str) -> dict:
        if path not in self._read:
            value = None
            try:
                if Path(path).stat().st_size:
                    value, note = read_json(path, "an object with Type")
                    self.notes += [note] if note else []
            except (UserError, OSError) as error:
                self.notes.append(f"{error}; its mask is judged by its name")
            self._read[path] = value if isinstance(value, dict) else {}
        return self._read[path]


def _applies(parts: list[str], mask: list[str]) -> bool:
    """BIDS's rule of inheritance: the same suffix, and no entity that the mask lacks."""
    return parts[-1] == mask[-1] and set(parts) <= set(mask)

"""The lines of text that ``infer.py`` prints about its models and about each scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from meshnet.networks.build import Model, stages
from meshnet.networks.card import Card, common_decision
from meshnet.networks.folder import DEFAULT_NAME
from meshnet.numbers import in_ml, plain
from meshnet.scans.mask import beside_remarks

UNNAMED = {"image", "scan"}  # names of channels that say no contrast, as of a table's column


def header(names: Sequence[str], cards: Sequence[Card], threshold: float | None, min_lesion_mm3: float | None,
           voxels: Sequence[Sequence[float]] = (), also: Sequence[str] = ()) -> str:
    """What is being done, in one line, or two where a scan's contrast decides: the models, what they mark, on which
    scans, and from what probability and size.

    Args:
        names: of the models as the user gave them; empty for the built-in one.
        cards: of the models, in the same order.
        threshold, min_lesion_mm3: the user's own, None for the models'.
        voxels: of each model the voxel sizes of its networks in mm, two of a cascade; empty where all are single.
        also: classes that the user wants marked as well.
    """
    card = cards[0]
    by = "the most probable class"
    if len(class_names(card)) == 1:
        by = f"from probability {in_words(cards, threshold, min_lesion_mm3, 'threshold', also)}"
        if sure := in_words(cards, threshold, min_lesion_mm3, "sure", also):
            by += f", where a lesion reaches {sure}"
    smallest = in_words(cards, threshold, min_lesion_mm3, "min_lesion_mm3", also, 1000)
    kept = f"what is below {smallest} mL is dropped" if smallest else "all sizes are kept"
    decides = f";\n  {by}, by contrast; " if any(" to " in words for words in (by, smallest)) else f"; {by}; "
    return f"{purpose(names, card, voxels, also)}{decides}{kept}"


def purpose(names: Sequence[str], card: Card, voxels: Sequence[Sequence[float]] = (), also: Sequence[str] = ()) -> str:
    """The models, what they mark, and on which scans; ``card`` of the first model, the rest as for ``header``."""
    each = [name + in_stages(sizes) for name, sizes in zip(names or [DEFAULT_NAME], voxels)] or list(names)
    who = f"{called(names)} ({', '.join(each)})" if len(names) > 1 else called(each)
    about = card.others.get("about") if isinstance(card.others.get("about"), dict) else {}
    of = f" of {disease}" if (disease := about.get("disease") or synthetic_disease(card)) else (
        " (disease not stated)" if any("lesion" in name for name in class_names(card)) else "")
    contrasts = about.get("contrasts") or " + ".join(card.channels)
    on = "scans (contrast not stated)" if set(card.channels) <= UNNAMED else f"{contrasts} scans"
    well = f", and {' and '.join(also)} as well," if also else ""
    return f"{who}: marks {', '.join(class_names(card))}{of}{well} on {on}"


def voxel_sizes(models: Sequence[Model]) -> list[list[float]]:
    """Of each model the voxel sizes of its networks in mm, as ``header`` takes them."""
    return [[each.card.voxel_mm for each in stages(model)] for model in models]


def in_stages(sizes: Sequence[float]) -> str:
    """What is said behind the name of a cascade, whose networks have voxels of these ``sizes`` in mm."""
    return f" (two networks, of {plain(sizes[0])} mm and {plain(sizes[1])} mm)" if len(sizes) > 1 else ""


def synthetic_disease(card: Card) -> str:
    """What lesions a model knows that was trained on synthetic cases, which are strokes; "" for any other."""
    data = card.training_data if isinstance(card.training_data, dict) else {}
    source = data.get("source")
    made_up = (source.get("format") if isinstance(source, dict) else str(source).partition(" ")[0]) == "synthetic"
    return "stroke (synthetic cases)" if made_up else ""


def in_words(cards: Sequence[Card], threshold: float | None, min_lesion_mm3: float | None, name: str,
             also: Sequence[str] = (), divisor: float = 1) -> str:
    """A field of the models' ``Decision``, from its lowest to its highest value where it is another on scans of some
    contrast; empty where it is 0 on all."""
    values = []
    for contrast in (None, *cards[0].contrasts):
        more = set(also) - set(cards[0].decision(contrast).also)
        veto = threshold is None and not more and len(cards) == 1  # then it counts
        values.append(getattr(common_decision(cards, contrast, threshold, min_lesion_mm3, veto), name) / divisor)
    low, high = min(values), max(values)
    return f"{plain(low, 3)} to {plain(high, 3)}" if low != high else plain(low, 3) if high else ""


def trust(card: Card, contrast: str | None) -> str | None:
    """What the model's makers say about scans that look like ``contrast``; None where they say nothing."""
    about = card.others.get("about")
    said = about.get("trust") if isinstance(about, dict) else None
    return said.get(contrast) if isinstance(said, dict) and isinstance(said.get(contrast), str) else None


def called(names: Sequence[str]) -> str:
    """The model, or how many are averaged; ``names`` as for ``header``."""
    return f"mean of {len(names)} models" if len(names) > 1 else next(iter(names or [DEFAULT_NAME]))


def class_names(card: Card) -> list[str]:
    """The names of the labels 1, 2, … of a mask."""
    return [card.marks] if card.marks is not None else card.classes[1:]


def class_volumes(card: Card, mask: np.ndarray, voxel_mm3: float) -> dict[str, float]:
    """The volume of each class of a mask (X, Y, Z), in mL, by name."""
    return {name: float(np.count_nonzero(mask == label)) * voxel_mm3 / 1000
            for label, name in enumerate(class_names(card), 1)}


def result_line(result: dict, volumes: dict[str, float]) -> str:
    """The line of one scan: its mask and volume, the number of lesions or each class's volume, and the seconds.

    ``result`` is what ``--json`` prints, ``volumes`` the return value of ``class_volumes``.
    """
    said = in_ml(result["volume_ml"])
    if not result["lesions"]:
        said += "; " + ("; ".join(result["remarks"]) or "nothing marked")
    elif len(volumes) > 1:
        said += ": " + ", ".join(f"{name} {in_ml(ml).removesuffix(' mL')}" for name, ml in volumes.items())
    else:
        name = next(iter(volumes))
        one, many = ("lesion", "lesions") if "lesion" in name else (f"part ({name})", f"parts ({name})")
        said += f" in {result['lesions']} {one if result['lesions'] == 1 else many}"
        said += "".join(f"; {sentence}" for sentence in beside_remarks(result.get("beside", {})))
    if result.get("contrast"):
        said += f"; looks like {result['contrast']}"
    return f"{result['mask']}: {said} ({result['seconds']:.1f} s)"

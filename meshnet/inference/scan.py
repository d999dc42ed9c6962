"""From a scan and a model to a mask on the scan's own grid, for infer.py and ``meshnet.segment_scan``.

``segment_scan`` does everything in one call. ``read_case`` and ``segment_case`` are its two halves, so that a program
with many scans can read the next one while the network works on this one.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from meshnet.errors import UserError
from meshnet.inference.cascade import View, grey_view, second_probabilities, second_volume, without_lookalikes
from meshnet.inference.models import as_model, load_models
from meshnet.inference.predict import predict
from meshnet.networks.build import Model, stages
from meshnet.networks.card import Card, check_also, common_decision
from meshnet.numbers import in_ml, plain
from meshnet.scans import checks
from meshnet.scans.grid import EXTREMES, LOOKS, conform, stack_channels, to_native
from meshnet.scans.head import head_box
from meshnet.scans.intensity import as_input
from meshnet.scans.mask import Decision, beside_remarks, kept, lesion_volumes_mm3, seen_beside, voxel_volume_mm3
from meshnet.scans.naming import name_remarks
from meshnet.scans.nifti import check_image, image_like, read_image, split_channels
from meshnet.scans.ours import scan_mark, signed
from meshnet.scans.quality import Evidence, evidence_of

Scan = str | Path | nib.Nifti1Image


@dataclass
class Case:
    """A scan that has been read and conformed.

    ``images`` are its channels on their own grids. ``inputs`` has one entry per model, a list of the scan's views on
    that model's grids, float32 in 0..1. Of a cascade these are the first network's; the second one's, uint8, is in
    ``seconds``, which is None for other models. ``parts`` are the seconds that reading, conforming and later steps
    took, by name. ``contrast`` is what the scan looks like (``scans.contrast``), None where no model's scaling looks
    at that. ``mark`` tells its files from others (``scans.ours.scan_mark``), "" of images in memory. ``taken_ml`` is
    what a veto (``scans.veto``) took back, in mL, and ``beside`` what else a model mentions, in mL by name.
    """

    images: list[nib.Nifti1Image]
    inputs: list[list[View]]
    parts: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    contrast: str | None = None
    seconds: list[View | None] = field(default_factory=list)
    mark: str = ""
    taken_ml: float = 0.0
    beside: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self.seconds = self.seconds or [None] * len(self.inputs)


@dataclass(frozen=True)
class Segmentation:
    """The result for one scan. All images are on the scan's own grid.

    ``mask`` holds labels, uint8: 0 and 1 where one class is marked, else the model's classes. ``probabilities`` is the
    probability of lesion, float32, if asked for. Lesions are 26-connected. ``remarks`` are sentences that a reader of
    the mask should know, such as about lesions that were dropped for their size. ``parts`` are the seconds of each
    step, by name. ``quality`` says how likely the mask is of use, as ``learned`` from synthetic heads; where the card
    has no such thing, a threshold, least size or further class was given, or there are several models, it is the Dice
    to be expected. ``evidence`` is what it is made of (``scans.quality``).
    ``decision`` is what decided, ``contrast`` what the scan looks like, ``veto`` whether a veto (``scans.veto``)
    counted. ``beside`` is what else is seen and not marked, in mL by name (``mentions`` of the card).
    """

    mask: nib.Nifti1Image
    volume_ml: float
    lesions: int
    largest_ml: float
    probabilities: nib.Nifti1Image | None = None
    remarks: tuple[str, ...] = ()
    parts: dict[str, float] = field(default_factory=dict)
    quality: float | None = None
    evidence: Evidence | None = None
    learned: bool = False
    decision: Decision = field(default_factory=Decision)
    contrast: str | None = None
    veto: bool = False
    beside: dict[str, float] = field(default_factory=dict)


def segment_scan(scan: Scan | Sequence[Scan], model: str | Path | Model | Sequence | None = None, *,
                 probabilities: bool = False, threshold: float | None = None, min_lesion_mm3: float | None = None,
                 also: str | Sequence[str] = (), crop: str = "head",
                 max_memory: int | None = None, device: str | None = None, threads: int | None = None) -> Segmentation:
    """Segment one scan. The mask is the same, to the voxel, as that of ``python infer.py``.

    A MeshNet runs on a CPU without importing PyTorch, if there is a C++ compiler; all else needs PyTorch.

    Args:
        scan: a NIfTI file or image (X, Y, Z) on any grid. For several channels, a sequence of them in the model's
            order, or one image (X, Y, Z, C).
        model: a run or model folder, a weights file, a built-in or Hub name, what ``load_model`` returned, or a
            ``MeshNet`` of ``from_pretrained``; None means the built-in model. The probabilities of several
            models are averaged.
        probabilities: return the probability of lesion as well.
        threshold: probability from which a voxel is lesion, 0 to 1; None means the model's own, and what else it has
            (``scans.mask.Decision``).
        min_lesion_mm3: connected lesions smaller than this are dropped; None means the model's own.
        also: classes of the model that are to be marked as well; then no veto counts, and probabilities and quality
            are of all that is marked.
        crop: ``head`` computes only the head, ``none`` the whole volume.
        max_memory: limit in bytes for the process while a MeshNet computes.
        device: ``cpu``, ``cuda`` or ``cuda:1``; None means the fastest one available.
        threads: CPU threads while a MeshNet computes; None means all.

    Raises:
        UserError: one line, for a scan, a model or a setting that cannot be used.
    """
    scans = [scan] if isinstance(scan, (str, Path, nib.spatialimages.SpatialImage)) else list(scan)
    if not scans:
        raise UserError("scan: found an empty list, expected a file, an image, or one for each channel")
    if threads is not None and threads < 1:
        raise UserError(f"threads: found {threads}, expected 1 or more")
    given = list(model) if isinstance(model, (list, tuple)) and not isinstance(model, Model) else [model]
    # PyTorch's own number of threads stays as it is for the caller.
    started = "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
    models = load_models([as_model(each) for each in given], device=device, single=not started)
    return segment_case(read_case(scans, models), models, probabilities=probabilities, threshold=threshold,
                        min_lesion_mm3=min_lesion_mm3, also=also, crop=crop, max_memory=max_memory, threads=threads)


# ---------------------------------------------------------------------- the scan, as the models see it

def read_case(scans: Sequence[Scan], models: Sequence[Model]) -> Case:
    """Read the channels of one scan and conform them for every model.

    Models with the same grid and scaling share a view.

    Raises:
        UserError: for a bad file, a number of channels other than the models', or a channel that is empty or lies
            elsewhere than the first.
    """
    card, parts = models[0].card, {}
    with timed(parts, "read"):
        images = read_channels(scans, card.channels)
    where = str(scans[0]) if isinstance(scans[0], (str, Path)) else "scan"
    remarks = [line for image in images for line in checks.header_remarks(image)]
    remarks += [line for image, name in zip(images, card.channels) for line in checks.values_remarks(image, name)]
    remarks += checks.extent_remarks(images[0], min(model.card.voxel_mm for model in models))
    view = functools.cache(lambda grid, scaling, window: conformed_view(images, grid, scaling, window, parts))
    head = functools.cache(lambda: head_box(np.asanyarray(images[0].dataobj), margin=0))
    fit = functools.cache(lambda grid: checks.fitted(grid, images[0], where, head))
    inputs, extras, seconds = [], [], []
    for model in models:
        each, *second = (stage.card for stage in stages(model))
        grids = [fit(grid) for grid in each.grids()]
        said = [line for _, lines in grids for line in lines]
        seen = [view(grid, each.scaling, tuple(each.window) if each.window else None) for grid, _ in grids]
        inputs.append([one for one, _ in seen])
        extras.append(seen[0][1])
        seconds.append(None)
        if second:
            grid, lines = fit(second[0].grids()[0])
            with timed(parts, "conform"):
                seconds[-1] = grey_view(images, grid, extras[-1])
            said = said or lines
        remarks += said
    with timed(parts, "check"):
        volume = inputs[0][0][0]
        remarks += checks.check_channels(volume, card.channels, where, images[0])
        remarks += checks.content_remarks(volume[0], images[0], stages(models[0])[0].card.voxel_mm)
        for channel, extra, name in zip(volume, extras[0], card.channels):
            remarks += checks.grey_remarks(channel, extra[EXTREMES], name) + checks.contrast_remarks(
                extra, name if len(card.channels) > 1 else "")
    looks = next(filter(None, [extra[0].get(LOOKS) for extra in extras]), None)
    mark = ""
    if not any(isinstance(scan, nib.spatialimages.SpatialImage) for scan in scans):
        remarks = [*name_remarks(scans, card.channels, looks), *remarks]
        mark = scan_mark(scans)
    return Case(images, inputs, parts, list(dict.fromkeys(remarks)), looks, seconds, mark)


def read_channels(scans: Sequence[Scan], wanted: Sequence[str]) -> list[nib.Nifti1Image]:
    """The images of a case, one for each of the channels ``wanted``, from one file each or from one 4D file.

    Raises:
        UserError: for a bad file, or another number of channels.
    """
    several_in_one = len(scans) == 1 and len(wanted) > 1
    images = [read_image(scan, channels=several_in_one) if isinstance(scan, (str, Path))
              else check_image(scan, "scan", channels=several_in_one) for scan in scans]
    if several_in_one:
        images = split_channels(images[0])
    if len(images) != len(wanted):
        example = ",".join(f"{name}.nii.gz" for name in wanted)
        what = scans[0] if isinstance(scans[0], (str, Path)) else "scan"
        if len(wanted) == 1:
            raise UserError(f"{what}: found {len(images)} files of one case, expected 1, since the model has one "
                            f"channel ({wanted[0]}); put a space between scans, not a comma")
        raise UserError(f"{what}: found {len(images)} channel(s), expected {len(wanted)} ({', '.join(wanted)}); "
                        f"give the files of a case joined by commas, as {example}")
    return images


def conformed_view(images: Sequence[nib.Nifti1Image], grid, scaling: str, window,
                   parts: dict[str, float]) -> tuple[View, list[dict]]:
    """The images on one grid, as a network sees them, and what ``conform`` says of each (its ``extra``). Adds the
    seconds that this took to ``parts``."""
    with timed(parts, "conform"):
        conformed = [conform(image, grid, scaling, window, images[0], exact=False) for image in images]
        volume = as_input(stack_channels([np.asarray(image.dataobj) for image in conformed]))
    return (volume, conformed[0].affine), [image.extra for image in conformed]


def conformed_scan(scans: Sequence[Scan], card: Card) -> np.ndarray:
    """A scan (C, X, Y, Z), float32 in 0..1, as the network of ``card`` sees it on its own grid."""
    images = read_channels(scans, card.channels)
    return conformed_view(images, card.grids()[0], card.scaling, tuple(card.window) if card.window else None, {})[0][0]


# ---------------------------------------------------------------------- the mask

def segment_case(case: Case, models: Sequence[Model], *, probabilities: bool = False, threshold: float | None = None,
                 min_lesion_mm3: float | None = None, also: str | Sequence[str] = (), crop: str = "head",
                 max_memory: int | None = None, threads: int | None = None) -> Segmentation:
    """Segment a case from ``read_case`` with the same ``models``; other arguments as ``segment_scan``."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold: found {plain(threshold)}, expected 0 to 1")
    if min_lesion_mm3 is not None and not min_lesion_mm3 >= 0:
        raise UserError(f"min_lesion_mm3: found {plain(min_lesion_mm3)}, expected 0 or more")
    card, like, parts, cards = models[0].card, case.images[0], case.parts, [each.card for each in models]
    also = added(cards, case.contrast, also)
    own = threshold is None and min_lesion_mm3 is None and not also  # the card decides
    veto = threshold is None and not also and len(models) == 1 and card.veto(case.contrast) is not None
    decision = common_decision(cards, case.contrast, threshold, min_lesion_mm3, veto, also)
    found = average(case, models, decision.also, crop, max_memory, threads, veto)
    voxel_mm3 = voxel_volume_mm3(like.affine)
    with timed(parts, "clean"):
        labels, *dropped = kept(card.marking.labels(found, decision.threshold), found[-1], voxel_mm3, decision)
        sizes = lesion_volumes_mm3(labels, voxel_mm3)
        lesion = found[-1] if also else found[0] if len(found) <= 2 else found[1:].sum(0, dtype=np.float32)
        evidence = evidence_of(lesion, labels > 0, voxel_mm3, max(sizes, default=0), sum(dropped))
        learned = card.quality(case.contrast) if own and len(models) == 1 else None
        quality = learned.of(evidence) if learned else evidence.dice()
    if "lesion" in (card.marks or card.classes[-1]):
        case.remarks = list(dict.fromkeys([*case.remarks, *checks.volume_remarks(float(sum(sizes)) / 1000)]))
    return Segmentation(signed(image_like(labels, like), case.mark), round(float(sum(sizes)) / 1000, 3), len(sizes),
                        round(float(max(sizes, default=0)) / 1000, 3),
                        signed(image_like(lesion, like), case.mark) if probabilities else None,
                        (*case.remarks, *remarks_on(case.taken_ml, *dropped, decision), *beside_remarks(case.beside)),
                        parts, round(quality, 3), evidence, learned is not None, decision, case.contrast, veto,
                        {name: round(ml, 3) for name, ml in case.beside.items()})


def added(cards: Sequence[Card], contrast: str | None, also: str | Sequence[str] | None) -> list[str]:
    """The classes that a user wants marked and that are not marked anyway.

    Raises:
        UserError: where a model has no such class to mark.
    """
    also = [also] if isinstance(also, str) else list(also or ())
    check_also(cards, also)
    return [name for name in also if name not in cards[0].decision(contrast).also]


def average(case: Case, models: Sequence[Model], also: tuple[str, ...], crop: str, max_memory: int | None,
            threads: int | None, veto: bool = True) -> np.ndarray:
    """The probabilities that decide about the mask (``Marks.of``), on the scan's own grid: the mean over the models,
    and for each model over its views. ``also`` is that of the decision. ``veto``: whether the model's veto counts;
    never that of several."""
    total, marks = None, models[0].card.marking
    case.taken_ml, case.beside = 0.0, {}
    how = {"crop": crop, "max_memory": max_memory, "threads": threads}
    for model, views, second in zip(models, case.inputs, case.seconds):
        if second:
            with timed(case.parts, "first"):
                given = second_volume(model.network.first, views, second, model.card.voxel_mm, model.card.across,
                                      **how)
            views = [(given, second[1])]
        for seen, affine in views:
            with timed(case.parts, "compute"):
                found = second_probabilities(
                    model, seen, second[0].shape[1:], case.contrast, **how) if second else predict(
                    model.network, seen, **how)
                if second and veto and len(models) == 1:
                    case.taken_ml = without_lookalikes(model, found, seen, case.contrast)
                if second and len(models) == 1:
                    mentions = {name: ml for name, ml in model.card.mentions(case.contrast).items() if name not in also}
                    case.beside = seen_beside(found, model.card.classes, mentions, model.card.voxel_mm)
            found = marks.of(found, also)
            with timed(case.parts, "back"):
                native = to_native(found, affine, case.images[0], seen_only=True)
                if len(views) > 1:
                    native /= np.float32(len(views))
                total = native if total is None else np.add(total, native, out=total)
    return total if len(models) == 1 else total / len(models)


def remarks_on(taken_ml: float, unsure_mm3: float, small_mm3: float, decision: Decision) -> list[str]:
    """The sentences for a reader of the mask: how much was dropped, and why."""
    said = []
    if taken_ml:
        said.append(f"{in_ml(taken_ml)} found and taken back by the model's veto, as no lesion")
    if unsure_mm3:
        said.append(f"{in_ml(unsure_mm3 / 1000)} found that nowhere reaches the probability {plain(decision.sure)} "
                    "from which it is kept")
    if small_mm3:
        said.append(f"{in_ml(small_mm3 / 1000)} found below the {plain(decision.min_lesion_mm3 / 1000)} mL from which "
                    "it is kept")
    return said


@contextlib.contextmanager
def timed(parts: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that a ``with`` block takes to ``parts[name]``."""
    started = time.perf_counter()
    yield
    parts[name] = round(parts.get(name, 0.0) + time.perf_counter() - started, 3)

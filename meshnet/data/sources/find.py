"""The cases of a data set: listed by the source of its format, checked, and read one by one."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib

from meshnet.data.sources.case import Case, Filters, Listing, Loaded, subject_in
from meshnet.data.sources.patients import mark, name_patients
from meshnet.data.sources.synthetic import find_synthetic, load_synthetic
from meshnet.errors import UserError
from meshnet.scans.nifti import read_image, split_channels


def find_cases(
    form: str, path: str | None, suffixes: Sequence[str], filters: Filters, subject: str | None = None,
    apart: bool = False, **options,
) -> Listing:
    """List the cases of a source. ``options`` go to ``synthetic`` (cases, voxel_mm, seed, preset).

    ``subject`` and ``apart`` say which cases are of one patient, see ``name_patients``.

    Raises UserError where nothing can be found there.
    """
    if form == "synthetic":
        return find_synthetic(**options)
    if form == "hub":
        from meshnet.data.sources.hub import find_hub as find
    elif not os.path.exists(path):  # False, too, for a name that no file can have
        raise UserError(f"{path}: no such file or folder, expected a {form} data set; check the path")
    elif form == "bids":
        from meshnet.data.sources.bids import find_bids as find
    elif form == "table":
        from meshnet.data.sources.table import find_table as find
    else:
        from meshnet.data.sources import challenges

        find = {"msd": challenges.find_msd, "kits": challenges.find_kits,
                "nnunet": challenges.find_nnunet}[form]
    listing = checked(find(path, suffixes, filters))
    name_patients(listing, subject, apart)
    return listing


def checked(listing: Listing) -> Listing:
    """Sort a listing and move what cannot be a case to ``failed``: a missing file, a mask of another subject."""
    cases, names, pairs = [], set(), {}
    for case in sorted(listing.cases, key=lambda c: c.case):
        reason = _fault(case)
        if case.case in names:
            reason = f"two cases are called {case.case}; give each a name of its own"
        names.add(case.case)
        first = pairs.setdefault((case.subject, case.images, case.mask), case.case)
        if not reason and first != case.case and case.loader == "files":
            reason = f"is listed twice, as {first} and as {case.case}; remove one of them, or it counts twice"
        if reason:
            listing.failed.append((case.mask, reason))
        else:
            cases.append(case)
    listing.cases = cases
    listing.left_out.sort()
    listing.failed.sort()
    return listing


def _fault(case: Case) -> str | None:
    if case.loader != "files":
        return None
    for path in (*case.images, case.mask):
        if not os.path.isfile(path):
            return f"{path}: no such file"
    if os.path.realpath(case.mask) in map(os.path.realpath, case.images):
        return "is the mask and the scan of the same case; correct one of them"
    subjects = {subject_in(p) for p in (*case.images, case.mask)} - {None}
    if len(subjects) > 1:
        return f"scan and mask are of different subjects ({', '.join(sorted(subjects))}); correct the pair"
    return None


def signature(case: Case) -> list:
    """What changes when a case's files change, without reading all of them: paths, sizes, modification times, and a
    mark of their content, since a copy may keep both. Of a mask that is not packed a few voxels may change: it is read.

    Empty for the other loaders, whose ``origin`` changes instead.
    """
    if case.loader != "files":
        return []
    stats = [(p, Path(p).stat()) for p in (*case.images, case.mask)]
    return [[p, s.st_size, s.st_mtime_ns, *(mark(p, whole=p == case.mask) or ())] for p, s in stats]


def load_case(case: Case, channels: int) -> Loaded:
    """Read a case's volumes. Raises UserError for a bad file, or another number of channels than ``channels``."""
    if case.loader == "synthetic":
        loaded = load_synthetic(case)
    elif case.loader == "hub":
        from meshnet.data.sources.hub import load_hub

        loaded = load_hub(case)
    else:
        images = [read_image(p, channels=case.channels_last) for p in case.images]
        if case.channels_last:
            images = _picked(case, split_channels(images[0]))
        hashes = [sha256_file(p) for p in case.images]
        loaded = Loaded(images, read_image(case.mask, "mask"), hashes, sha256_file(case.mask))
    if len(loaded.images) != channels:
        raise UserError(
            f"{case.images[0]}: found {len(loaded.images)} channel(s), expected {channels} as in the rest of the data "
            "set; leave the case out or correct the data set's list of channels"
        )
    return loaded


def _picked(case: Case, images: list[nib.Nifti1Image]) -> list[nib.Nifti1Image]:
    total, kept = case.origin
    if len(images) != total:
        raise UserError(
            f"{case.images[0]}: found {len(images)} channel(s) on its last axis, expected {total} as the data set "
            "declares; correct one of them"
        )
    return [images[i] for i in kept]


def sha256_file(path: str | Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

"""Synthetic cases as a source: one seed, one case."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from meshnet.data.sources.case import Case, Listing, Loaded
from meshnet.errors import UserError

FINEST_LATTICE_MM = 2.0  # heads from label maps are made at this voxel size for coarser grids
SYNTHETIC_SEEDS = 10_000  # case seeds for each --synthetic_seed, so that two of those never share a case


def find_synthetic(cases: int, voxel_mm: float, seed: int, preset: str, anatomy: str | None = None,
                   lesions: Sequence[str] = ()) -> Listing:
    """Synthetic cases: case i of ``seed`` is drawn with the seed ``seed * 10,000 + i``.

    With ``anatomy``, a folder of label maps, heads are made at 2 mm at the coarsest and conformed like any scan;
    ``lesions`` are folders of lesion masks for them.
    """
    from meshnet.data.synthetic.case import PRESETS

    if not 1 <= cases <= SYNTHETIC_SEEDS or seed < 0:
        raise UserError(
            f"--cases {cases} --synthetic_seed {seed}: expected 1 to {SYNTHETIC_SEEDS} cases and a seed of at least 0"
        )
    folders = (anatomy, *lesions) if anatomy else ()
    if folders:
        voxel_mm = min(voxel_mm, FINEST_LATTICE_MM)
    files = hashlib.sha256(repr([described(folder) for folder in folders]).encode()).hexdigest()[:16]
    listed = []
    for number in range(seed * SYNTHETIC_SEEDS, seed * SYNTHETIC_SEEDS + cases):
        name = f"synthetic-{number:06d}"
        reference = f"synthetic:seed={number},voxel_mm={voxel_mm:g},preset={preset}"
        origin = (number, voxel_mm, preset)
        if folders:
            reference, origin = f"{reference},files={files}", (*origin, *folders)
        listed.append(Case(name, name, (reference,), reference, loader="synthetic", origin=origin))
    known = PRESETS.get(preset)
    classes = ["lesion", "fluid"] if known and known.fluid else None
    if classes and folders and known.spots:
        classes.append("white matter disease")
    return Listing(listed, ["T2w" if preset == "demo" else "synthetic"], classes)


@functools.cache
def described(folder: str) -> tuple:
    """Names and sizes of the files of a folder of label maps or lesion masks."""
    from meshnet.data.synthetic.labelmaps import TABLES, find_maps

    tables = [path for name in TABLES if (path := Path(folder, name)).is_file()]
    return tuple((path.name, path.stat().st_size) for path in (*find_maps(folder), *tables))


def load_synthetic(case: Case) -> Loaded:
    from meshnet.data.synthetic.case import make_case

    seed, voxel_mm, preset, *folders = case.origin
    if folders:
        from meshnet.data.synthetic.from_folders import make_labelled_case

        maps, *lesions = [[f"{folder}/{name}" for name, _ in described(folder) if not name.startswith("tissues.")]
                          for folder in folders]
        masks = [path for files in lesions for path in files]
        image, mask, info = make_labelled_case(seed, voxel_mm, preset, maps, masks or None)
    else:
        image, mask, info = make_case(seed, voxel_mm, preset)
    hashes = [hashlib.sha256(np.ascontiguousarray(i.dataobj)).hexdigest() for i in (image, mask)]
    groups = {k: str(v) for k, v in info.items() if k in ("contrast", "extracted", "lesions")}
    return Loaded([image], mask, hashes[:1], hashes[1], groups)

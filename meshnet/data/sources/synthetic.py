"""Synthetic cases as a source: one seed, one case."""

import hashlib

import numpy as np

from meshnet.data.sources.case import Case, Listing, Loaded
from meshnet.errors import UserError

SYNTHETIC_SEEDS = 10_000  # case seeds for each --synthetic_seed, so that two of those never share a case


def find_synthetic(cases: int, voxel_mm: float, seed: int, preset: str) -> Listing:
    """Synthetic cases: case i of ``seed`` is drawn with the seed ``seed * 10,000 + i``."""
    from meshnet.data.synthetic.case import PRESETS

    if not 1 <= cases <= SYNTHETIC_SEEDS or seed < 0:
        raise UserError(
            f"--cases {cases} --synthetic_seed {seed}: expected 1 to {SYNTHETIC_SEEDS} cases and a seed of at least 0"
        )
    listed = []
    for number in range(seed * SYNTHETIC_SEEDS, seed * SYNTHETIC_SEEDS + cases):
        name = f"synthetic-{number:06d}"
        reference = f"synthetic:seed={number},voxel_mm={voxel_mm:g},preset={preset}"
        listed.append(Case(name, name, (reference,), reference, loader="synthetic", origin=(number, voxel_mm, preset)))
    classes = ["lesion", "fluid"] if preset in PRESETS and PRESETS[preset].fluid else None
    return Listing(listed, ["T2w" if preset == "demo" else "synthetic"], classes)


def load_synthetic(case: Case) -> Loaded:
    from meshnet.data.synthetic.case import make_case

    seed, voxel_mm, preset = case.origin
    image, mask, info = make_case(seed, voxel_mm, preset)
    hashes = [hashlib.sha256(np.ascontiguousarray(i.dataobj)).hexdigest() for i in (image, mask)]
    groups = {k: str(v) for k, v in info.items() if k in ("contrast", "extracted", "lesions")}
    return Loaded([image], mask, hashes[:1], hashes[1], groups)

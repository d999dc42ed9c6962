"""Whole-head label maps of a folder: every label's tissue, and where each map lies in MNI space.

FreeSurfer's labels are known, and those that SynthSeg's training maps have outside the brain. Labels of another kind
are named in a file ``tissues.yaml`` (or ``.json``) in the folder: ``label: tissue``, with the tissues of ``TISSUES``.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meshnet.errors import UserError
from meshnet.mapping import read_file

TISSUES = ("air", "white", "cortex", "deep", "cerebellum_grey", "cerebellum_white", "stem", "plexus", "spots",
           "ventricle", "fluid", "bone", "marrow", "flesh", "skin", "eye", "blood")
CODE = {name: number for number, name in enumerate(TISSUES)}
BRAIN = tuple(CODE[name] for name in TISSUES[1:9])  # nerve tissue
PLACED = tuple(CODE[name] for name in ("white", "cortex", "deep", "cerebellum_grey", "cerebellum_white"))
# Cerebrum and cerebellum of MNI152 without the stem, in mm: what the same tissues of a map are laid on.
BOX_MM = np.array([[-71.0, 71.0], [-106.0, 73.0], [-66.0, 81.0]])

FREESURFER = {
    0: "air", 2: "white", 41: "white", 3: "cortex", 42: "cortex", 17: "cortex", 53: "cortex", 18: "cortex",
    54: "cortex", 4: "ventricle", 43: "ventricle", 5: "ventricle", 44: "ventricle", 14: "ventricle", 15: "ventricle",
    72: "ventricle", 24: "fluid", 7: "cerebellum_white", 46: "cerebellum_white", 8: "cerebellum_grey",
    47: "cerebellum_grey", 16: "stem", 10: "deep", 49: "deep", 11: "deep", 50: "deep", 12: "deep", 51: "deep",
    13: "deep", 52: "deep", 26: "deep", 58: "deep", 28: "stem", 60: "stem", 30: "blood", 62: "blood", 31: "plexus",
    63: "plexus", 136: "plexus", 137: "plexus", 163: "plexus", 164: "plexus", 85: "white", 77: "spots", 78: "spots",
    79: "spots", 80: "spots", 25: "spots", 57: "spots", 251: "white", 252: "white", 253: "white", 254: "white",
    255: "white", 192: "white",
    # Outside the brain, as in SynthSeg's training maps; found by what they border on.
    502: "blood", 506: "eye", 507: "flesh", 508: "flesh", 509: "flesh", 511: "skin", 512: "stem", 514: "blood",
    515: "bone", 516: "marrow", 530: "white",
}
RANGES = ((1000, 3000, "cortex"), (3000, 5002, "white"))  # parcellations: aparc, wmparc
TABLES = ("tissues.yaml", "tissues.yml", "tissues.json")


@dataclass(frozen=True)
class LabelMap:
    """Tissues of one head. ``codes`` (X, Y, Z) uint8 in RAS order are places in ``TISSUES``; voxel index =
    ``matrix`` @ MNI point in mm + ``offset``."""

    codes: np.ndarray
    matrix: np.ndarray
    offset: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """Codes (N,) at MNI points (3, N), by nearest neighbour; air outside the map."""
        index = self.matrix @ points
        index += self.offset[:, None] + np.float32(0.5)
        np.floor(index, out=index)
        inside = np.ones(points.shape[1], bool)
        flat = np.zeros(points.shape[1], np.int64)
        for axis, n in enumerate(self.codes.shape):
            inside &= (index[axis] >= 0) & (index[axis] < n)
            flat = flat * n + np.clip(index[axis], 0, n - 1).astype(np.int64)
        return np.where(inside, self.codes.reshape(-1)[flat], np.uint8(0))


def find_maps(folder: str) -> list[Path]:
    """The NIfTI files of a folder, sorted by name.

    Raises:
        UserError: where the folder is missing or has none.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder, expected one with NIfTI files; check the path")
    found = sorted(path for path in Path(folder).iterdir()
                   if path.name.endswith((".nii", ".nii.gz")) and not path.name.startswith("."))
    if not found:
        raise UserError(f"{folder}: found no NIfTI file (.nii or .nii.gz) in it, expected at least one")
    return found


@functools.cache
def tissue_table(folder: str) -> dict[int, int]:
    """label → code: FreeSurfer's, or what the folder's own table says.

    Raises:
        UserError: for a table that is not label: tissue.
    """
    for name in TABLES:
        path = Path(folder, name)
        if path.is_file():
            table = {}
            for label, tissue in read_file(path, "table of tissues", "expected label: tissue").items():
                if not str(label).isdecimal() or tissue not in CODE:
                    raise UserError(f"{path}: found {label}: {tissue}, expected a label's number and one of "
                                    f"{', '.join(TISSUES)}")
                table[int(label)] = CODE[tissue]
            return {0: 0, **table}
    return {label: CODE[tissue] for label, tissue in FREESURFER.items()}


@functools.lru_cache(maxsize=64)
def load_map(path: str) -> LabelMap:
    """A label map by its path, cut to what is not air; kept for the life of the process.

    Raises:
        UserError: for labels whose tissue is not known, or a map without a cerebrum.
    """
    import nibabel as nib

    from meshnet.scans.nifti import read_image

    image = nib.as_closest_canonical(read_image(path))
    labels = np.rint(np.asanyarray(image.dataobj)).astype(np.int32)
    table = tissue_table(str(Path(path).parent))
    known = np.unique(labels)
    codes = np.zeros(len(known), np.uint8)
    for place, label in enumerate(known.tolist()):
        tissue = next((CODE[name] for low, high, name in RANGES if low <= label < high), None)
        if label not in table and (tissue is None or len(table) != len(FREESURFER)):
            raise UserError(f"{path}: found the label {label}, expected one of FreeSurfer's or of {TABLES[0]}; write "
                            f"a file {TABLES[0]} beside the maps with a line for each label, such as `{label}: bone`")
        codes[place] = table.get(label, tissue)
    coded = codes[np.searchsorted(known, labels)]
    boxes = []
    for kind in (np.isin(coded, PLACED), coded > 0):
        if not kind.any():
            raise UserError(f"{path}: found no cerebrum, expected a whole-head label map; check {TABLES[0]}")
        boxes.append([np.flatnonzero(kind.any(tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)])
    brain, head = np.array(boxes[0], float), boxes[1]
    # Right and left, front and back, top and bottom of the brain come on those of MNI152.
    scale = (brain[:, 1] - brain[:, 0] + 1) / (BOX_MM[:, 1] - BOX_MM[:, 0])
    offset = brain.mean(1) - scale * BOX_MM.mean(1)
    cut = tuple(slice(a, b + 1) for a, b in head)
    offset = offset - [a for a, _ in head]
    return LabelMap(np.ascontiguousarray(coded[cut]), np.diag(scale).astype(np.float32), offset.astype(np.float32))

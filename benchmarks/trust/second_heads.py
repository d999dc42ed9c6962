"""Synthetic heads for the second network of a built-in cascade, as that network is given them.

``python benchmarks/trust/second_heads.py --first MODEL --anatomy FOLDER --lesions FOLDER … --out FOLDER``

``prepare.py``'s generator with more small lesions, some of them near the ventricles as in multiple sclerosis, or with
its plaques alone (``--plaques``).
``--bright`` adds what real FLAIR and DWI have and label maps lack: cortex of the limbic system, the insula and the
plexus bright on both sides, haze in the white matter, and on DWI bright rims near air. A head is one file, so the same
command resumes.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.data.synthetic import from_folders, lesionmasks
from meshnet.data.synthetic.atlas import smooth_field
from meshnet.data.synthetic.labelmaps import BRAIN, CODE, find_maps, load_map
from meshnet.errors import UserError, run_script
from meshnet.files import whole_file
from meshnet.scans.mask import slices

SMALLEST_MM3 = 30.0  # of a lesion mask that is scaled down
VOXEL_MM = 2.0
SHAPE = (96, 128, 120)
SHARES = {"none": {"T1w": 0.24, "T2w": 0.22, "FLAIR": 0.3, "DWI": 0.21, "random": 0.03},
          "some": {"T1w": 0.14, "T2w": 0.14, "FLAIR": 0.43, "DWI": 0.27, "random": 0.02},
          "strong": {"T1w": 0.17, "T2w": 0.08, "FLAIR": 0.52, "DWI": 0.21, "random": 0.02}}
MOSTLY_T1W = {"T1w": 0.72, "T2w": 0.12, "FLAIR": 0.04, "DWI": 0.12}
# How much brighter grey matter may be at the places below, by contrast
AMOUNT = {"some": {"FLAIR": (0, 0.5), "DWI": (0, 0.45), "T2w": (0, 0.2), "T1w": (0, 0.1), "random": (0, 0.3)},
          "strong": {"FLAIR": (0.25, 0.95), "DWI": (0.1, 0.8), "T2w": (0, 0.2), "T1w": (0, 0.1), "random": (0, 0.3)}}
# MNI mm, on the right; the left is alike. Insula, amygdala, hippocampus, cingulate and below the callosum:
LIMBIC = np.float32([[38, 6, -2], [36, -8, 4], [34, 18, -6], [24, -6, -20], [28, -18, -18], [28, -32, -6], [22, 6, -22],
                     [6, 34, 12], [5, 22, -8], [6, 12, 34], [6, -44, 26], [30, 20, -22], [6, 30, -16]])
# Near the sinuses, the ear canals and the skull's base, where echo-planar images are bright:
RIM = np.float32([[20, 62, 2], [8, 62, -8], [34, 50, -8], [12, 40, -22], [52, -8, -30], [50, -32, -24], [42, 2, -36],
                  [22, -86, -36], [40, -72, -40], [30, -98, -6]])
# White matter that is hazy on FLAIR, and how far in mm:
HAZE = (((26, -52, 14), 10), ((28, -62, 10), 9), ((24, -40, 28), 9), ((16, 26, 8), 7), ((20, -24, 32), 9))


# ---------------------------------------------------------------------- lesions

def near_ventricles(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Places in white matter, (3, N) MNI mm, and their probabilities (N,), higher near a label map's ventricles."""
    axes = [np.arange(-72, 73, 3.0), np.arange(-105, 75, 3.0), np.arange(-45, 78, 3.0)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).astype(np.float32)
    codes = load_map(path).at(points).reshape([len(axis) for axis in axes])
    away = ndimage.distance_transform_edt(codes != CODE["ventricle"], sampling=3.0)
    share = ((codes == CODE["white"]) * (np.exp(-away / 7) + 0.06)).ravel()
    return points, share / share.sum()


def ball(voxels: int = 8) -> lesionmasks.MaskFile:
    """A ball of 1 mm radius, from which plaques are made."""
    places = np.indices((2 * voxels + 3,) * 3) - (voxels + 1)
    mask = ((places ** 2).sum(0) <= voxels ** 2).astype(np.float32)[..., None]
    step = 1 / voxels
    return lesionmasks.MaskFile(mask, step * np.eye(3, dtype=np.float32),
                                np.full(3, -(voxels + 1) * step, np.float32), 4 / 3 * np.pi, np.zeros(3, np.float32))


def plaques(path: str):
    """What draws plaques of multiple sclerosis, in place of ``from_folders.draw_strokes``: ellipsoids near a ventricle
    that point away from it, below the cortex, and anywhere in white matter of the label map ``path``, which stands for
    the others. They are 4 to 70 and 1.8 to 11 mm long from their middle, as a list of ``MovedLesion``.

    Raises:
        UserError: where the map has no ventricle, cortex or white matter.
    """
    axes = [np.arange(-72, 73, 2.0), np.arange(-105, 75, 2.0), np.arange(-60, 78, 2.0)]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1).astype(np.float32)
    codes = load_map(path).at(points).reshape([len(axis) for axis in axes])
    white = np.isin(codes, [CODE[name] for name in ("white", "cerebellum_white", "stem")])
    if not all(where.any() for where in (white, codes == CODE["ventricle"], codes == CODE["cortex"])):
        raise UserError(f"{path}: found no ventricle, cortex or white matter, expected all three; put a map of a whole "
                        "head first")
    away, nearest = ndimage.distance_transform_edt(codes != CODE["ventricle"], sampling=2.0, return_indices=True)
    outward = (np.indices(codes.shape) - nearest).reshape(3, -1).T
    cortex = ndimage.distance_transform_edt(codes != CODE["cortex"], sampling=2.0)
    shares = [(white * near).ravel() for near in (np.exp(-away / 4) * (away < 15), np.exp(-cortex / 2), 1.0)]
    shares = [share / share.sum() for share in shares]
    source = ball()

    def draw(rng: np.random.Generator, *_) -> list:
        count = int(np.exp(rng.uniform(np.log(4), np.log(70))))
        largest, ragged = np.exp(rng.uniform(np.log(4), np.log(11))), rng.uniform(0.0, 1.0)
        kinds = rng.choice(3, count, p=rng.dirichlet((6, 2, 1.5)))
        found = []
        for kind in kinds:
            place = int(rng.choice(len(shares[kind]), p=shares[kind]))
            along = rng.normal(0, 1, 3) if kind else outward[place] + rng.normal(0, 0.4, 3)
            along = along / (np.linalg.norm(along) + 1e-6)
            half = np.exp(rng.uniform(np.log(1.8), np.log(largest)))  # of its longest axis, mm
            across = half * rng.uniform(0.4, 0.95)
            turn = np.eye(3) / across + (1 / half - 1 / across) * np.outer(along, along)
            found.append(lesionmasks.MovedLesion(
                source, (points[:, place] + rng.normal(0, 1, 3)).astype(np.float32), turn.astype(np.float32),
                4 / 3 * np.pi * half * across ** 2, float(ragged), int(rng.integers(2 ** 31))))
        return found

    return draw


def drawer(path: str, sclerosis_alone: bool = False):
    """What draws the lesions of a head, in place of ``from_folders.draw_strokes``; or those of multiple sclerosis
    alone."""
    points, share = near_ventricles(path)

    def sclerosis(rng: np.random.Generator, masks) -> list:
        count = int(np.exp(rng.uniform(np.log(5), np.log(60))))
        largest = float(np.exp(rng.uniform(np.log(200), np.log(6000))))
        return [replace(lesionmasks.draw_moved(rng, masks, SMALLEST_MM3, largest),
                        centre_mm=(points[:, place] + rng.normal(0, 2, 3)).astype(np.float32))
                for place in rng.choice(len(share), count, p=share)]

    def draw(rng: np.random.Generator, preset, masks, acute: bool) -> list:
        if rng.random() < preset.healthy:
            return []
        kind, several = rng.random(), lambda smallest, largest, n: [
            lesionmasks.draw_moved(rng, masks, smallest, largest) for _ in range(n)]
        if kind < 0.3:
            large = several(200.0, 20_000.0, int(rng.random() < 0.5))
            return large + several(40.0, 1500.0, int(rng.integers(3, 22)))
        if kind < 0.5 and not acute:
            return sclerosis(rng, masks)
        if kind < 0.72:
            return several(100.0, 8000.0, 1 + int(rng.random() < 0.3))
        return several(800.0, 200_000.0, 1 + int(rng.random() < preset.second))

    return (lambda rng, preset, masks, acute: sclerosis(rng, masks)) if sclerosis_alone else draw


# ---------------------------------------------------------------------- signal

def bumps(rng: np.random.Generator, points: np.ndarray, places, chance: float, low: float, high: float,
          jitter: float, widths: tuple[float, float]) -> np.ndarray:
    """The highest of smooth bumps (N,) at some of the ``places`` (K, 3): each there with a ``chance``, ``low`` to
    ``high`` at its top, and its width drawn from ``widths`` in mm."""
    found = np.zeros(points.shape[1], np.float32)
    for place in places:
        if rng.random() < chance:
            centre = (place + rng.normal(0, jitter, 3)).astype(np.float32)
            away = ((points - centre[:, None]) ** 2).sum(0)
            top, width = np.float32(rng.uniform(low, high)), np.float32(rng.uniform(*widths))
            np.maximum(found, top * np.exp(-away / (2 * width ** 2)), out=found)
    return found


def brighten(amount: dict) -> None:
    """Let the generator's heads of label maps have what ``--bright`` adds."""
    build, paint = from_folders.build_labelled, from_folders.paint_labelled

    def built(rng, warp, label_map, *rest):
        head = build(rng, warp, label_map, *rest)
        own, codes = np.random.default_rng(rng.integers(2**31)), head.codes
        points = warp.points(head.axes_mm)
        both = np.concatenate([np.abs(points[:1]), points[1:]])

        def over(where, *args):
            found = np.zeros(codes.shape, np.float32)
            found[where] = bumps(own, *args)
            return found

        grey = np.isin(codes, [CODE[name] for name in ("cortex", "deep", "cerebellum_grey")])
        white, brain = codes == CODE["white"], np.isin(codes, BRAIN)
        anywhere = [own.uniform((5, -95, -30), (60, 60, 65)) for _ in range(own.integers(0, 4))]
        head.bright = np.maximum(over(grey, both[:, grey.ravel()], LIMBIC, 0.8, 0.4, 1.1, 3.0, (7, 16)),
                                 over(grey, both[:, grey.ravel()], anywhere, 1.0, 0.2, 0.7, 0.0, (8, 20)))
        head.bright[codes == CODE["deep"]] *= 0.4
        edge = brain & ~ndimage.binary_erosion(brain, iterations=4)
        sides = [place * (side, 1, 1) for place in RIM for side in (1, -1)]
        head.rim = over(edge, points[:, edge.ravel()], sides, 0.45, 0.2, 1.6, 5.0, (4, 11))
        head.haze = np.zeros(codes.shape, np.float32)
        for place, width in HAZE:
            one = over(white, both[:, white.ravel()], [np.float32(place)], 0.7, 0.3, 1.0, 3.0,
                       (0.6 * width, 1.3 * width))
            np.maximum(head.haze, one, out=head.haze)
        return head

    def painted(rng, head, means, contrast, acute, voxel_mm):
        signal = paint(rng, head, means, contrast, acute, voxel_mm)
        own = np.random.default_rng(rng.integers(2**31))
        noise = np.clip(1 + 0.35 * smooth_field(own, head.axes_mm, 8.0)[0], 0, 2)
        more = head.bright * np.float32(own.uniform(*amount[contrast])) * noise
        bright = contrast in ("FLAIR", "DWI")
        more[head.codes == CODE["plexus"]] = own.uniform(-0.1, 0.9 if bright else 0.3)
        if amount is AMOUNT["strong"] and contrast in ("FLAIR", "T2w") and own.random() < 0.75:
            more += head.haze * np.float32(own.uniform(0, 0.55 if contrast == "FLAIR" else 0.3))
        more[head.lesion] = 0
        if contrast == "DWI":
            more += head.rim * np.float32(own.uniform(0.3, 1.3))
        return (signal * (1 + ndimage.gaussian_filter(more.astype(np.float32), 0.6))).astype(np.float32)

    from_folders.build_labelled, from_folders.paint_labelled = built, painted


# ---------------------------------------------------------------------- heads

def write_head(path: Path, seed: int, first, grid, maps: list, masks: list, options: dict) -> str:
    """Draw a head and write what the second network is given of its region, (C + K, X, Y, Z) uint8, and where lesion
    (1) and white matter disease (2) are."""
    from meshnet.inference.cascade import grey_view, second_volume
    from meshnet.inference.scan import read_case
    from meshnet.scans import checks
    from meshnet.scans.grid import LOOKS, conform_mask
    from meshnet.scans.mask import box_of

    image, mask, info = from_folders.make_labelled_case(seed, VOXEL_MM, "every", maps, masks, **options)
    case = read_case([image], [first])
    own = checks.fitted(grid, image, "head")[0]
    given = second_volume(first, case.inputs[0], grey_view([image], own, [{LOOKS: case.contrast}]), own.voxel_mm)
    if given is None:
        return "the first network finds nothing"
    given = given[0]
    truth = np.asarray(conform_mask(mask, own, {1: 1, 3: 2}, image, exact=False).dataobj)
    part = slices(box_of(given.max(0)))
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, given=given[(slice(None), *part)], truth=truth[part], contrast=info["contrast"])
    return f"{info['contrast']}, {info['lesions']} lesions, {info['lesion_ml']:.2f} mL"


def main() -> None:
    from meshnet.inference.models import load_models

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", required=True, help="the first network, a model folder")
    parser.add_argument("--anatomy", required=True, help="folder of label maps")
    parser.add_argument("--lesions", nargs="+", required=True, help="folders of lesion masks")
    parser.add_argument("--bright", choices=("none", "some", "strong"), default="none")
    parser.add_argument("--mostly_t1w", action="store_true", help="72 %% of the heads T1w, 28 %% without a lesion")
    parser.add_argument("--only", nargs="+", choices=tuple(SHARES["none"]), metavar="CONTRAST",
                        help="heads of these alone, as often as each other")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sclerosis", action="store_true", help="lesions as in multiple sclerosis on every head")
    kind.add_argument("--plaques", action="store_true", help="plaques of multiple sclerosis on every head, and white "
                      "matter disease on 15 %% of them alone; made for --only FLAIR")
    parser.add_argument("--cases", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=7_000_000, help="of the first head")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lesionmasks.VOLUME_MM3 = (SMALLEST_MM3, lesionmasks.VOLUME_MM3[1])
    maps = [str(path) for path in find_maps(arguments.anatomy)]
    masks = [str(path) for folder in arguments.lesions for path in find_maps(folder)]
    from_folders.draw_strokes = plaques(maps[0]) if arguments.plaques else drawer(maps[0], arguments.sclerosis)
    if arguments.bright != "none":
        brighten(AMOUNT[arguments.bright])
    first, = load_models([arguments.first], device="cpu")
    grid = replace(first.card.grids()[0], voxel_mm=VOXEL_MM, shape=SHAPE)
    options = {"contrasts": SHARES[arguments.bright], "healthy": 0.12 if arguments.bright == "none" else 0.2,
               "spots": 0.15 if arguments.plaques else 1.0, "extracted": 0.35}
    if arguments.mostly_t1w:
        options |= {"contrasts": MOSTLY_T1W, "healthy": 0.28}
    if arguments.only:
        options["contrasts"] = {kind: 1 / len(arguments.only) for kind in arguments.only}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.seed, arguments.seed + arguments.cases):
        path = arguments.out / f"{seed}.npz"
        if not path.exists():
            print(path.name, write_head(path, seed, first, grid, maps, masks, options), flush=True)


if __name__ == "__main__":
    run_script(main)

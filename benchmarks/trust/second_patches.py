"""Heads in memory, and the patches that ``second_train.py`` draws from them."""

import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from meshnet.inference.predict import predict
from meshnet.scans.mirror import find_plane, mirror_images, mirror_places

PATCH = 48  # voxels
UNSURE, WRONG = 0.2, (0.03, 0.03, 1.0)  # share of mirror images that are off, by so much
ABSENT = 0.04  # share that is left out
AGAIN = 8  # draws of a head after which ``mine`` looks at it again
BORDER = 2  # steps from a voxel to a neighbour, around a lesion, within which nothing is wrong
FALSE, FEWEST = 0.1, 30  # probability of a lesion where there is none, from which it is wrong, in so many voxels


def read_head(path: Path, mirror: bool, kinds: dict[str, float]) -> dict | None:
    """A head with the plane between its hemispheres, where that is asked for, and with some of the places, (N, 3)
    int16, around which patches are drawn; None of a kind that is not to be taken."""
    with np.load(path) as file:
        kind = str(file["contrast"])
        if not kinds.get(kind):
            return None
        given, truth = file["given"], file["truth"]
    rng = np.random.default_rng(0)

    hot = (given[1].astype(int) + given[3] > 38) | (given[0] > 127)
    return {"given": given, "truth": truth, "weight": kinds[kind], "plane": find_plane(given[0]) if mirror else None,
            "places": [some(rng, truth == 1, 5000), some(rng, truth == 2, 2000), some(rng, hot, 8000)]}


def some(rng: np.random.Generator, where: np.ndarray, most: int) -> np.ndarray:
    """At most so many places of those that are True, (N, 3) int16."""
    places = np.argwhere(where)
    return places[rng.permutation(len(places))[:most]].astype(np.int16)


def mine(rng: np.random.Generator, network, head: dict) -> None:
    """Add to the places of a ``head``, before its first draw and every 8: as many at lesions, spread evenly over the
    lesions whatever their size, and as many as there are suspicious ones where the network sees a lesion and none is
    drawn, the surer the more often; not at the border of lesions, where people differ."""
    head["drawn"] = head.get("drawn", 0) + 1
    if head["drawn"] % AGAIN != 1:
        return
    given, truth = head["given"], head["truth"]
    if head["plane"]:
        given = np.concatenate([given, np.stack(list(mirror_images(given, head["plane"])))])
    network.eval()
    found = predict(network, given.astype(np.float32) / 255, threads=1)[1]
    at_lesions, at_disease, hot = head.setdefault("first places", head["places"])
    lesions, count = ndimage.label(truth == 1, np.ones((3, 3, 3)))
    if count:
        places = np.argwhere(lesions)
        sizes = np.bincount(lesions[lesions > 0])
        share = 1 / sizes[lesions[tuple(places.T)]]
        drawn = places[rng.choice(len(places), len(at_lesions), p=share / share.sum())]
        at_lesions = np.concatenate([at_lesions, drawn.astype(np.int16)])
    wrong = np.where(ndimage.binary_dilation(truth == 1, iterations=BORDER), 0, found)
    places = np.argwhere(wrong > FALSE)
    if len(places) >= FEWEST:
        share = wrong[tuple(places.T)].astype(np.float64)
        drawn = places[rng.choice(len(places), max(FEWEST, len(hot)), p=share / share.sum())]
        hot = np.concatenate([hot, drawn.astype(np.int16)])
    head["places"] = [at_lesions, at_disease, hot]


def draw_patch(rng: np.random.Generator, head: dict, shares: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (C + K, n, n, n) float32 and truth (n, n, n), mirrored, blurred, with other grey values and noise."""
    size, kind = head["truth"].shape, int(np.searchsorted(np.cumsum(shares), rng.random()))
    places = head["places"][kind] if kind < len(head["places"]) else ()
    centre = places[rng.integers(len(places))] if len(places) else rng.integers(size)
    start = [int(np.clip(c - rng.integers(PATCH // 4, 3 * PATCH // 4), 0, max(0, n - PATCH)))
             for c, n in zip(centre, size)]
    part = tuple(slice(a, a + PATCH) for a in start)
    given, truth = head["given"][(slice(None), *part)].astype(np.float32), head["truth"][part]
    if head["plane"]:
        given = np.concatenate([given, mirrored(rng, head, start, truth.shape)])
    axes = [axis for axis in range(3) if rng.random() < 0.5]
    given, truth = np.flip(given, [axis + 1 for axis in axes]), np.flip(truth, axes)
    if rng.random() < 0.3:
        given, truth = given.swapaxes(1, 3), truth.swapaxes(0, 2)
    both = given.reshape(-1, 4, *truth.shape)  # the head, and its mirror image: (1 or 2, 4, n, n, n)
    grey = both[:, 0] * np.float32(12 / 255) - 4
    if rng.random() < 0.3:
        grey = ndimage.gaussian_filter1d(grey, rng.uniform(0.4, 1.6), 1 + int(rng.integers(3)))
    grey = grey * np.float32(np.exp(rng.normal(0, 0.25))) + np.float32(rng.normal(0, 0.2))
    if rng.random() < 0.3:
        shares = np.float32([1, rng.uniform(-1, 1)])[:len(grey), None, None, None]  # coils see two places otherwise
        for axis, slope in enumerate(rng.normal(0, 0.25, 3)):
            ramp = np.linspace(-slope, slope, truth.shape[axis], dtype=np.float32)
            grey = grey + shares * ramp.reshape([-1 if axis == k else 1 for k in range(3)])
    if rng.random() < 0.4:
        grey = grey + rng.standard_normal(grey.shape, np.float32) * np.float32(rng.uniform(0, 0.5))
    p = both[:, 1:] / np.float32(255)
    logits = np.log((p + 1e-3) / (1.001 - p)) * np.float32(np.exp(rng.normal(0, 0.25)))
    p = 1 / (1 + np.exp(-logits - rng.normal(0, 0.7, (p.shape[1], 1, 1, 1)).astype(np.float32)))
    found = np.concatenate([np.clip((grey[:, None] + 4) / 12, 0, 1), p], 1)
    if len(found) == 2:
        found[1] *= both[1].any(0) & (rng.random() >= ABSENT)
    return found.reshape(given.shape).astype(np.float32), truth.astype(np.int64)


def mirrored(rng: np.random.Generator, head: dict, start: list[int], size: tuple[int, ...]) -> np.ndarray:
    """The mirror image of a patch, (C + K, n, n, n) float32; of some the plane is not quite right."""
    shape, plane = head["truth"].shape, np.array(head["plane"])
    if rng.random() < UNSURE:
        plane = plane + rng.normal(0, 1, 3) * WRONG
    points = np.ogrid[tuple(slice(a, a + n) for a, n in zip(start, size))]
    inside, places = mirror_places(shape, points, tuple(plane))
    found = head["given"].reshape(len(head["given"]), -1)[:, places] * inside
    return found.reshape(-1, *size).astype(np.float32)

"""Resampling a volume by an affine: by copying where grids coincide, axis by axis where their axes are parallel."""

import numpy as np

from meshnet.scans.affines import product

# In voxels. Header affines are float32, so grids that are meant to coincide differ by about 1e-5 voxels.
TOLERANCE = 1e-3
POINTS = 4  # samples along each axis of a voxel at most, for its mean
SAMPLES = 1 << 24  # computed at once
BLOCK = 1 << 17  # values interpolated at once along the last axis


def resample(
    data: np.ndarray, to_source: np.ndarray, shape: tuple[int, int, int], order: int, fill: float = 0.0, nudge: int = 0,
    out: np.ndarray | None = None, covers: bool = False, reach: np.ndarray | None = None,
) -> np.ndarray:
    """Sample ``data`` (X, Y, Z) at ``to_source @ index`` for every index of ``shape``.

    Args:
        to_source: (4, 4), from index of the result to index of ``data``.
        shape: of the result.
        order: 0 is nearest neighbour and keeps the type. 1 is trilinear and returns float32, or keeps the type where no
            sample lies between voxels.
        fill: the value outside the volume.
        covers: whether a voxel of the result that lies partly in the volume has its outermost value. Else the volume
            ends at its outermost centres, as mri_convert has it (for nearest neighbour, at its faces).
        reach: instead of ``covers``: voxels (3,) of ``data`` by which it goes beyond its outermost centres.
        nudge: breaks nearest-neighbour ties. +1 moves the sampling points a thousandth of a voxel up the axes of
            ``data``, -1 a thousandth down the axes of the *result*. So resampling with +1 and back with -1 changes
            nothing on grids half a voxel apart, also where axes are mirrored.
        out: an array of ``shape`` and of the result's type to write into.
    """
    matrix, offset = to_source[:3, :3].copy(), to_source[:3, 3].copy()
    if nudge > 0:
        offset += TOLERANCE
    elif nudge < 0:
        offset -= product(matrix, np.full(3, TOLERANCE))
    if reach is None:
        reach = covering_reach(matrix) if covers else np.zeros(3)
    axes = _aligned_axes(matrix, shape)
    if axes is None:
        return _oblique(data, matrix, offset, shape, order, fill, out, reach)
    # Source coordinates along each target axis; target axis t runs along source axis axes[t].
    points = [matrix[s, t] * np.arange(shape[t]) + offset[s] for t, s in enumerate(axes)]
    if data.dtype.kind in "iu" and not (float(fill).is_integer() and _fits(fill, data.dtype)):
        data = data.astype(np.float32)
    data, reach = data.transpose(axes), reach[axes]
    points = [_covered(p, n, r) for p, n, r in zip(points, data.shape, reach)]
    whole = [np.rint(p) for p in points]
    slack = 2 * TOLERANCE
    on_grid = all(np.abs(p - w).max(initial=0) < slack for p, w in zip(points, whole))
    if order == 0 or on_grid:
        return _pick(data, whole, fill, out)
    return _interpolate(data, points, fill, out)


def resample_mean(data: np.ndarray, to_source: np.ndarray, shape: tuple[int, int, int], fill: float,
                  covers: bool = False) -> np.ndarray:
    """``data`` (X, Y, Z) on a coarser grid, float32: each voxel is the mean of trilinear samples spread evenly over it.

    Along each axis a voxel has as many samples as it covers voxels of ``data``, at most ``POINTS``. Where that is one
    everywhere, the result is that of ``resample``. Arguments as there.
    """
    counts = np.clip(np.rint(np.linalg.norm(to_source[:3, :3], axis=0)), 1, POINTS).astype(int)
    if counts.max() == 1:
        return resample(data, to_source, shape, order=1, fill=fill, covers=covers)
    fine = to_source.astype(float)
    matrix, offset = fine[:3, :3].copy(), fine[:3, 3].copy()
    near = covering_reach(matrix)  # of a voxel's middle; its samples lie up to half a voxel further
    reach = near + np.abs(matrix).sum(axis=1) / 2 if covers else None
    fine[:3, :3] /= counts
    fine[:3, 3] -= product(fine[:3, :3], (counts - 1) / 2)
    out = np.empty(shape, np.float32)
    planes = max(1, SAMPLES // int(counts.prod() * shape[1] * shape[2]))
    for first in range(0, shape[0], planes):
        part = out[first:first + planes]
        samples = np.empty(counts * part.shape, np.float32)  # in C order, however data lie: sums depend on the order
        resample(data, fine, samples.shape, order=1, fill=fill, out=samples, reach=reach)
        split = [edge for count, n in zip(counts, part.shape) for edge in (n, count)]
        samples.reshape(split).mean(axis=(1, 3, 5), dtype=np.float32, out=part)
        fine[:3, 3] += fine[:3, 0] * counts[0] * planes
    if covers:
        _fill_outside(out, matrix, offset, data.shape, near, fill)
    return out


def covering_reach(matrix: np.ndarray) -> np.ndarray:
    """How far (3,), in voxels of the source, the centre of a result's voxel may lie beyond the outermost centres if the
    two voxels still touch. ``matrix`` (3, 3) goes from the result's voxels to the source's."""
    return 0.5 + np.abs(matrix).sum(axis=1) / 2 - 5 * TOLERANCE  # a shared face is no overlap


def _covered(points: np.ndarray, n: int, reach: float) -> np.ndarray:
    """Source coordinates on one axis, with those within ``reach`` of the outermost of ``n`` centres moved onto them."""
    if not reach:
        return points
    near = (points >= -reach - TOLERANCE) & (points <= n - 1 + reach + TOLERANCE)
    return np.where(near, np.clip(points, 0, n - 1), points)


def _fits(value: float, dtype: np.dtype) -> bool:
    return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _aligned_axes(matrix: np.ndarray, shape: tuple[int, int, int]) -> list[int] | None:
    """For each axis of the result the axis of the source that it is parallel to; None where the grids are oblique."""
    axes = [int(np.argmax(np.abs(matrix[:, t]))) for t in range(3)]
    if sorted(axes) != [0, 1, 2]:
        return None
    rest = np.abs(matrix)
    rest[axes, [0, 1, 2]] = 0
    return axes if (rest @ np.array(shape)).max() < TOLERANCE else None


def _pick(data: np.ndarray, indices: list[np.ndarray], fill: float, out: np.ndarray | None) -> np.ndarray:
    """``data`` at integer indices on each axis, ``fill`` outside."""
    inside = [(i >= 0) & (i < n) for i, n in zip(indices, data.shape)]
    out = np.empty_like(data, shape=[len(i) for i in indices]) if out is None else out  # lies in memory as data does
    if not all(m.all() for m in inside):
        out[...] = fill
    kept = [i[m].astype(np.intp) for i, m in zip(indices, inside)]
    if all(len(k) for k in kept):
        # The indices along an axis rise or fall steadily, so those inside are one slice of the result.
        region = tuple(slice(int(np.argmax(m)), int(np.argmax(m)) + int(m.sum())) for m in inside)
        part, runs = out[region], [_run(k) for k in kept]
        if None in runs:
            part[...] = data[np.ix_(*kept)]
        else:  # several times as fast
            part[tuple(runs)] = data[_as_slices([k[run] for k, run in zip(kept, runs)])]
            for axis, run in enumerate(runs):
                along = np.moveaxis(part, axis, 0)
                along[:run.start], along[run.stop:] = along[run.start], along[run.stop - 1]
    return out


def _run(index: np.ndarray) -> slice | None:
    """Where ``index`` goes on by 1 or by -1, if before and after that it only repeats its ends; else None."""
    moves = np.flatnonzero(np.diff(index))
    if not len(moves):
        return slice(0, 1)
    run = slice(int(moves[0]), int(moves[-1]) + 2)
    steps = np.diff(index[run])
    return run if abs(steps[0]) == 1 and (steps == steps[0]).all() else None


def _as_slices(kept: list[np.ndarray]) -> tuple[slice, ...]:
    slices = []
    for k in kept:
        step = 1 if len(k) == 1 or k[1] > k[0] else -1
        stop = int(k[-1]) + step
        slices.append(slice(int(k[0]), None if stop < 0 else stop, step))
    return tuple(slices)


def _interpolate(data: np.ndarray, points: list[np.ndarray], fill: float, out: np.ndarray | None) -> np.ndarray:
    """Trilinear interpolation, one axis after another, on the part of the result that lies inside ``data``."""
    out = np.empty([len(p) for p in points], np.float32) if out is None else out
    region = []
    for p, n in zip(points, data.shape):
        inside = np.flatnonzero((p >= -TOLERANCE) & (p <= n - 1 + TOLERANCE))
        region.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    if any(part.stop - part.start < n for part, n in zip(region, out.shape)):
        out[...] = fill
    if not out[tuple(region)].size:
        return out
    # The axis that shrinks most is interpolated first, which leaves least work for the others.
    order = sorted(range(3), key=lambda a: (region[a].stop - region[a].start) / data.shape[a])
    volume, target = data, out[tuple(region)]
    points = [np.clip(p[part], 0, n - 1) for p, part, n in zip(points, region, data.shape)]
    if out.flags.f_contiguous and not out.flags.c_contiguous:  # rows are computed as they lie in memory
        volume, target, points, order = volume.T, target.T, points[::-1], [2 - axis for axis in order]
    for axis in order[:2]:
        volume = _blend(volume, points[axis], axis)
    along = 0 if order[2] else 1
    rows = max(1, BLOCK // max(1, target.size // target.shape[along]))
    for first in range(0, target.shape[along], rows):  # in parts that stay in the cache
        part = (slice(None),) * along + (slice(first, first + rows),)
        _blend(volume[part], points[order[2]], order[2], target[part])
    return out


def _blend(volume: np.ndarray, points: np.ndarray, axis: int, out: np.ndarray | None = None) -> np.ndarray:
    """``volume`` at ``points`` within one of its axes, by linear interpolation, float32."""
    low = np.minimum(np.floor(points).astype(np.intp), max(volume.shape[axis] - 2, 0))
    weight = (points - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    below = np.take(volume, low, axis).astype(np.float32, copy=False)
    above = np.take(volume, np.minimum(low + 1, volume.shape[axis] - 1), axis).astype(np.float32, copy=False)
    above -= below
    above *= weight
    return np.add(above, below, out=out)


def _oblique(data: np.ndarray, matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, int, int], order: int,
             fill: float, out: np.ndarray | None, reach: np.ndarray) -> np.ndarray:
    """``resample`` where the axes of the two grids are not parallel."""
    from scipy.ndimage import affine_transform

    if order == 0 and not reach.any():  # grid-constant: the outermost voxels reach half a voxel beyond their centres
        return affine_transform(data, matrix, offset, tuple(shape), out, order=0, mode="grid-constant", cval=fill)
    data = data if order == 0 else data.astype(np.float32, copy=False)
    result = np.empty(shape, data.dtype) if out is None else out
    affine_transform(data, matrix, offset, tuple(shape), result, order=order, mode="constant", cval=fill)
    if reach.any():
        _fill_rim(result, data, matrix, offset, order, reach)
    return result


def _fill_rim(result: np.ndarray, data: np.ndarray, matrix: np.ndarray, offset: np.ndarray, order: int,
              reach: np.ndarray) -> None:
    """Give the voxels of ``result`` (X, Y, Z) that lie beyond the outermost centres of ``data``, but within ``reach``
    of them, the outermost values. They are few: mode "nearest" for all of the result takes 1.4 times as long."""
    from scipy.ndimage import map_coordinates

    first, last = _inside(matrix, offset, result.shape, data.shape, reach)
    begin, end = _inside(matrix, offset, result.shape, data.shape, np.full(3, -2 * TOLERANCE))
    begin, end = np.where(begin > end, last + 1, begin), np.where(begin > end, last, end)
    index = np.concatenate([_along_rows(first, begin - 1), _along_rows(end + 1, last)], axis=1)
    i, j, k = index
    # In affine_transform's order of sums: a coordinate that is 2 for it must not be 2 - 4e-16 here.
    points = np.stack([np.clip(start + i * a + j * b + k * c, 0, n - 1)
                       for (a, b, c), start, n in zip(matrix, offset, data.shape)])
    result[tuple(index)] = map_coordinates(data, points, order=order, mode="nearest")


def _along_rows(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The indices (3, N) of all voxels from ``first`` to ``last`` (X, Y), on the last axis, of each row."""
    counts = np.maximum(last - first + 1, 0).astype(np.intp).ravel()
    rows = np.repeat(np.arange(counts.size), counts)
    steps = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([*np.unravel_index(rows, first.shape), steps + first.ravel().astype(np.intp)[rows]])


def _fill_outside(result: np.ndarray, matrix: np.ndarray, offset: np.ndarray, source: tuple[int, ...],
                  reach: np.ndarray, fill: float) -> None:
    """Put ``fill`` where ``result`` (X, Y, Z) is further than ``reach`` from the voxels of a volume ``source``."""
    first, last = _inside(matrix, offset, result.shape, source, reach)
    index = np.arange(result.shape[2])
    result[(index < first[..., None]) | (index > last[..., None])] = fill


def _inside(matrix: np.ndarray, offset: np.ndarray, shape: tuple[int, int, int], source: tuple[int, ...],
            reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and last index (X, Y) along the last axis of the result whose samples lie within ``reach`` voxels of
    the centres of a volume of shape ``source``; last < first where none does."""
    i, j = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij", sparse=True)
    first, last = np.zeros(shape[:2]), np.full(shape[:2], shape[2] - 1.0)
    if any(n - 1 + 2 * (r + TOLERANCE) < 0 for n, r in zip(source, reach)):  # thinner than a negative reach takes away
        return first, np.full(shape[:2], -1.0)
    for (a, b, c), start, n, r in zip(matrix, offset, source, reach):
        base = a * i + b * j + start
        low, high = -r - TOLERANCE - base, n - 1 + r + TOLERANCE - base
        if abs(c) < 1e-12:
            last = np.where((low <= 0) & (high >= 0), last, -1)
            continue
        one, two = low / c, high / c
        first, last = np.maximum(first, np.minimum(one, two)), np.minimum(last, np.maximum(one, two))
    return np.ceil(first), np.floor(last)

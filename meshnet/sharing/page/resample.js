// Resampling by an affine: meshnet/scans/resample.py for linear interpolation, with the same float32 operations in the
// same order, so that grey values are equal to the byte.
"use strict";

const TOLERANCE = 1e-3, POINTS = 4, SAMPLES = 1 << 24;

// The volume at toSource @ index for every index of `shape`; `fill` outside. `reach`: voxels by which it goes beyond its
// outermost centres. `out`: a volume to write into.
function resample(volume, toSource, shape, fill, reach, out = null) {
  const matrix = corner(toSource), offset = toSource.slice(0, 3).map((row) => row[3]);
  const axes = alignedAxes(matrix, shape);
  if (!axes) return oblique(volume, matrix, offset, shape, fill, reach, out || makeVolume(new Float32Array(count(shape)), shape));
  const turned = transposed(volume, axes);
  const points = axes.map((s, t) => {
    const n = turned.shape[t], r = reach[s];
    return Float64Array.from({ length: shape[t] }, (_, i) => {
      const p = matrix[s][t] * i + offset[s];
      return p >= -r - TOLERANCE && p <= n - 1 + r + TOLERANCE && r ? Math.min(Math.max(p, 0), n - 1) : p;
    });
  });
  const onGrid = points.every((axis) => axis.every((p) => Math.abs(p - roundEven(p)) < 2 * TOLERANCE));
  if (onGrid) {
    const fits = fitsIn(fill, volume.kind);
    out = out || makeVolume(fits ? new volume.data.constructor(count(shape)) : new Float32Array(count(shape)), shape, fits ? volume.kind : "f4");
    return pick(turned, points.map((axis) => axis.map(roundEven)), fill, out);
  }
  return interpolate(turned, points, fill, out || makeVolume(new Float32Array(count(shape)), shape));
}

// A coarser grid, float32: each voxel is the mean of samples spread evenly over it, at most POINTS on each axis.
function resampleMean(volume, toSource, shape, fill) {
  const matrix = corner(toSource), offset = toSource.slice(0, 3).map((row) => row[3]);
  const near = coveringReach(matrix);
  const counts = [0, 1, 2].map((c) => Math.min(POINTS, Math.max(1, roundEven(Math.sqrt(matrix[0][c] ** 2 + matrix[1][c] ** 2 + matrix[2][c] ** 2)))));
  if (Math.max(...counts) === 1) return resample(volume, toSource, shape, fill, near);
  const reach = near.map((value, r) => value + rowSum(matrix[r]) / 2);
  const fine = toSource.map((row) => row.slice());
  for (let r = 0; r < 3; ++r) {
    for (let c = 0; c < 3; ++c) fine[r][c] /= counts[c];
    fine[r][3] -= fine[r][0] * ((counts[0] - 1) / 2) + fine[r][1] * ((counts[1] - 1) / 2) + fine[r][2] * ((counts[2] - 1) / 2);
  }
  const out = makeVolume(new Float32Array(count(shape)), shape);
  const planes = Math.max(1, Math.floor(SAMPLES / (counts[0] * counts[1] * counts[2] * shape[1] * shape[2])));
  for (let first = 0; first < shape[0]; first += planes) {
    const part = [Math.min(planes, shape[0] - first), shape[1], shape[2]];
    const size = part.map((n, axis) => n * counts[axis]);
    const samples = makeVolume(new Float32Array(count(size)), size);
    resample(volume, fine, size, fill, reach, samples);
    means(samples, counts, part, out.data.subarray(first * shape[1] * shape[2]));
    for (let r = 0; r < 3; ++r) fine[r][3] += fine[r][0] * counts[0] * planes;
  }
  fillOutside(out, matrix, offset, volume.shape, near, fill);
  return out;
}

// The means over blocks of samples, summed in numpy's order: along the last axis, then these sums.
function means(samples, counts, shape, to) {
  const [ca, cb, cc] = counts, [, sy, sz] = samples.shape, { data } = samples, all = ca * cb * cc;
  for (let i = 0, at = 0; i < shape[0]; ++i)
    for (let j = 0; j < shape[1]; ++j)
      for (let k = 0; k < shape[2]; ++k, ++at) {
        let sum = 0;
        for (let a = 0; a < ca; ++a)
          for (let b = 0; b < cb; ++b) {
            const row = ((i * ca + a) * sy + j * cb + b) * sz + k * cc;
            let part = data[row];
            for (let c = 1; c < cc; ++c) part = f32(part + data[row + c]);
            sum = f32(sum + part);
          }
        to[at] = sum / all;
      }
}

function rowSum(row) {
  return Math.abs(row[0]) + Math.abs(row[1]) + Math.abs(row[2]);
}

// How far a voxel's centre may lie beyond the outermost centres if the two voxels still touch.
function coveringReach(matrix) {
  return matrix.map((row) => 0.5 + rowSum(row) / 2 - 5 * TOLERANCE);
}

// For each axis of the result the axis of the source that it is parallel to; null where the grids are oblique.
function alignedAxes(matrix, shape) {
  const axes = [0, 1, 2].map((t) => {
    const column = matrix.map((row) => Math.abs(row[t]));
    return column.indexOf(Math.max(...column));
  });
  if (new Set(axes).size < 3) return null;
  const rest = matrix.map((row, s) => row.reduce((sum, value, t) => sum + (axes[t] === s ? 0 : Math.abs(value) * shape[t]), 0));
  return Math.max(...rest) < TOLERANCE ? axes : null;
}

function fitsIn(value, kind) {
  if (!isInteger(kind) || !Number.isInteger(value)) return false;
  const bits = 8 * Number(kind[1]), lowest = kind[0] === "i" ? -(2 ** (bits - 1)) : 0;
  return value >= lowest && value <= lowest + 2 ** bits - 1;
}

function pick(volume, indices, fill, out) {
  const { data, shape, strides, offset } = volume, [si, sj, sk] = out.strides;
  const steps = indices.map((axis, a) => Float64Array.from(axis, (i) => (i >= 0 && i < shape[a] ? i * strides[a] : NaN)));
  const to = out.data;
  for (let i = 0; i < steps[0].length; ++i)
    for (let j = 0; j < steps[1].length; ++j) {
      const row = offset + steps[0][i] + steps[1][j];
      let at = out.offset + i * si + j * sj;
      for (let k = 0; k < steps[2].length; ++k, at += sk) {
        const from = row + steps[2][k];
        to[at] = from === from ? data[from] : fill;
      }
    }
  return out;
}

// One axis after another, on the part of the result that lies inside the volume.
function interpolate(volume, points, fill, out) {
  out.data.fill(fill);
  const region = [];
  for (let a = 0; a < 3; ++a) {
    const n = volume.shape[a];
    const inside = (p) => p >= -TOLERANCE && p <= n - 1 + TOLERANCE;
    const first = points[a].findIndex(inside);
    if (first < 0) return out;
    region.push([first, points[a].findLastIndex(inside) + 1]);
  }
  const share = (a) => (region[a][1] - region[a][0]) / volume.shape[a];
  const order = [0, 1, 2].sort((a, b) => share(a) - share(b) || a - b);
  const source = volume.shape.slice();
  let now = volume;
  order.forEach((axis, number) => {
    const n = source[axis], p = points[axis].subarray(...region[axis]).map((value) => Math.min(Math.max(value, 0), n - 1));
    const low = p.map((value) => Math.min(Math.floor(value), Math.max(n - 2, 0)));
    const weight = Float32Array.from(p, (value, i) => value - low[i]);
    const shape = now.shape.slice();
    shape[axis] = p.length;
    const last = number === 2;
    const to = last ? { ...out, shape, offset: out.offset + region.reduce((sum, [a], i) => sum + a * out.strides[i], 0) }
                    : makeVolume(new Float32Array(count(shape)), shape);
    blend(now, to, axis, low, low.map((value) => Math.min(value + 1, n - 1)), weight);
    now = to;
  });
  return out;
}

// to = below + (above - below) * weight along one axis, in float32
function blend(from, to, axis, low, high, weight) {
  const others = [0, 1, 2].filter((a) => a !== axis).sort((a, b) => Math.abs(to.strides[b]) - Math.abs(to.strides[a]));
  const inner = Math.abs(to.strides[axis]) < Math.abs(to.strides[others[1]]) ? axis : others[1];  // fastest in memory
  const [first, second] = [0, 1, 2].filter((a) => a !== inner).sort((a, b) => Math.abs(to.strides[b]) - Math.abs(to.strides[a]));
  const step = (a, i, of) => of.strides[a] * (a === axis && of === from ? 0 : i);
  const lower = low.map((i) => i * from.strides[axis]), upper = high.map((i) => i * from.strides[axis]);
  const source = from.data, target = to.data, n = to.shape[inner], stride = to.strides[inner], along = from.strides[inner];
  for (let i = 0; i < to.shape[first]; ++i)
    for (let j = 0; j < to.shape[second]; ++j) {
      let at = to.offset + i * to.strides[first] + j * to.strides[second];
      let base = from.offset + step(first, i, from) + step(second, j, from);
      if (inner === axis) {
        for (let k = 0; k < n; ++k, at += stride) {
          const below = f32(source[base + lower[k]]), above = f32(source[base + upper[k]]);
          target[at] = f32(f32(f32(above - below) * weight[k]) + below);
        }
        continue;
      }
      const l = axis === first ? i : j, w = weight[l], jump = upper[l] - lower[l];
      base += lower[l];
      for (let k = 0; k < n; ++k, at += stride, base += along) {
        const below = f32(source[base]), above = f32(source[base + jump]);
        target[at] = f32(f32(f32(above - below) * w) + below);
      }
    }
}

// Trilinear interpolation in float64 where the axes of the two grids are not parallel: scipy's affine_transform.
function oblique(volume, matrix, offset, shape, fill, reach, out) {
  const { data, strides } = volume, [n0, n1, n2] = volume.shape, [s0, s1, s2] = strides;
  const [[a0, b0, c0], [a1, b1, c1], [a2, b2, c2]] = matrix, to = out.data;
  const clamp = (x, n) => (x < 0 ? 0 : x > n - 1 ? n - 1 : x);
  for (let i = 0; i < shape[0]; ++i)
    for (let j = 0; j < shape[1]; ++j) {
      let at = out.offset + i * out.strides[0] + j * out.strides[1];
      for (let k = 0; k < shape[2]; ++k, at += out.strides[2]) {
        const x = clamp(offset[0] + i * a0 + j * b0 + k * c0, n0), y = clamp(offset[1] + i * a1 + j * b1 + k * c1, n1);
        const z = clamp(offset[2] + i * a2 + j * b2 + k * c2, n2);
        const x0 = Math.floor(x), y0 = Math.floor(y), z0 = Math.floor(z);
        const u0 = 1 - (x - x0), v0 = 1 - (y - y0), w0 = 1 - (z - z0), u1 = 1 - u0, v1 = 1 - v0, w1 = 1 - w0;
        const p = volume.offset + x0 * s0 + y0 * s1 + z0 * s2;
        const dx = x0 + 1 < n0 ? s0 : 0, dy = y0 + 1 < n1 ? s1 : 0, dz = z0 + 1 < n2 ? s2 : 0;
        let t = f32(data[p]) * u0 * v0 * w0;
        t += f32(data[p + dz]) * u0 * v0 * w1;
        t += f32(data[p + dy]) * u0 * v1 * w0;
        t += f32(data[p + dy + dz]) * u0 * v1 * w1;
        t += f32(data[p + dx]) * u1 * v0 * w0;
        t += f32(data[p + dx + dz]) * u1 * v0 * w1;
        t += f32(data[p + dx + dy]) * u1 * v1 * w0;
        t += f32(data[p + dx + dy + dz]) * u1 * v1 * w1;
        to[at] = t;
      }
    }
  fillOutside(out, matrix, offset, volume.shape, reach, fill);
  return out;
}

// `fill` where the result is further than `reach` from the voxels of a volume of shape `source`.
function fillOutside(out, matrix, offset, source, reach, fill) {
  const [nx, ny, nz] = out.shape;
  for (let i = 0; i < nx; ++i)
    for (let j = 0; j < ny; ++j) {
      let first = 0, last = nz - 1;
      for (let r = 0; r < 3; ++r) {
        const [a, b, c] = matrix[r], base = a * i + b * j + offset[r];
        const low = -reach[r] - TOLERANCE - base, high = source[r] - 1 + reach[r] + TOLERANCE - base;
        if (Math.abs(c) < 1e-12) {
          if (!(low <= 0 && high >= 0)) last = -1;
          continue;
        }
        first = Math.max(first, Math.min(low / c, high / c));
        last = Math.min(last, Math.max(low / c, high / c));
      }
      first = Math.ceil(first), last = Math.floor(last);
      const row = out.offset + i * out.strides[0] + j * out.strides[1];
      for (let k = 0; k < nz; ++k) if (k < first || k > last) out.data[row + k * out.strides[2]] = fill;
    }
}

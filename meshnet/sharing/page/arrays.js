// Volumes and 4x4 matrices.
//
// A volume is {data, shape, strides, offset, kind}: a typed array, three sizes, the steps between neighbours on each axis,
// where voxel (0, 0, 0) lies, and numpy's name of the type of its values (i8 and u8 are kept as float64). Matrices are
// arrays of rows.
"use strict";

const f32 = Math.fround;

function makeVolume(data, shape, kind = "f4") {  // the last axis lies closest together
  return { data, shape, strides: [shape[1] * shape[2], shape[2], 1], offset: 0, kind };
}

function fileVolume(data, shape, kind = "f4") {  // the first axis lies closest together, as in a NIfTI file
  return { data, shape, strides: [1, shape[0], shape[0] * shape[1]], offset: 0, kind };
}

function count(shape) {
  return shape[0] * shape[1] * shape[2];
}

function isInteger(kind) {
  return kind[0] === "i" || kind[0] === "u";
}

// A view of a volume with its axes in another order.
function transposed(volume, axes) {
  return { ...volume, shape: axes.map((a) => volume.shape[a]), strides: axes.map((a) => volume.strides[a]) };
}

// A view of a volume with an axis running the other way.
function flipped(volume, axis) {
  const strides = volume.strides.slice();
  const offset = volume.offset + strides[axis] * (volume.shape[axis] - 1);
  strides[axis] = -strides[axis];
  return { ...volume, strides, offset };
}

// visit(value, i, j, k) for every `step`-th voxel of each axis
function visit(volume, step, use) {
  const { data, shape, strides, offset } = volume;
  for (let i = 0; i < shape[0]; i += step)
    for (let j = 0; j < shape[1]; j += step) {
      let at = offset + i * strides[0] + j * strides[1];
      for (let k = 0; k < shape[2]; k += step, at += step * strides[2]) use(data[at], i, j, k);
    }
}

function extremes(data) {
  let low = data[0], high = data[0];
  for (let i = 1; i < data.length; ++i) {
    const value = data[i];
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// ---------------------------------------------------------------- matrices

function identity(n) {
  return Array.from({ length: n }, (_, i) => Array.from({ length: n }, (_, j) => Number(i === j)));
}

function multiply(a, b) {
  return a.map((row) => b[0].map((_, j) => row.reduce((sum, value, k) => sum + value * b[k][j], 0)));
}

function apply(a, vector) {
  return a.map((row) => row.reduce((sum, value, k) => sum + value * vector[k], 0));
}

function dot(a, b) {
  return a.reduce((sum, value, i) => sum + value * b[i], 0);
}

function corner(a) {  // the upper left 3x3
  return a.slice(0, 3).map((row) => row.slice(0, 3));
}

// By elimination with partial pivoting, operation by operation as in meshnet/scans/affines.py; null where the matrix is
// singular.
function inverse(matrix) {
  const n = matrix.length, a = matrix.map((row) => row.slice()), x = identity(n);
  for (let c = 0; c < n; ++c) {
    let pivot = c;
    for (let r = c + 1; r < n; ++r) if (Math.abs(a[r][c]) > Math.abs(a[pivot][c])) pivot = r;
    if (!a[pivot][c]) return null;
    [a[c], a[pivot]] = [a[pivot], a[c]];
    [x[c], x[pivot]] = [x[pivot], x[c]];
    for (let r = c + 1; r < n; ++r) {
      const factor = a[r][c] / a[c][c];
      for (let k = c; k < n; ++k) a[r][k] -= factor * a[c][k];
      for (let k = 0; k < n; ++k) x[r][k] -= factor * x[c][k];
    }
  }
  for (let r = n - 1; r >= 0; --r)
    for (let k = 0; k < n; ++k) {
      for (let c = r + 1; c < n; ++c) x[r][k] -= a[r][c] * x[c][k];
      x[r][k] /= a[r][r];
    }
  return x;
}

function determinant(a) {
  return a[0][0] * (a[1][1] * a[2][2] - a[1][2] * a[2][1]) - a[0][1] * (a[1][0] * a[2][2] - a[1][2] * a[2][0]) +
    a[0][2] * (a[1][0] * a[2][1] - a[1][1] * a[2][0]);
}

// The lengths of the first three columns: a voxel's edges.
function edges(affine) {
  return [0, 1, 2].map((c) => Math.sqrt(affine[0][c] ** 2 + affine[1][c] ** 2 + affine[2][c] ** 2));
}

// The corners of a box ((a, b) on each axis) as vectors with a 1 behind.
function corners(box) {
  const found = [];
  for (const x of box[0]) for (const y of box[1]) for (const z of box[2]) found.push([x, y, z, 1]);
  return found;
}

// ---------------------------------------------------------------- orientation

// For each axis of a file the axis of the world that it is nearest to, and its direction: nibabel's io_orientation.
function orientation(affine) {
  const lengths = edges(affine).map((length) => length || 1);
  let r = corner(affine).map((row) => row.map((value, c) => value / lengths[c]));
  for (let step = 0; step < 100; ++step) {  // the nearest rotation (Newton's iteration for the polar factor)
    const back = inverse(r);
    if (!back) break;
    const next = r.map((row, i) => row.map((value, j) => (value + back[j][i]) / 2));
    const moved = Math.max(...next.flatMap((row, i) => row.map((value, j) => Math.abs(value - r[i][j]))));
    r = next;
    if (moved < 1e-16) break;
  }
  r = r.map((row) => row.map((value) => (Math.abs(value) < 1e-15 ? 0 : value)));
  const strength = [0, 1, 2].map((c) => -Math.max(...r.map((row) => row[c] ** 2)));
  const order = [0, 1, 2].sort((a, b) => (Math.abs(strength[a] - strength[b]) < 1e-15 ? a - b : strength[a] - strength[b]));
  const found = [];
  for (const axis of order) {
    const column = r.map((row) => Math.abs(row[axis]));
    const world = column.indexOf(Math.max(...column));
    found[axis] = [world, r[world][axis] < 0 ? -1 : 1];
    r[world] = [0, 0, 0];
  }
  return found;
}

// The letters of the axes, such as LIA: the directions in which they run.
function axisCodes(affine) {
  return orientation(affine).map(([world, sign]) => ["LR", "PA", "IS"][world][sign > 0 ? 1 : 0]).join("");
}

// Conforming a scan and the way back: meshnet/scans/grid.py, as the programs call it (exact=False).
"use strict";

const CENTRES = { "n/2": 0, middle: 0.5 };

// The grids on which a model sees a scan (Card.grids): {voxel, size, orientation, back, averaged, offset}.
function gridsOf(card) {
  const side = Math.max(1, roundEven(256 / card.voxel_mm));
  const grid = { voxel: card.voxel_mm, size: card.shape ? card.shape.slice() : [side, side, side], orientation: card.orientation,
                 back: CENTRES[card.centre], averaged: card.averaged, offset: 0 };
  return card.shifted ? [grid, { ...grid, offset: 0.5 }] : [grid];
}

// For each axis of a grid its axis of the world and its direction.
function axesOf(grid) {
  return [...grid.orientation].map((code) => [Math.floor("LRPAIS".indexOf(code) / 2), "RAS".includes(code) ? 1 : -1]);
}

function targetAffine(image, grid) {
  const centre = apply(image.affine, [...image.volume.shape.map((n) => n / 2 - grid.back), 1]);
  const affine = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]];
  axesOf(grid).forEach(([world, sign], axis) => { affine[world][axis] = grid.voxel * sign; });
  const middle = apply(corner(affine), grid.size.map((n) => n / 2 - grid.back - grid.offset));
  for (let r = 0; r < 3; ++r) affine[r][3] = centre[r] - middle[r];
  return affine;
}

// The scan on a grid: {volume, affine, extremes}, and of a scaling that asks what it looks like {looks, likely}. `reference`
// is the image whose centre defines the grid.
function conform(image, grid, scaling, window, reference) {
  const affine = targetAffine(reference, grid);
  if (scaling === "brainchop_quantile") {
    const plain = conform(image, grid, "conform_uint8", null, reference);
    return { ...plain, volume: makeVolume(stretchQuantiles(plain.volume.data), grid.size) };
  }
  if (scaling === "lesions_bright") {
    const plain = conform(image, grid, "conform_uint8", null, reference);
    const likely = likelihoods(plain.volume, grid.voxel, grid.orientation), looks = mostLikely(likely);
    return { ...plain, volume: looks === T1W ? turnedRound(plain.volume) : plain.volume, looks, likely };
  }
  let { volume, toSource } = along(image, grid, affine, reference);
  const { low, high, found } = rangeOf(image, scaling, window);
  if (found) {
    const data = Float32Array.from(volume.data, (value) => Math.min(Math.max(value, low), high));
    volume = { ...volume, data, kind: "f4" };
  }
  const sampled = grid.averaged ? resampleMean(volume, toSource, grid.size, low)
                              : resample(volume, toSource, grid.size, low, coveringReach(corner(toSource)));
  return { volume: scaled(sampled, low, high, scaling), affine, extremes: found };
}

// The range of an image, looked for once: a model may see it on three grids.
function rangeOf(image, scaling, window) {
  const ranges = image.ranges = image.ranges || {}, key = `${scaling} ${window}`;
  if (!ranges[key]) {
    const [low, high] = intensityRange(image.volume, scaling, window);
    const found = withoutExtremes(image.volume, scaling, voxelMm3(image.affine) / 1000);
    ranges[key] = found ? { low: found.low, high: found.high, found } : { low, high, found };
  }
  return ranges[key];
}

// `low` to `high` as 0 to 255, uint8, or as 0 to 1, float32.
function scaled(volume, low, high, scaling) {
  const top = scaling === "conform_uint8" ? 255 : 1, { data } = volume;
  if (low === 0 && high === 255 && top === 255 && volume.kind === "u1") return volume;
  const out = makeVolume(top === 255 ? new Uint8Array(data.length) : new Float32Array(data.length), volume.shape, top === 255 ? "u1" : "f4");
  const start = f32(low), factor = f32(top / f32(high - low));
  for (let i = 0; i < data.length; ++i) {
    const value = Math.min(Math.max(f32(f32(f32(data[i]) - start) * factor), 0), top);
    out.data[i] = top === 255 ? roundEven(value) : value;
  }
  return out;
}

// The scan with its axes in the order and direction of the grid's (a view), and the matrix from the grid to it.
function along(image, grid, affine, reference) {
  const world = orientation(image.affine), axes = [], wanted = axesOf(grid);
  let volume = image.volume;
  const source = image.volume.shape, middle = [], back = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]];  // to the file's index
  wanted.forEach(([axisOfWorld, sign], target) => {
    const axis = world.findIndex(([w]) => w === axisOfWorld);
    axes[target] = axis;
    const centre = source[axis] / 2 - grid.back;
    const same = world[axis][1] === sign;
    middle[target] = same ? centre : source[axis] - 1 - centre, back[axis][target] = same ? 1 : -1;
    if (same) return;
    volume = flipped(volume, axis), back[axis][3] = source[axis] - 1;
  });
  const turned = multiply(image.affine, back);
  const toSource = multiply(inverse(turned), affine);
  const same = image === reference || (String(reference.volume.shape) === String(source) &&
    reference.affine.every((row, r) => row.every((value, c) => value === image.affine[r][c])));
  if (same) {
    const linear = multiply(inverse(corner(turned)), corner(affine));
    const centre = apply(linear, grid.size.map((n) => n / 2 - grid.back - grid.offset));
    for (let r = 0; r < 3; ++r) {
      toSource[r] = [...linear[r], middle[r] - centre[r]];
    }
  }
  return { volume: transposed(volume, axes), toSource };
}

// Probabilities on the grid back on the grid of `like`, 0 outside; those of voxels outside the scan do not count.
function toNative(data, shape, affine, like) {
  const toSource = multiply(inverse(affine), like.affine), size = like.volume.shape;
  const values = carriedPastFaces(data, shape, inverse(toSource), size);
  const out = fileVolume(new Float32Array(count(size)), size);
  return resample(makeVolume(values, shape), toSource, size, 0, coveringReach(corner(toSource)), out).data;
}

// Probabilities on a grid brought to another one {shape, affine}, 0 outside.
function toGrid(data, shape, affine, to) {
  const toSource = multiply(inverse(affine), to.affine);
  return resample(makeVolume(data, shape), toSource, to.shape, 0, coveringReach(corner(toSource))).data;
}

// The outermost voxels that lie partly in the scan copied one voxel outwards; what is further out was not seen.
function carriedPastFaces(data, shape, toScan, size) {
  const matrix = corner(toScan);
  if (Math.max(...matrix.map(rowSum)) <= 1.5) return data;
  const reach = coveringReach(matrix), [nx, ny, nz] = shape, covered = new Uint8Array(data.length).fill(1);
  for (let r = 0; r < 3; ++r) {
    const used = matrix[r].map((value, t) => (Math.abs(value * (shape[t] - 1)) > 1e-3 ? value : 0));
    for (let i = 0, at = 0; i < nx; ++i)
      for (let j = 0; j < ny; ++j)
        for (let k = 0; k < nz; ++k, ++at) {
          const place = toScan[r][3] + (used[0] * i + used[1] * j + used[2] * k);
          if (!(place >= -reach[r] && place <= size[r] - 1 + reach[r])) covered[at] = 0;
        }
  }
  const values = data.slice(), strides = [ny * nz, nz, 1];
  for (let axis = 0; axis < 3; ++axis) {
    const before = covered.slice(), step = strides[axis];
    for (const way of [1, -1])  // upwards first
      visit(makeVolume(before, shape), 1, (inside, ...index) => {
        const to = index[axis] + way;
        if (!inside || to < 0 || to >= shape[axis]) return;
        const at = index[0] * strides[0] + index[1] * strides[1] + index[2];
        if (before[at + way * step]) return;
        values[at + way * step] = values[at], covered[at + way * step] = 1;
      });
  }
  return values;
}

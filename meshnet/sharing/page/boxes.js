// Which part of each layer a box needs, and the head's box: meshnet/inference/boxes.py and crop.py.
//
// A box is ((a, b), (a, b), (a, b)), half open. Layers are {weight, bias, dilation, activation, in, out, reach, norm}.
"use strict";

const NOISY = 0.6, STEP = 16, NOTICED = 0.1;

function voxelsIn(box) {
  return box.reduce((n, [a, b]) => n * Math.max(0, b - a), 1);
}

function wholeBox(shape) {
  return shape.map((n) => [0, n]);
}

function layerBoxes(layers, out, shape) {
  const boxes = [out];
  for (const layer of layers.slice().reverse())
    boxes.unshift(boxes[0].map(([a, b], i) => [Math.max(0, a - layer.reach), Math.min(shape[i], b + layer.reach)]));
  return boxes;
}

// The part of each box that need not be computed, since the volume is constant outside `content` (null: nowhere).
function airGaps(layers, boxes, shape, content) {
  const seen = [0];
  for (const layer of layers) seen.push(seen[seen.length - 1] + layer.reach);
  const furthest = seen[seen.length - 1];
  return boxes.map((box, l) => box.map((side, axis) => !content || seen[l] === 0 || seen[l] === furthest
    ? [side[0], side[0], side[1], side[1]] : axisGaps(side, content[axis], shape[axis], seen[l])));
}

function axisGaps([a, b], [first, last], size, seen) {
  const belowFrom = a >= seen ? a : seen + 1, belowTo = Math.min(Math.max(first - seen - 1, a), b - 1);
  const aboveFrom = Math.max(Math.min(last + seen + 1, b), belowTo + 1), aboveTo = b <= size - seen ? b : size - seen - 1;
  return [...(belowFrom < belowTo ? [belowFrom, belowTo] : [a, a]), ...(aboveFrom < aboveTo ? [aboveFrom, aboveTo] : [b, b])];
}

// The number of voxels that all layers together compute for a box.
function workOf(layers, box, shape, content) {
  const boxes = layerBoxes(layers, box, shape), gaps = airGaps(layers, boxes, shape, content);
  return boxes.slice(1).reduce((sum, one, l) =>
    sum + one.reduce((n, [a, b], i) => n * (b - a - (gaps[l + 1][i][1] - gaps[l + 1][i][0]) - (gaps[l + 1][i][3] - gaps[l + 1][i][2])), 1), 0);
}

// ---------------------------------------------------------------- the head's box

// The median of each channel over the six faces of its volume.
function borderValues(channels, shape) {
  return channels.map((data) => {
    const volume = makeVolume(data, shape), found = [];
    for (let axis = 0; axis < 3; ++axis)
      for (const at of [0, shape[axis] - 1]) {
        const face = { ...volume, shape: shape.slice(), offset: at * volume.strides[axis] };
        face.shape[axis] = 1;
        found.push(sampled(face, 1));
      }
    const all = new Float32Array(found.reduce((n, face) => n + face.length, 0));
    found.reduce((at, face) => (all.set(face, at), at + face.length), 0);
    all.sort();
    const middle = all.length >> 1;
    return all.length % 2 ? all[middle] : f32(f32(all[middle - 1] + all[middle]) / 2);
  });
}

// The box around all voxels that differ from the border's medians; the whole volume where none do.
function contentBox(channels, shape, air) {
  const [nx, ny, nz] = shape;
  let x0 = nx, x1 = 0, y0 = ny, y1 = 0, z0 = nz, z1 = 0;
  channels.forEach((data, c) => {
    const value = air[c];
    for (let i = 0; i < nx; ++i)
      for (let j = 0; j < ny; ++j) {
        const row = (i * ny + j) * nz;
        let first = 0, last = nz - 1;
        while (first < nz && data[row + first] === value) ++first;
        if (first === nz) continue;
        while (data[row + last] === value) --last;
        x0 = Math.min(x0, i), x1 = Math.max(x1, i + 1), y0 = Math.min(y0, j), y1 = Math.max(y1, j + 1);
        z0 = Math.min(z0, first), z1 = Math.max(z1, last + 1);
      }
  });
  return x1 ? [[x0, x1], [y0, y1], [z0, z1]] : wholeBox(shape);
}

function contentOrHeadBox(channels, shape, content) {
  if (voxelsIn(content) <= NOISY * count(shape)) return content;
  const heads = channels.map((data) => headBox(makeVolume(data, shape)));
  return content.map(([a, b], axis) => [Math.max(a, Math.min(...heads.map((head) => head[axis][0]))),
                                        Math.min(b, Math.max(...heads.map((head) => head[axis][1])))]);
}

// The probabilities of the classes in a volume that is `air` everywhere.
function airProbabilities(layers, air) {
  let x = air;
  for (const layer of layers) {
    const each = layer.weight.length / layer.out / layer.in;
    x = Array.from({ length: layer.out }, (_, o) => {
      let sum = layer.bias[o];
      for (let i = 0; i < layer.in; ++i) {
        let weight = 0;
        for (let k = 0; k < each; ++k) weight += layer.weight[(o * layer.in + i) * each + k];
        sum += weight * x[i];
      }
      if (layer.activation === "relu") return Math.max(sum, 0);
      if (layer.activation === "elu") return sum > 0 ? sum : Math.expm1(sum);
      return layer.activation === "gelu" ? (sum * (1 + erf(sum / Math.SQRT2))) / 2 : sum;
    });
  }
  const top = Math.max(...x), shares = x.map((value) => Math.exp(value - top)), all = shares.reduce((a, b) => a + b, 0);
  return shares.map((share) => share / all);
}

function erf(x) {  // Abramowitz & Stegun 7.1.26, as in the kernels
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const p = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592].reduce((sum, c) => sum * t + c, 0);
  return Math.sign(x) * (1 - p * t * Math.exp(-x * x));
}

// The faces of a box, except those at the volume's ends, at which a class other than air's is more probable than in air.
function markedFaces(probabilities, box, shape, fill) {
  const faces = [], ofAir = fill.indexOf(Math.max(...fill));
  box.forEach(([a, b], axis) => {
    for (const [upper, at, end] of [[false, a, 0], [true, b - 1, shape[axis] - 1]]) {
      if (at === end) continue;
      const marked = probabilities.some((data, k) => {
        if (k === ofAir) return false;
        const volume = makeVolume(data, shape), level = f32(f32(fill[k]) + NOTICED);
        const face = { ...volume, shape: box.map(([from, to], i) => (i === axis ? 1 : to - from)),
          offset: box.reduce((sum, [from], i) => sum + (i === axis ? at : from) * volume.strides[i], 0) };
        return sampled(face, 1).some((value) => value > level);
      });
      if (marked) faces.push([axis, upper]);
    }
  });
  return faces;
}

// The box with faces moved out, and the parts that this adds. A face that moved before goes to the volume's end.
function growBox(box, faces, again, shape) {
  const added = [];
  box = box.map((side) => side.slice());
  for (const [axis, upper] of faces) {
    const [a, b] = box[axis], by = again.has(`${axis}${upper}`) ? shape[axis] : STEP;
    const to = upper ? Math.min(shape[axis], b + by) : Math.max(0, a - by);
    added.push(box.map((side, i) => (i !== axis ? side.slice() : upper ? [b, to] : [to, a])));
    box[axis] = upper ? [a, to] : [to, b];
  }
  return [box, added];
}

// How to enlarge what is computed to `box`: the box that is computed afterwards, and the parts to compute for it.
function cheapest(layers, box, added, shape, content) {
  const whole = wholeBox(shape), parts = added.reduce((sum, part) => sum + workOf(layers, part, shape, content), 0);
  const work = workOf(layers, box, shape, content);
  if (workOf(layers, whole, shape, content) < 2 * Math.min(parts, work)) return [whole, [whole]];
  return parts < work ? [box, added] : [box, [box]];
}

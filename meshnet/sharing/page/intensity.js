// Grey values: meshnet/scans/intensity.py and contrast.py, and the head's box of meshnet/scans/head.py.
"use strict";

const HISTOGRAM_BINS = 1000, CROPPED_FRACTION = 0.001, FAR = 16, LARGEST_ML = 300, SMALL = 2 ** 21, EVERY = 61;
const EXTREMES = [[0.001, 8], [0.003, 16], [0.01, 16], [0.03, 16], [0.06, 16]];
const QUANTILES = [0.005, 0.995], BRAINCHOP_QUANTILES = [0.05, 0.95];

// numpy's quantile of sorted values.
function quantile(sorted, q) {
  const n = sorted.length, at = (n - 1) * q, low = at >= n - 1 ? n - 1 : Math.floor(at);
  const a = sorted[low], b = sorted[Math.min(low + 1, n - 1)], t = at >= n - 1 ? 0 : at - low;
  const apart = sorted instanceof Float32Array ? f32(b - a) : b - a;
  return t >= 0.5 ? b - apart * (1 - t) : a + apart * t;
}

// The two values of a scan that a scaling maps to the bottom and the top of its range.
function intensityRange(volume, scaling, window) {
  const { data, kind } = volume;
  if (scaling === "window") return [window[0], window[1]];
  if (scaling === "conform_uint8" && kind === "u1") return [0, 255];
  let [low, high] = extremes(data);
  if (scaling === "conform_uint8" && high > low) high = allButTop(data, kind, low, high);
  else if (scaling === "quantile" && high > low) {
    const sorted = data.filter((value) => value !== 0).sort();
    [low, high] = QUANTILES.map((q) => quantile(sorted, q));
  }
  return [low, high > low ? high : low + 1];
}

// The value below which all but 0.1 % of the non-zero voxels lie, on a histogram.
function allButTop(data, kind, low, high) {
  const binSize = (high - low) / HISTOGRAM_BINS, start = f32(low), scale = f32(1 / binSize);
  const round = ["i4", "u4", "i8", "u8"].includes(kind) ? (value) => value : f32;
  const counts = new Float64Array(HISTOGRAM_BINS);
  let nonZero = 0;
  for (let i = 0; i < data.length; ++i) {
    const value = data[i];
    if (value !== 0) ++nonZero;
    ++counts[Math.min(Math.trunc(round(round(value - start) * scale)), HISTOGRAM_BINS - 1)];
  }
  const below = data.length - Math.trunc(CROPPED_FRACTION * nonZero);
  let first = 0;
  for (let sum = 0; first < HISTOGRAM_BINS; ++first) if ((sum += counts[first]) >= below) break;
  return low + Math.max(first - 1, 1) * binSize;
}

// The range of all voxels but the outermost on either side, where these have taken most of the whole: a handful of rogue
// ones, or a bright slice or block: {lowest, highest, low, high, share}. Null where they have not.
function withoutExtremes(volume, scaling, voxelMl) {
  const { data, kind } = volume;
  if (scaling === "window" || (["conform_uint8", "brainchop_quantile", "lesions_bright"].includes(scaling) && kind === "u1")) return null;
  const [lowest, highest] = extremes(data), single = data instanceof Float32Array, as = single ? f32 : (value) => value;
  const ends = Float64Array.from(corners(volume.shape.map((n) => [0, n - 1])), (at) =>
    data[volume.offset + at[0] * volume.strides[0] + at[1] * volume.strides[1] + at[2] * volume.strides[2]]).sort();
  const background = single ? f32(f32(ends[3] + ends[4]) / 2) : (ends[3] + ends[4]) / 2;
  const zero = lowest <= 0 && highest >= 0 ? 0 : background;
  let values = null, inner = null;
  for (const every of data.length > SMALL ? [EVERY, 1] : [1]) {  // the second time only where the first one finds something
    values = everyOne(data, every).filter((value) => value !== 0 && value !== background);
    inner = innerRange(values, [zero, background], scaling, highest - lowest, voxelMl * every, every > 1 ? 0.5 : 1);
    if (!inner) return null;
  }
  const [low, high] = inner, counted = scaling === "quantile" || (low <= background && background <= high) ? values : data;
  const least = as(low), most = as(high);
  let out = 0;
  for (let i = 0; i < counted.length; ++i) if (counted[i] < least || counted[i] > most) ++out;
  return { lowest, highest, low, high, share: out / data.length };
}

function everyOne(data, every) {
  if (every === 1) return data;
  const found = new data.constructor(Math.ceil(data.length / every));
  for (let i = 0; i < found.length; ++i) found[i] = data[i * every];
  return found;
}

// Lowest and highest of the values, and of the background where it is near them, without the smallest share that has taken
// the range `whole`; null where no share has.
function innerRange(values, background, scaling, whole, voxelMl, strict) {
  if (!values.length) return null;
  values.sort();
  if (scaling === "quantile") whole = quantile(values, QUANTILES[1]) - quantile(values, QUANTILES[0]);
  for (const [position, [share, times]] of EXTREMES.entries()) {
    if (position && share * values.length * voxelMl > LARGEST_ML / strict) return null;
    let low = quantile(values, share), high = quantile(values, 1 - share), ranges = [[low, high, times]];
    if (scaling !== "quantile") {
      low = Math.min(low, background[0]), high = Math.max(high, background[0]);
      ranges = [[Math.min(low, background[1]), Math.max(high, background[1]), times], [low, high, FAR]];
    }
    for (const [from, to, least] of ranges) if (to > from && whole >= least * strict * (to - from)) return [from, to];
  }
  return null;
}

// Every `step`-th voxel of each axis, in C order.
function sampled(volume, step) {
  const found = new volume.data.constructor(volume.shape.reduce((n, size) => n * Math.ceil(size / step), 1));
  let at = 0;
  visit(volume, step, (value) => { found[at++] = value; });
  return found;
}

// A conformed volume as a network sees it: float32, uint8 scaled to 0..1.
function asInput(volume) {
  if (volume.kind !== "u1") return volume.data;
  const table = Float32Array.from({ length: 256 }, (_, i) => i / 255);
  const { data } = volume, found = new Float32Array(data.length);
  for (let i = 0; i < data.length; ++i) found[i] = table[data[i]];
  return found;
}

// uint8 to float32, so that the 5 % and 95 % quantiles become 0 and 1.
function stretchQuantiles(data) {
  const counts = new Float64Array(256);
  for (const value of data) ++counts[value];
  const [low, high] = [Math.trunc(BRAINCHOP_QUANTILES[0] * data.length), Math.ceil(BRAINCHOP_QUANTILES[1] * data.length) - 1].map((rank) => {
    let value = 0;
    for (let sum = 0; value < 256; ++value) if ((sum += counts[value]) > rank) break;
    return value;
  });
  return Float32Array.from(data, (value) => (value - low) / Math.max(high - low, 1));
}

// ---------------------------------------------------------------- the head's box

// The box ((a, b) on each axis) around the head: the largest connected part brighter than a third of the way from air to
// Otsu's threshold, after an opening, on every second voxel of long axes.
function headBox(volume, margin = 0.02) {
  const steps = volume.shape.map((n) => (n >= 64 ? 2 : 1)), shape = volume.shape.map((n, axis) => Math.ceil(n / steps[axis]));
  const small = sampled({ ...volume, shape, strides: volume.strides.map((stride, axis) => stride * steps[axis]) }, 1), whole = volume.shape.map((n) => [0, n]);
  const [low, high] = extremes(small);
  if (!(high > low)) return whole;
  const threshold = otsu(small, low, high);
  let darker = 0;
  const dark = new small.constructor(small.length);
  for (let i = 0; i < small.length; ++i) if (small[i] <= threshold) dark[darker++] = small[i];
  const air = quantile(dark.subarray(0, darker).sort(), 0.75);
  const level = isInteger(volume.kind) ? air + (threshold - air) / 3 : f32(air + (threshold - air) / 3);
  const foreground = new Uint8Array(small.length);
  for (let i = 0; i < small.length; ++i) foreground[i] = Number(small[i] > level);
  const open = dilated(eroded(foreground, shape), shape);
  const parts = components(open.some(Boolean) ? open : foreground, shape, false);
  if (!parts.sizes.length) return whole;
  const box = parts.boxes[parts.sizes.indexOf(Math.max(...parts.sizes))];
  return box.map(([a, b], axis) => {
    const step = steps[axis], m = step * Number(margin > 0) + roundEven(margin * volume.shape[axis]);
    return [Math.max(0, a * step - m), Math.min(volume.shape[axis], b * step + m)];
  });
}

function otsu(values, low, high, bins = 256) {
  const edgesAt = Array.from({ length: bins + 1 }, (_, i) => (i === bins ? high : low + i * ((high - low) / bins)));
  const counts = new Float64Array(bins);
  for (const value of values) {  // numpy's way to a bin: by a product, then corrected by its edges
    let bin = Math.min(Math.trunc((value - low) * (bins / (high - low))), bins - 1);
    if (value < edgesAt[bin]) --bin;
    else if (bin < bins - 1 && value >= edgesAt[bin + 1]) ++bin;
    ++counts[bin];
  }
  const centre = (i) => (edgesAt[i] + edgesAt[i + 1]) / 2;
  let n = 0, mean = 0;
  counts.forEach((c, i) => { n += c, mean += c * centre(i); });
  let weight = 0, total = 0, best = -1, most = -Infinity;
  for (let i = 0; i < bins - 1; ++i) {
    weight += counts[i], total += counts[i] * centre(i);
    const variance = ((mean * weight) / n - total) ** 2 / (weight * (n - weight));
    if (variance > most) most = variance, best = i;
  }
  return edgesAt[best + 1];
}

// A voxel and its six neighbours, all of which `use` joins; outside the volume lies 0.
function neighbours(mask, shape, all) {
  const [nx, ny, nz] = shape, found = new Uint8Array(mask.length), sx = ny * nz;
  for (let i = 0, at = 0; i < nx; ++i)
    for (let j = 0; j < ny; ++j)
      for (let k = 0; k < nz; ++k, ++at) {
        const sum = mask[at] + (i && mask[at - sx]) + (i < nx - 1 && mask[at + sx]) + (j && mask[at - nz]) +
          (j < ny - 1 && mask[at + nz]) + (k && mask[at - 1]) + (k < nz - 1 && mask[at + 1]);
        found[at] = Number(all ? sum === 7 : sum > 0);
      }
  return found;
}

function eroded(mask, shape) {
  return neighbours(mask, shape, true);
}

function dilated(mask, shape) {
  return neighbours(mask, shape, false);
}

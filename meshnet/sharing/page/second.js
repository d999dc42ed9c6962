// What the second network of a cascade is given, from a scan and from what the first one found: meshnet/scans/second.py,
// to the byte. Volumes are arrays whose last axis lies closest together: `greys` (u1), one for each channel of the scan, and
// `probabilities` (f4), one for each class of the first network but its background.
"use strict";

const SECOND = { FOUND: 0.3, MARGIN_MM: 8, UNSURE: 0.5, ELLIPSOID: 0.64, FEWEST: 500, ELSE: [0, 64, 128], NARROWEST: 4, LOWEST: -4, HIGHEST: 8 };

// u1 volumes, 0 outside the region: grey values told from those of the brain's middle, then 255 times the probabilities,
// and with `across`, the axis from left to right, all of these mirrored. Null where the first network found nothing; else
// {input, region}.
function secondInput(greys, probabilities, shape, voxelMm, across = null) {
  const most = highest(probabilities), region = regionOf(most, shape, voxelMm);
  if (!region) return null;
  const found = greys.map((grey) => {
    const levels = greyLevels(quartilesOf(grey, most, shape, region));
    return within(region, shape, grey, (value) => levels[value]);
  });
  const input = [...found, ...probabilities.map((one) => within(region, shape, one, (share) => roundEven(f32(255 * share))))];
  return { input: across === null ? input : [...input, ...mirrorImages(input, shape, region, across)], region };
}

// u1 volumes as the plane between the hemispheres mirrors them, which the first of them shows; 0 outside the region.
function mirrorImages(volumes, shape, region, across) {
  const order = [across, ...[0, 1, 2].filter((axis) => axis !== across)], size = order.map((axis) => region[axis][1] - region[axis][0]);
  const steps = order.map((axis) => shape.slice(axis + 1).reduce((all, n) => all * n, 1));
  const from = order.reduce((sum, axis, i) => sum + region[axis][0] * steps[i], 0);
  const places = new Int32Array(count(size)), part = new Uint8Array(count(size));
  for (let i = 0, at = 0; i < size[0]; ++i)
    for (let j = 0; j < size[1]; ++j)
      for (let k = 0; k < size[2]; ++k) places[at++] = from + i * steps[0] + j * steps[1] + k * steps[2];
  for (let at = 0; at < places.length; ++at) part[at] = volumes[0][places[at]];
  const there = mirrorPlaces(size, findPlane({ data: part, shape: size }));
  return volumes.map((volume) => {
    const found = new Uint8Array(volume.length);
    for (let at = 0; at < places.length; ++at) if (there[at] >= 0) found[places[at]] = volume[places[there[at]]];
    return found;
  });
}

function highest(probabilities) {
  const most = probabilities[0].slice();
  for (const one of probabilities.slice(1)) for (let i = 0; i < most.length; ++i) if (one[i] > most[i]) most[i] = one[i];
  return most;
}

// The box ((a, b) on each axis) around what the first network found, and some way further; null where it found nothing.
function regionOf(most, shape, voxelMm) {
  const low = shape.slice(), high = [0, 0, 0], least = f32(SECOND.FOUND), margin = roundEven(SECOND.MARGIN_MM / voxelMm);
  visit(makeVolume(most, shape), 1, (value, i, j, k) => {
    if (!(value > least)) return;
    if (i < low[0]) low[0] = i;
    if (j < low[1]) low[1] = j;
    if (k < low[2]) low[2] = k;
    if (i >= high[0]) high[0] = i + 1;
    if (j >= high[1]) high[1] = j + 1;
    if (k >= high[2]) high[2] = k + 1;
  });
  return high[0] ? low.map((from, axis) => [Math.max(0, from - margin), Math.min(shape[axis], high[axis] + margin)]) : null;
}

// The quartiles of a channel in the middle of the region, without air and what the first network marks.
function quartilesOf(grey, most, shape, region) {
  const counts = new Float64Array(256), [x, y, z] = region.map(([a, b]) => squares(b - a)), [x0, y0, z0] = region.map(([a]) => a);
  const unsure = f32(SECOND.UNSURE), inside = f32(SECOND.ELLIPSOID);
  let all = 0;
  for (let i = 0; i < x.length; ++i)
    for (let j = 0; j < y.length; ++j) {
      const row = ((x0 + i) * shape[1] + y0 + j) * shape[2] + z0, far = f32(x[i] + y[j]);
      for (let k = 0; k < z.length; ++k)
        if (grey[row + k] > 0 && most[row + k] < unsure && f32(far + z[k]) < inside) ++counts[grey[row + k]], ++all;
    }
  if (all <= SECOND.FEWEST) return SECOND.ELSE;
  return [0.25, 0.5, 0.75].map((share) => {
    let value = 0;
    for (let upto = counts[0]; upto < share * all; upto += counts[++value]);
    return value;
  });
}

// The squares of n numbers from -1 to 1, in float32.
function squares(n) {
  return Float32Array.from({ length: n }, (_, i) => f32(n > 1 && i === n - 1 ? 1 : i * (2 / Math.max(1, n - 1)) - 1) ** 2);
}

// What each grey value becomes.
function greyLevels([first, median, third]) {
  const { LOWEST, HIGHEST, NARROWEST } = SECOND, range = Math.max(NARROWEST, third - first);
  return Uint8Array.from({ length: 256 }, (_, value) => {
    const apart = Math.min(Math.max(f32((value - median) / range), LOWEST), HIGHEST);
    return roundEven(f32(f32(255 * f32(apart - LOWEST)) / (HIGHEST - LOWEST)));
  });
}

// `found` with what `use` makes of the data inside the region.
function within(region, shape, data, use, found = new Uint8Array(data.length)) {
  const [[x0, x1], [y0, y1], [z0, z1]] = region;
  for (let i = x0; i < x1; ++i)
    for (let j = y0; j < y1; ++j)
      for (let at = (i * shape[1] + j) * shape[2] + z0, end = at + z1 - z0; at < end; ++at) found[at] = use(data[at]);
  return found;
}

// Lesions that a cascade finds and that are taken for none, by what is in and around them and on the other side:
// meshnet/scans/veto.py. Volumes are arrays whose last axis lies closest together.
"use strict";

const VETO = { NEAREST: 0.001, LESS: 0.5 };

// Lowers the probabilities (`found`, a volume for each class) of all parts with a score below 0, in place, and returns the mL
// of these. `marked`: the classes whose sum decides. `given`: what the network is given, 0 to 1. `region`: outside which it has
// seen nothing.
function takeBack(found, marked, given, { shape, region, voxelMm }, { threshold, sure }, veto) {
  const others = found.map((_, k) => k).filter((k) => k > 0 && !marked.includes(k)), least = f32(threshold);
  const deciding = sumOf(found, marked), beside = sumOf(found, others), lower = f32(VETO.LESS * threshold);
  const { parts, sizes, boxes } = components(deciding.map((value) => value >= least), shape), volume = voxelMm ** 3;
  const peaks = new Float32Array(sizes.length);
  parts.forEach((n, at) => { if (n && deciding[at] > peaks[n - 1]) peaks[n - 1] = deciding[at]; });
  let taken = 0;
  for (const [n, size] of sizes.entries()) {
    if (!(peaks[n] >= f32(sure))) continue;
    const { voxels, around } = placesOf(parts, n + 1, boxes[n], shape, region);
    if (scoreOf({ voxels, around }, peaks[n], deciding, beside, given, volume, veto) >= 0) continue;
    taken += size;
    for (const at of voxels) {
      for (const k of marked) found[k][at] = f32(found[k][at] * lower);
      found[0][at] = 1 - found.slice(1).reduce((sum, one) => f32(sum + one[at]), 0);
    }
  }
  return (taken * volume) / 1000;
}

function sumOf(found, some) {
  const sum = new Float32Array(found[0].length);
  for (const k of some) for (let at = 0; at < sum.length; ++at) sum[at] += found[k][at];
  return sum;
}

// Where a part's voxels lie, and the voxels of the region that touch them.
function placesOf(parts, number, [[x0, x1], [y0, y1], [z0, z1]], shape, region) {
  const voxels = [], around = new Set();
  for (let i = x0; i < x1; ++i)
    for (let j = y0; j < y1; ++j)
      for (let k = z0; k < z1; ++k) {
        const at = (i * shape[1] + j) * shape[2] + k;
        if (parts[at] !== number) continue;
        voxels.push(at);
        const ends = [i, j, k].map((place, axis) => [Math.max(place - 1, region[axis][0]), Math.min(place + 2, region[axis][1])]);
        for (let x = ends[0][0]; x < ends[0][1]; ++x)
          for (let y = ends[1][0]; y < ends[1][1]; ++y)
            for (let z = ends[2][0]; z < ends[2][1]; ++z) {
              const next = (x * shape[1] + y) * shape[2] + z;
              if (parts[next] !== number) around.add(next);
            }
      }
  return { voxels, around: [...around] };
}

function scoreOf({ voxels, around }, most, deciding, beside, given, volume, { bias, weights }) {
  const mean = (data, places) => (places.length ? places.reduce((sum, at) => sum + data[at], 0) / places.length : 0);
  const means = (places) => given.map((channel) => mean(channel, places));
  const values = [Math.log((voxels.length * volume) / 1000), logitOf(most), logitOf(mean(deciding, voxels)), mean(beside, voxels), ...means(voxels), ...means(around)];
  return values.reduce((sum, value, n) => sum + weights[n] * value, bias);
}

function logitOf(share) {
  return Math.log((share + VETO.NEAREST) / (1 + VETO.NEAREST - share));
}

// What contrast a head scan looks like, and scans on which lesions are dark turned round: meshnet/scans/contrast.py and
// contrast_network.py.
"use strict";

const AIR = 0.1, NOISY_AIR = 0.2, CORE = 0.12, COARSE_MM = 4, FEWEST = 50, TRAINED = "LIA", T1W = "T1w", T2W = "T2w", OTHER = "FLAIR or DWI";
const BRIGHT = 0.95, MOST_BRIGHT = 1.5, BLOCK = 8;
let contrastLayers = null;

// The contrast that `likelihoods` found the most likely; null for what is no head.
function mostLikely(found) {
  return found && Object.keys(found).reduce((best, name) => found[name] > found[best] ? name : best);
}

// How likely a conformed scan (u1, the last axis closest together) is each contrast: {T1w, T2w, "FLAIR or DWI"}; null for
// what is no head.
function likelihoods(volume, voxelMm, orientation = TRAINED) {
  const x = coarseVolume(asTrained(volume, orientation), voxelMm), air = [AIR, NOISY_AIR].find((one) => isHead(x, one));
  if (air === undefined) return null;
  const [t1w, t2w, flair, dwi] = classProbabilities(x, air);
  return { [T1W]: t1w, [T2W]: t2w, [OTHER]: flair + dwi };
}

// A conformed volume with its axes as the network has seen heads.
function asTrained(volume, orientation) {
  if (orientation === TRAINED) return volume;
  const pair = (code) => Math.floor("LRAPIS".indexOf(code) / 2), from = [...TRAINED].map((code) => [...orientation].findIndex((own) => pair(own) === pair(code)));
  let view = transposed(volume, from);
  from.forEach((own, axis) => { if (orientation[own] !== TRAINED[axis]) view = flipped(view, axis); });
  return makeVolume(sampled(view, 1), view.shape, "u1");
}

function turnedRound(volume) {
  const inside = insideHead(Float32Array.from(volume.data, (value) => value / 255), volume.shape, f32(AIR));
  return { ...volume, data: volume.data.map((value, at) => inside[at] ? 255 - value : value) };
}

// 1 for voxels that lie between others brighter than air on every axis.
function insideHead(data, shape, air) {
  const inside = new Uint8Array(data.length).fill(1), steps = [shape[1] * shape[2], shape[2], 1];
  for (let axis = 0; axis < 3; ++axis) {
    const [one, other] = [0, 1, 2].filter((a) => a !== axis);
    for (let i = 0; i < shape[one]; ++i)
      for (let j = 0; j < shape[other]; ++j) {
        const start = i * steps[one] + j * steps[other];
        let first = 0, last = shape[axis] - 1;
        while (first <= last && !(data[start + first * steps[axis]] > air)) ++first;
        while (last >= first && !(data[start + last * steps[axis]] > air)) --last;
        for (let k = 0; k < shape[axis]; ++k) if (k < first || k > last) inside[start + k * steps[axis]] = 0;
      }
  }
  return inside;
}

// Whether a volume, 0..1, has something deep within what is brighter than air, and a shell.
function isHead({ data, shape }, air) {
  const [nx, ny, nz] = shape, sx = ny * nz, whole = insideHead(data, shape, air), sum = (mask) => mask.reduce((n, one) => n + one, 0);
  const total = sum(whole);
  let left = whole;
  for (let step = Math.trunc(CORE * Math.cbrt(total)); step >= 0; --step) {
    const next = new Uint8Array(left.length);
    for (let i = 0, at = 0; i < nx; ++i)
      for (let j = 0; j < ny; ++j)
        for (let k = 0; k < nz; ++k, ++at)  // round the corner at the ends, as numpy's roll
          next[at] = left[at] && left[i ? at - sx : at + (nx - 1) * sx] && left[i < nx - 1 ? at + sx : at - (nx - 1) * sx] &&
            left[j ? at - nz : at + (ny - 1) * nz] && left[j < ny - 1 ? at + nz : at - (ny - 1) * nz] &&
            left[k ? at - 1 : at + nz - 1] && left[k < nz - 1 ? at + 1 : at - nz + 1];
    left = next;
  }
  const core = sum(left);
  return core >= FEWEST && total - core >= FEWEST;
}

// Each voxel of a volume several times along each axis.
function repeated({ data, shape }, times) {
  const [nx, ny, nz] = shape.map((n) => n * times), found = makeVolume(new Uint8Array(nx * ny * nz), [nx, ny, nz], "u1");
  for (let i = 0, to = 0; i < nx; ++i)
    for (let j = 0; j < ny; ++j)
      for (let k = 0; k < nz; ++k, ++to) found.data[to] = data[(Math.floor(i / times) * shape[1] + Math.floor(j / times)) * shape[2] + Math.floor(k / times)];
  return found;
}

function coarseVolume(volume, voxelMm) {
  const times = roundEven(voxelMm / COARSE_MM);
  if (times > 1) volume = repeated(volume, times);
  const step = Math.max(1, roundEven(COARSE_MM / voxelMm)), shape = volume.shape.map((n) => Math.floor(n / step));
  const data = new Float64Array(count(shape)), [, rows, columns] = volume.shape;
  for (let i = 0, to = 0; i < shape[0]; ++i)
    for (let j = 0; j < shape[1]; ++j)
      for (let k = 0; k < shape[2]; ++k, ++to) {
        let sum = 0;
        for (let a = 0; a < step; ++a)
          for (let b = 0; b < step; ++b)
            for (let c = 0; c < step; ++c) sum += volume.data[((i * step + a) * rows + j * step + b) * columns + k * step + c] / 255;
        data[to] = sum / step ** 3;
      }
  return { data, shape };
}

// The probabilities of T1w, T2w, FLAIR and DWI for a volume of about 4 mm, 0..1.
function classProbabilities({ data, shape }, air) {
  const { convolutions, last } = contrastLayers = contrastLayers || readContrastLayers();
  const top = quantile(data.filter((value) => value > air).sort(), BRIGHT) + 1e-3;
  let maps = { data: Float32Array.from(data, (value) => Math.min(Math.max(value / top, 0), MOST_BRIGHT)), shape, channels: 1 };
  const inside = blocksOfHead(maps, air);
  for (const layer of convolutions) maps = halved(maps, layer);
  const voxels = count(maps.shape), many = inside.reduce((sum, one) => sum + one, 0);
  const means = Array.from({ length: maps.channels }, (_, c) => {
    let sum = 0;
    for (let at = 0; at < voxels; ++at) if (inside[at]) sum += maps.data[c * voxels + at];
    return sum / many;
  });
  const values = Array.from(last.bias, (bias, k) => means.reduce((sum, value, c) => sum + value * last.weight[k * means.length + c], bias));
  const powers = values.map((value) => Math.exp(value - Math.max(...values))), sum = powers.reduce((a, b) => a + b);
  return powers.map((value) => value / sum);
}

// The network's layers from its safetensors file: {weight, bias, inputs}, the weights in eight bits with a scale for each output.
function readContrastLayers() {
  const bytes = Uint8Array.from(atob(CONTRAST_WEIGHTS), (letter) => letter.charCodeAt(0)), start = 8 + Number(new DataView(bytes.buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start))), layers = [];
  const tensor = (name, Kind) => new Kind(bytes.slice(...header[name].data_offsets.map((at) => start + at)).buffer);
  for (let n = 0; `${n}.weight` in header; ++n) {
    const weight = tensor(`${n}.weight`, Int8Array), scale = tensor(`${n}.scale`, Float32Array), [outputs, inputs] = header[`${n}.weight`].shape;
    layers.push({ weight: Float32Array.from(weight, (value, at) => value * scale[Math.floor(at / (weight.length / outputs))]), bias: tensor(`${n}.bias`, Float32Array), inputs });
  }
  return { convolutions: layers.slice(0, -1), last: layers.at(-1) };
}

// 1 for the blocks that lie in the head for the most part; for all of them where none does.
function blocksOfHead({ data, shape }, air) {
  const size = shape.map((n) => Math.ceil(n / BLOCK)), counts = new Float64Array(count(size)), [, ny, nz] = shape;
  for (let at = 0; at < data.length; ++at)
    if (data[at] > f32(air)) {
      const [i, j, k] = [Math.floor(at / (ny * nz)), Math.floor(at / nz) % ny, at % nz].map((n) => Math.floor(n / BLOCK));
      ++counts[(i * size[1] + j) * size[2] + k];
    }
  const inside = Uint8Array.from(counts, (n) => n > BLOCK ** 3 / 2);
  return inside.some(Boolean) ? inside : inside.fill(1);
}

// A convolution of 3x3x3 at every second voxel, zeros around, and a ReLU.
function halved({ data, shape, channels }, { weight, bias }) {
  const [nx, ny, nz] = shape, size = shape.map((n) => Math.ceil(n / 2)), voxels = count(size), all = nx * ny * nz;
  const result = new Float32Array(bias.length * voxels);
  for (let o = 0; o < bias.length; ++o) {
    const sums = new Float64Array(voxels).fill(bias[o]);
    for (let c = 0; c < channels; ++c)
      for (let tap = 0; tap < 27; ++tap) {
        const w = weight[(o * channels + c) * 27 + tap], dx = Math.floor(tap / 9) - 1, dy = Math.floor(tap / 3) % 3 - 1, dz = tap % 3 - 1;
        for (let i = 0; i < size[0]; ++i) {
          const x = 2 * i + dx;
          if (x < 0 || x >= nx) continue;
          for (let j = 0; j < size[1]; ++j) {
            const y = 2 * j + dy;
            if (y < 0 || y >= ny) continue;
            const from = c * all + (x * ny + y) * nz, to = (i * size[1] + j) * size[2];
            for (let k = dz < 0 ? 1 : 0; k < size[2] && 2 * k + dz < nz; ++k) sums[to + k] += w * data[from + 2 * k + dz];
          }
        }
      }
    for (let at = 0; at < voxels; ++at) result[o * voxels + at] = Math.max(sums[at], 0);
  }
  return { data: result, shape: size, channels: bias.length };
}

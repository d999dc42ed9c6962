// The plane between the hemispheres of a head, and a volume seen in it: meshnet/scans/mirror.py, to the byte. Volumes are
// {data, shape}, whose last axis lies closest together, left and right along the first one.
"use strict";

const MIRROR = { CAP: 48, SCALE: 4096, BLOCKS: [4, 2], TILTS: [3, 16], SHIFTS: [2, 1], FINER: [[1 / 32, 1], [1 / 64, 0.5], [1 / 128, 0.25]], ROUNDS: 2, EVERY: 2 };

// The plane [tilt, tilt, shift] by which a volume, u1, differs least from its mirror image.
function findPlane(volume) {
  const [coarse, fine] = MIRROR.BLOCKS.map((size) => blockMeans(volume, size));
  const steps = ([most, unit]) => Array.from({ length: 2 * most + 1 }, (_, i) => (i - most) / unit);
  const tilts = steps(MIRROR.TILTS), planes = product(tilts, tilts, steps(MIRROR.SHIFTS));
  let best = leastPlane(coarse, 1, planes, [0, 0, 0]);
  best = planeOfBlocks(planeOfVoxels(best, volume.shape, MIRROR.BLOCKS[0]), volume.shape, MIRROR.BLOCKS[1]);
  for (const [tilt, shift] of MIRROR.FINER)
    for (let round = 0; round < MIRROR.ROUNDS; ++round) {
      const around = product(...best.map((x, i) => [x - (i < 2 ? tilt : shift), x, x + (i < 2 ? tilt : shift)]));
      const before = best;
      best = leastPlane(fine, MIRROR.EVERY, around, best);
      if (best.every((x, i) => x === before[i])) break;
    }
  return planeOfVoxels(best, volume.shape, MIRROR.BLOCKS[1]);
}

// A plane by blocks of size³ voxels as one by voxels, and back: the middle of the blocks is not that of the volume where some
// voxels are left out.
function planeOfVoxels([a, b, shift], shape, size) {
  return [a, b, shift * size - movedBy(a, b, shape, size)];
}

function planeOfBlocks([a, b, shift], shape, size) {
  return [a, b, (shift + movedBy(a, b, shape, size)) / size];
}

function movedBy(a, b, shape, size) {
  const [x, y, z] = shape.map((n) => (n % size) / 2);
  return x + a * y + b * z;
}

function product(first, second, third) {
  return first.flatMap((a) => second.flatMap((b) => third.map((c) => [a, b, c])));
}

// Means of blocks of size³ voxels, rounded down; what is left over at the ends is left out.
function blockMeans({ data, shape }, size) {
  const [x, y, z] = shape.map((n) => Math.floor(n / size)), sums = new Int32Array(x * y * z);
  for (let i = 0; i < x * size; ++i)
    for (let j = 0; j < y * size; ++j) {
      const from = (i * shape[1] + j) * shape[2], to = (Math.floor(i / size) * y + Math.floor(j / size)) * z;
      for (let k = 0; k < z * size; ++k) sums[to + Math.floor(k / size)] += data[from + k];
    }
  return { data: sums.map((sum) => Math.floor(sum / size ** 3)), shape: [x, y, z] };
}

// The plane with the smallest difference; of several the nearest to `near`, then the smallest numbers.
function leastPlane(volume, every, planes, near) {
  let best = null;
  for (const plane of planes) {
    const rank = [planeDifference(volume, every, plane), plane.reduce((sum, x, i) => sum + Math.abs(x - near[i]), 0), ...plane];
    if (!best || isBefore(rank, best)) best = rank;
  }
  return best.slice(2);
}

function isBefore(one, other) {
  const at = one.findIndex((value, i) => value !== other[i]);
  return at >= 0 && one[at] < other[at];
}

// The mean difference between a volume and its mirror image, at every so many voxels, times SCALE.
function planeDifference({ data, shape }, every, plane) {
  const there = mirrorPlaces(shape, plane, every), [nx, ny, nz] = shape;
  let known = 0, sum = 0, n = 0;
  for (let i = 0; i < nx; i += every)
    for (let j = 0; j < ny; j += every)
      for (let k = 0, at = (i * ny + j) * nz; k < nz; k += every, ++n) {
        if (there[n] < 0) continue;
        const apart = Math.abs(data[there[n]] - data[at + k]);
        ++known, sum += apart < MIRROR.CAP ? apart : MIRROR.CAP;
      }
  return 2 * known <= n ? MIRROR.CAP * MIRROR.SCALE : Math.floor((sum * MIRROR.SCALE) / known);
}

// The places of the mirror images of every so many voxels of a volume, in its data, -1 where they lie outside.
function mirrorPlaces([nx, ny, nz], [tiltY, tiltZ, shift], every = 1) {
  const [mx, my, mz] = [nx, ny, nz].map((n) => (n - 1) / 2), scale = 2 / (1 + tiltY * tiltY + tiltZ * tiltZ);
  const places = new Int32Array([nx, ny, nz].reduce((all, n) => all * Math.ceil(n / every), 1));
  let n = 0;
  for (let i = 0; i < nx; i += every)
    for (let j = 0; j < ny; j += every)
      for (let k = 0; k < nz; k += every) {
        const x = i - mx, y = j - my, z = k - mz, apart = (x - shift + tiltY * y + tiltZ * z) * scale;
        const p = Math.floor(x - apart + mx + 0.5), q = Math.floor(y - tiltY * apart + my + 0.5), r = Math.floor(z - tiltZ * apart + mz + 0.5);
        places[n++] = p >= 0 && p < nx && q >= 0 && q < ny && r >= 0 && r < nz ? (p * ny + q) * nz + r : -1;
      }
  return places;
}

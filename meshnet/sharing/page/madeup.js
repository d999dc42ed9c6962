// A made-up scan to try the page with: a head of ellipsoids with folds, ventricles, noise and one lesion, of no person.
"use strict";

const MADE_UP = { size: [88, 104, 88], mm: 2, seed: 7, noise: 5 };
const GREY = {  // of fat, bone, CSF, grey and white matter, and lesion
  T1w: [215, 18, 42, 128, 178, 66], T2w: [120, 14, 225, 128, 88, 205], FLAIR: [112, 14, 34, 124, 98, 225],
  DWI: [24, 8, 52, 100, 84, 225], ADC: [30, 5, 230, 95, 85, 40], CT: [30, 255, 48, 86, 78, 60],
};

// Numbers from 0 to 1, the same on every machine.
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

// What lies at a place, in mm from the middle of the head: an index of GREY, or -1 for air.
function tissueAt(x, y, z) {
  const inside = (a, b, c, dx = 0, dy = 0, dz = 0) => ((x - dx) / a) ** 2 + ((y - dy) / b) ** 2 + ((z - dz) / c) ** 2;
  const head = inside(76, 95, 82);
  if (head > 1) return -1;
  if (head > 0.86) return 0;
  if (head > 0.74) return 1;
  const folds = 0.055 * (Math.sin(0.31 * x + 0.9 * Math.sin(0.13 * z)) * Math.sin(0.27 * y + 0.7) + Math.sin(0.33 * z + 0.5 * Math.sin(0.2 * y)) * Math.cos(0.24 * x));
  const brain = head + folds, cleft = Math.abs(x) < 1.6 && z > -6 && head > 0.2;
  if (brain > 0.66 || cleft) return 2;
  const lesion = inside(19, 24, 17, 34, -12, 14) + 0.22 * Math.sin(0.35 * x) * Math.sin(0.3 * y + 0.4) * Math.sin(0.4 * z);
  if (lesion < 1) return 5;
  if (Math.min(inside(7, 24, 9, 10, 4, 8), inside(7, 24, 9, -10, 4, 8)) < 1) return 2;
  return brain > 0.48 + 1.5 * folds || Math.min(inside(9, 13, 8, 22, 6, 0), inside(9, 13, 8, -22, 6, 0)) < 1 ? 3 : 4;
}

// A NIfTI file of one kind of scan.
function madeUpScan(kind) {
  const { size: [nx, ny, nz], mm, seed, noise } = MADE_UP, grey = GREY[kind] || GREY.T2w, random = randomNumbers(seed);
  const file = new Uint8Array(352 + nx * ny * nz), header = new DataView(file.buffer), middle = [nx, ny, nz].map((n) => (n - 1) / 2);
  const put = (at, ...values) => values.forEach((value, i) => header.setFloat32(at + 4 * i, value, true));
  header.setInt32(0, 348, true);
  [3, nx, ny, nz, 1, 1, 1, 1].forEach((value, i) => header.setInt16(40 + 2 * i, value, true));
  header.setInt16(70, 2, true), header.setInt16(72, 8, true);  // unsigned bytes
  put(76, 1, mm, mm, mm), put(108, 352, 1, 0);
  header.setUint8(123, 2), header.setInt16(254, 1, true);  // mm, and rows of the affine
  [..."a made-up head, no person's"].forEach((letter, i) => header.setUint8(148 + i, letter.charCodeAt(0)));
  middle.forEach((n, axis) => put(280 + 16 * axis, ...[0, 1, 2].map((a) => (a === axis ? mm : 0)), -n * mm));
  [110, 43, 49, 0].forEach((byte, i) => header.setUint8(344 + i, byte));  // n+1
  for (let k = 0, at = 352; k < nz; ++k)
    for (let j = 0; j < ny; ++j)
      for (let i = 0; i < nx; ++i, ++at) {
        const tissue = tissueAt(...[i, j, k].map((n, axis) => (n - middle[axis]) * mm));
        const swing = noise * (random() + random() + random() - 1.5) * 2;
        file[at] = Math.max(0, Math.min(255, tissue < 0 ? Math.abs(swing) * 0.7 : grey[tissue] + swing));
      }
  return file;
}

// Of a channel that may be of several kinds one on which lesions are bright.
function takeMadeUp() {
  const kinds = card.channels.map((channel) => kindsOf(channel)).map((names) => names.find((name) => name in GREY && name !== "T1w") || names[0]);
  add(kinds.map((kind, c) => {
    const path = `made-up${kinds.length > 1 ? `_${c + 1}` : ""}.nii`;  // of no kind by its name, since it is a scan of none
    return { path, file: new File([madeUpScan(kind)], path) };
  }));
}

// A series of DICOM files to one NIfTI file by dcm2niix, which lies beside this file (vendor/): meshnet/cohort/dicom.py.
"use strict";

// dcm2niix, from its script (which makes a function makeDcm2niix) and its compiled module.
class Converter {
  constructor(make, module) {
    this.make = make, this.module = module;
  }

  // What dcm2niix writes for some files: {files: {name: bytes}, said: [lines]}. A new instance each time: it keeps memory.
  async run(files, step) {
    const said = [], instantiateWasm = (imports, done) => {
      const instance = new WebAssembly.Instance(this.module, imports);
      done(instance, this.module);
      return instance.exports;
    };
    const program = await this.make({ instantiateWasm, print: (line) => said.push(line), printErr: (line) => said.push(line) });
    program.FS.mkdir("/in"), program.FS.mkdir("/out");
    for (const [i, file] of files.entries()) {
      if (i % 50 === 0) step(`reading DICOM, file ${i + 1} of ${files.length}`);
      program.FS.createDataFile("/in", `${String(i).padStart(6, "0")}.dcm`, new Uint8Array(await file.arrayBuffer()), true, true, true);
    }
    step("converting DICOM");
    program.callMain(["-z", "n", "-b", "y", "-ba", "y", "-w", "1", "-f", "v", "-o", "/out", "/in"]);
    const names = program.FS.readdir("/out").filter((name) => !name.startsWith("."));
    return { files: Object.fromEntries(names.map((name) => [name, program.FS.readFile(`/out/${name}`)])), said };
  }
}

// The NIfTI file of a series {files, geometry, positions, shown}, and what is doubtful about it: {content, remarks}.
async function convertSeries(converter, series, step = () => {}) {
  const bytes = series.files.reduce((sum, file) => sum + file.size, 0), remarks = [], { shown } = series;
  if (bytes > MOST_SERIES_BYTES) refuse("dicomTooBig", shown, (bytes / 1e9).toFixed(1), MOST_SERIES_BYTES / 1e9);
  const lacking = missingSlices(series.positions);
  if (lacking) remarks.push(say("missing", lacking));
  const { files, said } = await converter.run(series.files, step), names = Object.keys(files).filter((name) => name.endsWith(".nii")).sort();
  const tilted = names.some((name) => name.includes("_Tilt"));
  const made = bestOf(names.filter((name) => !tilted || !name.includes("_Tilt")), files);
  if (!made) refuse("noVolume", shown, (said.find((line) => /rror|arning/.test(line)) || "no volume").trim().slice(0, 200));
  const { name, header } = made, stem = name.slice(0, -4);
  if (stem.includes("_Eq")) remarks.push(say("uneven"));
  if (made.others.some((size) => 2 * size >= count(header.shape.slice(0, 3)))) refuse("volumes", shown, made.others.length + 1);
  if (made.others.length) remarks.push(say("largestVolume", made.others.length + 1));
  const volume = oneVolume(header, files[`${stem}.bval`], shown);
  remarks.push(...volume.remarks);
  const own = ownAffine(series.geometry, header.shape.slice(0, 3), header.affine);
  if (tilted && !own) refuse("tiltUneven", shown);
  const off = own ? farthestApart(own, header.affine, header.shape) : 0;
  if (tilted) remarks.push(say("tilted"));
  else if (off > MOST_OFF_MM) remarks.push(say("off", fixed(off, 1)));
  return { content: asOneVolume(files[name], header, volume.number, tilted ? own : null), remarks };
}

// Of what dcm2niix made of a series the volume to segment, and the voxels of each other one of its kind: an evened one goes
// before its raw form, a magnitude before a phase or a map.
function bestOf(names, files) {
  let best = null;
  const all = [];
  for (const name of names) {
    const header = readHeader(files[name], false), { shape } = header, stem = name.slice(0, -4), evened = stem.includes("_Eq");
    if (shape.length < 3 || Math.min(...shape.slice(0, 3)) <= 1) continue;
    const key = [Number(!PARTS.test(stem) || evened), Number(evened), count(shape.slice(0, 3))];
    all.push({ stem, key });
    const better = best && (key[0] - best.key[0] || key[1] - best.key[1] || key[2] - best.key[2] || (name > best.name ? 1 : -1));
    if (!best || better > 0) best = { name, header, key };
  }
  if (!best) return null;
  const raw = all.filter(({ key }) => key[1]).map(({ stem }) => stem.split("_Eq")[0]);
  const others = all.filter(({ stem, key }) => `${stem}.nii` !== best.name && key[0] === best.key[0] && !raw.includes(stem));
  return { ...best, others: others.map(({ key }) => key[2]) };
}

// Which of several volumes: the first with the largest b-value, by the file that dcm2niix writes beside them.
function oneVolume({ shape }, beside, shown) {
  const volumes = shape.slice(3).reduce((a, b) => a * b, 1);
  if (volumes === 1) return { number: 0, remarks: [] };
  const values = beside ? new TextDecoder().decode(beside).split(/\s+/).filter(Boolean).map(Number) : [], most = Math.max(...values);
  if (shape.length !== 4 || values.length !== volumes || !(most > 0)) refuse("volumes", shown, volumes);
  const number = values.indexOf(most);
  return { number, remarks: [say("ofSeveral", values.length, number + 1, general(most))] };
}

// The affine of a volume of single-frame files by the positions in their headers, sheared where the gantry was tilted; null
// where they do not make one evenly spaced stack of this shape. Each axis runs as in `like`, dcm2niix's own.
function ownAffine(geometry, shape, like) {
  if (geometry.length < 2 || geometry.some((one) => !one?.spacing || !one.rows || !one.columns)) return null;
  const ras = ([x, y, z]) => [-x, -y, z], [{ row, column, normal, spacing, rows, columns }] = geometry;
  const places = geometry.map(({ position }) => ras(position)).sort((a, b) => dot(a, ras(normal)) - dot(b, ras(normal)));
  const last = places.length - 1, step = [0, 1, 2].map((i) => (places[last][i] - places[0][i]) / last);
  const uneven = places.some((place, n) => place.some((value, i) => !(Math.abs(places[0][i] + n * step[i] - value) <= 0.1)));
  if (uneven || columns !== shape[0] || rows !== shape[1] || places.length !== shape[2]) return null;
  const axes = [ras(row).map((value) => value * spacing[1]), ras(column).map((value) => value * spacing[0]), step];
  const found = identity(4), start = places[0].slice();
  axes.forEach((axis, a) => {
    const sign = dot(axis, [0, 1, 2].map((r) => like[r][a])) > 0 ? 1 : -1;
    for (let r = 0; r < 3; ++r) {
      found[r][a] = sign * axis[r];
      if (sign < 0) start[r] += (shape[a] - 1) * axis[r];
    }
  });
  for (let r = 0; r < 3; ++r) found[r][3] = start[r];
  return found;
}

// The largest distance in mm between where two affines put a corner of a volume.
function farthestApart(one, other, shape) {
  const ends = corners(shape.slice(0, 3).map((n) => [0, n - 1]));
  return Math.max(...ends.map((at) => Math.hypot(...apply(one, at).slice(0, 3).map((value, r) => value - apply(other, at)[r]))));
}

// A file of dcm2niix with one volume of it, and nothing in its header that may name somebody. `affine` replaces its own.
function asOneVolume(file, header, number, affine) {
  const each = count(header.shape) * (header.bitpix / 8), at = header.vox_offset + number * each;
  const content = new Uint8Array(352 + each), view = new DataView(content.buffer);
  content.set(file.subarray(0, 348)), content.set(file.subarray(at, at + each), 352);
  for (const [from, to] of [[14, 32], [148, 252]]) content.fill(0, from, to);  // db_name; descrip and aux_file
  [3, ...header.shape.slice(0, 3), 1, 1, 1, 1].forEach((value, i) => view.setInt16(40 + 2 * i, value, true));
  view.setFloat32(108, 352, true);
  if (affine) {
    affine.slice(0, 3).flat().forEach((value, i) => view.setFloat32(280 + 4 * i, value, true));
    view.setInt16(252, 0, true), view.setInt16(254, 1, true);  // a quaternion cannot say that a grid is sheared
  }
  return content;
}

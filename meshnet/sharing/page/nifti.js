// Reading NIfTI-1 and NIfTI-2 files: meshnet/scans/nifti.py, and what nibabel does for it.
//
// An image is {volume, affine, header, own, nifti2, sum}. `header` has its space in mm; `own` is the file's header, which the
// mask gets; `sum` is of the file's content. Those of a case have its `mark` as well.
"use strict";

const TYPES = {
  2: ["u1", Uint8Array], 4: ["i2", Int16Array], 8: ["i4", Int32Array], 16: ["f4", Float32Array], 64: ["f8", Float64Array],
  256: ["i1", Int8Array], 512: ["u2", Uint16Array], 768: ["u4", Uint32Array], 1024: ["i8", BigInt64Array],
  1280: ["u8", BigUint64Array],
};
const COLOURS = {
  32: ["complex64", 8], 1792: ["complex128", 16], 128: ["[('R', 'u1'), ('G', 'u1'), ('B', 'u1')]", 3],
  2304: ["[('R', 'u1'), ('G', 'u1'), ('B', 'u1'), ('A', 'u1')]", 4],
};
const UNITS_MM = { 1: 1000, 3: 0.001 };
const HEAD_MM = [10, 2000], FARTHEST_MM = 1e5, LEAST = 1e-30, MOST = 1e30;
const LEAST_MM = 1;  // a scan's longest side is more; headers that hold metres without saying so give less
const POINTERS = [["version https:/" + "/git-lfs", "lfs"], ["/annex/objects/", "annex"], ["<!doctype html", "webPage"], ["<html", "webPage"]];
const MOST_PACKED = 2;  // times that a file may be gzipped: tools gzip what is so already
const MOST_BYTES = 2 ** 31;  // of one array in a browser
// name: [offset, type, count] in NIfTI-1 and in NIfTI-2
const FIELDS = [{
  sizeof_hdr: [0, "Int32", 1], dim: [40, "Int16", 8], datatype: [70, "Int16", 1], bitpix: [72, "Int16", 1],
  pixdim: [76, "Float32", 8], vox_offset: [108, "Float32", 1], scl_slope: [112, "Float32", 1],
  scl_inter: [116, "Float32", 1], xyzt_units: [123, "Uint8", 1], glmin: [144, "Int32", 1], qform_code: [252, "Int16", 1],
  sform_code: [254, "Int16", 1], quatern: [256, "Float32", 3], qoffset: [268, "Float32", 3], srow: [280, "Float32", 12],
}, {
  sizeof_hdr: [0, "Int32", 1], datatype: [12, "Int16", 1], bitpix: [14, "Int16", 1], dim: [16, "BigInt64", 8],
  pixdim: [104, "Float64", 8], vox_offset: [168, "BigInt64", 1], scl_slope: [176, "Float64", 1],
  scl_inter: [184, "Float64", 1], qform_code: [344, "Int32", 1], sform_code: [348, "Int32", 1],
  quatern: [352, "Float64", 3], qoffset: [376, "Float64", 3], srow: [400, "Float64", 12], xyzt_units: [500, "Int32", 1],
}];
const BYTES = { Int16: 2, Int32: 4, Float32: 4, Float64: 8, BigInt64: 8, Uint8: 1 };

// What a gzip file holds. Browsers take a file of one member alone; the length at the file's end says whether that was all.
async function gunzip(content) {
  try {
    const whole = await through(new DecompressionStream("gzip"), content);
    if (new DataView(content.buffer, content.byteOffset + content.length - 4, 4).getUint32(0, true) === whole.length % 2 ** 32) return whole;
  } catch { /* read again, which says what is wrong */ }
  return gunzipMembers(content);
}

// What comes out of a stream. Not by pipeThrough: its own promise would be refused too, and nobody hears that.
async function through(stream, content) {
  const writer = stream.writable.getWriter(), reader = stream.readable.getReader(), pieces = [];
  const ignored = () => {};  // the reader is told as well
  writer.write(content).catch(ignored), writer.close().catch(ignored);
  for (let piece; !(piece = await reader.read()).done;) pieces.push(piece.value);
  const whole = new Uint8Array(pieces.reduce((n, piece) => n + piece.length, 0));
  pieces.reduce((at, piece) => (whole.set(piece, at), at + piece.length), 0);
  return whole;
}

// The image in a file, plain or gzipped. `channels`: the last axis of a 4D file is channels.
async function readImage(content, name, channels = false) {
  const file = content;
  if (!content.length) refuse("emptyFile", name);
  for (let packed = 0; packed < MOST_PACKED && content[0] === 0x1f && content[1] === 0x8b; ++packed) {
    try {
      content = await gunzip(content);
    } catch (error) {
      refuse("gzip", name, String(error.message || error).split("\n")[0]);
    }
  }
  const magic = (at) => String.fromCharCode(...content.subarray(at, at + 4));
  const nifti2 = magic(344) !== "n+1\0";
  if (nifti2 && magic(4) !== "n+2\0") {
    const start = String.fromCharCode(...content.subarray(0, 200)).trimStart().toLowerCase();
    const found = POINTERS.find(([words]) => start.startsWith(words));
    if (found) refuse("pointer", name, say(found[1]));
    refuse("noNifti", name);
  }
  let header;
  try {
    header = readHeader(content, nifti2);
  } catch (error) {
    if (error instanceof UserError) throw error;
    refuse("damaged", name, error.message);
  }
  return { ...checked(content, header, nifti2, name, channels), sum: contentSum(file, content, header) };
}

// The CRC-32 of what a file holds once unpacked. A gzip file of one member ends with it and with the size (content_sum).
function contentSum(file, content, header) {
  const end = new DataView(file.buffer, file.byteOffset + file.length - 8, 8);
  const wanted = header.vox_offset + count(header.shape) * TYPES[header.datatype][1].BYTES_PER_ELEMENT;
  return file !== content && end.getUint32(4, true) === wanted % 2 ** 32 ? end.getUint32(0, true) : crc32(content);
}

function readHeader(content, nifti2) {
  if (content.length < (nifti2 ? 540 : 348)) throw new Error("the header is cut off");
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const field = ([at, type, times], little) => Array.from({ length: times }, (_, i) =>
    Number(view[`get${type}`](at + i * BYTES[type], little)));
  const layout = FIELDS[nifti2 ? 1 : 0];
  const [first] = field(layout.dim, true), [size] = field(layout.sizeof_hdr, false);
  const little = first === 0 ? size !== (nifti2 ? 540 : 348) : first >= 1 && first <= 7;
  const header = { little };
  for (const [name, place] of Object.entries(layout)) header[name] = place[2] === 1 ? field(place, little)[0] : field(place, little);
  checkHeader(header, nifti2, nifti2 ? content.subarray(8, 12) : null);
  checkExtensions(view, header, nifti2 ? 544 : 352);
  return header;
}

// Whether the extensions between header and voxels are whole, as nibabel reads them. Without an offset of the voxels, which
// only NIfTI-2 can lack here, they reach to the end of the file.
function checkExtensions(view, header, at) {
  if (view.byteLength < at || view.getUint8(at - 4) === 0) return;
  let left = header.vox_offset - at;
  while (left >= 16 || left < 0) {
    if (left < 0 && at >= view.byteLength) return;
    if (at + 8 > view.byteLength) throw new Error("failed to read extension header");
    const size = view.getInt32(at, header.little);
    if (size < 8 || at + size > view.byteLength) throw new Error("failed to read extension content");
    at += size, left -= size;
  }
}

// nibabel's checks, and what it repairs silently.
function checkHeader(header, nifti2, lineEnds) {
  const code = header.datatype;
  if (!TYPES[code] && !COLOURS[code]) throw new Error(`data code ${code} not ${[0, 1, 255, 1536, 2048].includes(code) ? "supported" : "recognized"}`);
  header.pixdim = header.pixdim.map((value, i) => (i < 1 || i > 3 ? value : value === 0 ? 1 : value < 0 ? -value : value));
  if (Math.abs(header.pixdim[0]) !== 1) header.pixdim[0] = 1;
  const least = nifti2 ? 544 : 352;
  if (header.vox_offset !== 0 && header.vox_offset < least)
    throw new Error(`vox offset ${Math.trunc(header.vox_offset)} too low for single file nifti1`);
  if (header.vox_offset === 0) header.vox_offset = nifti2 ? 0 : 352;  // the header would be read as voxels
  for (const name of ["qform_code", "sform_code"]) if (header[name] < 0 || header[name] > 5) header[name] = 0;
  if (lineEnds && !lineEnds.every((byte) => byte === 0) && String(lineEnds) !== "13,10,26,10")
    throw new Error("EOL check not 0 or 13, 10, 26, 10; data may be corrupted by EOL conversion");
  const { scl_slope: slope, scl_inter: inter } = header;
  header.scaling = slope === 0 || !Number.isFinite(slope) ? [1, 0] : [slope, inter];
  if (!Number.isFinite(header.scaling[1])) throw new Error(`Valid slope but invalid intercept ${general(inter)}`);
  const { dim } = header;
  header.shape = dim[0] === 0 ? [0] : dim.slice(1, dim[0] + 1);
  if (!nifti2 && dim[1] === -1 && dim[2] === 1 && dim[3] === 1) {
    if (!header.glmin) throw new Error("-1 in dim[1] but 0 in glmin; inconsistent freesurfer type header?");
    header.shape[0] = header.glmin;
  } else if (!nifti2 && dim[1] === 27307 && dim[2] === 1 && dim[3] === 6) header.shape.splice(0, 3, 163842, 1, 1);
  header.affine = header.sform_code ? sformOf(header) : header.qform_code ? qformOf(header, nifti2) : identity(4);
}

function sformOf(header) {
  return [...[0, 4, 8].map((at) => header.srow.slice(at, at + 4)), [0, 0, 0, 1]];
}

function qformOf(header, nifti2) {
  const sizes = [header.pixdim[1], header.pixdim[2], header.pixdim[3] * header.pixdim[0]];
  if (![...header.quatern, ...sizes].every(Number.isFinite)) return [0, 1, 2, 3].map(() => [NaN, NaN, NaN, NaN]);
  const xyz = Array.from(header.quatern, extended), { w, left } = firstOf(xyz, nifti2 ? 3 * 2 ** -52 : 3 * 2 ** -23);
  if (!w) throw new Error(`w2 should be positive, but is ${left.toExponential(6)}`);
  const turn = matrixOf(w, xyz, sizes);
  return [...turn.map((row, r) => [...row, header.qoffset[r]]), [0, 0, 0, 1]];
}

function checked(content, header, nifti2, name, channels) {
  checkAffine(header, name);
  const shape = header.shape.slice();
  while (shape.length > 3 && shape[shape.length - 1] === 1 && !(channels && shape.length === 4)) shape.pop();
  if (shape.length !== 3 && !(channels && shape.length === 4)) refuse("dimensions", name, header.shape.length, tuple(header.shape));
  if (Math.min(...shape) < 1) refuse("empty", name, tuple(shape));
  if (COLOURS[header.datatype]) {
    voxelBytes(content, header, COLOURS[header.datatype][1], name);
    refuse("colour", name, COLOURS[header.datatype][0]);
  }
  const { data, kind } = readVoxels(content, header, name);
  let seen = 0, finite = true;
  for (let i = 0; i < data.length; ++i) {
    const value = Math.abs(data[i]);
    if (value > seen) seen = value;
    if (!(value < Infinity)) finite = false;
  }
  if (!finite) refuse("infinite", name);
  const longest = Math.max(...edges(header.affine).map((length, i) => length * shape[i]));
  if (longest < LEAST_MM && !UNITS_MM[header.xyzt_units & 7]) refuse("least", name, general(longest));
  if (!isInteger(kind) && (seen > MOST || (seen > 0 && seen < LEAST))) refuse("largest", name, general(seen));
  const numbers = isInteger(kind) || kind === "f4" ? data : Float32Array.from(data);
  if (!numbers.some((value) => value !== 0)) refuse("zero", name);
  const volume = { ...fileVolume(numbers, shape, isInteger(kind) ? kind : "f4") };
  const image = { volume, affine: header.affine, header, own: header, nifti2 };
  const scale = UNITS_MM[header.xyzt_units & 7] || 1;
  return scale === 1 ? image : inMillimetres(image, scale, name);
}

function voxelBytes(content, header, size, name) {
  const voxels = header.shape.reduce((a, b) => a * b, 1), wanted = voxels * size, at = Math.trunc(header.vox_offset);
  if (Number.isNaN(at)) refuse("damaged", name, "cannot convert float NaN to integer");
  if (wanted > MOST_BYTES) refuse("tooBig", name, (wanted / 1e9).toFixed(1));
  const found = Math.max(0, Math.min(wanted, content.length - at));
  if (found < wanted) refuse("damaged", name, `Expected ${wanted} bytes, got ${found} bytes from object - could the file be damaged?`);
  return content.slice(at, at + wanted);  // a copy, so that it begins where a typed array may
}

// The voxels, scaled as the header says: whole numbers without a scaling keep their type, all else is float.
function readVoxels(content, header, name) {
  const [kind, form] = TYPES[header.datatype], size = form.BYTES_PER_ELEMENT;
  const bytes = voxelBytes(content, header, size, name);
  if (!header.little && size > 1)
    for (let at = 0; at < bytes.length; at += size) bytes.subarray(at, at + size).reverse();
  let data = new form(bytes.buffer);
  if (kind === "i8" || kind === "u8") data = Float64Array.from(data, Number);
  const [slope, inter] = header.scaling;
  if (slope === 1 && inter === 0) return { data, kind };
  const scaled = new Float64Array(data.length);
  for (let i = 0; i < data.length; ++i) scaled[i] = data[i] * slope + inter;
  return { data: scaled, kind: "f8" };
}

function checkAffine(header, name) {
  if (header.sform_code === 0 && header.qform_code === 0) refuse("noAffine", name);
  const { affine } = header, [a, b, c] = edges(affine);
  const finite = affine.every((row) => row.every(Number.isFinite));
  if (!finite || !(Math.abs(determinant(affine)) > 1e-6 * a * b * c)) {
    const rows = affine.slice(0, 3).map((row) => `[${row.map((value) => float(roundEven(value * 1e4) / 1e4)).join(", ")}]`);
    refuse("singular", name, `[${rows.join(", ")}]`);
  }
  const farthest = Math.max(...affine.flat().map(Math.abs)) * (UNITS_MM[header.xyzt_units & 7] || 1);
  if (farthest > FARTHEST_MM) refuse("farthest", name, general(farthest), general(FARTHEST_MM));
}

function inMillimetres(image, scale, name) {
  const affine = image.affine.map((row, r) => (r < 3 ? row.map((value) => value * scale) : row));
  const extent = edges(affine).map((length, i) => length * image.volume.shape[i]);
  const longest = Math.max(...extent);
  if (!(longest >= HEAD_MM[0] && longest <= HEAD_MM[1])) refuse("unit", name, general(longest), scale > 1 ? "metre" : "micrometre");
  return { ...image, affine, header: { ...image.header, xyzt_units: (image.header.xyzt_units & ~7) | 2 } };
}

// An image (X, Y, Z, C) as C images.
function splitChannels(image) {
  const { shape, data, kind } = image.volume;
  if (shape.length === 3) return [image];
  const each = shape[0] * shape[1] * shape[2];
  return Array.from({ length: shape[3] }, (_, c) =>
    ({ ...image, volume: fileVolume(data.subarray(c * each, (c + 1) * each), shape.slice(0, 3), kind) }));
}

// The images of a case, one for each of the channels `wanted`. `files` are [{name, content}].
async function readChannels(files, wanted) {
  const several = files.length === 1 && wanted.length > 1;
  let images = [];
  for (const file of files) images.push(await readImage(file.content, file.name, several));
  const mark = scanMark(images.map(({ sum }) => sum));
  if (several) images = splitChannels(images[0]);
  if (images.length !== wanted.length)
    refuse("channels", files[0].name, images.length, wanted.length, wanted.join(", "), wanted.map((w) => `${w}.nii.gz`).join(","));
  return images.map((image) => ({ ...image, mark }));
}

// By which infer.py tells the files of a case from others (scan_mark), from the sum of each.
function scanMark(sums) {
  const bytes = new DataView(new ArrayBuffer(4 * sums.length));
  sums.forEach((sum, i) => bytes.setUint32(4 * i, sum, true));
  return hex(crc32(new Uint8Array(bytes.buffer)));
}

const hex = (sum) => sum.toString(16).padStart(8, "0");

// The CRC-32 of an array in a file's order, taken with its last axis closest together: infer.py knows its masks by it.
function checksum(data, shape) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength), size = data.BYTES_PER_ELEMENT, [nx, ny, nz] = shape;
  let sum = -1;
  for (let i = 0; i < nx; ++i)
    for (let j = 0; j < ny; ++j)
      for (let k = 0; k < nz; ++k)
        for (let b = 0, at = size * (i + nx * (j + ny * k)); b < size; ++b) sum = CRC[(sum ^ bytes[at + b]) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

// The file of an array on the grid of `like`: uint8, or float32. It has its grid, units and nothing else of its header,
// and its text says what infer.py's does: checksums of the voxels and of the scan.
function writeImage(data, like) {
  const layout = FIELDS[like.nifti2 ? 1 : 0], start = like.nifti2 ? 544 : 352, { own, volume } = like;
  const content = new Uint8Array(start + data.byteLength), view = new DataView(content.buffer);
  const put = (name, ...values) => values.forEach((value, i) => {
    const [at, type] = layout[name];
    view[`set${type}`](at + i * BYTES[type], type === "BigInt64" ? BigInt(value) : value, true);
  });
  const text = (at, letters) => content.set(new TextEncoder().encode(letters), at);
  put("sizeof_hdr", like.nifti2 ? 540 : 348);
  put("dim", 3, ...volume.shape, 1, 1, 1, 1);
  put("datatype", data instanceof Float32Array ? 16 : 2);
  put("bitpix", 8 * data.BYTES_PER_ELEMENT);
  put("pixdim", ...own.pixdim.slice(0, 4), 1, 1, 1, 1);
  put("vox_offset", start);
  put("scl_slope", 1);
  for (const name of ["xyzt_units", "qform_code", "sform_code"]) put(name, own[name]);
  for (const name of ["quatern", "qoffset", "srow"]) put(name, ...own[name]);
  text(like.nifti2 ? 240 : 148, `MeshNet ${hex(checksum(data, volume.shape))} of ${like.mark}`);
  if (like.nifti2) content.set([110, 43, 50, 0, 13, 10, 26, 10], 4);
  else text(344, "n+1");
  content.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), start);
  return content;
}

async function gzip(content) {
  return through(new CompressionStream("gzip"), content);
}

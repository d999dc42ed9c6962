// DICOM files to series, the series that a model wants, and a series to NIfTI by dcm2niix: meshnet/cohort/series.py and
// dicom.py. Files are File objects, as a browser and Node have them.
"use strict";

const HEADER_BYTES = 1 << 16;  // in which the fields of a file lie before its pixels, nearly always
const FEWEST_SLICES = 8, MOST_OFF_MM = 0.5, MOST_SERIES_BYTES = 1.5e9;
const DICOM_TAGS = {  // group and element: name, type where the file does not say it
  "0008,0005": ["CharacterSet", "CS"], "0008,0008": ["ImageType", "CS"], "0008,0018": ["SOPInstanceUID", "UI"],
  "0008,0060": ["Modality", "CS"], "0008,103e": ["SeriesDescription", "LO"], "0018,0080": ["RepetitionTime", "DS"],
  "0018,0081": ["EchoTime", "DS"], "0018,0082": ["InversionTime", "DS"], "0018,1030": ["ProtocolName", "LO"],
  "0020,000d": ["StudyInstanceUID", "UI"], "0020,000e": ["SeriesInstanceUID", "UI"], "0020,0011": ["SeriesNumber", "IS"],
  "0020,0032": ["ImagePositionPatient", "DS"], "0020,0037": ["ImageOrientationPatient", "DS"],
  "0028,0008": ["NumberOfFrames", "IS"], "0028,0010": ["Rows", "US"], "0028,0011": ["Columns", "US"],
  "0028,0030": ["PixelSpacing", "DS"],
};
const LONG_TYPES = ["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"];
const LOCALISER = /locali[sz]er|\bloc\b|scout|survey|three.?plane|3.?plane|aahead|smartbrain|topogram|surview/i;
const DERIVED = new RegExp("\\badc\\b|apparent|\\bfa\\b|\\beadc\\b|exp(onential)?.?(adc|att)|colou?r|\\bcbf\\b|\\bcbv\\b|\\bmtt\\b|" +
  "\\bttp\\b|tmax|perfusion map|\\bmip\\b|\\bmpr\\b|subtract|\\bphase\\b|\\bpha\\b|screen ?save|report|" +
  "\\bdose\\b|fmri|\\bt1 ?map|\\bt2 ?map", "i");
const CONTRAST = /\bgd\b|\+c\b|\bce\b|post|contrast|\bkm\b|gado/i;
const KINDS = [  // channel, words of a description, words that speak against it; the first that fits
  ["FLAIR", /flair|dark.?fluid|\btirm\b/], ["ADC", /\badc\b|apparent/],
  ["DWI", /dwi|diff|\bep2d\b|trace|\bb ?(=|-)? ?(800|1000|1200)\b/],
  ["T2starw", /t2 ?\*|t2.?star|\bswi\b|\bgre\b|hemo|fl2d/], ["T2w", /t2/, /map/],
  ["T1w", /t1|mp.?rage|spgr|bravo|\btfl\b|\bfspgr\b/, /map/], ["PDw", /\bpd\b|proton/, /fat/],
];
const PARTS = /_(ph|real|imaginary|phMag|ADC|Eq|MoCo|ROI\d+)[a-z0-9]*$/;  // what dcm2niix adds to a name

// ---------------------------------------------------------------- the header of a file

// The fields of DICOM_TAGS in the first bytes of a file; null where these end before its pixels or it is of no known kind.
function dicomFields(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), found = {};
  const text = (at, length) => String.fromCharCode(...bytes.subarray(at, at + length));
  if (text(128, 4) !== "DICM") return null;
  let little = true, explicit = true, at = 132, syntax = "1.2.840.10008.1.2.1";
  const element = (here) => {  // tag, type, where its value begins, and its length (0xffffffff: not said)
    const group = view.getUint16(here, little), number = view.getUint16(here + 2, little);
    const tag = [group, number].map((part) => part.toString(16).padStart(4, "0")).join(",");
    if (group === 0xfffe || !explicit) return { tag, group, type: DICOM_TAGS[tag]?.[1] || "UN", from: here + 8, length: view.getUint32(here + 4, little) };
    const type = text(here + 4, 2), long = LONG_TYPES.includes(type);
    return { tag, group, type, from: here + (long ? 12 : 8), length: long ? view.getUint32(here + 8, little) : view.getUint16(here + 6, little) };
  };
  const past = ({ from, length }) => {  // where the next element begins, behind whatever lies within
    if (length !== 0xffffffff) return from + length;
    for (let here = from; ;) {
      const inner = element(here);
      if (inner.tag === "fffe,e0dd" || inner.tag === "fffe,e00d") return inner.from;
      here = past(inner);
    }
  };
  try {
    while (at < bytes.length && view.getUint16(at, true) === 2) {  // always explicit, little endian
      const one = element(at);
      if (one.tag === "0002,0010") syntax = text(one.from, one.length).replace(/\0/g, "").trim();
      at = past(one);
    }
    if (syntax === "1.2.840.10008.1.2.1.99") return null;  // deflated
    explicit = syntax !== "1.2.840.10008.1.2", little = syntax !== "1.2.840.10008.1.2.2";
    while (at < bytes.length) {
      const one = element(at);
      if (one.group > 0x28) return found;
      const known = DICOM_TAGS[one.tag];
      if (known && one.from + one.length > bytes.length) return null;
      if (known) found[known[0]] = one.type === "US" ? view.getUint16(one.from, little) : { from: one.from, to: one.from + one.length };
      at = past(one);
    }
    return null;
  } catch (error) {
    if (error instanceof RangeError) return null;
    throw error;
  }
}

async function dicomHeader(file) {
  for (const size of [HEADER_BYTES, file.size]) {
    const bytes = new Uint8Array(await file.slice(0, size).arrayBuffer()), fields = dicomFields(bytes);
    if (!fields) continue;
    const where = fields.CharacterSet, utf = where && new TextDecoder("latin1").decode(bytes.subarray(where.from, where.to)).includes("192");
    const decoder = new TextDecoder(utf ? "utf-8" : "latin1"), header = {};
    for (const [name, value] of Object.entries(fields))
      header[name] = typeof value === "number" ? value : decoder.decode(bytes.subarray(value.from, value.to)).replace(/\0/g, "").split("\\").map((part) => part.trim());
    return header;
  }
  return null;
}

// ---------------------------------------------------------------- series

// Every series of images among files, in order: {uid, study, files, header, number, positions, frames, geometry, whyNot}.
async function findSeries(files, step = () => {}) {
  const found = new Map(), seen = new Set();
  for (const [number, file] of files.entries()) {
    if (number % 50 === 0) step(`DICOM file ${number + 1} of ${files.length}`);
    const header = await dicomHeader(file), first = (name) => header[name]?.[0] || "";
    const uid = header && first("SeriesInstanceUID"), image = header && first("SOPInstanceUID");
    if (!uid || seen.has(image)) continue;  // exports hold files twice
    const place = placeOf(header);
    if (place === undefined) continue;  // a broken header
    seen.add(image);
    // Without a study each series is one: two patients' are not taken for one.
    const one = found.get(uid) || { uid, study: first("StudyInstanceUID") || uid, files: [], positions: [], planes: [], frames: 0, geometry: [], header,
      number: Number(first("SeriesNumber")) || 0, description: first("SeriesDescription"), modality: first("Modality") };
    found.set(uid, one);
    one.files.push(file);
    one.frames += Number(first("NumberOfFrames")) || 1;
    one.geometry.push(place);
    if (!place) continue;
    const plane = place.normal.map((value) => roundEven(10 * Math.abs(value)) / 10).join();
    if (!one.planes.includes(plane)) one.planes.push(plane);
    one.positions.push(dot(place.normal, place.position));
  }
  const all = [...found.values()];
  for (const one of all) one.whyNot = whyNot(one), one.kind = kindOf(one);
  const before = (a, b) => (a < b ? -1 : Number(a > b));
  return all.sort((a, b) => before(a.study, b.study) || a.number - b.number || before(a.uid, b.uid));
}

// Where a frame lies, in LPS mm; null where its header does not say it, undefined where that is broken.
function placeOf(header) {
  const numbers = (name) => header[name]?.map(Number);
  const [position, orientation, spacing] = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"].map(numbers);
  if (!position || !orientation) return null;
  if (position.length !== 3 || orientation.length !== 6 || ![...position, ...orientation].every(Number.isFinite)) return undefined;
  const row = orientation.slice(0, 3), column = orientation.slice(3);
  const normal = [0, 1, 2].map((i) => row[(i + 1) % 3] * column[(i + 2) % 3] - row[(i + 2) % 3] * column[(i + 1) % 3]);
  return { position, row, column, normal, spacing, rows: header.Rows, columns: header.Columns };
}

function plainWords({ header }, apart) {
  const words = ["SeriesDescription", "ProtocolName"].map((name) => (header[name] || []).join("\\")).join(" ").trim();
  return words.replace(apart, " ");
}

// Why a series is passed over; "" where it is a series of images of a head.
function whyNot(one) {
  const kinds = (one.header.ImageType || []).map((part) => part.toUpperCase()), words = plainWords(one, /[_/.-]+/g);
  if (!["MR", "CT"].includes(one.modality)) return `no image (${one.modality || "no modality"})`;
  if (kinds.includes("LOCALIZER") || LOCALISER.test(words) || one.planes.length > 1) return "a localiser";
  if (DERIVED.test(words) || kinds.slice(2).some((kind) => ["ADC", "FA", "CBF", "CBV", "MTT", "TTP", "PHASE MAP", "P"].includes(kind)))
    return "a derived map";
  if (["MPR", "PROJECTION IMAGE", "SECONDARY"].some((kind) => kinds.includes(kind))) return "derived from another series";
  return one.frames < FEWEST_SLICES ? `${one.frames} slice(s)` : "";
}

// The channel that a series holds, by its description, else by its echo, repetition and inversion times.
function kindOf(one) {
  if (one.modality === "CT") return "CT";
  const words = plainWords(one, /[_/.-]+/g).toLowerCase();
  for (const [name, fits, against] of KINDS) if (fits.test(words) && !against?.test(words)) return name;
  const [echo, repetition, inversion] = ["EchoTime", "RepetitionTime", "InversionTime"].map((name) => Number(one.header[name]?.[0]) || 0);
  if (echo > 70 && repetition > 2000) return inversion > 1500 ? "FLAIR" : "T2w";
  return echo > 0 && echo < 30 && ((repetition > 0 && repetition < 1000) || inversion > 0) ? "T1w" : null;
}

// The series of a study for each channel; null where none fits it. Of a channel that may be of several kinds the first that
// there is; of several series one without contrast agent, then the one with the most slices, then the last acquired.
function chooseSeries(series, channels) {
  return channels.map((channel) => {
    for (const kind of kindsOf(channel)) {
      let fit = series.filter((one) => !one.whyNot && one.kind === kind);
      if (!fit.length && kind === "ADC") fit = series.filter((one) => one.kind === "ADC" && one.frames >= FEWEST_SLICES);
      const plain = (one) => Number(!CONTRAST.test(plainWords(one, /[_-]+/g)));
      if (fit.length) return fit.reduce((best, one) => (plain(one) - plain(best) || one.frames - best.frames || one.number - best.number) > 0 ? one : best);
    }
    return null;
  });
}

// How many slices a series lacks between its first and its last one, by gaps of twice the usual distance or more.
function missingSlices(positions) {
  const places = [...new Set(positions.map((value) => roundEven(100 * value) / 100))].sort((a, b) => a - b);
  if (places.length < 3) return 0;
  const steps = places.slice(1).map((value, i) => value - places[i]), usual = quantile(Float64Array.from(steps).sort(), 0.5);
  return steps.reduce((sum, step) => sum + (step > 1.5 * usual ? roundEven(step / usual) - 1 : 0), 0);
}

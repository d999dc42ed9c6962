// What the page says about a scan, in the words of the command line: each text is the one of the Python file named above
// it, with {} where a value stands (tests/sharing/test_page_masks.py compares them). Functions that format as Python's
// do are below. Here and in the other files there is no DOM, so that Node runs them as a page does.
"use strict";

const MESSAGES = {
  // meshnet/scans/nifti.py
  gzip: "{}: truncated or damaged gzip ({}), expected it whole; copy it again",
  noNifti: "{}: found no NIfTI, expected .nii or .nii.gz; convert it with dcm2niix or mri_convert, or copy it again if it is damaged",
  pointer: "{}: found {}, expected the NIfTI file itself; fetch it",
  lfs: "a pointer of Git LFS (git lfs pull)",
  annex: "a pointer of git-annex (datalad get, git annex get)",
  webPage: "a page of the web",
  emptyFile: "{}: found an empty file, expected a NIfTI scan; copy it again",
  least: "{}: found an extent of {} mm, expected a head; if the header holds metres, set its xyzt_units to 1 (nifti_tool)",
  damaged: "{}: damaged or truncated NIfTI ({}), expected it whole; copy it again",
  dimensions: "{}: found {}D data of shape {}, expected one 3D volume; extract the volume to use, or declare the last axis as channels where the format allows it",
  empty: "{}: found an empty volume of shape {}, expected voxels on every axis; replace it",
  colour: "{}: found {} voxels (colour or complex), expected numbers; convert it",
  infinite: "{}: found NaN or infinite voxels, expected finite numbers; repair it or leave it out",
  largest: "{}: found values up to {}, expected ones that float32 can hold; rescale the scan (fslmaths, nibabel), or correct its scl_slope",
  zero: "{}: every voxel is zero, expected a scan; leave it out",
  unit: "{}: found an extent of {} mm, since its header declares the unit {}, expected a head; if the sizes are in mm, set xyzt_units to 2 (fslmodhd, nifti_tool)",
  noAffine: "{}: found no affine (sform_code and qform_code are both 0), expected one of them set; convert it again from DICOM, or copy the header from a scan on the same grid (fslcpgeom)",
  singular: "{}: found a singular affine {}, expected three independent axes; convert it again from DICOM or repair its header",
  farthest: "{}: found {} mm in its affine, expected at most {}; convert it again from DICOM or repair its header",
  // meshnet/inference/scan.py
  channels: "{}: found {} channel(s), expected {} ({}); give the files of a case joined by commas, as {}",
  threshold: "threshold: found {}, expected 0 to 1",
  smallest: "min_lesion_mm3: found {}, expected 0 or more",
  taken: "{} found and taken back by the model's veto, as no lesion",
  unsure: "{} found that nowhere reaches the probability {} from which it is kept",
  dropped: "{} found below the {} mL from which it is kept",
  // meshnet/scans/mask.py
  beside: "about {} mL look like {}, which this model does not count as lesion",
  // meshnet/scans/checks.py
  pixdim: "the header contradicts itself: voxels of {} by pixdim and {} by the affine; the affine was used, check the volume",
  noRotation: "the header's qform is no rotation; sform was used",
  forms: "the header contradicts itself: axes {} by qform and {} by sform; sform was used, check left and right",
  short: "the scan measures {}, less than a head along one axis; what lies outside it cannot be marked",
  formsApart: "the header contradicts itself: qform and sform are {} mm apart, both of code {}; sform was used",
  fewSlices: "the scan has only {}; lesions between them cannot be marked",
  thick: "slices of {} mm are thick for a model with voxels of {} mm; small lesions may be missed and outlines are coarse",
  noContrast: "{}its contrast could not be told, since no head was found in it: its grey values were taken as they are; if it is T1w, do not use the mask",
  doubtfulT1w: "{}looks most like T1w ({} %) and then {} ({} %), which is doubtful; its grey values were turned round for the model, so if it is not T1w, do not use the mask",
  doubtfulLook: "{}looks most like {} ({} %) and then {} ({} %), which is doubtful; if its contrast is not {}, do not trust the mask",
  turned: "{}looks like T1w, where lesions are dark: its grey values were turned round for the model; if it has another contrast, do not use the mask",
  tooLong: "{}: measures {} by its affine, expected a head of at most {} mm; correct its affine, or cut the head out",
  enlarged: "the scan is larger than the model's grid of {}: the grid was enlarged, and what lies outside the head was not trained on",
  emptyChannel: "{}: channel {} is empty on the model's grid, expected it to overlap the first channel ({}); check its affine, or whether it belongs to this patient",
  elsewhere: "{}: channel {} covers {} % of channel {}, expected overlap; check its affine, or whether it belongs to this patient",
  partly: "channel {} covers only {} % of channel {}",
  same: "channels {} and {} are the same; was one file given twice?",
  padded: "what the scan holds measures {}, less than a head along one axis; what lies outside it cannot be marked",
  gap: "{}: next to nothing lies between {} and {} of 256 grey levels (a bright slice, padding?), so the mask is doubtful; check the intensities of the scan",
  few: "a few voxels",
  bright: "{} of the voxels (a bright slice, padding?)",
  twoValues: "{}: holds no values but {}; is it a mask and not a scan?",
  maskValues: "{}: {} holds no values but {}, and has the same value everywhere on the model's grid, expected a head; is it a mask and not a scan?",
  sameValue: "{}: {} has the same value everywhere on the model's grid, expected a head; look at the file",
  volume: "the mask holds {} mL, more than a lesion can; check the scan (inverted, no head, of another kind?) and the model",
  extremes: "{}: {} from {} to {} lie far outside all others, which go from {} to {}; they were clipped",
  fewGreys: "{}: 98 % of the head lies within {} of 256 grey levels, so the mask is doubtful; check the intensities of the scan",
  // meshnet/scans/naming.py
  named: "its name says {}, but the model is for {} scans{}; do not trust the mask, or take another model",
  namedLooks: "its name says {}, but it looks like {} and was segmented as such; check the scan",
  // meshnet/cohort/files.py
  ours: "note: {}: left out, as {} that this program wrote: {}",
  passedOver: "note: {}: passed over as masks by their names: {}; give a file by itself to segment it",
  onlyMasks: "{}: found a mask or probability map that this program wrote, expected a scan; give the scan that it was made from",
  lacking: "note: {}: left out, as none or not all of the channels {}: {}",
  // meshnet/cohort/dicom.py
  missing: "{} slice(s) of the series are missing: what lies there is interpolated or left out",
  uneven: "the distance between slices varies: dcm2niix made it even, which resamples the scan",
  tilted: "the gantry was tilted: the scan's grid is sheared, as its slices lie",
  off: "dcm2niix puts the scan up to {} mm off where its headers say",
  largestVolume: "the largest of {} volumes of the series was taken",
  ofSeveral: "of {} volumes number {} was taken, of the largest b-value, {} s/mm2",
};

// What only a page has to say.
const OWN_MESSAGES = {
  tooLarge: "{}: needs {} GB of memory for the network, expected at most {} GB in a browser; use python infer.py",
  noMemory: "{}: out of memory in this browser; close other tabs, or use python infer.py",
  tooBig: "{}: holds {} GB of voxels, expected at most 2 GB in a browser; use python infer.py",
  dicomTooBig: "{}: holds {} GB, expected at most {} GB in a browser; use python infer.py",
  noVolume: "{}: dcm2niix made no 3D volume of it ({}), expected one; choose another series",
  volumes: "{}: holds {} volumes, expected one, or one for each b-value; choose another series, or convert it yourself",
  tiltUneven: "{}: was taken with a tilted gantry, and its slices are not evenly spaced; convert it yourself, or choose another series",
  noDicom: "{}: found no image in these DICOM files, expected a series of slices; choose the folder with the images",
  noConverter: "{}: dcm2niix.js could not be loaded, expected it beside this page; copy the whole folder of the page",
  noWebGl2: "3-D view: this browser has no WebGL 2, expected it for this view; use the planes above, which do without",
  noUnpacking: "3-D view: this browser cannot unpack gzip (DecompressionStream), expected it for this view; use the planes above",
  noNiivue: "3-D view: niivue.js could not be loaded, expected it beside this page; copy the whole folder of the page",
  noSolid: "3-D view: could not be shown ({}); use the planes above",
  solidLoading: "3-D view: being made",
  solidShown: "Drag, or use the arrow keys, to turn it. The letters of the cube are the patient's sides.",
  noScan: "{}: found no scan in this folder, expected .nii, .nii.gz or DICOM files; choose another folder",
  noCase: "{}: found no case with the channels {} of the model, expected names such as sub-1_{}.nii.gz; or choose the files of one case by themselves",
  noFolder: "{}: this browser does not let a page read a dropped folder, expected its files; choose it by 'or a folder'",
  fault: "{}: could not be segmented ({}); please report this with the details below",
};

// A fault that the user can correct, said in one line.
class UserError extends Error {}

function say(key, ...values) {
  let at = 0;
  return (MESSAGES[key] || OWN_MESSAGES[key]).replace(/\{\}/g, () => String(values[at++]));
}

function refuse(key, ...values) {
  throw new UserError(say(key, ...values));
}

// ---------------------------------------------------------------- formats of Python

// {value:g}
function general(value, digits = 6) {
  if (value === 0) return Object.is(value, -0) ? "-0" : "0";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const strip = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  const power = Number(exponent);
  if (power >= -4 && power < digits) return strip(value.toFixed(digits - 1 - power));
  return `${strip(mantissa)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}

// meshnet/numbers.py, plain: 100000 and 0.00001, not 1e+05 and 1e-05
function plain(value) {
  const text = general(value), power = Number(text.split("e")[1] || 0);
  if (!power || Math.abs(value) >= 1e16) return text.replace("e+", "e");
  return power > 0 ? value.toFixed(0) : value.toFixed(5 - power).replace(/0+$/, "");
}

// str of a tuple of whole numbers
function tuple(values) {
  return values.length === 1 ? `(${values[0]},)` : `(${values.join(", ")})`;
}

// str of a float
function float(value) {
  if (!Number.isFinite(value)) return general(value);
  return Number.isInteger(value) ? value.toFixed(1) : String(value);
}

// {value:.Nf}: of two equally near numbers the even one
function inMl(ml) {  // numbers.in_ml
  const text = fixed(ml, 2);
  return ml > 0 && text === "0.00" ? "less than 0.01 mL" : `${text} mL`;
}

function fixed(value, digits) {
  if (!Number.isFinite(value)) return general(value);
  const text = value.toFixed(digits), scaled = Math.abs(value) * 10 ** digits;
  const tie = Number.isInteger(value * 2 ** (digits + 1)) && scaled - Math.floor(scaled) === 0.5;
  return tie && Math.floor(scaled) % 2 === 0 ? ((Math.sign(value) * Math.floor(scaled)) / 10 ** digits).toFixed(digits) : text;
}

function millimetres(sizes, digits = 2) {
  const one = (size) => (digits ? fixed(size, digits).replace(/0+$/, "").replace(/\.$/, "") : fixed(size, 0));
  return `${Array.from(sizes, one).join(" x ")} mm`;
}

// Python's round: to the even of two equally near numbers.
function roundEven(value) {
  const whole = Math.round(value);
  return whole - value === 0.5 && whole % 2 !== 0 ? whole - 1 : whole;
}

function roundTo(value, digits) {
  return Number(fixed(value, digits));
}

// What a quality is made of, for a report: whether it was learned, and mL (Segmentation.evidence).
function qualityFrom({ learned, evidence }) {
  return { learned, ...Object.fromEntries(Object.entries(evidence).map(([name, value]) => [name, roundTo(value, 3)])) };
}

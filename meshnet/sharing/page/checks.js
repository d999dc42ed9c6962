// Whether a scan is what a network can be given: meshnet/scans/checks.py. What is doubtful is returned as remarks.
"use strict";

const SIZES_DIFFER = 0.02, SHORT_MM = 60, ROUNDING = 1, LONGEST_MM = 1200, FEW_SLICES = 5, THICK = 3.5, THICK_MM = 3;
const APART_MM = 5, GAP = 0.8, GAP_SHARES = [0.002, 0.002, 0.01];
const FEW = 0.003, FEW_LEVELS = 16, COVERED = [0.1, 0.6], DOUBTFUL = 0.6;

function headerRemarks(image) {
  const { header, affine, own } = image, remarks = [], sizes = edges(affine);
  const pixdim = header.pixdim.slice(1, 4).map(Math.abs), all = pixdim.every((value) => value !== 0);
  const scale = sizes.map((size, i) => (all ? size / pixdim[i] : 1));
  const unit = UNITS_MM[header.xyzt_units & 7] ? scale.slice().sort((a, b) => a - b)[1] : 1;
  if (!pixdim.every(Number.isFinite) || (all && scale.some((value) => Math.abs(value / unit - 1) > SIZES_DIFFER)))
    remarks.push(say("pixdim", millimetres(pixdim), millimetres(sizes)));
  // In another unit than mm the program has one form alone.
  if (own.qform_code > 0 && own.sform_code > 0 && header === own) remarks.push(...formsRemarks(own, image.nifti2, image.volume.shape));
  return remarks;
}

function formsRemarks(header, nifti2, shape) {
  const sform = sformOf(header);
  let qform = null;
  try {
    qform = qformOf(header, nifti2);
  } catch { /* said below */ }
  if (!qform || !qform.every((row) => row.every(Number.isFinite))) return [say("noRotation")];
  if (Math.abs(determinant(sform)) < 1e-12 || Math.abs(determinant(qform)) < 1e-12) return [];
  const axes = [qform, sform].map(axisCodes);
  if (axes[0] !== axes[1]) return [say("forms", ...axes)];
  if (header.qform_code !== header.sform_code) return [];  // they are of two spaces
  const apart = Math.max(...corners(shape.map((n) => [0, n - 1])).map((at) => Math.hypot(...[0, 1, 2].map((r) => dot(qform[r], at) - dot(sform[r], at)))));
  return apart > APART_MM ? [say("formsApart", fixed(apart, 0), header.sform_code)] : [];
}

// Whether a channel is a scan at all: a mask has two values.
function valuesRemarks(image, name) {
  const values = twoValues(image);
  return values ? [say("twoValues", name, values)] : [];
}

// The only value or two of an image, in words; empty where it has more.
function twoValues(image) {
  const found = new Set(), { data } = image.volume;
  for (let i = 0; i < data.length && found.size < 3; ++i) found.add(data[i]);
  return found.size > 2 ? "" : [...found].sort((a, b) => a - b).map((value) => general(value)).join(" and ");
}

function extentRemarks(image, voxel) {
  const spacing = edges(image.affine), { shape } = image.volume, extent = spacing.map((s, i) => s * shape[i]);
  const remarks = [];
  if (Math.min(...extent) < SHORT_MM) remarks.push(say("short", millimetres(extent, 0)));
  else if (Math.min(...shape) < FEW_SLICES) remarks.push(say("fewSlices", Math.min(...shape) === 1 ? "1 slice" : `${Math.min(...shape)} slices`));
  const thickest = Math.max(...spacing);
  if (thickest > Math.max(THICK_MM, THICK * voxel) && thickest > 1.5 * Math.min(...spacing))
    remarks.push(say("thick", fixed(thickest, 1), plain(voxel)));
  return remarks;
}

// The grid, made larger on both sides where the head does not fit into it, and what is to be said then.
function fitted(grid, image, name) {
  const toGrid = multiply(inverse(targetAffine(image, grid)), image.affine);
  if (!outside(toGrid, image.volume.shape.map((n) => [0, n]), grid.size).some(Boolean)) return [grid, []];
  image.head = image.head || headBox(image.volume, 0);  // half a second where a scan is large
  const lacks = outside(toGrid, image.head, grid.size);
  if (!lacks.some(Boolean)) return [grid, []];
  const size = grid.size.map((n, i) => n + 2 * lacks[i]);
  if (Math.max(...size) * grid.voxel > LONGEST_MM)
    refuse("tooLong", name, millimetres(size.map((n) => n * grid.voxel), 0), LONGEST_MM);
  return [{ ...grid, size }, [say("enlarged", millimetres(grid.size.map((n) => n * grid.voxel), 0))]];
}

// Voxels that a box of the scan reaches beyond the grid, the larger of both sides.
function outside(toGrid, box, size) {
  const places = corners(box.map(([a, b]) => [a - 0.5, b - 0.5])).map((point) => apply(toGrid, point));
  return size.map((n, axis) => {
    const at = places.map((place) => place[axis]);
    const beyond = Math.max(-0.5 - Math.min(...at), Math.max(...at) - (n - 0.5));
    return beyond > ROUNDING ? Math.ceil(beyond) : 0;
  });
}

// Whether every channel of a conformed volume holds something, where the first one does.
function checkChannels(volumes, names, where, image) {
  const heads = volumes.map((volume) => {
    const small = sampled(volume, 2), [low] = extremes(small);
    return small.map((value) => Number(value > low));
  });
  const values = heads[0].some(Boolean) ? "" : twoValues(image);
  if (values) refuse("maskValues", where, names[0], values);
  if (!heads[0].some(Boolean)) refuse("sameValue", where, names[0]);
  heads.forEach((head, c) => { if (!head.some(Boolean)) refuse("emptyChannel", where, names[c], names[0]); });
  const remarks = [], size = heads[0].reduce((sum, value) => sum + value, 0);
  heads.slice(1).forEach((head, c) => {
    const covered = head.reduce((sum, value, i) => sum + (value && heads[0][i]), 0) / size;
    const percent = roundEven(100 * covered);
    if (covered < COVERED[0]) refuse("elsewhere", where, names[c + 1], percent, names[0]);
    if (covered < COVERED[1]) remarks.push(say("partly", names[c + 1], percent, names[0]));
  });
  const small = volumes.length > 1 ? volumes.map((volume) => sampled(volume, 2)) : [];
  small.forEach((one, a) => small.slice(a + 1).forEach((other, b) => {
    if (one.every((value, i) => value === other[i])) remarks.push(say("same", names[a], names[a + 1 + b]));
  }));
  return remarks;
}

// Whether what a conformed channel holds is as large as a head where the image is: it may be padded.
function contentRemarks(volume, image, voxel) {
  const spacing = edges(image.affine);
  if (Math.min(...image.volume.shape.map((n, i) => n * spacing[i])) < SHORT_MM) return [];  // said already
  const [least] = extremes(sampled(volume, 2)), box = [[Infinity, -1], [Infinity, -1], [Infinity, -1]];
  visit(volume, 2, (value, ...at) => {
    if (value > least) at.forEach((i, axis) => { if (i < box[axis][0]) box[axis][0] = i; if (i > box[axis][1]) box[axis][1] = i; });
  });
  const extent = box.map(([a, b]) => (b < 0 ? Infinity : 2 * voxel * ((b - a) / 2 + 1)));
  return Math.min(...extent) < SHORT_MM ? [say("padded", millimetres(extent, 0))] : [];
}

// What a reader should know of a scan whose contrast is doubtful, or that was turned round because it looks like T1w. `name`:
// of the channel where there are several.
function contrastRemarks(likely, name) {
  const of = name ? `${name}: ` : "";
  if (!likely) return likely === null ? [say("noContrast", of)] : [];
  const [[first, p], [second, q]] = Object.entries(likely).sort((a, b) => b[1] - a[1]), percent = (one) => roundEven(100 * one);
  if (p >= DOUBTFUL) return first === T1W ? [say("turned", of)] : [];
  return [first === T1W ? say("doubtfulT1w", of, percent(p), second, percent(q)) : say("doubtfulLook", of, first, percent(p), second, percent(q), first)];
}

// Whether a channel uses the grey levels that its scaling gave it. `volume`: conformed, float32 in 0..1; `found`: the
// extremes that were left out of its range.
function greyRemarks(volume, found, name) {
  if (found) {
    const { lowest, highest, low, high, share } = found, which = share < FEW ? say("few") : say("bright", `${fixed(100 * share, 1)}%`);
    return [say("extremes", name, which, ...[lowest, highest, low, high].map((value) => general(value)))];
  }
  const small = sampled(volume, Math.min(...volume.shape) >= 64 ? 3 : 1), [least] = extremes(small);
  const inside = small.filter((value) => value > least).sort();
  if (inside.length < 100) return [];
  const range = quantile(inside, 0.99) - quantile(inside, 0.01);
  return range * 255 >= FEW_LEVELS ? gapRemarks(inside, name) : [say("fewGreys", name, Math.max(1, roundEven(range * 255)))];
}

// Whether the grey levels between a scan and something far brighter are empty.
function gapRemarks(values, name) {
  const counts = new Float64Array(256), upto = [0], width = Math.trunc(GAP * 256), [within, below, above] = GAP_SHARES;
  for (const value of values) ++counts[Math.trunc(f32(Math.min(Math.max(value, 0), 1) * 255))];
  for (const n of counts) upto.push(upto[upto.length - 1] + n / values.length);
  for (let first = 0; first + width < upto.length; ++first) {
    const low = upto[first], high = upto[first + width];
    if (high - low <= within && low >= below && high <= 1 - above) return [say("gap", name, first, first + width)];
  }
  return [];
}

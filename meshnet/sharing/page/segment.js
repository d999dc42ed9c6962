// From the files of a case and a model to a mask: meshnet/inference/scan.py.
"use strict";

const MOST_ML = 1000;  // of lesions; a hemisphere has some 600
const TRIAL = [12, 48, 48];  // a volume by which the network's speed is told; a thinner one takes longer for each voxel
const TRIAL_MS = 60, TRIALS = 3;  // for so long at least, and so often
const HEAD_SHARE = 0.6;  // of a grid
const FIRST_STAGE = "computing, network 1 of 2", SECOND_STAGE = "computing, network 2 of 2";  // of a cascade
const REST = 5500;  // operations that the network makes in the time that a voxel of a scan takes beside it
const VOXEL_BYTES = 20, PAGE_BYTES = 6e7;  // that are taken for each voxel of a scan and of a grid, and by an empty page
const VETOED_BYTES = 8;  // for each voxel of a scan, where a veto leaves other probabilities
const HANDED_BYTES = 9;  // for each voxel and class that the first network of a cascade hands to the second one

// A model from its config.json and model.safetensors: {card, layers, others, first}. `others`: layers with other weights, by
// contrast. `first`: those of the first network of a cascade, null where there is one network alone.
function readModel(card, weights, first = null) {
  const view = new DataView(weights.buffer, weights.byteOffset), length = Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(weights.subarray(8, 8 + length))), tensors = {};
  for (const [name, { dtype, data_offsets: [a, b] }] of Object.entries(header)) {
    if (name === "__metadata__" || dtype !== "F32") continue;
    tensors[name] = new Float32Array(weights.slice(8 + length + a, 8 + length + b).buffer);
  }
  const own = Object.keys(card.contrasts || {}).filter((contrast) => card.contrasts[contrast].own_weights);
  const others = own.map((contrast) => [contrast, fuseLayers(ofContrast(tensors, contrast), card.arguments)]);
  return { card, layers: fuseLayers(tensors, card.arguments), others: Object.fromEntries(others), first: first && readModel(...first) };
}

// Those of a second network's tensors that are its weights for `contrast` (meshnet/networks/cascade.py).
function ofContrast(tensors, contrast) {
  const start = `for_contrast.${contrast}.`, own = Object.entries(tensors).filter(([name]) => name.startsWith(start));
  return Object.fromEntries(own.map(([name, values]) => [name.slice(start.length), values]));
}

// Reading, checking, and conforming to each of the model's grids: {images, views, remarks}. `step` is told what begins. Of a
// cascade the views are the first network's, and `second` is the scan on the second one's grid.
async function readCase(files, { card: own, first }, step, parts) {
  const card = first ? first.card : own;
  step("reading");
  const images = await timed(parts, "read", () => readChannels(files, card.channels));
  step("checking", 0, 1, images[0].volume.shape);
  const remarks = images.flatMap(headerRemarks);
  images.forEach((image, c) => remarks.push(...valuesRemarks(image, card.channels[c])));
  remarks.push(...extentRemarks(images[0], own.voxel_mm));
  const views = [], fit = (grid) => timed(parts, "check", () => fitted(grid, images[0], files[0].name));
  let beyond = [];
  for (const grid of gridsOf(card)) {
    const [larger, lines] = await fit(grid);
    beyond.push(...lines);
    step("conforming");
    await timed(parts, "conform", () => {
      const conformed = images.map((image) => conform(image, larger, card.scaling, card.window, images[0]));
      views.push({ extremes: conformed.map(({ extremes: found }) => found), looks: conformed.map(({ looks }) => looks ?? null), likely: conformed.map(({ likely }) => likely), channels: conformed.map(({ volume }) => asInput(volume)), shape: larger.size, affine: conformed[0].affine });
    });
  }
  let second = null;
  if (first) {
    const [larger, lines] = await fit(gridsOf(own)[0]);
    if (!beyond.length) beyond = lines;  // of either grid, but not of both
    second = await timed(parts, "conform", () => greyView(images, larger, views[0].looks));
  }
  remarks.push(...beyond);
  await timed(parts, "check", () => {
    const volumes = views[0].channels.map((data) => makeVolume(data, views[0].shape));
    remarks.push(...checkChannels(volumes, card.channels, files[0].name, images[0]), ...contentRemarks(volumes[0], images[0], card.voxel_mm));
    volumes.forEach((volume, c) => {
      remarks.push(...greyRemarks(volume, views[0].extremes[c], card.channels[c]));
      remarks.push(...contrastRemarks(views[0].likely[c], card.channels.length > 1 ? card.channels[c] : ""));
    });
  });
  const contrast = views[0].looks[0], ofNames = nameRemarks(files.map(({ name }) => name), card.channels, contrast);
  return { images, views, remarks: [...new Set([...ofNames, ...remarks])], contrast, second };
}

// The scan on the grid of a cascade's second network, turned round where the first one's view was: {shape, affine, greys}.
function greyView(images, grid, looks) {
  const conformed = images.map((image) => conform(image, grid, "conform_uint8", null, images[0]));
  const greys = conformed.map(({ volume }, c) => (looks[c] === T1W ? turnedRound(volume) : volume).data);
  return { shape: grid.size, affine: conformed[0].affine, greys };
}

// The probabilities that decide, on the scan's own grid: the mean over the views. Of a cascade they are the second network's,
// 0 where the first one finds nothing. Where its veto takes anything back, what is left then is read.vetoed, {probabilities, ml}.
async function probabilitiesOf(engine, model, read, step, parts, name) {
  const { card, first } = model, { images, contrast } = read, layers = model.others[contrast] || model.layers, which = decisive(card, contrast), total = [], left = [];
  const views = first ? await secondViews(engine, model, read, step, parts, name) : read.views;
  if (!views.length) return which.map(() => new Float32Array(count(images[0].volume.shape)));
  for (const [number, { channels, shape, affine, region }] of views.entries()) {
    step(first ? SECOND_STAGE : "computing", number, views.length);
    const found = await timed(parts, "compute", () => computed(engine, layers, channels, shape, name));
    if (region) backgroundOutside(found, region, shape);
    const share = first ? shareOf(card, contrast) : 0;
    if (share) mix(found, channels.slice(card.channels.length), card, share);
    if (first) read.beside = seenBeside(found, card, contrast);
    const veto = first && vetoOf(card, contrast), lowered = veto && found.map((one) => one.slice());
    const ml = veto ? takeBack(lowered, which[which.length - 1], channels, { shape, region, voxelMm: card.voxel_mm }, decisionOf(card, contrast), veto) : 0;
    step("going back", number, views.length);
    const back = (mean, given) => which.forEach(([one, ...others], at) => {
      const sum = others.length ? given[one].map((value, i) => others.reduce((all, k) => f32(all + given[k][i]), value)) : given[one];
      addMean(mean, at, toNative(sum, shape, affine, images[0]), views.length);
    });
    await timed(parts, "back", () => {
      back(total, found);
      if (ml) back(left, lowered), read.vetoed = { probabilities: left, ml };
    });
  }
  return total;
}

// Makes all outside the region background, in place: there the second network of a cascade has seen nothing.
function backgroundOutside(found, region, shape) {
  found.forEach((own, number) => own.set(within(region, shape, own, (value) => value, new Float32Array(own.length).fill(number ? 0 : 1))));
}

// Gives the second network's probabilities, in place, a share of the first one's `given`.
function mix(found, given, { first, classes }, share) {
  found.slice(1).forEach((own, at) => {
    const from = given[first.indexOf(classes[at + 1])];
    for (let i = 0; i < own.length; ++i) own[i] = f32(own[i] * f32(1 - share)) + f32(from[i] * f32(share));
  });
  for (let i = 0; i < found[0].length; ++i) found[0][i] = 1 - found.slice(1).reduce((sum, own) => f32(sum + own[i]), 0);
}

// What the second network of a cascade sees, by the first one: its view, or none where that finds nothing.
async function secondViews(engine, { card, first }, { views, second: { shape, affine, greys } }, step, parts, name) {
  const total = [];
  for (const [number, view] of views.entries()) {
    step(FIRST_STAGE, number, views.length);
    await timed(parts, "first", () => {
      const [, ...found] = computed(engine, first.layers, view.channels, view.shape, name);
      found.forEach((one, at) => addMean(total, at, toGrid(one, view.shape, view.affine, { shape, affine }), views.length));
    });
  }
  const given = await timed(parts, "first", () => secondInput(greys, total, shape, card.voxel_mm, card.mirror ? leftToRight(card) : null));
  return given ? [{ channels: given.input.map((data) => asInput(makeVolume(data, shape, "u1"))), shape, affine, region: given.region }] : [];
}

// The axis of a model's grid from left to right.
function leftToRight({ orientation }) {
  return [...orientation].findIndex((code) => "LR".includes(code));
}

function computed(engine, layers, channels, shape, name) {
  const need = needed(engine, layers, channels, shape);
  if (need > MOST_MEMORY) refuse("tooLarge", name, (need / 1e9).toFixed(1), (MOST_MEMORY / 1e9).toFixed(1));
  return runNetwork(engine, layers, channels, shape);
}

// Adds one of so many `views` to the mean total[at].
function addMean(total, at, map, views) {
  if (views > 1) for (let i = 0; i < map.length; ++i) map[i] /= views;
  if (!total[at]) total[at] = map;
  else for (let i = 0; i < map.length; ++i) total[at][i] += map[i];
}

// The middle of the head on the axis from left to right, in mm (meshnet/cohort/facts.py).
function headMiddle({ channels, shape, affine }) {
  const box = headBox(makeVolume(channels[0], shape), 0), ends = [0, 1].map((end) => apply(affine, [...box.map((side) => side[end] - end), 1])[0]);
  return (ends[0] + ends[1]) / 2;
}

function needed(engine, layers, channels, shape) {
  if (layers[0].norm) return planMemory(engine, layers, shape).bytes;
  const content = contentBox(channels, shape, borderValues(channels, shape));
  return planMemory(engine, layers, shape, contentOrHeadBox(channels, shape, content), content).bytes;
}

// What scans will take, by the networks' speed here: seconds {network, voxel}, for the networks and for each voxel of a scan,
// and bytes {bytes, voxelBytes}.
function planScan(engine, model) {
  const inputs = model.card.channels.length, stages = [...(model.first ? [model.first] : []), model].map((one) => planNetwork(engine, one));
  const more = Object.values(model.card.contrasts || {}).some(({ veto }) => veto) ? VETOED_BYTES : 0;
  return { network: stages.reduce((sum, { network }) => sum + network, 0), voxel: REST * inputs * stages[stages.length - 1].operation,
           bytes: Math.max(...stages.map(({ bytes }) => bytes)) + PAGE_BYTES, voxelBytes: VOXEL_BYTES * inputs + more };
}

// Of one network: seconds {network, operation} and bytes. What the first one of a cascade hands on is brought to the second
// one's grid, which takes for each voxel and class what a voxel of a scan does, and so does the mirror image.
function planNetwork(engine, { card, layers, first }) {
  const inputs = layers[0].in, grids = gridsOf(card), normed = layers[0].norm !== null;
  const time = (shape) => {
    const n = count(shape), trial = Float32Array.from({ length: n }, (_, i) => (i * 7919) % 251), started = now();
    runNetwork(engine, layers, Array(inputs).fill(trial), shape, true);
    return (now() - started) / 1000 / n;
  };
  const until = now() + TRIAL_MS;  // the first ones take longer, as the kernels are still being compiled
  let each = Infinity;
  for (let n = 0; n < TRIALS || now() < until; ++n) each = Math.min(each, time(TRIAL));
  const operation = each / (2 * layers.reduce((sum, { weight }) => sum + weight.length, 0)), handed = first ? card.first.length + (card.mirror ? inputs / 2 : 0) : 0;
  const voxels = grids.reduce((sum, { size }) => sum + count(size), 0);
  const whole = grids.map(({ size }) => planMemory(engine, layers, size, wholeBox(size), null).bytes + (VOXEL_BYTES + HANDED_BYTES * handed) * count(size));
  return { network: (each * (normed ? 1 : HEAD_SHARE) + REST * handed * operation) * voxels, operation, bytes: Math.max(...whole) };
}

// Everything about one case; `step` is told what begins. Raises UserError, one line, for what the user can correct.
async function segment(engine, model, files, step = () => {}, settings = {}) {
  const { card } = model, parts = {}, started = now(), { name } = files[0];
  checkSettings(settings.threshold ?? card.threshold, settings.min_lesion_mm3 ?? card.min_lesion_mm3);
  try {
    const read = await readCase(files, model, step, parts);
    const plain = await probabilitiesOf(engine, model, read, step, parts, name), { vetoed, beside = [] } = read;
    step("cleaning");
    const { probabilities, ml } = settings.threshold === undefined && vetoed ? vetoed : { probabilities: plain, ml: 0 };
    const own = decisionOf(card, read.contrast), decision = { ...own, ...settings, ...(settings.threshold === undefined ? {} : { sure: 0 }) };
    const learned = settings.threshold === undefined && settings.min_lesion_mm3 === undefined ? learnedOf(card, read.contrast) : null;
    const found = await timed(parts, "clean", () => decide(probabilities, read.images[0], decision, { taken: ml, learned, beside }));
    const seconds = roundTo((now() - started) / 1000, 2);
    return { ...found, plain, vetoed, beside, like: read.images[0], middle: headMiddle(read.views[0]), probabilities, ofScan: read.remarks, warnings: [...read.remarks, ...tooMuch(card, found.volume_ml)], contrast: read.contrast, expect: expectOf(card, read.contrast), decision, own, parts, seconds };
  } catch (error) {
    if (error instanceof UserError) throw error;
    if (error instanceof RangeError || error instanceof WebAssembly.RuntimeError)
      throw Object.assign(new UserError(say("noMemory", name)), { memory: true });
    refuse("fault", name, String(error.message || error).split("\n")[0]);
  }
}

// Whether a mask holds more than lesions can.
function tooMuch(card, volume_ml) {
  const lesion = (card.marks || card.classes[card.classes.length - 1]).includes("lesion");
  return lesion && volume_ml > MOST_ML ? [say("volume", fixed(volume_ml, 0))] : [];
}

function checkSettings(threshold, smallest) {
  if (!(threshold >= 0 && threshold <= 1)) refuse("threshold", plain(threshold));
  if (!(smallest >= 0)) refuse("smallest", plain(smallest));
}

// The probability of lesion: of several classes the sum of all but the background (segment_case).
function lesionProbability(probabilities) {
  if (probabilities.length <= 2) return probabilities[0];
  const sum = probabilities[1].slice();
  for (const one of probabilities.slice(2)) for (let i = 0; i < sum.length; ++i) sum[i] += one[i];
  return sum;
}

// A line of infer.py --json.
function report(result, files, names) {
  return { scan: files.map((file) => file.name), ...names, volume_ml: result.volume_ml, lesions: result.lesions.length,
           largest_ml: result.largest_ml, warnings: result.warnings, remarks: result.remarks, parts: result.parts,
           quality: result.quality, quality_from: qualityFrom(result), seconds: result.seconds, contrast: result.contrast, expect: result.expect, ...result.decision };
}

function now() {
  return performance.now();
}

async function timed(parts, name, work) {
  const started = now(), result = await work();
  parts[name] = roundTo((parts[name] || 0) + (now() - started) / 1000, 3);
  return result;
}

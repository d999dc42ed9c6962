// The page's steps in Node, for tests and for share.py web --scan: node node.js FOLDER < requests
//
// FOLDER holds these files, engine.wasm and, for a model, config.json and model.safetensors. Each line of the input is a
// JSON request; each answer is a line. Files that it writes are not compressed.
"use strict";

const fs = require("fs"), path = require("path"), vm = require("vm"), readline = require("readline"), zlib = require("zlib");
const STEPS = ["messages", "arrays", "extended", "cases", "inflate", "nifti", "resample", "intensity", "contrast_weights", "contrast", "naming", "grid", "mirror", "second", "veto", "checks", "mask", "quality", "boxes", "engine", "team", "segment", "dicom", "converter"];
for (const name of STEPS) {
  const file = path.join(__dirname, `${name}.js`);
  vm.runInThisContext(fs.readFileSync(file, "utf8").replace('"use strict";', ""), { filename: file });
}

const read = (file) => new Uint8Array(fs.readFileSync(file));
const filesOf = (names) => names.map((name) => ({ name, content: read(name) }));
let compiled = null;
const engineOf = (request) => new Engine(compiled = compiled || new WebAssembly.Module(read(request.engine)));
const partsOf = (folder) => [JSON.parse(fs.readFileSync(path.join(folder, "config.json"), "utf8")), read(path.join(folder, "model.safetensors"))];
function modelOf(folder) {
  const parts = partsOf(folder);
  return readModel(...parts, parts[0].first ? partsOf(path.join(folder, "first")) : null);
}
const write = (file, array) => fs.writeFileSync(file, Buffer.from(array.buffer, array.byteOffset, array.byteLength));

// dcm2niix as a page has it, where importing is a module's matter in Node.
function nodeConverter() {
  const folder = path.join(__dirname, "vendor"), script = fs.readFileSync(path.join(folder, "dcm2niix.js"), "utf8");
  const source = script.replaceAll("import.meta.url", '"data:"').replace("export default Module;", "").replace('await import("module")', "{ createRequire: () => outer }");
  return new Converter(new Function("outer", `${source}; return Module;`)(require), new WebAssembly.Module(zlib.gunzipSync(fs.readFileSync(path.join(folder, "dcm2niix.wasm.gz")))));
}

// A worker of Node that looks like a page's.
function nodeWorker(source) {
  const dress = 'const { parentPort } = require("worker_threads"); globalThis.postMessage = (m) => parentPort.postMessage(m); parentPort.on("message", (data) => onmessage({ data }));';
  const worker = new (require("worker_threads").Worker)(dress + source, { eval: true });
  worker.on("message", (data) => worker.onmessage({ data })), worker.on("error", (error) => worker.onerror(error));
  worker.unref();
  return worker;
}

const answers = {
  // {files} -> what each holds once unpacked by the page's own reader, in base64, or why it is refused
  async unpack({ files }) {
    return files.map((file) => {
      try {
        return { content: Buffer.from(gunzipMembers(read(file))).toString("base64") };
      } catch (error) {
        return { error: error.message };
      }
    });
  },
  // {scans, card} -> each view conformed, in a file; remarks; the matrix from each view to the first file. `mask`, `probability`:
  // files with the numbers of the voxels in place of a result
  async conform({ scans, card, out, mask, probability }) {
    const { images, views, remarks } = await readCase(filesOf(scans), { card, first: null }, () => {}, {});
    const written = views.map((view, v) => view.channels.map((data, c) => (write(`${out}.${v}.${c}`, data), `${out}.${v}.${c}`)));
    const sources = gridsOf(card).map((grid) => along(images[0], grid, targetAffine(images[0], grid), images[0]).toSource);
    if (mask) write(mask, writeImage(Uint8Array.from(images[0].volume.data, (_, i) => i), images[0]));
    if (probability) write(probability, writeImage(Float32Array.from(images[0].volume.data, (_, i) => i), images[0]));
    return { written, affines: views.map((view) => view.affine), shapes: views.map((view) => view.shape), remarks, affine: images[0].affine, sources };
  },
  // {shape, layers...} -> probabilities of a volume in a file
  async network({ model, volume, shape, out, engine, whole, threads = 1 }) {
    const kernels = threads > 1 ? await engineWithThreads(new WebAssembly.Module(read(engine.replace(".wasm", "-threads.wasm"))), threads, nodeWorker) : engineOf({ engine });
    const { layers } = modelOf(model), n = shape[0] * shape[1] * shape[2];
    const data = new Float32Array(read(volume).buffer), channels = [];
    for (let at = 0; at < data.length; at += n) channels.push(data.subarray(at, at + n));
    const started = process.cpuUsage(), plan = needed(kernels, layers, channels, shape);
    const found = runNetwork(kernels, layers, channels, shape, whole), used = process.cpuUsage(started);
    const all = new Float32Array(found.length * n);
    found.forEach((map, k) => all.set(map, k * n));
    write(out, all);
    return { seconds: (used.user + used.system) / 1e6, bytes: kernels.bytes, plan };
  },
  // {scan, probabilities, shape, voxel_mm, out} -> whether the second network of a cascade has an input, which is in a file
  second({ scan, probabilities, shape, voxel_mm, out, across }) {
    const n = count(shape), parts = (data) => Array.from({ length: data.length / n }, (_, c) => data.slice(n * c, n * (c + 1)));
    const found = secondInput(parts(read(scan)), parts(new Float32Array(read(probabilities).buffer)), shape, voxel_mm, across);
    if (found) fs.writeFileSync(out, Buffer.concat(found.input));
    return { found: found !== null };
  },
  // {found, given, shape, region, voxel_mm, marked, threshold, sure, veto, out} -> mL taken back; what is left is in a file
  veto({ found, given, shape, region, voxel_mm, marked, threshold, sure, veto, out }) {
    const n = count(shape), parts = (data) => Array.from({ length: data.length / n }, (_, c) => data.slice(n * c, n * (c + 1)));
    const left = parts(new Float32Array(read(found).buffer)), seen = parts(Float32Array.from(read(given), (value) => value / 255));
    const ml = takeBack(left, marked, seen, { shape, region, voxelMm: voxel_mm }, { threshold, sure }, veto);
    fs.writeFileSync(out, Buffer.concat(left.map((one) => Buffer.from(one.buffer))));
    return { ml };
  },
  // {volume, shape, voxel_mm, orientation} -> how likely each contrast is
  contrast({ volume, shape, voxel_mm, orientation }) {
    return { likely: likelihoods(makeVolume(read(volume), shape, "u1"), voxel_mm, orientation) };
  },
  // {files, channels, out} -> the series among DICOM files, those chosen, and each of `convert` (numbers) as a NIfTI file
  async dicom({ files, channels, out, convert = [] }) {
    const found = await findSeries(files.map((name) => new File([fs.readFileSync(name)], path.basename(name))));
    const written = [], converter = convert.length ? nodeConverter() : null;
    for (const number of convert) {
      const one = found.find((series) => series.number === number), { content, remarks } = await convertSeries(converter, { ...one, shown: "series" });
      write(`${out}.${number}.nii`, content), written.push({ number, remarks });
    }
    const series = found.map(({ number, kind, whyNot, frames, study }) => ({ number, kind, whyNot, frames, study }));
    return { series, chosen: chooseSeries(found, channels).map((one) => one && one.number), written };
  },
  // {model} -> what scans will take
  plan: ({ model, engine }) => planScan(engineOf({ engine }), modelOf(model)),
  // {model, scans, mask, probability} -> files, the line of infer.py --json, and what was said meanwhile
  async segment({ model, scans, mask, probability, engine, settings }) {
    const files = filesOf(scans), steps = [];
    const result = await segment(engineOf({ engine }), modelOf(model), files, (name) => { steps.push(name); }, settings);
    if (mask) write(mask, writeImage(result.labels, result.like));
    if (probability) write(probability, writeImage(lesionProbability(result.probabilities), result.like));
    return { ...report(result, files, { mask }), middle_mm: result.middle, steps };
  },
};

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    try {
      console.log(JSON.stringify(await answers[request.what](request)));
    } catch (error) {
      console.log(JSON.stringify({ error: error.message, user: error instanceof UserError, stack: error instanceof UserError ? undefined : error.stack }));
    }
  }
}

if (require.main === module) main();
else module.exports = { answers };

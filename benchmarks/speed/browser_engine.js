// The Node side of browser_engine.py: node browser_engine.js REQUEST; prints what it found as JSON.
"use strict";

const fs = require("fs"), path = require("path"), vm = require("vm");
const root = path.join(__dirname, "../..");
const { answers } = require(path.join(root, "meshnet/sharing/page/node.js"));
const [engineClass, readModel, runNetwork] = vm.runInThisContext("[Engine, readModel, runNetwork]");
const ENGINE = path.join(root, "meshnet/kernels/engine.wasm");

async function cpuOf(work) {
  const started = process.cpuUsage(), result = await work(), used = process.cpuUsage(started);
  return [(used.user + used.system) / 1e6, result];
}

async function onnxruntimeWeb() {
  const file = (process.env.NODE_PATH || "").split(path.delimiter).map((folder) => path.join(folder, "onnxruntime-web/dist/ort.node.min.mjs")).find((one) => fs.existsSync(one));
  if (!file) throw new Error("onnxruntime-web is not in NODE_PATH: npm install onnxruntime-web in some folder, and set NODE_PATH to its node_modules");
  const ort = await import(file);
  ort.env.wasm.numThreads = 1;
  return { ort, version: JSON.parse(fs.readFileSync(path.join(path.dirname(file), "../package.json"))).version };
}

// Both engines in turn on one volume: CPU seconds of each round, and labels that differ.
async function against({ model, onnx, side, rounds }) {
  const { ort, version } = await onnxruntimeWeb();
  const { layers } = readModel(JSON.parse(fs.readFileSync(path.join(model, "config.json"))), new Uint8Array(fs.readFileSync(path.join(model, "model.safetensors"))));
  const n = side ** 3, shape = [side, side, side], volume = new Float32Array(n).map((_, i) => ((i * 7919) % 1009) / 1009);
  const engine = new engineClass(new WebAssembly.Module(fs.readFileSync(ENGINE)));
  const session = await ort.InferenceSession.create(fs.readFileSync(onnx), { executionProviders: ["wasm"] });
  const ours = [], theirs = [];
  let a, b;
  for (let i = 0; i < rounds; ++i) {
    let seconds;
    [seconds, a] = await cpuOf(() => runNetwork(engine, layers, [volume], shape, true)), ours.push(seconds);
    [seconds, b] = await cpuOf(() => session.run({ [session.inputNames[0]]: new ort.Tensor("float32", volume, [1, 1, ...shape]) })), theirs.push(seconds);
  }
  const logits = Object.values(b)[0].data, largest = (value) => a.reduce((best, _, c) => (value(c) > value(best) ? c : best), 0);
  let differ = 0;
  for (let i = 0; i < n; ++i) if (largest((c) => a[c][i]) !== largest((c) => logits[c * n + i])) ++differ;
  return { version, side, ours, onnxruntime_web: theirs, labels_differ: differ };
}

const { what, ...request } = JSON.parse(process.argv[2]);
setInterval(() => {}, 1000);  // threads alone do not keep Node alive
const work = what === "against" ? against(request) : answers[what]({ engine: ENGINE, ...request });
work.then((found) => { console.log(JSON.stringify(found)); process.exit(0); }, (error) => { console.error(String(error.message)); process.exit(1); });

// The page's worker: keeps the engine, the model and the last result, and answers the page. Whatever is asked of a result
// names its case: where that is no longer the one kept, there is no answer.
"use strict";

const MIDDLE_MM = 2;  // from the middle of the head, within which a lesion is on no side
const kept = { engine: null, model: null, result: null, id: null, converter: null };

function tell(message, transfer = []) {
  postMessage(message, transfer);
}

function show(id, result) {
  const { like } = result, scan = like.volume;
  return { what: "result", id, volume_ml: result.volume_ml, largest_ml: result.largest_ml, lesions: lesionTable(result),
           warnings: result.warnings, remarks: result.remarks, decision: result.decision, own: result.own, contrast: result.contrast, expect: result.expect,
           parts: result.parts, quality: result.quality, evidence: result.evidence, learned: result.learned, seconds: result.seconds, bytes: kept.engine.bytes, threads: kept.engine.threads, labels: result.labels.slice(),
           scan: { data: scan.data.slice(), shape: scan.shape, affine: like.affine } };
}

function lesionTable(result) {
  const side = (x) => (Math.abs(x - result.middle) < MIDDLE_MM ? "middle" : x > result.middle ? "right" : "left");
  return result.lesions.map(({ ml, centre, voxel }) => ({ ml: roundTo(ml, 3), centre, voxel, side: side(centre[0]) }));
}

// What scans take, or null where the device cannot even tell: that is said of a scan, when there is one.
function planned({ engine, model }) {
  try {
    return planScan(engine, model);
  } catch {
    return null;
  }
}

function helperWorker(source) {
  const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  return new Worker(address);  // its address is kept: Safari reads it later
}

const answers = {
  // `threaded` is the engine for `threads` threads; where they cannot be had it is done by one. `first`: of a cascade.
  async start({ engine, threaded, threads, config, weights, first }) {
    const said = (share) => tell({ what: "progress", share });
    kept.model = readModel(config, weights, first);
    if (threaded) kept.engine = await engineWithThreads(new WebAssembly.Module(threaded), Math.min(threads, MOST_THREADS), helperWorker, said).catch(() => null);
    kept.engine = kept.engine || new Engine(new WebAssembly.Module(engine), said);
    tell({ what: "ready", threads: kept.engine.threads, plan: planned(kept) });
  },
  // dcm2niix, which is loaded when DICOM files are given for the first time.
  async converter({ script, wasm }) {
    const source = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
    importScripts(source);
    URL.revokeObjectURL(source);
    kept.converter = new Converter(makeDcm2niix, new WebAssembly.Module(await gunzip(wasm)));
  },
  async sort({ files }) {
    const found = await findSeries(files, (name) => tell({ what: "sorting", name }));
    const studies = [...new Set(found.map((one) => one.study))].map((study) => found.filter((one) => one.study === study));
    tell({ what: "series", studies: studies.map((series) => ({ series, chosen: chooseSeries(series, kept.model.card.channels).map((one) => series.indexOf(one)) })) });
  },
  async segment({ id, files, settings }) {
    const read = [], said = [], reading = (what) => tell({ what: "step", name: what });
    for (const { name, file, series } of files) {
      reading("reading");
      const { content, remarks } = series ? await convertSeries(kept.converter, series, reading) : { content: new Uint8Array(await file.arrayBuffer()), remarks: [] };
      read.push({ name, content }), said.push(...remarks);
    }
    const step = (name, number, of, shape) => tell({ what: "step", name: of > 1 ? `${name}, grid ${number + 1} of ${of}` : name, shape });
    const result = await segment(kept.engine, kept.model, read, step, settings);
    result.ofScan.unshift(...said), result.warnings.unshift(...said);
    kept.result = result, kept.id = id;  // not before: where a scan is refused, the one before it stays in sight
    tell(show(id, result));
  },
  decide({ id, threshold, smallest }) {
    if (id !== kept.id) return;
    checkSettings(threshold, smallest);
    const { own, plain, vetoed, beside, like } = kept.result, decision = { threshold, sure: threshold === own.threshold ? own.sure : 0, min_lesion_mm3: smallest };
    const { probabilities, ml } = threshold === own.threshold && vetoed ? vetoed : { probabilities: plain, ml: 0 };
    const asCard = threshold === own.threshold && Math.abs(smallest - own.min_lesion_mm3) < 1e-6;  // 1000 times what is typed
    Object.assign(kept.result, decide(probabilities, like, decision, { taken: ml, learned: asCard ? learnedOf(kept.model.card, kept.result.contrast) : null, beside }), { decision, probabilities });
    const { labels, volume_ml, largest_ml, remarks, quality, evidence, learned } = kept.result;
    const warnings = kept.result.warnings = [...kept.result.ofScan, ...tooMuch(kept.model.card, volume_ml)];
    tell({ what: "decided", id, labels: labels.slice(), volume_ml, largest_ml, warnings, remarks, quality, evidence, learned, decision, lesions: lesionTable(kept.result) });
  },
  async file({ id, kind }) {
    if (id !== kept.id) return;
    const { labels, probabilities, like } = kept.result;
    const content = await gzip(writeImage(kind === "mask" ? labels : lesionProbability(probabilities), like));
    tell({ what: "file", id, kind, content }, [content.buffer]);
  },
};

let before = Promise.resolve();  // one message after the other
onmessage = ({ data }) => { before = before.then(() => answer(data)); };

async function answer(data) {
  try {
    await answers[data.what](data);
  } catch (error) {
    const memory = error instanceof RangeError || error instanceof WebAssembly.RuntimeError;
    const said = error instanceof UserError ? error.message : say(memory ? "noMemory" : "fault", data.files ? data.files[0].name : "page", String(error.message));
    tell({ what: "error", asked: data.what, id: data.id, message: said, restart: memory || error.memory === true });
  }
}

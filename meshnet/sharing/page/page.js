// What the user sees: progress and results (intake.js: files in, report.js: files out). All computing is the worker's.
"use strict";

const $ = (id) => document.getElementById(id);
const { card, build } = MODEL;
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const state = { cases: [], running: null, shown: null, result: null, worker: null, started: 0, sorts: [], names: new Set(), typing: 0 };
window.page = state;  // for whoever wants to look, and for tests
const viewer = new Viewer($("canvas"), describe);
const solid = new Solid($("solid-place"), viewer, (said) => { $("solid-said").textContent = said, showSolid(); });

// ---------------------------------------------------------------- the worker

function startWorker() {
  if (state.worker) state.worker.terminate();
  const source = URL.createObjectURL(new Blob([WORKER_SOURCE], { type: "text/javascript" }));
  const worker = state.worker = new Worker(source);
  URL.revokeObjectURL(source);
  worker.onmessage = ({ data }) => { if (worker === state.worker) heard[data.what](data); };
  worker.onerror = (event) => { event.preventDefault(); heard.error({ asked: "segment", id: state.running?.id, message: say("noMemory", state.running?.name || "page"), restart: state.running !== null }); };
  const threaded = typeof ENGINE_THREADS === "undefined" ? null : bytesOf(ENGINE_THREADS);
  state.worker.postMessage({ what: "start", engine: bytesOf(ENGINE).buffer, threaded, threads: navigator.hardwareConcurrency || 1, config: card, weights: bytesOf(MODEL.weights), first: MODEL.first ? [MODEL.first.card, bytesOf(MODEL.first.weights)] : null });
}

// A new worker, which gives back the memory of the one before, and what that one knew.
function restartWorker() {
  startWorker();
  state.shown = state.result = null;
  solid.close();
  $("result").hidden = true;
  for (const files of state.sorts) state.worker.postMessage({ what: "sort", files });
}

// Every answer names its case; what is of another than the page waits for or shows is dropped.
const heard = {
  ready({ threads, plan }) { Object.assign(state, { ready: true, threads, plan }), showExpected(); },
  step({ name, shape }) { state.step = name, state.running && shape && (state.running.voxels = voxelsOf(shape)); tick(); },
  sorting({ name }) { sorting(name); },
  series({ studies }) { state.sorts.shift(), askSeries(studies); },
  progress({ share }) { $("progress").value = share; },
  result(found) {
    const one = state.running;
    if (one?.id !== found.id) return;
    Object.assign(one, { state: "done", found: rowOf(found) });
    learn(voxelsOf(found.scan.shape), (performance.now() - state.started) / 1000);
    state.result = found, state.shown = one;
    solid.close(), viewer.open(found.scan, found.labels);
    finished();
    showResult(true);
  },
  decided(found) {
    if (state.shown?.id !== found.id) return;
    Object.assign(state.result, found);
    state.shown.found = rowOf(state.result);
    viewer.labels = found.labels;
    viewer.draw(), solid.update();
    showResult(false), showList();
  },
  file({ id, kind, content }) {
    if (state.shown?.id === id) save(content, `${state.shown.mask}_lesion${kind === "mask" ? "" : "_probability"}.nii.gz`);
  },
  // Only what went wrong while a scan is segmented is the scan's; all else is said, and the scan goes on.
  error({ asked, id, message, restart }) {
    const { running } = state, anew = restart && asked !== "start";  // a start that fails would fail again, as a converter would
    const its = running !== null && ((asked === "segment" && running.id === id) || (asked === "converter" && anew));
    if (its) running.state = "refused", running.error = message;
    else if (anew && running) running.state = "waiting";
    if (asked === "sort") state.sorts.shift(), sorting("");
    complain(message);
    if (anew) restartWorker();
    if (its || anew) finished();
  },
};

// ---------------------------------------------------------------- one scan after another

function next() {
  showList();
  if (state.running) return;
  const one = state.cases.find((each) => each.state === "waiting");
  changeable(!one);
  if (!one) return;
  Object.assign(one, { state: "running" });
  state.running = one, state.started = performance.now(), state.step = "reading";
  $("progress").value = 0;
  $("work").hidden = false;
  state.clock = setInterval(tick, 250);
  tick(), showList();
  const start = () => { if (state.running === one) state.worker.postMessage({ what: "segment", id: one.id, files: one.files }); };
  if (!one.files.some(({ series }) => series)) return start();
  loadConverter().then(start, () => heard.error({ asked: "segment", id: one.id, message: say("noConverter", one.name) }));
}

function finished() {
  clearInterval(state.clock);
  state.running = null;
  $("work").hidden = true;
  next();
}

function tick() {
  if (!state.running) return;
  const { name, voxels } = state.running, seconds = ((performance.now() - state.started) / 1000).toFixed(0);
  const { time, memory } = expected(voxels);
  $("doing").textContent = `${name}: ${state.step}, ${seconds} s${time ? ` of about ${time}, ${memory} of memory` : ""}`;
}

function cancel() {
  if (!state.running) return;
  state.running.state = state.running.found ? "done" : "cancelled";  // where it was shown before, its result stands
  if (document.activeElement === $("cancel")) $("files").focus();  // that button goes
  restartWorker();
  finished();
}

// What the worker is asked of a result is asked while it computes nothing else; what is being typed counts before that.
function changeable(yes) {
  if (!yes && state.typing) decide();
  for (const id of ["threshold", "smallest", "reset", "save-mask", "save-probability"]) $(id).disabled = !yes;
}

function askWorker(what, more) {
  if (state.shown && !state.running) state.worker.postMessage({ what, id: state.shown.id, ...more });
}

// A new decision from what the fields hold. An empty field is none.
function decide() {
  clearTimeout(state.typing), state.typing = 0;
  const fields = [$("threshold"), $("smallest")], [threshold, smallest] = fields.map(({ value }) => Number(value));
  const wrong = fields.some(({ value }) => value === "") ? "" : !(threshold >= 0 && threshold <= 1) ? say("threshold", plain(threshold))
    : smallest >= 0 ? null : say("smallest", plain(1000 * smallest));
  if (wrong === null) return askWorker("decide", { threshold, smallest: 1000 * smallest });
  if (wrong) complain(wrong);
  if (state.result) showDecision();
}

// ---------------------------------------------------------------- what a scan takes

const USUAL_VOXELS = 256 ** 3;
const voxelsOf = (shape) => shape.reduce((n, size) => n * size, 1);

// Of a scan of so many voxels, in words, by the speed that the worker measured on this device and by the scans before;
// nothing before it is known.
function expected(voxels) {
  const { plan, learnt = 1 } = state;
  if (!plan || !voxels) return {};
  const seconds = Math.max(1, Math.round(learnt * (plan.network + plan.voxel * voxels)));
  return { time: seconds < 100 ? `${seconds} s` : `${Math.round(seconds / 60)} min`, memory: `${((plan.bytes + plan.voxelBytes * voxels) / 1e9).toFixed(1)} GB` };
}

// How much longer than planned a scan took.
function learn(voxels, seconds) {
  if (state.plan) state.learnt = seconds / (state.plan.network + state.plan.voxel * voxels);
  showExpected();
}

function showExpected() {
  const { time, memory } = expected(USUAL_VOXELS);
  $("expected").textContent = !time ? "" : `A scan of 256 × 256 × 256 voxels takes about ${time} and ${memory} of memory on this device.`;
}

// ---------------------------------------------------------------- results out

function showResult(anew) {
  const { result } = state, n = result.lesions.length;
  const lesions = n === 1 ? "1 lesion" : `${n} lesions`, largest = n > 1 ? ` (largest ${inMl(result.largest_ml)})` : "";
  $("answer").textContent = `${state.shown.name}: ${n ? `${inMl(result.volume_ml)} in ${lesions}${largest}` : "no lesion was marked, which does not mean that there is none"}`;
  const looks = result.contrast ? [`looks like ${result.contrast}${result.expect ? `: ${result.expect}` : ""}`] : [];
  $("remarks").replaceChildren(...[...result.warnings, ...result.remarks, ...looks].map((text) => item(text)));
  if (anew || !state.typing) showDecision();  // nothing is written over what is being typed
  $("result").hidden = false;
  showLesions(), showDetails();
  if (anew && n) viewer.go(result.lesions[0].voxel);
  state.ticket = (state.ticket || 0) + 1;
}

function showSolid() {
  $("solid").textContent = solid.isOpen ? "Close the 3-D view" : "3-D view";
  $("solid").setAttribute("aria-expanded", String(solid.isOpen));
}

function showDecision() {
  const { threshold, min_lesion_mm3 } = state.result.decision;
  $("threshold").value = threshold, $("smallest").value = min_lesion_mm3 / 1000;
}

function showLesions() {
  const { lesions } = state.result;
  $("lesions").hidden = !lesions.length;
  const rows = lesions.slice(0, 100).map(({ ml, centre, voxel, side }, i) => row([String(i + 1), ml.toFixed(2), side, centre.map((c) => c.toFixed(0)).join(", "), button("Show", () => { viewer.go(voxel); $("canvas").focus(); }, `Show lesion ${i + 1}`)]));
  const head = document.createElement("thead"), body = document.createElement("tbody"), table = document.createElement("table");
  head.append(row(["Lesion", "Volume, mL", "Side", "Centre, mm", "View"], "th"));
  body.append(...rows), table.append(head, body);
  $("lesions").replaceChildren(table);
}

function showList() {
  $("list").hidden = state.cases.length < 2 && (state.shown !== null || !state.cases.some(({ found }) => found));
  $("rows").replaceChildren(...state.cases.map((one) => {
    const { found } = one, again = one.state === "done" && one !== state.shown ? button("Show", () => { one.state = "waiting"; next(); }, `Show ${one.name}`) : null;
    const what = document.createElement("span");
    what.append(one.state === "refused" ? one.error : one.state, ...(again ? [" ", again] : []));
    return row([one.name, what, ...(found ? [found.volume_ml.toFixed(2), String(found.lesions), found.largest_ml.toFixed(2)] : ["", "", ""])]);
  }));
}

function describe(view) {
  if (!state.result) return;
  const n = state.result.lesions.length;
  view.canvas.setAttribute("aria-label", n ? `Three planes of the scan; ${n === 1 ? "1 lesion" : `${n} lesions`} of ${inMl(state.result.volume_ml)} marked`
    : "Three planes of the scan; nothing is marked");
}

// ---------------------------------------------------------------- small parts

function loadScript(name) {
  return new Promise((done, failed) => document.head.append(Object.assign(document.createElement("script"), { src: name, onload: () => done(), onerror: failed })));
}

function note(text) {
  const line = paragraph(text);
  line.className = "note";
  $("errors").append(line);
}

function complain(message) {
  state.fault = message;
  $("errors").append(paragraph(message));
  showDetails();
}

function paragraph(content) {
  const p = document.createElement("p");
  p.append(content);
  return p;
}

function item(text) {
  const li = document.createElement("li");
  li.append(text);
  return li;
}

function button(text, action, label = text) {
  const one = Object.assign(document.createElement("button"), { type: "button", textContent: text, onclick: action });
  one.setAttribute("aria-label", label);
  return one;
}

function row(cells, kind = "td") {
  const tr = document.createElement("tr");
  tr.append(...cells.map((content) => {
    const cell = document.createElement(kind);
    if (kind === "th") cell.scope = "col";
    cell.append(content);
    return cell;
  }));
  return tr;
}

// ---------------------------------------------------------------- what the user does

for (const id of ["files", "folder"]) $(id).addEventListener("change", (event) => { take([...event.target.files]); event.target.value = ""; });
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
document.addEventListener("dragover", () => $("target").classList.add("over"));
document.addEventListener("dragleave", () => $("target").classList.remove("over"));
document.addEventListener("drop", async (event) => { $("target").classList.remove("over"); await takeDropped(event.dataTransfer); });
$("cancel").onclick = cancel;
$("made-up").onclick = () => takeMadeUp();
$("shown").onchange = (event) => { viewer.shown = event.target.checked; viewer.draw(), solid.update(); };
$("opacity").oninput = (event) => { viewer.opacity = Number(event.target.value) / 100; viewer.draw(), solid.update(); };
$("solid").onclick = () => (solid.isOpen ? solid.close() : solid.open());
for (const id of ["threshold", "smallest"]) {  // while typing too, once that pauses
  $(id).oninput = () => {  // the step is for the arrows; numbers between are as good
    const { badInput, rangeUnderflow, rangeOverflow } = $(id).validity;
    clearTimeout(state.typing), state.typing = $(id).value === "" || badInput || rangeUnderflow || rangeOverflow ? 0 : setTimeout(decide, 400);
  };
  $(id).onchange = decide;
}
$("reset").onclick = () => askWorker("decide", { threshold: state.result.own.threshold, smallest: state.result.own.min_lesion_mm3 });
for (const kind of ["mask", "probability"]) $(`save-${kind}`).onclick = () => askWorker("file", { kind });
$("save-picture").onclick = () => $("canvas").toBlob((blob) => save(blob, `${state.shown.mask}_lesion.png`));
$("save-json").onclick = () => save(JSON.stringify(reportOf()) + "\n", `${state.shown.mask}_lesion.json`, "application/json");
$("csv").onclick = () => save(csv(), "lesions.csv", "text/csv");
$("with-name").onchange = showDetails;
$("copy").onclick = copyDetails;
showDetails();
// Several threads only where the headers of the page's host isolate it; from a disk there is one.
if (self.crossOriginIsolated && navigator.hardwareConcurrency > 1) loadScript("threads.js").then(startWorker, startWorker);
else startWorker();

// What the user sees: progress, and results out (intake.js: files in). All computing is the worker's (worker.js).
"use strict";

const $ = (id) => document.getElementById(id);
const { card, build } = MODEL;
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const stem = (name) => name.replace(/\.nii(\.gz)?$/i, "");
const state = { cases: [], running: null, shown: null, result: null, worker: null, started: 0, sorts: [], names: new Set(), typing: 0 };
window.page = state;  // for whoever wants to look, and for tests
const viewer = new Viewer($("canvas"), describe);

// ---------------------------------------------------------------- the worker

function startWorker() {
  if (state.worker) state.worker.terminate();
  const source = URL.createObjectURL(new Blob([WORKER_SOURCE], { type: "text/javascript" }));
  const worker = state.worker = new Worker(source);
  URL.revokeObjectURL(source);
  worker.onmessage = ({ data }) => { if (worker === state.worker) heard[data.what](data); };
  worker.onerror = (event) => { event.preventDefault(); heard.error({ asked: "segment", id: state.running?.id, message: say("noMemory", state.running?.name || "page"), restart: state.running !== null }); };
  const threaded = typeof ENGINE_THREADS === "undefined" ? null : bytesOf(ENGINE_THREADS);
  state.worker.postMessage({ what: "start", engine: bytesOf(ENGINE).buffer, threaded, threads: navigator.hardwareConcurrency || 1, config: card, weights: bytesOf(MODEL.weights) });
}

// A new worker, which gives back the memory of the one before, and what that one knew.
function restartWorker() {
  startWorker();
  state.shown = state.result = null;
  $("result").hidden = true;
  for (const files of state.sorts) state.worker.postMessage({ what: "sort", files });
}

// Every answer names its case; what is of another than the page waits for or shows is dropped.
const heard = {
  ready({ threads }) { state.ready = true, state.threads = threads; },
  step({ name }) { state.step = name; tick(); },
  sorting({ name }) { sorting(name); },
  series({ studies }) { state.sorts.shift(), askSeries(studies); },
  progress({ share }) { $("progress").value = share; },
  result(found) {
    const one = state.running;
    if (one?.id !== found.id) return;
    Object.assign(one, { state: "done", found: rowOf(found) });
    state.result = found, state.shown = one;
    viewer.open(found.scan, found.labels);
    finished();
    showResult(true);
  },
  decided(found) {
    if (state.shown?.id !== found.id) return;
    Object.assign(state.result, found);
    state.shown.found = rowOf(state.result);
    viewer.labels = found.labels;
    viewer.draw();
    showResult(false), showList();
  },
  file({ id, kind, content }) {
    if (state.shown?.id === id) save(content, `${stem(state.shown.name)}_lesion${kind === "mask" ? "" : "_probability"}.nii.gz`);
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
  const seconds = ((performance.now() - state.started) / 1000).toFixed(0);
  $("doing").textContent = `${state.running.name}: ${state.step}, ${seconds} s`;
}

function cancel() {
  if (!state.running) return;
  state.running.state = state.running.found ? "done" : "cancelled";  // where it was shown before, its result stands
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
  const wrong = fields.some(({ value }) => value === "") ? "" : !(threshold >= 0 && threshold <= 1) ? say("threshold", general(threshold))
    : smallest >= 0 ? null : say("smallest", general(1000 * smallest));
  if (wrong === null) return askWorker("decide", { threshold, smallest: 1000 * smallest });
  if (wrong) complain(wrong);
  if (state.result) showDecision();
}

// ---------------------------------------------------------------- results out

function showResult(anew) {
  const { result } = state, n = result.lesions.length, ml = (value) => value.toFixed(2);
  const lesions = n === 1 ? "1 lesion" : `${n} lesions`, largest = n > 1 ? ` (largest ${ml(result.largest_ml)} mL)` : "";
  $("answer").textContent = `${state.shown.name}: ${n ? `${ml(result.volume_ml)} mL in ${lesions}${largest}` : "no lesion was marked, which does not mean that there is none"}`;
  const looks = result.contrast ? [`looks like ${result.contrast}${result.expect ? `: ${result.expect}` : ""}`] : [];
  $("remarks").replaceChildren(...[...result.warnings, ...result.remarks, ...looks].map((text) => item(text)));
  if (anew || !state.typing) showDecision();  // nothing is written over what is being typed
  $("result").hidden = false;
  showLesions(), showDetails();
  if (anew && n) viewer.go(result.lesions[0].voxel);
  state.ticket = (state.ticket || 0) + 1;
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
  view.canvas.setAttribute("aria-label", n ? `Three planes of the scan; ${n === 1 ? "1 lesion" : `${n} lesions`} of ${state.result.volume_ml.toFixed(2)} mL marked`
    : "Three planes of the scan; nothing is marked");
}

// A result's line in the table and in the CSV.
function rowOf({ volume_ml, lesions, largest_ml, warnings, remarks, decision: { threshold, min_lesion_mm3 } }) {
  return { volume_ml, lesions: lesions.length, largest_ml, threshold, min_lesion_mm3, remarks: [...warnings, ...remarks] };
}

function reportOf() {
  const { result } = state, name = stem(state.shown.name);
  return { scan: state.shown.files.map((file) => file.name), mask: `${name}_lesion.nii.gz`, volume_ml: result.volume_ml,
           lesions: result.lesions.length, largest_ml: result.largest_ml, warnings: result.warnings, remarks: result.remarks,
           parts: result.parts, quality: result.quality, seconds: result.seconds, contrast: result.contrast, expect: result.expect, ...result.decision, model: build.model };
}

// For a report of a fault: with a result or without one.
function details() {
  const { result, fault } = state, named = $("with-name").checked;
  const page = { page: `${build.version}, engine ${build.engine.slice(0, 12)}, model ${build.model.slice(0, 12)}`, browser: navigator.userAgent };
  const lines = { ...page, ...(fault ? { error: named ? fault : withoutNames(fault) } : {}), ...(result ? detailsOf(result) : {}) };
  if (named && state.shown) lines.scan = state.shown.name;
  return Object.entries(lines).map(([name, value]) => `${name}: ${value}`).join("\n");
}

function withoutNames(text) {
  const names = [...state.names].filter(Boolean).sort((a, b) => b.length - a.length);  // of what was given: none is put into a report unasked
  return names.reduce((left, name) => left.replaceAll(name, "scan"), text);
}

function detailsOf(result) {
  return {
    grid: result.scan.shape.join(" x "), seconds: `${result.seconds} (${Object.entries(result.parts).map(([k, v]) => `${k} ${v}`).join(", ")})`,
    memory: `${(result.bytes / 1e6).toFixed(0)} MB for the network`, threads: String(result.threads), said: [...result.warnings, ...result.remarks].join("; ") || "nothing",
  };
}

function showDetails() {
  $("details").textContent = details(), $("copied").textContent = "";
}

// Where a page may not write to the clipboard (plain http) the text is selected and copied as by hand.
async function copyDetails() {
  let done = await (navigator.clipboard ? navigator.clipboard.writeText(details()).then(() => true, () => false) : false);
  if (!done) getSelection().selectAllChildren($("details")), done = document.execCommand("copy");
  $("copied").textContent = done ? "Copied." : "Not copied: the browser refuses it. The text is selected, copy it by hand.";
}

function csv() {
  const quote = (text) => (/[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const safe = (text) => (/^[=+\-@\t\r]/.test(text) ? `'${text}` : text);  // no formula in a spreadsheet
  const cell = (value) => (typeof value === "number" ? String(value) : quote(safe(value))), numbers = ["volume_ml", "lesions", "largest_ml", "threshold", "min_lesion_mm3"];
  const lines = state.cases.map(({ name, state: how, found, error }) => [name, how, ...numbers.map((one) => found?.[one] ?? ""), error || (found?.remarks || []).join("; ")]);
  return [["scan", "state", ...numbers, "remarks"], ...lines].map((line) => line.map(cell).join(",")).join("\n") + "\n";
}

function save(content, name, type = "application/octet-stream") {
  state.saved = { name, content };
  const link = document.createElement("a"), address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  Object.assign(link, { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

// ---------------------------------------------------------------- small parts

function loadScript(name) {
  return new Promise((done, failed) => document.head.append(Object.assign(document.createElement("script"), { src: name, onload: () => done(), onerror: failed })));
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
$("shown").onchange = (event) => { viewer.shown = event.target.checked; viewer.draw(); };
for (const id of ["threshold", "smallest"]) {  // while typing too, once that pauses
  $(id).oninput = () => {  // the step is for the arrows; numbers between are as good
    const { badInput, rangeUnderflow, rangeOverflow } = $(id).validity;
    clearTimeout(state.typing), state.typing = $(id).value === "" || badInput || rangeUnderflow || rangeOverflow ? 0 : setTimeout(decide, 400);
  };
  $(id).onchange = decide;
}
$("reset").onclick = () => askWorker("decide", { threshold: state.result.own.threshold, smallest: state.result.own.min_lesion_mm3 });
for (const kind of ["mask", "probability"]) $(`save-${kind}`).onclick = () => askWorker("file", { kind });
$("save-picture").onclick = () => $("canvas").toBlob((blob) => save(blob, `${stem(state.shown.name)}_lesion.png`));
$("save-json").onclick = () => save(JSON.stringify(reportOf()) + "\n", `${stem(state.shown.name)}_lesion.json`, "application/json");
$("csv").onclick = () => save(csv(), "lesions.csv", "text/csv");
$("with-name").onchange = showDetails;
$("copy").onclick = copyDetails;
showDetails();
// Several threads only where the headers of the page's host isolate it; from a disk there is one.
if (self.crossOriginIsolated && navigator.hardwareConcurrency > 1) loadScript("threads.js").then(startWorker, startWorker);
else startWorker();

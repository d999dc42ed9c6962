// What the user sees: progress, and results out (intake.js: files in). All computing is the worker's (worker.js).
"use strict";

const $ = (id) => document.getElementById(id);
const { card, build } = MODEL;
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const stem = (name) => name.replace(/\.nii(\.gz)?$/i, "");
const state = { cases: [], running: null, shown: null, result: null, worker: null, started: 0, waiting: null };
window.page = state;  // for whoever wants to look, and for tests
const viewer = new Viewer($("canvas"), describe);

// ---------------------------------------------------------------- the worker

function startWorker() {
  if (state.worker) state.worker.terminate();
  const source = URL.createObjectURL(new Blob([WORKER_SOURCE], { type: "text/javascript" }));
  state.worker = new Worker(source);
  URL.revokeObjectURL(source);
  state.worker.onmessage = ({ data }) => heard[data.what](data);
  state.worker.onerror = (event) => { event.preventDefault(); heard.error({ id: state.running?.id, message: say("noMemory", state.running?.name || "page"), restart: state.running !== null }); };
  const threaded = typeof ENGINE_THREADS === "undefined" ? null : bytesOf(ENGINE_THREADS);
  state.worker.postMessage({ what: "start", engine: bytesOf(ENGINE).buffer, threaded, threads: navigator.hardwareConcurrency || 1, config: card, weights: bytesOf(MODEL.weights) });
}

const heard = {
  ready({ threads }) { state.ready = true, state.threads = threads; },
  step({ name }) { state.step = name; tick(); },
  sorting({ name }) { sorting(name); },
  series({ studies }) { askSeries(studies); },
  progress({ share }) { $("progress").value = share; },
  result(found) {
    const one = state.running;
    Object.assign(one, { state: "done", found: { volume_ml: found.volume_ml, lesions: found.lesions.length, largest_ml: found.largest_ml } });
    one.found.remarks = [...found.warnings, ...found.remarks];
    state.result = found, state.shown = one;
    viewer.open(found.scan, found.labels);
    finished();
    showResult(true);
  },
  decided(found) {
    Object.assign(state.result, found);
    Object.assign(state.shown.found, { volume_ml: found.volume_ml, lesions: found.lesions.length, largest_ml: found.largest_ml });
    viewer.labels = found.labels;
    viewer.draw();
    showResult(false), showList();
  },
  file({ kind, content }) {
    state.fileReady = kind;
    save(content, `${stem(state.shown.name)}_lesion${kind === "mask" ? "" : "_probability"}.nii.gz`);
  },
  error({ id, message, restart }) {
    const one = state.cases.find((each) => each.id === id) || state.running;
    if (one) one.state = "refused", one.error = message;
    complain(message);
    if (restart) startWorker();  // which gives its memory back
    finished();
  },
};

// ---------------------------------------------------------------- one scan after another

function next() {
  showList();
  if (state.running) return;
  const one = state.cases.find((each) => each.state === "waiting");
  if (!one) return;
  Object.assign(one, { state: "running" });
  state.running = one, state.started = performance.now(), state.step = "reading";
  $("progress").value = 0;
  $("work").hidden = false, $("result").hidden = true;
  state.clock = setInterval(tick, 250);
  tick(), showList();
  const start = () => { if (state.running === one) state.worker.postMessage({ what: "segment", id: one.id, files: one.files }); };
  if (!one.files.some(({ series }) => series)) return start();
  loadConverter().then(start, () => heard.error({ id: one.id, message: say("noConverter", one.name) }));
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
  state.running.state = "cancelled";
  startWorker();
  finished();
}

// ---------------------------------------------------------------- results out

function showResult(anew) {
  const { result } = state, n = result.lesions.length, ml = (value) => value.toFixed(2);
  const lesions = n === 1 ? "1 lesion" : `${n} lesions`, largest = n > 1 ? ` (largest ${ml(result.largest_ml)} mL)` : "";
  $("answer").textContent = `${state.shown.name}: ${n ? `${ml(result.volume_ml)} mL in ${lesions}${largest}` : "no lesion was marked, which does not mean that there is none"}`;
  const looks = result.contrast ? [`looks like ${result.contrast}${result.expect ? `: ${result.expect}` : ""}`] : [];
  $("remarks").replaceChildren(...[...result.warnings, ...result.remarks, ...looks].map((text) => item(text)));
  $("threshold").value = result.decision.threshold, $("smallest").value = result.decision.min_lesion_mm3 / 1000;
  $("result").hidden = false;
  showLesions();
  $("details").textContent = details();
  if (anew && n) viewer.go(result.lesions[0].voxel);
  state.ticket = (state.ticket || 0) + 1;
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
  $("list").hidden = state.cases.length < 2;
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

function reportOf() {
  const { result } = state, name = stem(state.shown.name);
  return { scan: state.shown.files.map((file) => file.name), mask: `${name}_lesion.nii.gz`, volume_ml: result.volume_ml,
           lesions: result.lesions.length, largest_ml: result.largest_ml, warnings: result.warnings, remarks: result.remarks,
           parts: result.parts, quality: result.quality, seconds: result.seconds, contrast: result.contrast, expect: result.expect, ...result.decision, model: build.model };
}

function details() {
  const { result } = state, lines = {
    page: `${build.version}, engine ${build.engine.slice(0, 12)}, model ${build.model.slice(0, 12)}`, browser: navigator.userAgent,
    grid: result.scan.shape.join(" x "), seconds: `${result.seconds} (${Object.entries(result.parts).map(([k, v]) => `${k} ${v}`).join(", ")})`,
    memory: `${(result.bytes / 1e6).toFixed(0)} MB for the network`, threads: String(result.threads), said: [...result.warnings, ...result.remarks].join("; ") || "nothing",
  };
  if ($("with-name").checked) lines.scan = state.shown.name;
  return Object.entries(lines).map(([name, value]) => `${name}: ${value}`).join("\n");
}

function csv() {
  const quote = (text) => (/[",\n]/.test(text) ? `"${String(text).replace(/"/g, '""')}"` : String(text));
  const safe = (text) => (/^[=+\-@\t]/.test(text) ? `'${text}` : text);  // no formula in a spreadsheet
  const lines = state.cases.map((one) => [safe(one.name), one.state, one.found?.volume_ml ?? "", one.found?.lesions ?? "", one.found?.largest_ml ?? "", one.error || (one.found?.remarks || []).join("; ")]);
  return [["scan", "state", "volume_ml", "lesions", "largest_ml", "remarks"], ...lines].map((line) => line.map(quote).join(",")).join("\n") + "\n";
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
  $("errors").append(paragraph(message));
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
document.addEventListener("drop", async (event) => { $("target").classList.remove("over"); take(await droppedFiles(event.dataTransfer)); });
$("cancel").onclick = cancel;
$("shown").onchange = (event) => { viewer.shown = event.target.checked; viewer.draw(); };
const decide = () => state.worker.postMessage({ what: "decide", threshold: Number($("threshold").value), smallest: 1000 * Number($("smallest").value) });
for (const id of ["threshold", "smallest"]) {  // while typing too, once that pauses
  $(id).oninput = () => { clearTimeout(state.typing); if ($(id).value !== "" && $(id).validity.valid) state.typing = setTimeout(decide, 400); };
  $(id).onchange = () => { clearTimeout(state.typing); decide(); };
}
$("reset").onclick = () => state.worker.postMessage({ what: "decide", threshold: state.result.own.threshold, smallest: state.result.own.min_lesion_mm3 });
$("save-mask").onclick = () => state.worker.postMessage({ what: "file", kind: "mask" });
$("save-probability").onclick = () => state.worker.postMessage({ what: "file", kind: "probability" });
$("save-picture").onclick = () => $("canvas").toBlob((blob) => save(blob, `${stem(state.shown.name)}_lesion.png`));
$("save-json").onclick = () => save(JSON.stringify(reportOf()) + "\n", `${stem(state.shown.name)}_lesion.json`, "application/json");
$("csv").onclick = () => save(csv(), "lesions.csv", "text/csv");
$("with-name").onchange = () => { $("details").textContent = details(); };
$("copy").onclick = () => navigator.clipboard?.writeText(details());
// Several threads only where the headers of the page's host isolate it; from a disk there is one.
if (self.crossOriginIsolated && navigator.hardwareConcurrency > 1) loadScript("threads.js").then(startWorker, startWorker);
else startWorker();

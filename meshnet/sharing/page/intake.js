// Files in: NIfTI files, one for each channel, DICOM files and folders.
"use strict";

// The files of a drop, those in folders too.
// A file itself is taken from the drop's own list, at once: of a page on a disk some browsers refuse what an entry would
// give. `lost` is given the names of folders that could not be read.
async function droppedFiles(transfer, lost = []) {
  const files = [...transfer.files], items = [...(transfer.items || [])].filter(({ kind }) => kind !== "string");
  const entries = items.map((item) => item.webkitGetAsEntry?.());
  if (!entries.some(Boolean)) return files;
  const found = entries.map((entry, i) => {
    const file = files.length === entries.length ? files[i] : files.find(({ name }) => name === entry?.name);
    if (file && (!entry || entry.isFile)) return [file];
    return entry ? below(entry).catch(() => { lost.push(entry.name); return []; }) : [];
  });
  return (await Promise.all(found)).flat();
}

async function takeDropped(transfer) {
  const lost = [], files = await droppedFiles(transfer, lost);
  await take(files);
  for (const name of lost) state.names.add(name), complain(say("noFolder", name));
}

async function below(entry, folder = "") {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    return [Object.assign(file, { below: folder + file.name, inFolder: folder !== "" })];
  }
  const reader = entry.createReader(), entries = [];
  for (let some; (some = await new Promise((done, failed) => reader.readEntries(done, failed))).length;) entries.push(...some);  // a hundred at a time
  return (await Promise.all(entries.map((one) => below(one, `${folder}${entry.name}/`)))).flat();
}

const pathOf = (file) => file.below || file.webkitRelativePath || file.name;

// Files to cases; DICOM files are sorted first. What lies in a folder is grouped by its names.
async function take(files) {
  $("errors").replaceChildren(), $("channels").hidden = true;
  const inFolder = [], alone = [], dicom = [];
  for (const file of files) state.names.add(pathOf(file)).add(belowOf(pathOf(file))).add(file.name).add(pathOf(file).split("/")[0]);
  for (const file of files) {
    const path = pathOf(file), folder = path.includes("/") || file.inFolder === true, one = { path, file };
    if (folder && /(^|\/)(\.|__MACOSX)/.test(path)) continue;  // what systems leave behind
    if (/\.nii(\.gz)?$/i.test(file.name)) (folder ? inFolder : alone).push({ ...one, own: await carriesOurName(file) });
    else if (await isImage(file)) dicom.push(one);
    else if (!folder) alone.push(one);  // which is refused in a line
  }
  if (dicom.length) {
    sorting(`DICOM, ${dicom.length === 1 ? "1 file" : `${dicom.length} files`}`);
    state.sorts.push(dicom.sort(byPath).map(({ file }) => file));  // until it is answered: a new worker is asked again
    state.worker.postMessage({ what: "sort", files: state.sorts.at(-1) });
  }
  takeFolder(inFolder, files.length > 0 && !alone.length && !dicom.length ? pathOf(files[0]).split("/")[0] : null);
  takeAlone(alone);
}

// `name`: of the folder where nothing else was given, which then has to hold scans.
function takeFolder(files, name) {
  const { cases, notes, error } = casesOf(files, card.channels);
  if (error && files.length === card.channels.length) return askOrder(files);
  for (const text of notes) note(text);
  if (error) complain(error);
  else if (name !== null && !cases.length) complain(say("noScan", name));
  for (const files of cases) add(files);
}

// With several channels, files that are given at once are one case, or as many as their names tell.
function takeAlone(files) {
  const { channels } = card;
  if (channels.length === 1 || files.length < 2) {
    const { scans, notes, error } = withoutGivenMasks(files);
    for (const text of notes) note(text);
    if (error) complain(error);
    return scans.forEach((file) => add([file]));
  }
  if (files.length === channels.length) return askOrder(files);
  const [cases, rest] = together(files, channels);
  if (rest.length) return complain(say("channels", files[0].path, files.length, channels.length, channels.join(", "), channels.map((c) => `${c}.nii.gz`).join(",")));
  for (const files of cases) add(files);
}

async function isImage(file) {
  return (await file.slice(128, 132).text().catch(() => "")) === "DICM" && file.name.toUpperCase() !== "DICOMDIR";
}

// A case of files {path, file} or {path, series}.
function add(files) {
  const { names, mask } = namesOf(files.map(({ path }) => path), state.cases.map(({ name }) => name));
  for (const name of [...names, mask]) state.names.add(name).add(stem(name));
  const read = files.map(({ file, series }, i) => ({ name: names[i], ...(series ? { series } : { file }) }));
  state.cases.push({ id: state.cases.length, name: names[0], mask, files: read, state: "waiting" });
  next();
}

function ask(question, fields, then) {
  const box = $("channels"), go = button("Segment", () => { box.hidden = true; then(); });
  box.replaceChildren(paragraph(question), ...fields, go);
  box.hidden = false;
  go.focus();
}

function choice(label, options, chosen) {
  const field = document.createElement("label"), select = document.createElement("select");
  options.forEach((text, i) => select.add(new Option(text, i, false, i === chosen)));
  field.append(`${label}: `, select);
  return [paragraph(field), select];
}

// Which file is which channel: by its name where that says it, and the user decides.
function askOrder(files) {
  const { channels } = card, left = [...files];
  const says = (path, c) => ending(path, channels) === c || (ending(path, channels) === null && baseOf(path).toLowerCase().includes(channels[c].toLowerCase()));
  const guess = channels.map((_, c) => {
    const at = left.findIndex(({ path }) => says(path, c));
    return at < 0 ? null : left.splice(at, 1)[0];
  }).map((file) => file || left.shift());
  const choices = channels.map((channel, c) => choice(channel, files.map(({ path }) => path), files.indexOf(guess[c])));
  ask("Which file is which channel?", choices.map(([field]) => field), () => add(choices.map(([, select]) => files[select.value])));
}

// ---------------------------------------------------------------- DICOM

function sorting(what) {
  state.sorting = what !== "";
  $("sorting").textContent = what && `Reading ${what}`;
}

// dcm2niix from its own file, which is not loaded before it is needed; each worker is given it once.
async function loadConverter() {
  if (typeof DCM2NIIX === "undefined") await loadScript("dcm2niix.js");
  if (state.converter === state.worker) return;
  state.converter = state.worker;
  state.worker.postMessage({ what: "converter", script: DCM2NIIX.script, wasm: bytesOf(DCM2NIIX.wasm) });
}

// Which series is which channel: proposed by descriptions, and the user decides.
function askSeries(studies) {
  sorting("");
  if (!studies.length) return complain(say("noDicom", "DICOM"));
  const { channels } = card, chosen = [], fields = [];
  studies.forEach(({ series, chosen: proposed }, s) => {
    if (studies.length > 1) fields.push(paragraph(`Study ${s + 1} of ${studies.length}`));
    const options = series.map((one) => `${one.number}: ${one.description || "without a description"} (${one.whyNot || one.kind || "of an unknown kind"}, ${one.frames} slices)`);
    const most = series.reduce((best, one, i) => (one.frames > series[best].frames ? i : best), 0);
    const selects = channels.map((channel, c) => {
      const [field, select] = choice(channel, options, proposed[c] < 0 ? most : proposed[c]);
      if (proposed[c] < 0) field.append(" No series looks like this by its description; choose it yourself.");
      fields.push(field);
      return select;
    });
    chosen.push(() => add(selects.map((select) => scanOf(series[select.value], studies.length > 1 ? `study-${s + 1}_` : ""))));
  });
  const [{ series, chosen: [only] }] = studies;
  if (studies.length === 1 && series.length === 1 && channels.length === 1 && only === 0) return chosen[0]();
  ask("Which series is to be segmented?", fields, () => chosen.forEach((start) => start()));
}

// A series as a scan; its name tells nothing about the patient.
function scanOf(series, before) {
  const shown = `series ${series.number} '${series.description || "without a description"}'`;
  return { path: `${before}series-${String(series.number).padStart(3, "0")}.nii`, series: { ...series, shown } };
}

// Files of a folder to cases, and their names: meshnet/cohort/files.py. A file is {path, ...}; the path begins with the
// folder that was given, and is what the user sees of it below that.
"use strict";

const MASKS = ["_lesion", "_lesion_probability"];  // endings of what this program writes
// Names of other programs' masks: their endings, and BIDS's entity for what a mask is of.
const FOREIGN = /(^|[_-])((lesion)?mask|msk|roi|d?seg|probseg|labels?)$|(^|_)label-.*$/i;
const MASK_END = new RegExp(`${FOREIGN.source}|(${MASKS.join("|")})$`, "i"), OUR_NAME = "MeshNet";
const SHOWN = 3;  // files that a note names
const ALIASES = new Map(Object.entries({ dwi: "DWI", trace: "DWI", adc: "ADC", t2starw: "T2starw", swi: "T2starw", ct: "CT",
  t1: "T1w", t2: "T2w", t1w: "T1w", t2w: "T2w", flair: "FLAIR", pdw: "PDw" }));

const baseOf = (path) => path.slice(path.lastIndexOf("/") + 1);
const parentOf = (path) => path.slice(0, Math.max(0, path.lastIndexOf("/")));
const stem = (name) => name.replace(/\.nii(\.gz)?$/i, "");
const belowOf = (path) => path.slice(path.indexOf("/") + 1);

// Folder by folder, as Python sorts paths.
function byPath(one, other) {
  const a = one.path.split("/"), b = other.path.split("/"), at = a.findIndex((part, i) => part !== b[i]);
  return at < 0 ? a.length - b.length : b[at] === undefined || a[at] > b[at] ? 1 : -1;
}

// The kinds of scan that a model takes for a channel, the preferred first.
function kindsOf(channel) {
  const names = channel.trim().split(/\s*,\s*(?:or\s+)?|\s+or\s+/).filter(Boolean);
  return names.length ? names.map((name) => ALIASES.get(name.toLowerCase()) || name) : [channel];
}

function isChannel(name, channel) {
  const kinds = kindsOf(channel), known = [channel, ...kinds].map((one) => one.toLowerCase());
  return known.includes(name.toLowerCase()) || kinds.includes(kindsOf(name)[0]);
}

// Which channel the last part of a file's name says; null for none or several.
function ending(path, channels) {
  const last = stem(baseOf(path)).split(/[_-]/).pop(), found = [...channels.keys()].filter((c) => isChannel(last, channels[c]));
  return found.length === 1 ? found[0] : null;
}

// Whether a file is a mask or a probability map that this program wrote, by its header (meshnet/scans/ours.py).
async function carriesOurName(file) {
  const start = await beginning(file).catch(() => new Uint8Array());
  if (start.length < OUR_NAME.length + 240) return false;
  const view = new DataView(start.buffer, start.byteOffset), sizes = [view.getInt32(0, true), view.getInt32(0, false)];
  const at = sizes.includes(348) ? 148 : sizes.includes(540) ? 240 : null;
  return at !== null && [...OUR_NAME].every((letter, i) => start[at + i] === letter.charCodeAt(0));
}

// The first bytes of a file, unpacked: what comes out before the stream learns that it is cut off, or that it is none.
async function beginning(file) {
  const bytes = new Uint8Array(await file.slice(0, 1 << 14).arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new DecompressionStream("gzip"), reader = stream.readable.getReader(), writer = stream.writable.getWriter();
  const first = reader.read();
  for (const end of [writer.write(bytes), writer.close(), writer.closed, reader.closed]) end.catch(() => {});
  const { value } = await first;
  return value || new Uint8Array();
}

// The NIfTI files of a folder without masks, with what is said of those. A file that this program wrote is `own`.
function withoutMasks(files, where) {
  const masks = files.filter(({ path }) => MASKS.some((end) => stem(path).endsWith(end)));
  const scans = new Set(files.filter((file) => !masks.includes(file)).map(({ path }) => stem(path)));
  const besideNone = masks.filter(({ path }) => !MASKS.some((end) => stem(path).endsWith(end) && scans.has(stem(path).slice(0, -end.length))));
  const foreign = files.filter((file) => !file.own && (FOREIGN.test(stem(baseOf(file.path))) || besideNone.includes(file)));
  return [files.filter((file) => !file.own && !masks.includes(file) && !foreign.includes(file)), leftOut(files.filter(({ own }) => own), foreign, where)];
}

// Of files that are given by themselves, those that are no masks: ones that this program wrote, and ones whose names end as a
// mask's do; where all do, only those that have the name of another one with such an ending. {scans, notes, error}
function withoutGivenMasks(files) {
  const names = files.map(({ path }) => stem(path)), own = files.filter((file) => file.own);
  const named = files.filter((file) => !file.own && MASK_END.test(stem(baseOf(file.path))));
  const foreign = own.length + named.length < files.length ? named : named.filter((file) => names.includes(stem(file.path).replace(MASK_END, "")));
  const scans = files.filter((file) => !own.includes(file) && !foreign.includes(file)), all = files.length > 0 && !scans.length;
  return { scans, notes: all ? [] : leftOut(own, foreign, "the files given"), error: all ? say("onlyMasks", listed(files)) : null };
}

function leftOut(own, foreign, where) {
  return [...(own.length ? [say("ours", where, own.length === 1 ? "1 file" : `${own.length} files`, listed(own))] : []),
          ...(foreign.length ? [say("passedOver", where, listed(foreign))] : [])];
}

// The cases of several channels: files of one subfolder with the same name but for the channel at its end, in the order of
// the model's channels; and the files of none: [cases, alone].
function together(files, channels) {
  const groups = new Map(), alone = [];
  for (const file of files) {
    const place = ending(file.path, channels), key = `${parentOf(file.path)}/${stem(baseOf(file.path)).replace(/[^_-]*$/, "")}`;
    if (!groups.has(key)) groups.set(key, []);
    if (place === null || groups.get(key)[place]) alone.push(file);
    else groups.get(key)[place] = file;
  }
  const found = [...groups.values()], whole = (group) => channels.every((_, c) => group[c]);
  return [found.filter(whole), [...alone, ...found.filter((group) => !whole(group)).flatMap((group) => group.filter(Boolean))]];
}

function listed(files) {
  return files.slice(0, SHOWN).map(({ path }) => baseOf(path)).join(", ") + (files.length > SHOWN ? ` and ${files.length - SHOWN} more` : "");
}

// The NIfTI files that a folder holds as cases, each a list of files in the order of the channels: {cases, notes, error}.
function casesOf(files, channels) {
  const folder = files.length ? files[0].path.split("/")[0] : "", [scans, notes] = withoutMasks(files.slice().sort(byPath), folder);
  if (channels.length === 1) return { cases: scans.map((file) => [file]), notes, error: null };
  const [cases, alone] = together(scans, channels), all = channels.join(", ");
  let error = null;
  if (scans.length && !cases.length) error = say("noCase", folder, all, channels[0]);
  else if (alone.length) notes.push(say("lacking", folder, all, listed(alone)));
  return { cases, notes, error };
}

// What the mask of a case is named after: the scan, or what the names of its channels have in common (their folder where
// they are named by the channel alone).
function caseName(paths) {
  const names = paths.map((path) => stem(baseOf(path))), first = names[0];
  if (names.length === 1) return first;
  const parts = names.map((name) => name.match(/[^_-]+[_-]?/g) || []), common = [];
  while (parts.every((each) => each.length > common.length && each[common.length] === parts[0][common.length])) common.push(parts[0][common.length]);
  const shared = common.join("").replace(/[_-]+$/, "");
  return shared || (ALIASES.has(first.toLowerCase()) && baseOf(parentOf(paths[0]))) || first;
}

// What the files of a case are called, by their paths below the folder, or by their whole paths where another case has that
// name already; and the beginning of its mask's name, in which the folders come first.
function namesOf(paths, taken) {
  const names = taken.includes(belowOf(paths[0])) ? paths : paths.map(belowOf), own = caseName(names);
  const folders = parentOf(names[0]).split("/").filter(Boolean);
  if (own === folders[folders.length - 1]) folders.pop();
  return { names, mask: [...folders, own].join("_") };
}

// A text with "scan" for each of some names, the longest first: none is put into a report unasked.
function withoutNames(text, names) {
  const whole = (name) => new RegExp(`(?<![\\p{L}\\p{N}])${name.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")}(?![\\p{L}\\p{N}])`, "gu");
  return [...names].filter(Boolean).sort((a, b) => b.length - a.length).reduce((left, name) => left.replace(whole(name), "scan"), text);
}

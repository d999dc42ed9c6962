// What a result is written to: the report, the table of scans, details for a report of a fault; and files out.
"use strict";

// A result's line in the table and in the CSV.
function rowOf({ volume_ml, lesions, largest_ml, warnings, remarks, decision: { threshold, min_lesion_mm3 } }) {
  return { volume_ml, lesions: lesions.length, largest_ml, threshold, min_lesion_mm3, remarks: [...warnings, ...remarks] };
}

function reportOf() {
  const { result } = state;
  return { scan: state.shown.files.map((file) => file.name), mask: `${state.shown.mask}_lesion.nii.gz`, volume_ml: result.volume_ml,
           lesions: result.lesions.length, largest_ml: result.largest_ml, warnings: result.warnings, remarks: result.remarks,
           parts: result.parts, quality: result.quality, quality_from: qualityFrom(result), seconds: result.seconds, contrast: result.contrast, expect: result.expect, ...result.decision, model: build.model, ...(build.first ? { first: build.first } : {}) };
}

// For a report of a fault: with a result or without one.
function details() {
  const { result, fault } = state, named = $("with-name").checked;
  const page = { page: `${build.version}, engine ${build.engine.slice(0, 12)}, model ${build.model.slice(0, 12)}${build.first ? ` behind ${build.first.slice(0, 12)}` : ""}`, browser: navigator.userAgent };
  const lines = { ...page, ...(fault ? { error: named ? fault : withoutNames(fault, state.names) } : {}), ...(result ? detailsOf(result) : {}) };
  if (named && state.shown) lines.scan = state.shown.name;
  return Object.entries(lines).map(([name, value]) => `${name}: ${value}`).join("\n");
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

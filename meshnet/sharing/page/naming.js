// Which kind of scan a file's name says: meshnet/scans/naming.py.
"use strict";

const TOKENS = new Map([...ALIASES, ...Object.entries({ mprage: "T1w", mp2rage: "T1w", spgr: "T1w", t1c: "T1w", t1ce: "T1w", t1gd: "T1w",
  t1wi: "T1w", t2wi: "T2w", t2tse: "T2w", t2flair: "FLAIR", b1000: "DWI", b800: "DWI", t2star: "T2starw", pd: "PDw", bold: "BOLD" })]);
const LAST = ["ct", "pd"];  // which are initials as well: only at the end of a name
const ENTITY = /^(sub|ses|acq|ce|rec|run|space|desc|res|den|from|to|mode|task|dir|part|echo|inv|chunk)-/i;  // of BIDS
const LOOK = { T1w: T1W, T2w: T2W, FLAIR: OTHER, DWI: OTHER };

// null where it says none, or several
function kindInName(path) {
  const plain = stem(baseOf(path)).split("_").filter((part) => !ENTITY.test(part)).join("_").toLowerCase();
  const words = plain.replace(/t2[_.\s-]?flair/g, "flair").split(/[^a-z0-9]+/).filter(Boolean);
  const found = new Set(words.filter((word, i) => TOKENS.has(word) && (!LAST.includes(word) || i === words.length - 1)).map((word) => TOKENS.get(word)));
  return found.size === 1 ? [...found][0] : null;
}

// Where the names of a case's files say another kind of scan than the model is for, or than the scan looks like.
function nameRemarks(paths, channels, looks) {
  if (paths.length !== channels.length) return [];
  const known = new Set(TOKENS.values()), where = (channel) => (channels.length > 1 ? ` in this place (channel ${channel})` : "");
  return paths.flatMap((path, c) => {
    const said = kindInName(path), wanted = kindsOf(channels[c]);
    if (said === null || !wanted.every((kind) => known.has(kind))) return [];  // a channel called "image" takes anything
    if (!wanted.includes(said)) return [say("named", said, channels[c], where(channels[c]))];
    return looks && (LOOK[said] || looks) !== looks ? [say("namedLooks", said, looks)] : [];
  });
}

// From probabilities to a mask: meshnet/scans/mask.py.
"use strict";

const MASK = { SEEN: 0.4 };

// Which probabilities decide on a scan that looks like `contrast`: lists of indices into the classes, of which each list is
// summed. Where other classes count as well, the marked one alone comes first (Marks.of).
function decisive(card, contrast) {
  if (card.marks === null) return card.classes.length === 2 ? [[1]] : card.classes.map((_, k) => [k]);
  const one = card.classes.indexOf(card.marks), { also = [] } = decisionOf(card, contrast);
  return also.length ? [[one], [one, ...also.map((name) => card.classes.indexOf(name))]] : [[one]];
}

// What makes a lesion on a scan that looks like `contrast`: {threshold, sure, min_lesion_mm3}, and `also` (Card.decision).
function decisionOf(card, contrast) {
  const { threshold, sure = 0, min_lesion_mm3 } = card;
  const { first_share: _, own_weights: __, quality: ___, mentions: ____, veto, ...own } = (card.contrasts || {})[contrast] || {};
  return { threshold, sure, min_lesion_mm3, ...own, ...(veto && veto.sure !== undefined ? { sure: veto.sure } : {}) };
}

// What share of the result the first network of a cascade has on a scan that looks like `contrast` (Card.share).
function shareOf(card, contrast) {
  return ((card.contrasts || {})[contrast] || {}).first_share ?? card.first_share;
}

// What takes back lesions of a cascade there, {bias, weights} or null (Card.veto).
function vetoOf(card, contrast) {
  return ((card.contrasts || {})[contrast] || {}).veto || null;
}

// What else a network sees, from its probabilities `found` on its own grid: [name, mL] of each class that the card mentions
// there, if it reaches the mL named there (seen_beside).
function seenBeside(found, { classes, contrasts, voxel_mm: edge }, contrast) {
  const { mentions = {} } = (contrasts || {})[contrast] || {}, least = f32(MASK.SEEN);
  const ml = (name) => (found[classes.indexOf(name)].reduce((sum, value) => sum + (value >= least), 0) * edge ** 3) / 1000;
  const { also = [] } = decisionOf({ contrasts }, contrast);
  return Object.keys(mentions).filter((name) => !also.includes(name)).map((name) => [name, ml(name)]).filter(([name, volume]) => volume >= mentions[name]);
}

// What the model's makers say about scans that look like `contrast` (cohort/lines.py).
function expectOf(card, contrast) {
  return ((card.about || {}).trust || {})[contrast] || null;
}

// Labels, uint8, from the decisive probabilities.
function labelsOf(probabilities, threshold) {
  const found = new Uint8Array(probabilities[0].length);
  if (probabilities.length <= 2) {
    const one = probabilities[probabilities.length - 1], least = f32(threshold);  // numpy compares in float32
    for (let i = 0; i < found.length; ++i) found[i] = Number(one[i] >= least);
    return found;
  }
  const top = probabilities[0].slice();
  for (let k = 1; k < probabilities.length; ++k) {
    const one = probabilities[k];
    for (let i = 0; i < found.length; ++i) if (one[i] > top[i]) top[i] = one[i], found[i] = k;
  }
  return found;
}

function voxelMm3(affine) {
  return Number(Math.abs(determinant(affine)).toPrecision(9));
}

// The connected parts of a mask whose last axis lies closest together: {parts, sizes, boxes}, parts numbered from 1.
// `corners`: voxels that touch by an edge or a corner are connected too.
function components(mask, shape, corners = true) {
  const [nx, ny, nz] = shape, parts = new Int32Array(mask.length), sizes = [], boxes = [], steps = [];
  for (let i = -1; i <= 1; ++i)
    for (let j = -1; j <= 1; ++j)
      for (let k = -1; k <= 1; ++k) {
        const apart = Math.abs(i) + Math.abs(j) + Math.abs(k);
        if (apart && (corners || apart === 1)) steps.push(i, j, k, (i * ny + j) * nz + k);
      }
  let waiting = new Int32Array(1024);
  for (let start = 0; start < mask.length; ++start) {
    if (!mask[start] || parts[start]) continue;
    const number = sizes.length + 1;
    let length = 1, size = 0, x0 = nx, x1 = 0, y0 = ny, y1 = 0, z0 = nz, z1 = 0;
    waiting[0] = start, parts[start] = number;
    while (length) {
      const at = waiting[--length], x = Math.floor(at / (ny * nz)), y = Math.floor(at / nz) % ny, z = at % nz;
      ++size;
      if (x < x0) x0 = x;
      if (x > x1) x1 = x;
      if (y < y0) y0 = y;
      if (y > y1) y1 = y;
      if (z < z0) z0 = z;
      if (z > z1) z1 = z;
      if (length + 26 > waiting.length) {
        const larger = new Int32Array(2 * waiting.length);
        larger.set(waiting);
        waiting = larger;
      }
      const inner = x > 0 && x < nx - 1 && y > 0 && y < ny - 1 && z > 0 && z < nz - 1;
      for (let s = 0; s < steps.length; s += 4) {
        const next = at + steps[s + 3];
        if (!inner) {
          const i = x + steps[s], j = y + steps[s + 1], k = z + steps[s + 2];
          if (i < 0 || i >= nx || j < 0 || j >= ny || k < 0 || k >= nz) continue;
        }
        if (mask[next] && !parts[next]) parts[next] = number, waiting[length++] = next;
      }
    }
    sizes.push(size), boxes.push([[x0, x1 + 1], [y0, y1 + 1], [z0, z1 + 1]]);
  }
  return { parts, sizes, boxes };
}

// Labels in a file's order without the 26-connected lesions that nowhere reach the probability `sure`, and those smaller
// than `min_lesion_mm3`, and what was found: {labels, lesions: [{ml, voxels, centre}], unsure and dropped (mL), parts}.
// Lesions are in order of their size. `probability` is the one that decides.
function clean(every, shape, affine, { threshold, sure, min_lesion_mm3: smallest }, probability) {
  const each = voxelMm3(affine), { parts, sizes, boxes } = components(every, shape.slice().reverse());
  const peaks = new Float32Array(sizes.length).fill(-Infinity), least = sure > threshold ? f32(sure) : -Infinity;
  for (let at = 0; at < every.length; ++at) if (parts[at] && probability[at] > peaks[parts[at] - 1]) peaks[parts[at] - 1] = probability[at];
  const keep = sizes.map((size, n) => peaks[n] >= least && (!(smallest > 0) || size * each >= smallest));
  const labels = every.slice(), sums = sizes.map(() => [0, 0, 0]);
  let dropped = 0, unsure = 0;
  for (let at = 0; at < labels.length; ++at) {
    if (!parts[at]) continue;
    const number = parts[at] - 1;
    if (!keep[number]) {
      labels[at] = 0;
      if (peaks[number] >= least) ++dropped;
      else ++unsure;
    }
    const sum = sums[number];
    sum[0] += at % shape[0], sum[1] += Math.floor(at / shape[0]) % shape[1], sum[2] += Math.floor(at / shape[0] / shape[1]);
  }
  const lesions = sizes.map((size, n) => ({ ml: (size * each) / 1000, voxels: size, number: n + 1, box: boxes[n].slice().reverse(),
    centre: apply(affine, [...sums[n].map((sum) => sum / size), 1]).slice(0, 3), voxel: sums[n].map((sum) => Math.round(sum / size)) }))
    .filter((_, n) => keep[n]).sort((a, b) => b.voxels - a.voxels);
  return { labels, lesions, unsure: (unsure * each) / 1000, dropped: (dropped * each) / 1000, parts };
}

// What a decision leaves: everything that a reader of the mask is told. `taken`: mL that a veto took back. `learned`: how the
// quality is told, null where another decision than the card's own is taken. `beside`: of seenBeside.
function decide(probabilities, like, decision, { taken, learned, beside }) {
  const every = labelsOf(probabilities, decision.threshold), remarks = [];
  const found = clean(every, like.volume.shape, like.affine, decision, probabilities[probabilities.length - 1]);
  if (taken) remarks.push(say("taken", inMl(taken)));
  if (found.unsure) remarks.push(say("unsure", inMl(found.unsure), plain(decision.sure)));
  if (found.dropped) remarks.push(say("dropped", inMl(found.dropped), plain(decision.min_lesion_mm3 / 1000)));
  for (const [name, ml] of beside) remarks.push(say("beside", fixed(ml, 0), name));
  const each = voxelMm3(like.affine), total = found.lesions.reduce((sum, lesion) => sum + lesion.voxels * each, 0);
  const largest = found.lesions.length ? found.lesions[0].voxels * each : 0;
  const evidence = evidenceOf(probabilities, found.labels, each, largest / 1000, found.unsure + found.dropped);
  return { ...found, volume_ml: roundTo(total / 1000, 3), largest_ml: roundTo(largest / 1000, 3), evidence, learned: Boolean(learned),
           quality: qualityOf(evidence, learned), remarks };
}

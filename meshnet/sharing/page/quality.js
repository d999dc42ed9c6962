// How good a mask may be: meshnet/scans/quality.py.
"use strict";

const QUALITY = { EMPTY_ML: 8, LEAST_ML: 0.1 };

// What the quality of a mask is made of, in mL (evidence_of). `largest` and `dropped` are in mL.
function evidenceOf(probabilities, labels, each, largest, dropped) {
  const lesion = lesionProbability(probabilities);
  let within = 0, expected = 0, marked = 0;
  for (let i = 0; i < labels.length; ++i) {
    expected += lesion[i];
    if (labels[i]) within += lesion[i], ++marked;
  }
  const ml = each / 1000;
  return { expected_ml: expected * ml, within_ml: within * ml, marked_ml: marked * ml, largest_ml: largest, dropped_ml: dropped };
}

// How likely the mask is of use, as `learned` from synthetic heads, or the Dice to be expected if the probabilities are right
// (Learned.of, Evidence.dice).
function qualityOf(found, learned) {
  const { expected_ml: expected, within_ml: within, marked_ml: marked, largest_ml: largest, dropped_ml: dropped } = found;
  if (!learned) {
    const one = marked ? 1 : QUALITY.EMPTY_ML;
    return roundTo((2 * within + one) / (expected + marked + one), 3);
  }
  const log = (ml) => Math.log(QUALITY.LEAST_ML + ml);
  const values = marked ? [logitOf(within / marked), log(marked), log(largest), log(dropped)] : [log(expected), log(dropped)];
  const [bias, ...weights] = marked ? learned.marked : learned.empty;
  const score = weights.reduce((sum, weight, at) => sum + weight * values[at], bias);
  return roundTo(1 / (1 + Math.exp(-Math.min(50, Math.max(-50, score)))), 3);
}

// How the quality of the card's own decision is told there, {marked, empty} or null (Card.quality).
function learnedOf(card, contrast) {
  return ((card.contrasts || {})[contrast] || {}).quality || null;
}

// The label rule on 8-bit maps, and the painting of its results; pure functions of arrays.
//
// `fuse` gives what labelling.labels.fuse gives in Python for scores q / 255 (see pictures.py).
// Float32 numbers, like PyTorch's: a comparison in double precision would differ at the edge.

const IGNORE = 255;
const HATCH = {period: 6, light: [255, 255, 255], dark: [96, 96, 96]}; // pixels left open

/** Labels (n) of maps (K * n bytes) of 0-based classes.
 *  salient: n bytes of 0 and 1, or null: then alpha itself is the background's score. */
function fuse(maps, n, classes, salient, alpha, rule, ignore = true) {
  const threshold = Math.fround(alpha), certain = Math.fround(rule.conflictScore);
  const score = new Float32Array(256);
  for (let q = 0; q < 256; q++) {
    const value = Math.fround(q / 255);
    score[q] = value < threshold ? 0 : value;
  }
  const labels = new Uint8Array(n);
  for (let i = 0; i < n; i++) {
    const background = salient ? 1 - salient[i] : threshold;
    let best = background, label = 0, conflicts = background > certain ? 1 : 0;
    for (let k = 0; k < classes.length; k++) {
      const value = score[maps[k * n + i]];
      if (value > best) { // the first of equal maxima stays
        best = value;
        label = classes[k] + 1;
      }
      if (value > certain) conflicts++;
    }
    const open = conflicts > rule.conflictCount || (background === 0 && label === 0);
    labels[i] = ignore && open ? IGNORE : label;
  }
  return labels;
}

/** Index and byte of the strongest map at pixel i; {class: -1} where there is none. */
function strongest(maps, n, classes, i) {
  let best = {class: -1, byte: 0};
  for (let k = 0; k < classes.length; k++) {
    const byte = maps[k * n + i];
    if (byte > best.byte) best = {class: classes[k], byte};
  }
  return best;
}

/** Mean IoU over the labels in the mask; a pixel left open counts as missed. */
function meanIou(labels, mask, count) {
  const hits = new Float64Array(count), union = new Float64Array(count);
  const truth = new Float64Array(count);
  for (let i = 0; i < mask.length; i++) {
    const wanted = mask[i], got = labels[i];
    if (wanted === IGNORE) continue;
    truth[wanted]++;
    union[wanted]++;
    if (got === wanted) hits[wanted]++;
    else if (got !== IGNORE) union[got]++;
  }
  let sum = 0, present = 0;
  for (let label = 0; label < count; label++) {
    if (!truth[label]) continue;
    sum += hits[label] / union[label];
    present++;
  }
  return present ? sum / present : null;
}

/** [label, share of the picture] of the labels found, the largest first, background left out. */
function shares(labels) {
  const pixels = new Uint32Array(256);
  for (const label of labels) pixels[label]++;
  return [...pixels.entries()].filter(([label, count]) => label && count)
    .map(([label, count]) => [label, count / labels.length])
    .sort((a, b) => (a[0] === IGNORE) - (b[0] === IGNORE) || b[1] - a[1]);
}

/** 256 colours [r, g, b, a] as numbers that can be written into a canvas's pixels at once. */
function packed(colors) {
  return new Uint32Array(Uint8Array.from(colors.flat()).buffer);
}

/** Labels in their colours; background is transparent, pixels left open are hatched.
 *  only: show this label alone; null: all. */
function paintLabels(labels, width, palette, only = null) {
  const image = new ImageData(width, labels.length / width);
  const pixels = new Uint32Array(image.data.buffer);
  const table = packed(palette.map((color, label) =>
    [...color, label && (only === null || label === only) ? 255 : 0]));
  const [light, dark] = packed([[...HATCH.light, 255], [...HATCH.dark, 255]]);
  for (let i = 0; i < labels.length; i++) {
    if (labels[i] !== IGNORE) {
      pixels[i] = table[labels[i]];
    } else {
      const stripe = (i % width + Math.floor(i / width)) % HATCH.period < HATCH.period / 2;
      pixels[i] = stripe ? light : dark;
    }
  }
  return image;
}

// A ramp whose lightness rises evenly (after Matplotlib's inferno), so that it needs no colours.
const RAMP = [[0, 0, 4], [31, 12, 72], [85, 15, 109], [136, 34, 106], [186, 54, 85], [227, 89, 51],
  [249, 140, 10], [249, 201, 50], [252, 255, 164]];
const FADED = 110; // opacity, of 255, of what is below alpha

function heatColor(byte) {
  const place = byte / 255 * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((c, i) => Math.round(c + (RAMP[low + 1][i] - c) * (place - low)));
}

/** The strongest map, or that of one label, as heat; below alpha it fades. */
function paintHeat(maps, n, width, classes, alpha, only = null) {
  const image = new ImageData(width, n / width);
  const pixels = new Uint32Array(image.data.buffer), threshold = Math.fround(alpha);
  const table = packed(Array.from({length: 256}, (_, byte) =>
    [...heatColor(byte), Math.fround(byte / 255) >= threshold ? 255 : FADED]));
  const chosen = only === null ? classes : classes.filter(index => index === only - 1);
  const starts = chosen.map(index => classes.indexOf(index) * n);
  for (let i = 0; i < n; i++) {
    let highest = 0;
    for (const start of starts) highest = Math.max(highest, maps[start + i]);
    pixels[i] = table[highest];
  }
  return image;
}

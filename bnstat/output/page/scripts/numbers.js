// The data of the page that Python wrote, and the packed numbers that it refers to.

const DATA = JSON.parse(document.getElementById("data").textContent);
const ROLES = ["gamma", "beta", "moving mean", "moving variance"];
const GAMMA = 0, BETA = 1, MEAN = 2, VARIANCE = 3;

const stored = unpacked(document.getElementById("numbers").textContent);

function unpacked(text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let place = 0; place < raw.length; place++) bytes[place] = raw.charCodeAt(place);
  return bytes.buffer;
}

/** The typed array at a place [bytes per number, count, first byte]; null for no place. */
function numbersAt(place) {
  if (!place) return null;
  const [width, count, start] = place;
  const part = stored.slice(start, start + width * count);
  return width === 4 ? new Float32Array(part) : new Float64Array(part);
}

/** The numbers of a role of a row in a frame, or null. */
function numbersOf(row, frame, role) {
  return row.stored[frame] ? numbersAt(row.stored[frame][role]) : null;
}

/**
 * The [scale, shift] of a layer, or null if they are unknown.
 * Each step has the precision of BatchNorm.scale_and_shift, so that the bits are the same.
 */
function scaleAndShift(row, frame, assumed) {
  const [gamma, beta, mean, variance] = ROLES.map((_, role) => numbersOf(row, frame, role));
  const told = row.epsilon[frame] ?? assumed;
  if (!mean || !variance || told === null || !Number.isFinite(told)) return null;
  if ([gamma, beta, mean].some((each) => each && each.length !== variance.length)) return null;
  const kind = variance instanceof Float64Array ? Float64Array : Float32Array;
  const fit = kind === Float64Array ? (number) => number : Math.fround;
  const epsilon = fit(told);
  const scale = new kind(variance.length), shift = new kind(variance.length);
  for (let channel = 0; channel < variance.length; channel++) {
    let factor = fit(1 / fit(Math.sqrt(fit(variance[channel] + epsilon))));
    if (gamma) factor = fit(factor * gamma[channel]);
    const offset = fit(-mean[channel] * factor);
    scale[channel] = factor;
    shift[channel] = beta ? fit(offset + beta[channel]) : offset;
  }
  return [scale, shift];
}

/** The index of a channel, or one index per dimension: 0:3:1. */
function channelName(row, channel) {
  if (!row.shape) return String(channel);
  const indices = [];
  for (const size of [...row.shape].reverse()) {
    indices.unshift(channel % size);
    channel = Math.floor(channel / size);
  }
  return indices.join(":");
}

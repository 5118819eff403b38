// Scales of charts: they map any range of numbers, however large or small, to 0..1.

/**
 * A scale over the finite numbers of some arrays: `at` maps a number to 0..1, or to null if it
 * cannot be drawn; `ticks` are [position, text]. On a logarithmic scale, only numbers above 0 have
 * a position.
 */
function scaleOver(arrays, logarithmic) {
  const through = logarithmic ? Math.log10 : (value) => value;
  let low = Infinity, high = -Infinity;
  for (const values of arrays) {
    for (const value of values) {
      const at = through(value);
      if (!Number.isFinite(at)) continue;
      if (at < low) low = at;
      if (at > high) high = at;
    }
  }
  if (low > high) [low, high] = [0, 1];
  if (low === high) {
    const room = Math.abs(low) * 0.1 || 1;
    [low, high] = [Math.max(low - room, -Number.MAX_VALUE), Math.min(low + room, Number.MAX_VALUE)];
  }
  const half = high / 2 - low / 2; // high - low may overflow
  const place = (at) => (half > 0 ? (at / 2 - low / 2) / half : 0.5);
  const at = (value) => {
    const shown = through(value);
    return Number.isFinite(shown) ? place(shown) : null;
  };
  return {at, ticks: ticksOf(low, high, logarithmic).map(([tick, text]) => [place(tick), text])};
}

function ticksOf(low, high, logarithmic) {
  let step = niceStep((high - low) / 5);
  if (logarithmic && high - low >= 1.5) step = Math.max(1, Math.round(step));
  if (!(step > 0) || !Number.isFinite(step)) return [];
  const first = Math.ceil(low / step - 1e-9), ticks = [];
  for (let number = first; number * step <= high + step * 1e-9 && ticks.length < 12; number++) {
    const tick = number * step;
    ticks.push([tick, logarithmic ? powerText(tick) : tickText(tick, step)]);
  }
  return ticks;
}

/** The smallest 1, 2 or 5 times a power of ten that is at least a number. */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((times) => times * power).find((step) => step >= least * 0.999);
}

function powerText(power) {
  return String(Number((10 ** power).toPrecision(2))).replace("e+", "e");
}

/** A tick with the digits that distinguish it from its neighbours. */
function tickText(tick, step) {
  const last = Math.floor(Math.log10(step) + 1e-9);
  if (Math.abs(tick) < step / 2) return "0";
  if (last >= -5 && Math.abs(tick) < 1e5) return tick.toFixed(Math.max(0, -last));
  const first = Math.floor(Math.log10(Math.abs(tick)) + 1e-9);
  return tick.toExponential(Math.min(15, Math.max(0, first - last))).replace("e+", "e");
}

// The summary of a role, with the same numbers as bnstat.model.Summary.

const summaries = new Map();

/** Count, bad (NaN or infinite), and the mean, std, min and max of the finite numbers. */
function summary(values) {
  let bad = 0, total = 0, min = Infinity, max = -Infinity;
  for (const value of values) {
    if (!Number.isFinite(value)) { bad++; continue; }
    total += value;
    if (value < min) min = value;
    if (value > max) max = value;
  }
  const good = values.length - bad;
  if (!good) return {count: values.length, bad, mean: NaN, std: NaN, min: NaN, max: NaN};
  const mean = total / good;
  let squares = 0;
  for (const value of values) if (Number.isFinite(value)) squares += (value - mean) ** 2;
  return {count: values.length, bad, mean, std: Math.sqrt(squares / good), min, max};
}

/** The summary of a role of a row in a frame; null if the layer lacks it. */
function summaryOf(row, frame, role) {
  const place = row.stored[frame]?.[role];
  if (!place) return null;
  if (!summaries.has(place)) summaries.set(place, summary(numbersAt(place)));
  return summaries.get(place);
}

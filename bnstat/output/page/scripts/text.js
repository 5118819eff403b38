// Numbers and tables as text: brief for display, exact for export.

/** A number with a few significant digits, for display. */
function brief(value, digits = 3) {
  if (value === null || value === undefined) return "";
  if (typeof value === "string") return value;
  if (!Number.isFinite(value)) return exact(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) {
    return value.toExponential(digits - 1).replace(/\.?0*e\+?/, "e");
  }
  const text = value.toPrecision(digits);
  return text.includes("e") ? String(Math.round(value)) : text;
}

/** A mean and a deviation, with the precision that the deviation allows: 1.09±0.13. */
function pair(mean, deviation) {
  if (!Number.isFinite(mean)) return "NaN";
  const small = Math.max(Math.abs(mean), deviation);
  if (!(deviation > 0) || small >= 1e4 || small < 1e-2) {
    return `${brief(mean, 2)}±${brief(deviation, 2)}`;
  }
  const decimals = Math.min(4, Math.max(0, 1 - Math.floor(Math.log10(deviation))));
  return `${mean.toFixed(decimals)}±${deviation.toFixed(decimals)}`;
}

/** The shortest number that reads back as the same number, as float32 if `single`. */
function exact(value, single = false) {
  if (value === null || value === undefined) return "";
  if (single && Number.isFinite(value)) {
    // Every float32 except the smallest has at least six exact digits.
    for (let digits = Math.abs(value) < 1e-37 ? 1 : 6; digits <= 9; digits++) {
      const near = Number(value.toPrecision(digits));
      if (Math.fround(near) === value) return String(near);
    }
  }
  return Object.is(value, -0) ? "-0" : String(value);
}

/** The exact texts of a typed array. */
function exactAll(values) {
  return Array.from(values, (value) => exact(value, values instanceof Float32Array));
}

/** A name shortened in the middle, because the ends of layers' names distinguish them. */
function shortened(name, most) {
  if (name.length <= most) return name;
  const end = Math.ceil(most * 0.6);
  return `${name.slice(0, most - end - 1)}…${name.slice(-end)}`;
}

function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** Rows of cells as CSV (RFC 4180); a ' precedes text that a spreadsheet would run as a formula. */
function csv(rows) {
  return rows.map((cells) => cells.map(csvCell).join(",")).join("\r\n") + "\r\n";
}

function csvCell(cell) {
  let text = String(cell);
  if (/^[=+\-@\t\r]/.test(text) && !/^-?(\d|Infinity$)/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Offer text to the user as a file to save. */
function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  link.download = `${name.replace(/[^\w.-]+/g, "_").slice(-80)}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Copy rows of cells to the clipboard, for a spreadsheet; the button confirms it. */
async function copy(rows, button) {
  const text = rows.map((cells) => cells.join("\t")).join("\n");
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copyBySelection(text);
  }
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = label; }, 900);
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Connect the buttons that export a table: `rows` returns its rows, the first are titles. */
function takeAway(copyButton, csvButton, name, rows) {
  copyButton.addEventListener("click", () => copy(rows(), copyButton));
  csvButton.addEventListener("click", () => save(name(), csv(rows())));
}

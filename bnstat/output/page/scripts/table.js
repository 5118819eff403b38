// The table of layers: its columns, the rows that a search finds, and their order.

const GRAVITY = ["error", "warning", "info"];
const SIGNS = {error: "✕", warning: "▲", info: "●"};

const marksOf = DATA.rows.map(() => []);
for (const mark of DATA.marks) marksOf[mark.row].push(mark);

/** The words by which the search finds layers with a verdict. */
const WORDS = {same: "equal", "same-effect": "same in effect", different: "differs"};

const searched = DATA.rows.map((row, index) => [
  row.name,
  row.change?.was ?? "",
  row.change ? WORDS[row.change.verdict] : row.folded ? "folded" : (row.only ?? ""),
  ...marksOf[index].flatMap((mark) => [mark.rule, mark.name]),
].join("\n").toLowerCase());

/** The measures of a role: `value` to sort by, `text` to show. */
const STATISTICS = DATA.kind === "difference" ? [
  {title: "largest change", value: (change) => change?.[1], text: (change) => brief(change?.[1])},
  {title: "channels that moved", value: (change) => change?.[0],
    text: (change) => brief(change?.[0])},
  {title: "relative change", value: (change) => change?.[2], text: (change) => brief(change?.[2])},
] : [
  {title: "mean ± deviation", value: (of) => of?.mean,
    text: (of) => of ? pair(of.mean, of.std) : "–"},
  {title: "smallest", value: (of) => of?.min, text: (of) => of ? brief(of.min) : "–"},
  {title: "largest", value: (of) => of?.max, text: (of) => of ? brief(of.max) : "–"},
  {title: "not finite", value: (of) => of?.bad, text: (of) => of ? String(of.bad) : "–"},
];

/** The content of a role's column: its change, or its summary in the frame shown. */
function subjectOf(row, role) {
  return DATA.kind === "difference" ? row.change?.roles[role] : summaryOf(row, state.frame, role);
}

const COLUMNS = [
  {title: "", hint: "findings", kind: "sign",
    value: (row, index) => Math.min(3, ...marksOf[index].map(gravity)),
    text: (row, index) => signOf(index)},
  {title: "layer", kind: "name", value: (row, index) => index, text: (row) => nameCell(row)},
  {title: "ch", hint: "channels", kind: "narrow", numeric: true, value: (row) => row.channels,
    text: (row) => row.channels.toLocaleString("en")},
  ...ROLES.map((title, role) => ({
    title: title.replace("moving ", ""), hint: title, kind: "role", numeric: true,
    value: (row) => STATISTICS[state.statistic].value(subjectOf(row, role)),
    text: (row) => roleCell(row, role),
  })),
  ...(DATA.measured ? [{
    title: "divergence", hint: "of the data from the stored statistics", numeric: true,
    kind: "role", value: divergenceOf, text: (row) => brief(divergenceOf(row)),
  }] : []),
];

function gravity(mark) { return GRAVITY.indexOf(mark.severity); }

function signOf(index) {
  const marks = marksOf[index];
  if (!marks.length) return "";
  const gravest = GRAVITY[Math.min(...marks.map(gravity))];
  const title = marks.slice(0, 5).map((mark) => `${mark.rule} ${mark.name}`).join("\n");
  return {text: SIGNS[gravest], title, className: gravest};
}

function nameCell(row) {
  const only = row.folded ? " (folded)" : row.only ? ` (only in the ${row.only})`
    : row.change?.verdict === "same-effect" ? " (same in effect)" : "";
  const room = Math.max(8, (state.printing ? 40 : roomForNames) - only.length);
  return {text: shortened(row.name, room) + only, title: row.name.slice(0, 500)};
}

function roleCell(row, role) {
  const subject = subjectOf(row, role);
  const text = STATISTICS[state.statistic].text(subject);
  return subject?.bad ? {text, className: "error", title: `${subject.bad} not finite`} : text;
}

/** The mean divergence over a layer's channels, if data was measured. */
function divergenceOf(row) {
  if (!row.measured) return null;
  const divergences = numbersAt(row.measured.divergence);
  return divergences.reduce((sum, each) => sum + each, 0) / divergences.length;
}

/** The indices of the rows that the search finds, in the chosen order. */
let found = DATA.rows.map((_, index) => index);

function find() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  found = [];
  searched.forEach((text, index) => {
    if (words.every((word) => text.includes(word))) found.push(index);
  });
  if (state.sort === null) return;
  const {value} = COLUMNS[state.sort];
  const keys = new Map(found.map((index) => [index, value(DATA.rows[index], index)]));
  const sign = state.descending ? -1 : 1;
  found.sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    const [lacksX, lacksY] = [x, y].map((key) => key === null || key === undefined || key !== key);
    return lacksX - lacksY || (x === y || lacksX ? a - b : x < y ? -sign : sign);
  });
}

/** The number of characters that fit into the column of names. */
let roomForNames = 40;

function showTable() {
  const sheet = new Sheet(document.getElementById("table"), COLUMNS, {
    choose: (place) => choose(found[place]),
    sort: (column) => update(state.sort !== column ? {sort: column, descending: false}
      : state.descending ? {sort: null, descending: false} : {descending: true}),
  });
  const cells = (place) => COLUMNS.map((column) =>
    column.text(DATA.rows[found[place]], found[place]));
  const show = () => sheet.show(found.length, cells, {
    chosen: found.indexOf(state.row), sorted: state.sort, descending: state.descending,
  });
  new ResizeObserver(() => {
    roomForNames = Math.max(12, Math.floor((sheet.heads[1].clientWidth - 12) / 7.8));
    show();
  }).observe(sheet.host);
  view(["search", "sort", "descending", "statistic", "frame"], () => {
    find();
    const all = DATA.rows.length;
    document.getElementById("status").textContent = found.length === all
      ? plural(all, "layer") : `${found.length.toLocaleString("en")} of ${plural(all, "layer")}`;
    show();
  });
  view(["row", "printing"], () => {
    sheet.reveal(Math.max(0, found.indexOf(state.row)));
    show();
  });
  const [copyButton, csvButton] = ["layers-copy", "layers-csv"].map((id) =>
    document.getElementById(id));
  takeAway(copyButton, csvButton, () => "layers", layerRows);
}

/** Show a layer; on a narrow screen, where it is below the table, scroll to it. */
function choose(row) {
  update({row});
  if (innerWidth < 1100) document.getElementById("layer").scrollIntoView();
}

/** The table as rows of exact numbers. */
function layerRows() {
  if (DATA.kind === "difference") {
    const titles = ROLES.flatMap((role) => [`${role} moved`, `${role} largest change`,
      `${role} relative change`]);
    return [["layer", "channels", ...titles], ...found.map((index) => {
      const row = DATA.rows[index];
      return [row.name, row.channels, ...ROLES.flatMap((_, role) =>
        (row.change?.roles[role] ?? ["", "", ""]).map((each) => exact(each)))];
    })];
  }
  const measures = ["mean", "std", "min", "max", "bad"];
  const titles = ROLES.flatMap((role) => measures.map((measure) => `${role} ${measure}`));
  return [["layer", "channels", "findings", ...titles], ...found.map((index) => {
    const row = DATA.rows[index];
    return [row.name, row.channels, marksOf[index].map((mark) => mark.rule).join(" "),
      ...ROLES.flatMap((_, role) => {
        const of = summaryOf(row, state.frame, role);
        return measures.map((measure) => (of ? exact(of[measure]) : ""));
      })];
  })];
}

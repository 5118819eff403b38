// One layer: its facts, findings, panels and numbers.

function showLayer() {
  const panels = TITLES.map((_, title) => new Panel(title, (from, channel) => {
    for (const panel of panels) if (panel !== from) panel.point(channel);
    from.say(channel);
  }));
  document.getElementById("panels").append(...panels.map((panel) => panel.figure));
  for (const panel of panels) panel.build();
  const numbers = new NumbersSheet();

  view(["row", "frame", "order", "logarithmic", "epsilon", "printing"], () => {
    const row = DATA.rows[state.row];
    if (!row) return;
    const parts = partsOf(row);
    panels.forEach((panel, title) => panel.show(row, state.row, parts[title]));
    numbers.show(row, parts);
  });
  view(["row"], describeLayer);
  view(["dark", "printing"], () => {
    readPalette();
    for (const panel of panels) panel.redraw();
  });
}

function describeLayer() {
  const row = DATA.rows[state.row];
  const title = document.getElementById("layer-title");
  title.textContent = row ? shortened(row.name, 200) : "no batch-norm layer";
  document.getElementById("layer").classList.toggle("empty", !row);
  if (!row) return;
  const facts = [["channels", row.channels.toLocaleString("en")]];
  if (row.shape) facts.push(["shape", `[${row.shape.join(", ")}]`]);
  const epsilons = [...new Set(row.epsilon.filter((each) => each !== null))];
  facts.push(["epsilon", epsilons.length ? epsilons.join(" → ") : "not stored"], ...row.facts);
  facts.push(...changeFacts(row));
  if (row.measured) {
    facts.push(["on the data", `${row.measured.state}, divergence ${brief(divergenceOf(row))}`]);
  }
  document.getElementById("layer-facts").replaceChildren(...facts.map(([label, text]) =>
    element("span", {}, [element("span", {className: "label"}, [label]), ` ${text}`])));
  document.getElementById("layer-findings").replaceChildren(...marksOf[state.row].map((mark) =>
    element("li", {className: mark.severity}, [
      element("span", {className: `badge ${mark.severity}`}, [mark.severity]),
      ` ${mark.rule} ${mark.name}: ${mark.message}`,
    ])));
}

function changeFacts(row) {
  if (row.folded) return [["folded", row.folded]];
  if (row.only) {
    const facts = [["only in", `the ${row.only} model`]];
    return row.misfolded ? [...facts, ["folded wrongly", row.misfolded]] : facts;
  }
  if (!row.change) return [];
  const {was, match, remark, settings, verdict, meaning, causes} = row.change;
  const facts = was === null ? [] : [["was", `${shortened(was, 120)} (matched by ${match})`]];
  facts.push(...settings.map(([setting, old, now]) => [setting, `${old} → ${now}`]));
  if (remark) facts.push(["note", remark]);
  facts.push(["change", verdict === "same" ? "none" : meaning]);
  facts.push(...causes.map((cause) => ["cause", cause]));
  return facts;
}

/** The exact numbers of the layer shown; built only when they are visible. */
class NumbersSheet {
  constructor() {
    this.details = document.getElementById("numbers-details");
    this.host = document.getElementById("channels");
    this.details.addEventListener("toggle", () => this.draw());
    const [copyButton, csvButton] = ["layer-copy", "layer-csv"].map((id) =>
      document.getElementById(id));
    takeAway(copyButton, csvButton, () => this.row.name, () => this.rows());
  }

  show(row, parts) {
    this.row = row;
    this.parts = parts;
    this.draw();
  }

  columns() {
    return this.parts.flatMap((of, title) => of.flatMap((values, part) =>
      values ? [{title: partTitle(TITLES[title], part, of.length), values}] : []));
  }

  draw() {
    if (!this.details.open || !this.row) return;
    const columns = this.columns();
    const titles = columns.map(({title}) => title);
    if (titles.join() !== this.titles) {
      this.titles = titles.join();
      this.sheet = new Sheet(this.host, [{title: "channel", kind: "narrow"},
        ...titles.map((title) => ({title, numeric: true, kind: "role"}))]);
    }
    const marked = markedChannels(state.row);
    this.sheet.show(channelsOf(columns.map(({values}) => values)).length, (channel) => [
      {text: channelName(this.row, channel), className: marked.has(channel) ? "error" : ""},
      ...columns.map(({values}) => exact(values[channel], values instanceof Float32Array)),
    ]);
  }

  rows() {
    const columns = this.columns();
    const texts = columns.map(({values}) => exactAll(values));
    const channels = channelsOf(columns.map(({values}) => values));
    return [["channel", ...columns.map(({title}) => title)], ...channels.map((channel) =>
      [channelName(this.row, channel), ...texts.map((each) => each[channel] ?? "")])];
  }
}

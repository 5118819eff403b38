// Buttons and fields, each bound to a part of the state.

function bindControls() {
  const at = (id) => document.getElementById(id);

  at("search").addEventListener("input", (event) => update({search: event.target.value}));
  for (const button of document.querySelectorAll("[data-search]")) {
    button.addEventListener("click", () => {
      update({search: button.dataset.search});
      at("search").scrollIntoView({block: "nearest"});
    });
  }
  view(["search"], () => {
    if (at("search").value !== state.search) at("search").value = state.search;
  });
  for (const button of document.querySelectorAll("[data-row]")) {
    button.addEventListener("click", () => {
      update({row: Number(button.dataset.row)});
      at("layer").scrollIntoView({block: "nearest"});
    });
  }

  const options = STATISTICS.map(({title}, value) => element("option", {value}, [title]));
  at("statistic").append(...options);
  bindValue(at("statistic"), "statistic", Number);
  bindValue(at("order"), "order", String);
  at("logarithmic").addEventListener("change", (event) =>
    update({logarithmic: event.target.checked}));
  view(["logarithmic"], () => { at("logarithmic").checked = state.logarithmic; });

  at("epsilon-label").hidden = DATA.rows.every((row) =>
    row.epsilon.every((each, frame) => each !== null || !row.stored[frame]));
  at("epsilon").addEventListener("input", (event) => {
    const epsilon = Number(event.target.value.trim() || "x");
    const valid = Number.isFinite(epsilon) && epsilon >= 0;
    event.target.ariaInvalid = String(!valid && event.target.value !== "");
    update({epsilon: valid ? epsilon : null});
  });

  at("previous").addEventListener("click", () => step(-1));
  at("next").addEventListener("click", () => step(1));
  at("help-button").addEventListener("click", () => at("help").showModal());
  at("help-close").addEventListener("click", () => at("help").close());
  at("theme").addEventListener("click", () => update({dark: !state.dark}));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) =>
    update({dark: event.matches}));
  bindFrames(at("frame"), at("frame-name"));
  at("legend").append(...legend());
}

function bindValue(field, key, parse) {
  field.addEventListener("change", () => update({[key]: parse(field.value)}));
  view([key], () => { field.value = String(state[key]); });
}

function bindFrames(slider, name) {
  if (!slider) return;
  slider.max = String(DATA.frames.length - 1);
  slider.addEventListener("input", () => update({frame: Number(slider.value)}));
  view(["frame"], () => {
    slider.value = String(state.frame);
    const {checkpoint, name: text} = DATA.frames[state.frame];
    const total = plural(DATA.checkpoints.length, "checkpoint");
    name.textContent = `${shortened(text, 60)} (${checkpoint + 1} of ${total})`;
    slider.ariaValueText = name.textContent;
  });
}

/** The legend: the symbols that the charts of this page use. */
function legend() {
  const signs = [];
  if (DATA.kind === "difference") signs.push(["first", "●", "old"], ["second", "◇", "new"]);
  if (DATA.measured) signs.push(["first", "●", "stored"], ["second", "◇", "the data's"]);
  const marked = DATA.marks.some((mark) => mark.runs.length);
  if (marked) signs.push(["marked", "○", "in a finding"]);
  if (DATA.marks.some((mark) => mark.rule === "BN004")) signs.push(["marked", "▲", "not finite"]);
  return signs.map(([kind, sign, name]) => element("span", {}, [
    element("span", {className: `key ${kind}`}, [sign]), ` ${name}`,
  ]));
}

/** Set the theme of the style sheet: the chosen one, but light on paper. */
function followTheme() {
  const apply = () => {
    const dark = state.dark && !state.printing;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.getElementById("theme").textContent = state.dark ? "Light" : "Dark";
  };
  view(["dark", "printing"], apply);
}

/** On paper, all rules are open and the table is complete. */
function followPrinting() {
  const opened = [];
  const follow = (printing) => {
    if (state.printing === printing) return;
    for (const rule of printing ? document.querySelectorAll("details.rule:not([open])")
      : opened.splice(0)) {
      rule.open = printing;
      if (printing) opened.push(rule);
    }
    state.printing = printing;
    render(); // now, because there is no next frame before printing
  };
  matchMedia("print").addEventListener("change", ({matches}) => follow(matches));
  addEventListener("beforeprint", () => follow(true));
  addEventListener("afterprint", () => follow(false));
}

// Keys: arrows move through layers and checkpoints; letters do frequent tasks.

/** Move by a number of layers in the table, at most to its end. */
function step(by) {
  if (!found.length) return;
  const place = found.indexOf(state.row);
  const next = place < 0 ? 0 : Math.max(0, Math.min(found.length - 1, place + by));
  update({row: found[next]});
}

const KEYS = {
  ArrowUp: () => step(-1),
  ArrowDown: () => step(1),
  Home: () => step(-Infinity),
  End: () => step(Infinity),
  "/": () => document.getElementById("search").focus(),
  s: () => update({order: state.order === "value" ? "channel" : "value"}),
  l: () => update({logarithmic: !state.logarithmic}),
  t: () => update({dark: !state.dark}),
  "?": () => document.getElementById("help").showModal(),
};

if (DATA.kind === "history") {
  KEYS.ArrowLeft = () => update({frame: Math.max(0, state.frame - 1)});
  KEYS.ArrowRight = () => update({frame: Math.min(DATA.frames.length - 1, state.frame + 1)});
}

const IN_SEARCH = new Set(["ArrowUp", "ArrowDown"]);

function listenToKeys() {
  const search = document.getElementById("search");
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.getElementById("help").open) return;
    if (event.key === "Escape") {
      update({search: ""});
      search.blur();
      return;
    }
    const typing = event.target.matches("select, input:not([type=checkbox], [type=range])");
    if (typing && !(event.target === search && IN_SEARCH.has(event.key))) return;
    const act = KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

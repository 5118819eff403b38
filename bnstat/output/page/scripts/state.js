// The user's choices, and the views that depend on them.

const state = {
  row: DATA.marks[0]?.row ?? Math.max(0, DATA.rows.findIndex((row) => row.change?.verdict === "different")),
  frame: DATA.frames.length - 1,
  order: "channel",
  logarithmic: false,
  epsilon: null,
  search: "",
  sort: null,
  descending: false,
  statistic: 0,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  printing: false,
};

const views = [];
let scheduled = false;

/** Run `draw` now, and in each frame in which one of the state's `keys` has changed. */
function view(keys, draw) {
  let seen = keys.map((key) => state[key]);
  views.push(() => {
    const now = keys.map((key) => state[key]);
    if (now.every((value, place) => value === seen[place])) return;
    seen = now;
    draw();
  });
  draw();
}

/** Change the state. Views draw once per frame, however many changes it has. */
function update(changes) {
  Object.assign(state, changes);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(render);
}

function render() {
  scheduled = false;
  for (const follow of views) follow();
}

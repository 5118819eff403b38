// What the user chose, and the views that follow it.

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

/** Let `draw` run once now, and in each frame in which one of the state's `keys` is another. */
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

/** Change the state; however often that happens in a frame of the screen, views draw once. */
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

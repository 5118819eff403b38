// Charts: uPlot draws the axes and follows the pointer; this module draws points and bars.

const WHOLE = Array.from({length: 24}, (_, place) =>
  [1, 2, 5][place % 3] * 10 ** Math.floor(place / 3));
const PRINTED = 320; // the width of a chart on paper, where two are side by side
const MANY = 300; // channels; with more of them, dots are small
const GUTTER = 64; // the width of the distribution, to the right of the channels

const palette = {};

/** Read the colours from the style sheet; they depend on the theme and on printing. */
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "faint", "grid", "first", "second", "marked", "band"]) {
    palette[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

/** A chart in `host`: `draw(u)` draws over the x values, with y from 0 to 1 on a scale. */
class Chart {
  constructor(host, {height, gutter, xTick, series, draw, hover, click}) {
    this.host = host;
    this.scale = {ticks: []};
    const axis = {
      stroke: () => palette.faint,
      grid: {stroke: () => palette.grid, width: 1},
      ticks: {stroke: () => palette.grid, width: 1, size: 4},
      font: "11px system-ui, sans-serif",
    };
    const options = {
      width: 300,
      height,
      padding: [8, gutter, 0, 0],
      legend: {show: false},
      scales: {
        x: {time: false, range: (u, min, max) => [min - 0.5, max + 0.5]},
        y: {range: [-0.06, 1.06]},
      },
      axes: [
        {
          ...axis, size: 24, incrs: WHOLE,
          values: (u, ticks) => ticks?.map((tick) => xTick(tick)) ?? [],
        },
        {
          ...axis, size: 58,
          splits: () => this.scale.ticks.map(([place]) => place),
          values: () => this.scale.ticks.map(([, text]) => text),
        },
      ],
      series: [{}, ...series],
      cursor: {y: false, drag: {x: !click, y: false}, points: {size: 9, width: 2, fill: "#0000",
        stroke: () => palette.ink}},
      hooks: {
        draw: [draw],
        setCursor: hover ? [(u) => hover(u.cursor.idx ?? null)] : [],
      },
    };
    this.plot = new uPlot(options, [[], ...series.map(() => [])], host);
    if (click) this.plot.over.addEventListener("click", () => click(this.plot.cursor.idx));
    new ResizeObserver(() => this.resize()).observe(host);
    this.height = height;
    this.inSight = true;
    new IntersectionObserver((entries) => {
      this.inSight = entries[entries.length - 1].isIntersecting;
      if (this.inSight) this.catchUp();
    }).observe(host);
  }

  resize() {
    const width = state.printing ? PRINTED : this.host.clientWidth;
    if (width > 0 && width !== this.plot.width) this.plot.setSize({width, height: this.height});
  }

  /** Draw this data now, or when the chart becomes visible. */
  show(scale, data) {
    this.waiting = {scale, data};
    if (this.inSight || state.printing) this.catchUp();
  }

  catchUp() {
    if (!this.waiting) return;
    const {scale, data} = this.waiting;
    this.waiting = null;
    this.scale = scale;
    this.plot.setData(data, false);
    if (data[0].length) this.plot.setScale("x", {min: 0, max: data[0].length - 1});
    this.redraw();
  }

  /** Draw again with the axes, because uPlot ignores new ticks on the same range. */
  redraw() {
    this.catchUp();
    this.plot.redraw(false, true);
  }
}

/**
 * A chart of the numbers of all channels, with their distribution beside them.
 *
 * It shows one or two `parts`, {values, marked}: the first as dots, the second as diamonds. `order`
 * has the channel at each position. Channels in `marked` have a ring. Numbers that are not finite
 * are triangles at the upper edge.
 */
class ChannelChart {
  constructor(host, {hover}) {
    const unseen = {paths: () => null, points: {show: false}};
    this.order = [];
    this.chart = new Chart(host, {
      height: 150,
      gutter: GUTTER,
      xTick: (tick) => (Number.isInteger(tick) ? tick.toLocaleString("en") : ""),
      series: [unseen, unseen],
      draw: (u) => this.draw(u),
      hover: (place) => hover(place === null ? null : this.order[place] ?? null),
    });
  }

  show(parts, order, marked, {logarithmic = false, lacksFirst = false} = {}) {
    this.lacksFirst = lacksFirst;
    this.order = order;
    this.marked = marked;
    this.places = null;
    this.scale = scaleOver(parts, logarithmic);
    // The position of a number: null if it has none, undefined if there is no such channel.
    const ys = parts.map((values) => Array.from(order, (channel) =>
      channel < values.length ? this.scale.at(values[channel]) : undefined));
    this.ys = ys;
    const nothing = new Array(order.length).fill(null);
    this.chart.show(this.scale, [Array.from(order, (_, place) => place), ys[0], ys[1] ?? nothing]);
  }

  /** The position of a channel; undefined if it has none. */
  placeOf(channel) {
    this.places ??= new Map(Array.from(this.order, (at, place) => [at, place]));
    return this.places.get(channel);
  }

  /** Move the line to the channel that the pointer is at in another chart. */
  point(channel) {
    const {plot} = this.chart;
    const place = channel === null ? undefined : this.placeOf(channel);
    const left = place === undefined ? -10 : plot.valToPos(place, "x");
    plot.setCursor({left, top: left < 0 ? -10 : plot.over.clientHeight / 2}, false);
  }

  draw(u) {
    const {ctx} = u, ratio = devicePixelRatio;
    const {left, top, width, height} = u.bbox;
    ctx.save();
    const count = this.order.length;
    const size = (count > 1500 ? 1.2 : count > MANY ? 1.6 : 2.6) * ratio;
    const [x, y] = [pixels(u, "x"), pixels(u, "y")];
    const inside = (at) => at >= left && at <= left + width;
    // Squares are drawn faster, and among many of them the shape is hardly visible.
    const [first, second] = count > MANY ? [square, dash] : [dot, diamond];
    const styles = [[first, palette.first], [second, palette.second]];
    this.ys?.forEach((ys, part) => {
      const [shape, colour] = styles[part + this.lacksFirst];
      ctx.fillStyle = colour;
      ctx.beginPath();
      ys.forEach((at, place) => {
        if (isPlace(at) && inside(x(place))) shape(ctx, x(place), y(at), size);
      });
      paint(ctx, colour, shape === diamond, ratio);
      bars(ctx, ys, part, this.ys.length, {left: left + width + 8 * ratio,
        width: (GUTTER - 14) * ratio, y, colour});
      ctx.beginPath();
      ys.forEach((at, place) => {
        if (at === null && inside(x(place))) triangle(ctx, x(place), top + 5 * ratio, 4 * ratio);
      });
      paint(ctx, palette.marked, false, ratio);
    });
    ctx.beginPath();
    const ringed = this.ys?.[this.ys.length - 1] ?? [];
    for (const channel of this.marked ?? []) {
      const place = this.placeOf(channel);
      const at = ringed[place];
      if (isPlace(at) && inside(x(place))) {
        ring(ctx, x(place), y(at), (count > MANY ? 3 : 5) * ratio);
      }
    }
    paint(ctx, palette.marked, true, 1.5 * ratio);
    ctx.restore();
  }
}

/** Return a function from values to canvas pixels; uPlot's own is slow for thousands of values. */
function pixels(u, axis) {
  const start = u.valToPos(0, axis, true), unit = u.valToPos(1, axis, true) - start;
  return (value) => start + value * unit;
}

function isPlace(at) { return typeof at === "number"; }

function dot(ctx, x, y, size) {
  ctx.moveTo(x + size, y);
  ctx.arc(x, y, size, 0, 2 * Math.PI);
}

function square(ctx, x, y, size) {
  ctx.fillRect(x - size, y - size, 2 * size, 2 * size);
}

function dash(ctx, x, y, size) {
  ctx.fillRect(x - 1.5 * size, y - size / 2, 3 * size, size);
}

function diamond(ctx, x, y, size) {
  const half = size * 1.5;
  ctx.moveTo(x, y - half);
  ctx.lineTo(x + half, y);
  ctx.lineTo(x, y + half);
  ctx.lineTo(x - half, y);
  ctx.closePath();
}

function triangle(ctx, x, y, size) {
  ctx.moveTo(x - size, y + size);
  ctx.lineTo(x, y - size);
  ctx.lineTo(x + size, y + size);
  ctx.closePath();
}

function ring(ctx, x, y, size) {
  ctx.moveTo(x + size, y);
  ctx.arc(x, y, size, 0, 2 * Math.PI);
}

function paint(ctx, colour, hollow, width) {
  ctx.lineWidth = width;
  ctx.strokeStyle = ctx.fillStyle = colour;
  if (hollow) ctx.stroke();
  else ctx.fill();
}

/** Draw the distribution as bars along the y axis, two parts on opposite sides. */
function bars(ctx, ys, part, parts, {left, width, y, colour}) {
  const counts = new Array(ys.length < 50 ? 12 : 24).fill(0);
  for (const at of ys) {
    if (isPlace(at)) counts[Math.min(counts.length - 1, Math.floor(at * counts.length))]++;
  }
  const most = Math.max(...counts);
  if (!most) return;
  const room = width / parts, height = (y(0) - y(1)) / counts.length;
  ctx.fillStyle = colour;
  ctx.globalAlpha = 0.55;
  counts.forEach((count, bin) => {
    const length = (count / most) * (room - 2);
    ctx.fillRect(left + part * room, y((bin + 1) / counts.length) + 0.5, length, height - 1);
  });
  ctx.globalAlpha = 1;
}

/** A chart of one role over the checkpoints: the mean and the range. */
class TrackChart {
  constructor(host, {click}) {
    this.now = 0;
    const line = (width) => ({stroke: () => palette.first, width, points: {show: false}});
    this.chart = new Chart(host, {
      height: 96,
      gutter: GUTTER,
      xTick: (tick) => DATA.checkpoints[tick] ? checkpointName(tick) : "",
      series: [line(0.7), line(0.7), line(2)],
      draw: (u) => this.draw(u),
      click,
    });
    this.chart.plot.addBand({series: [1, 2], fill: () => palette.band});
  }

  show({mean, min, max}, now) {
    const scale = scaleOver([mean, min, max], false);
    const lines = [max, min, mean].map((values) => Array.from(values, scale.at));
    this.now = now;
    this.chart.show(scale, [Array.from(mean, (_, place) => place), ...lines]);
  }

  draw(u) {
    const {ctx} = u, at = u.valToPos(this.now, "x", true);
    ctx.save();
    ctx.beginPath();
    ctx.moveTo(at, u.bbox.top);
    ctx.lineTo(at, u.bbox.top + u.bbox.height);
    paint(ctx, palette.marked, true, 1.5 * devicePixelRatio);
    ctx.restore();
  }
}

/** The step of a checkpoint, or its name. */
function checkpointName(place) {
  const {name, step} = DATA.checkpoints[place];
  return step === null ? shortened(name, 12) : step.toLocaleString("en");
}

// The panels of a layer: one for each role, one for the scale and one for the shift.

const TITLES = [...ROLES, "scale", "shift"];
const HINTS = ["", "", "inference subtracts it", "inference divides by its square root",
  "gamma / √(moving variance + epsilon)", "beta − moving mean · scale"];
const SCALE = 4, SHIFT = 5;

/** The numbers of each panel of a row: [old, new], [stored, data], [stored] or []. */
function partsOf(row) {
  if (DATA.kind === "difference") {
    const frames = [0, 1].map((frame) => framePartsOf(row, frame));
    return TITLES.map((_, title) => frames.map((parts) => parts[title]));
  }
  const parts = framePartsOf(row, state.frame).map((values) => [values]);
  if (row.measured) {
    parts[MEAN].push(numbersAt(row.measured.mean));
    parts[VARIANCE].push(numbersAt(row.measured.variance));
  }
  return parts;
}

function framePartsOf(row, frame) {
  const effect = scaleAndShift(row, frame, state.epsilon) ?? [null, null];
  return [...ROLES.map((_, role) => numbersOf(row, frame, role)), ...effect];
}

/** The channels in the findings about a row. */
function markedChannels(index) {
  const channels = new Set();
  for (const {runs} of marksOf[index]) {
    for (let run = 0; run < runs.length; run += 2) {
      for (let place = 0; place < runs[run + 1]; place++) channels.add(runs[run] + place);
    }
  }
  return channels;
}

class Panel {
  constructor(title, hover) {
    this.title = title;
    this.name = TITLES[title];
    this.said = element("span", {className: "said"});
    const [copyButton, csvButton] = [["Copy", "Copy the numbers"], ["CSV", "Save as CSV"]].map(
      ([text, hint]) =>
        element("button", {type: "button", title: `${hint}: ${this.name}`}, [text]));
    takeAway(copyButton, csvButton, () => `${this.row.name}-${this.name}`, () => this.rows());
    this.none = element("p", {className: "none"});
    this.picture = element("div", {className: "chart", role: "img"});
    this.second = element("div", {className: "chart second", role: "img"});
    this.over = element("p", {className: "over"}, [
      DATA.kind === "history" ? "mean and range over the checkpoints" : "new - old",
    ]);
    this.figure = element("figure", {}, [
      element("figcaption", {}, [
        element("h3", {title: HINTS[title]}, [this.name]),
        element("span", {className: "tools"}, [copyButton, csvButton]),
        this.said,
      ]),
      this.none, this.picture, this.over, this.second,
    ]);
    this.hover = hover;
    this.parts = [];
    this.brief = "";
    this.picture.hidden = this.second.hidden = this.over.hidden = true;
  }

  /** Create the charts when the panel is in the document and has a size. */
  build() {
    this.chart = new ChannelChart(this.picture, {hover: (channel) => this.hover(this, channel)});
    if (DATA.kind === "history" && this.title < ROLES.length) {
      this.track = new TrackChart(this.second, {click: goToCheckpoint});
    } else if (DATA.kind === "difference") {
      this.change = new ChannelChart(this.second, {
        hover: (channel) => this.hover(this, channel),
      });
    }
  }

  show(row, index, parts) {
    this.row = row;
    this.parts = parts.filter((values) => values);
    this.lacksFirst = parts.length > 1 && !parts[0];
    const drawn = channelsOf(this.parts).length > 0;
    this.none.hidden = drawn;
    this.picture.hidden = !drawn;
    this.second.hidden = this.over.hidden = !(drawn && (this.change || this.track));
    this.none.textContent = drawn ? "" : this.whyNot();
    this.brief = this.parts.map(this.parts.length > 1 ? shortly : inBrief).join(" → ");
    this.say(null);
    if (!drawn) return;
    const marked = markedChannels(index);
    const logarithmic = this.title === VARIANCE && state.logarithmic;
    this.order = orderOf(this.parts);
    this.chart.show(this.parts, this.order, marked, {logarithmic, lacksFirst: this.lacksFirst});
    this.picture.ariaLabel = this.described(marked);
    this.showChange(marked);
    this.showTrack();
    this.over.hidden = this.second.hidden;
  }

  showChange(marked) {
    if (!this.change) return;
    const comparable = this.parts.length === 2 && this.parts[0].length === this.parts[1].length;
    const equal = comparable && this.parts[1].every((value, place) =>
      Object.is(value, this.parts[0][place]));
    this.second.hidden = !comparable || equal;
    if (equal) this.brief = `no change: ${shortly(this.parts[0])}`;
    this.say(null);
    if (this.second.hidden) return;
    const moved = Float64Array.from(this.parts[1], (value, place) =>
      Object.is(value, this.parts[0][place]) ? 0 : value - this.parts[0][place]);
    this.change.show([moved], this.order, marked);
    const {min, max, bad} = summary(moved);
    this.second.ariaLabel = `change of ${this.name}: from ${brief(min)} to ${brief(max)}` +
      (bad ? `, ${plural(bad, "channel")} not finite` : "");
  }

  showTrack() {
    const tracks = this.track && this.row.tracks[this.title];
    if (this.track) this.second.hidden = !tracks;
    if (!tracks) return;
    const [mean, , min, max] = tracks.map(numbersAt);
    this.track.show({mean, min, max}, DATA.frames[state.frame].checkpoint);
    this.second.ariaLabel = `mean ${this.name} over ${plural(mean.length, "checkpoint")}: ` +
      Array.from(mean, (value) => brief(value)).join(", ");
  }

  whyNot() {
    if (this.title < ROLES.length) {
      return this.parts.length ? "no channels" : `this layer has no ${this.name} in the file`;
    }
    const known = this.row.epsilon.some((each) => each !== null) || state.epsilon !== null;
    return known ? "unknown: the moving statistics are not in the file, or have the wrong shape"
      : "epsilon is not stored in this file; enter one above";
  }

  described(marked) {
    const of = this.parts.map((values) => {
      const {count, bad, mean, std, min, max} = summary(values);
      return [plural(count, "channel"), `mean ${brief(mean)}`, `standard deviation ${brief(std)}`,
        `from ${brief(min)} to ${brief(max)}`, ...(bad ? [`${bad} not finite`] : [])].join(", ");
    });
    const channels = [...marked].slice(0, 20).map((each) => channelName(this.row, each));
    const more = marked.size > 20 ? " and more" : "";
    return `${this.name} of ${this.row.name.slice(0, 200)}: ${of.join("; then ")}` +
      (marked.size ? `; marked by findings: channels ${channels.join(", ")}${more}` : "");
  }

  /** Show the numbers of a channel, or a summary of all channels. */
  say(channel) {
    this.said.textContent = channel === null ? this.brief
      : `channel ${channelName(this.row, channel)}: ` + this.parts.map((values) =>
        exact(values[channel], values instanceof Float32Array)).join(" → ");
  }

  point(channel) {
    this.say(channel);
    if (this.picture.hidden) return;
    this.chart.point(channel);
    if (this.change && !this.second.hidden) this.change.point(channel);
  }

  rows() {
    const titles = this.parts.map((_, part) => partTitle(this.name, part, this.parts.length));
    const texts = this.parts.map(exactAll);
    const rows = [["channel", ...titles], ...channelsOf(this.parts).map((channel) =>
      [channelName(this.row, channel), ...texts.map((each) => each[channel] ?? "")])];
    const tracks = this.track && this.row.tracks[this.title];
    if (!tracks) return rows;
    const measures = tracks.map(numbersAt);
    return [...rows, [], ["checkpoint", "step", ...DATA.measures],
      ...DATA.checkpoints.map(({name, step}, place) =>
        [name, step ?? "", ...measures.map((values) => exact(values[place]))])];
  }

  redraw() {
    if (this.picture.hidden) return;
    for (const {chart} of [this.chart, this.change, this.track].filter(Boolean)) {
      chart.resize();
      chart.redraw();
    }
  }
}

function shortly(values) {
  const {mean, std, bad} = summary(values);
  return pair(mean, std) + (bad ? ` (${bad} not finite)` : "");
}

function inBrief(values) {
  const {count, bad, mean, std, min, max} = summary(values);
  if (!count) return "";
  const wrong = bad ? `, ${bad} not finite` : "";
  return count === bad ? `${bad} not finite`
    : `${pair(mean, std)}, from ${brief(min)} to ${brief(max)}${wrong}`;
}

function partTitle(name, part, parts) {
  if (parts < 2) return name;
  return `${DATA.kind === "difference" ? ["old", "new"][part] : ["stored", "data"][part]} ${name}`;
}

/** The number of channels of the longest part. */
function channelsOf(parts) {
  return Array.from({length: Math.max(0, ...parts.map((values) => values.length))}, (_, at) => at);
}

/** The channel at each position: in order, or sorted by value with NaN at the end. */
function orderOf(parts) {
  const order = channelsOf(parts), [values] = parts;
  if (state.order === "channel") return order;
  const key = (channel) => (values[channel] >= -Infinity ? values[channel] : Infinity);
  return order.sort((a, b) => (key(a) === key(b) ? a - b : key(a) - key(b)));
}

/** Show the checkpoint nearest to the click. */
function goToCheckpoint(place) {
  if (place === null || place === undefined) return;
  const far = DATA.frames.map(({checkpoint}) => Math.abs(checkpoint - place));
  update({frame: far.indexOf(Math.min(...far))});
}

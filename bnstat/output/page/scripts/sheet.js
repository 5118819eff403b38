// A table of any length: the document has only the visible rows, but all of them in print.

const ROW_HEIGHT = 30, BEYOND = 8, MOST_PRINTED = 5000;

class Sheet {
  /**
   * `columns` are {title, hint, numeric, sortable, kind}; `choose` and `sort` are called with the
   * index of a row and of a column.
   */
  constructor(host, columns, {choose, sort} = {}) {
    this.host = host;
    this.columns = columns;
    this.table = element("table", {className: "sheet"});
    this.heads = columns.map((column, index) => this.head(column, index, sort));
    const head = element("tr", {}, this.heads);
    this.above = element("tr", {className: "spacer", ariaHidden: "true"}, [element("td")]);
    this.below = element("tr", {className: "spacer", ariaHidden: "true"}, [element("td")]);
    this.body = element("tbody", {}, [this.above, this.below]);
    this.table.append(element("thead", {}, [head]), this.body);
    this.rest = element("p", {className: "rest", hidden: true});
    host.replaceChildren(this.table, this.rest);
    this.pool = [];
    this.count = 0;
    this.cells = () => [];
    host.addEventListener("scroll", () => this.draw(), {passive: true});
    new ResizeObserver(() => this.draw()).observe(host);
    if (choose) {
      this.body.addEventListener("click", (event) => {
        const row = event.target.closest("tr[aria-rowindex]");
        if (row) choose(Number(row.ariaRowIndex) - 2);
      });
    }
  }

  head(column, index, sort) {
    const cell = element("th", {scope: "col", className: this.className(column)});
    if (sort && column.sortable !== false) {
      const button = element("button", {type: "button", title: column.hint ?? ""}, [column.title]);
      button.addEventListener("click", () => sort(index));
      cell.append(button);
    } else {
      cell.append(column.title);
    }
    return cell;
  }

  className(column) {
    return `${column.numeric ? "number" : "text"} ${column.kind ?? ""}`.trim();
  }

  /** Show `count` rows; `cells(row)` gives {text, title, className} or text for each column. */
  show(count, cells, {chosen = -1, sorted = null, descending = false} = {}) {
    this.count = count;
    this.cells = cells;
    this.chosen = chosen;
    this.table.ariaRowCount = String(count + 1);
    this.heads.forEach((head, index) => {
      head.ariaSort = index === sorted ? (descending ? "descending" : "ascending") : null;
    });
    this.draw();
  }

  /** Scroll to a row. */
  reveal(row) {
    const head = this.heads[0].offsetHeight;
    const top = row * ROW_HEIGHT, sight = this.host.clientHeight - head;
    if (top < this.host.scrollTop) this.host.scrollTop = top;
    else if (top + ROW_HEIGHT > this.host.scrollTop + sight) {
      this.host.scrollTop = top + ROW_HEIGHT - sight;
    }
  }

  draw() {
    const all = state.printing ? Math.min(this.count, MOST_PRINTED) : null;
    const sight = Math.ceil(this.host.clientHeight / ROW_HEIGHT) + 2 * BEYOND;
    const scrolled = Math.floor(this.host.scrollTop / ROW_HEIGHT) - BEYOND;
    const first = all !== null ? 0 : Math.max(0, Math.min(scrolled, this.count - sight));
    const last = all ?? Math.min(this.count, first + sight);
    this.above.style.height = `${first * ROW_HEIGHT}px`;
    const after = all === null ? this.count - Math.max(first, last) : 0;
    this.below.style.height = `${after * ROW_HEIGHT}px`;
    this.fit(Math.max(0, last - first));
    this.pool.forEach((row, place) => this.fill(row, first + place));
    this.rest.hidden = all === null || all === this.count;
    this.rest.textContent = this.rest.hidden ? ""
      : `The first ${all.toLocaleString("en")} of ${this.count.toLocaleString("en")} rows; ` +
        "all of them are in the page and in its CSV.";
  }

  fit(count) {
    while (this.pool.length > count) this.pool.pop().remove();
    while (this.pool.length < count) {
      const cells = this.columns.map((column) =>
        element("td", {className: this.className(column)}));
      const row = element("tr", {}, cells);
      this.pool.push(row);
      this.below.before(row);
    }
  }

  fill(row, index) {
    row.ariaRowIndex = String(index + 2);
    row.ariaCurrent = String(index === this.chosen);
    this.cells(index).forEach((given, place) => {
      const cell = row.cells[place];
      const {text, title = "", className = ""} = typeof given === "object" ? given : {text: given};
      if (cell.textContent !== text) cell.textContent = text;
      if (cell.title !== title) cell.title = title;
      const name = `${this.className(this.columns[place])} ${className}`.trim();
      if (cell.className !== name) cell.className = name;
    });
  }
}

/** A new element with these properties and children. */
function element(name, properties = {}, children = []) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

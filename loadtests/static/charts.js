// Charts over time, as SVG: a few lines or a stack, axes with units, gaps where nothing is known.
// A row is an array of numbers or null; its first column is the instant, in seconds since 1970.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 190, LEFT = 68, RIGHT = 12, TOP = 10, BOTTOM = 26;
// Two rows further apart than this are not joined: between them nobody looked.
export const GAP_S = 3.5;
const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800];

// Return the distance of round ticks, at most `count` of them up to `max`: 1, 2 or 5 times a power of ten, or of two for bytes.
export function niceStep(max, count, unit) {
  const least = max / count;
  if (unit === "bytes") return 2 ** Math.ceil(Math.log2(Math.max(least, 1)));
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].find((each) => each * power >= least * (1 - 1e-9)) * power;
  return unit === "count" ? Math.max(step, 1) : step;
}

function digits(value, isFixed) {
  // Three digits, never an exponent; whole numbers stay whole, unless they would jump about while they change.
  const places = value >= 100 || (Number.isInteger(value) && !isFixed) ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { minimumFractionDigits: isFixed ? places : 0, maximumFractionDigits: places });
}

// Return a value as people read it. Units: bytes, count, rate (per second), seconds. A tick of an axis is as short as can be.
export function format(value, unit, isTick = false) {
  if (value === null || value === undefined) return "–";
  if (unit === "bytes") {
    const names = ["B", "KiB", "MiB", "GiB", "TiB"];
    const power = Math.min(Math.floor(Math.log2(Math.max(value, 1)) / 10), names.length - 1);
    return `${digits(value / 1024 ** power, !isTick && power > 0)} ${names[power]}`;
  }
  if (unit === "seconds") {
    const isFixed = !isTick && value > 0;
    if (value >= 1) return `${digits(value, isFixed)} s`;
    return value >= 0.001 || value === 0 ? `${digits(value * 1e3, isFixed)} ms` : `${digits(value * 1e6, isFixed)} µs`;
  }
  return `${digits(value)}${unit === "rate" ? "/s" : ""}`;
}

export function clock(t) {
  return new Date(t * 1000).toLocaleTimeString("en-GB");
}

// Return the runs of neighbouring points [t, value] without a gap.
export function pieces(rows, value) {
  const found = [];
  let last = null;
  for (const row of rows) {
    const v = value(row);
    if (v === null || v === undefined) {
      last = null;
      continue;
    }
    if (last === null || row[0] - last > GAP_S) found.push([]);
    found.at(-1).push([row[0], v]);
    last = row[0];
  }
  return found;
}

function node(name, attributes = {}, text = "") {
  const made = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

export { node };

// One chart: title, what it says in a sentence, the drawing, and a legend that has the numbers.
export class Chart {
  // `series` is a list of {key, label, title}; `index` tells where a key is in a row.
  constructor({ title, note, unit, series, stacked = false, total = "" }, index, onCursor) {
    Object.assign(this, { title, unit, series, stacked, total, index });
    this.element = node("figure", { class: "chart", "data-title": title });
    const caption = node("figcaption");
    caption.append(node("h3", {}, title), node("p", {}, note));
    this.svg = node("svg:svg", { role: "img", height: HEIGHT });
    this.grid = node("svg:g", { class: "grid" });
    this.lines = node("svg:g");
    this.cursor = node("svg:line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.empty = node("svg:text", { class: "empty", "text-anchor": "middle", y: HEIGHT / 2 });
    this.svg.append(this.grid, this.lines, this.cursor, this.empty);
    this.legend = node("ul", { class: "legend" });
    this.shapes = series.map((each, i) => {
      const shape = node("svg:path", { class: stacked ? `area s${i}` : `line s${i}` });
      this.lines.prepend(shape); // the first over the others: an area reaches down to the axis, under those below it
      return shape;
    });
    if (stacked) this.legend.append(node("li", { class: "order" }, "from below:"));
    this.values = series.map((each, i) => {
      const item = node("li", each.title ? { title: each.title } : {});
      const key = node("svg:svg", { class: "key", width: 22, height: 10, "aria-hidden": "true" });
      key.append(node("svg:path", { class: stacked ? `area s${i}` : `line s${i}`, d: stacked ? "M0 0H22V10H0Z" : "M0 5H22" }));
      const value = node("b", { "data-key": each.key });
      item.append(key, node("span", {}, each.label), value);
      this.legend.append(item);
      return value;
    });
    if (total) {
      const item = node("li");
      this.sum = node("b", { "data-key": "total" });
      item.append(node("span", {}, total), this.sum);
      this.legend.append(item);
    }
    this.element.append(caption, this.svg, this.legend);
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      onCursor(this.from + ((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)) * (this.to - this.from));
    });
    this.svg.addEventListener("pointerleave", () => onCursor(null));
  }

  _value(row, i) {
    return row[this.index(this.series[i].key)];
  }

  // Return a row's values, added up from below when they are stacked; null where one is not known.
  _heights(row) {
    let sum = 0;
    return this.series.map((each, i) => {
      const value = this._value(row, i);
      if (!this.stacked || value === null || value === undefined) return value;
      sum += value;
      return sum;
    });
  }

  // Draw the rows between two instants; `point` comes next.
  draw(rows, from, to) {
    Object.assign(this, { rows, from, to });
    const width = this.svg.clientWidth || 480;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const heights = rows.map((row) => [row[0], ...this._heights(row)]);
    const most = heights.reduce((max, [, ...values]) => values.reduce((m, v) => (v > m ? v : m), max), 0);
    const floor = { bytes: 1024, count: 4, rate: 4, seconds: 0.001 }[this.unit];
    const step = niceStep(Math.max(most, floor), 4, this.unit);
    const top = Math.max(Math.ceil(most / step), 1) * step;
    this.x = (t) => LEFT + ((t - from) / (to - from)) * (width - LEFT - RIGHT);
    const y = (v) => HEIGHT - BOTTOM - (v / top) * (HEIGHT - TOP - BOTTOM);
    this._axes(width, top, step, y);
    this.shapes.forEach((shape, i) => {
      const runs = pieces(heights, (row) => row[i + 1]);
      const upper = (run) => run.map(([t, v]) => `${this.x(t).toFixed(1)} ${y(v).toFixed(1)}`);
      shape.setAttribute("d", runs.map((run) => this._shape(run, upper(run), y)).join(""));
    });
    this.empty.setAttribute("x", (LEFT + width) / 2);
    this.empty.textContent = heights.some(([, ...values]) => values.some((v) => v !== null && v !== undefined))
      ? "" : "no numbers yet";
  }

  _shape(run, points, y) {
    // A single point is a short line, or nobody would see it.
    if (run.length === 1) points.push(`${(this.x(run[0][0]) + 2).toFixed(1)} ${y(run[0][1]).toFixed(1)}`);
    const line = `M${points.join("L")}`;
    if (!this.stacked) return line;
    const [first, last] = [points[0].split(" ")[0], points.at(-1).split(" ")[0]];
    return `${line}L${last} ${y(0)}L${first} ${y(0)}Z`;
  }

  _axes(width, top, step, y) {
    const made = [];
    for (let v = 0; v <= top * 1.0001; v += step) {
      made.push(node("svg:line", { x1: LEFT, x2: width - RIGHT, y1: y(v), y2: y(v) }));
      made.push(node("svg:text", { x: LEFT - 8, y: y(v) + 4, "text-anchor": "end" }, format(v, this.unit, true)));
    }
    const apart = STEPS_S.find((each) => ((each / (this.to - this.from)) * (width - LEFT - RIGHT)) >= 76) ?? 3600;
    for (let t = Math.ceil(this.from / apart) * apart; t <= this.to; t += apart) {
      const x = this.x(t);
      made.push(node("svg:line", { class: "tick", x1: x, x2: x, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 }));
      if (x > LEFT + 20 && x < width - 24)
        made.push(node("svg:text", { x, y: HEIGHT - 7, "text-anchor": "middle" }, clock(t)));
    }
    this.grid.replaceChildren(...made);
  }

  // Show the numbers of an instant, or the latest.
  point(t) {
    const near = (row) => Math.abs(row[0] - t);
    const found = t === null ? this.rows.at(-1) : this.rows.reduce((best, row) => (!best || near(row) < near(best) ? row : best), null);
    const row = found ?? [];
    this.values.forEach((value, i) => (value.textContent = format(this._value(row, i), this.unit)));
    if (this.sum) {
      const all = this.series.map((each, i) => this._value(row, i));
      const isKnown = all.every((v) => v !== null && v !== undefined);
      this.sum.textContent = format(isKnown ? all.reduce((a, b) => a + b, 0) : null, this.unit);
    }
    const words = this.series.map((each, i) => `${each.label} ${this.values[i].textContent}`);
    this.svg.setAttribute("aria-label", `${this.title}: ${words.join(", ")}`);
    const isShown = t !== null && found;
    this.cursor.setAttribute("visibility", isShown ? "visible" : "hidden");
    if (isShown) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(found[0]));
  }
}

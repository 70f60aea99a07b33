// How do numbers over time look? A chart of lines on a grid, drawn as SVG, with a rule that follows
// the pointer and tells the values under it.

import { element, svg } from "./dom.js";

const WIDTH = 400;
const HEIGHT = 165;
const LEFT = 54;
const RIGHT = 10;
const TOP = 12;
const BOTTOM = 24;

export class Chart {
  /** `series` are names; `format` tells a value; `most` ends the scale where that is known. */
  constructor({ title, about, series, format, most = null }) {
    Object.assign(this, { title, series, format, most });
    this.points = [];
    this.drawing = svg("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "drawing", tabindex: "0",
    });
    this.told = element("p", { class: "told", "aria-hidden": "true" });
    const keys = series.map((name, at) => {
      return element("li", {}, element("span", { class: `key series-${at}` }), name);
    });
    const legend = element("ul", { class: "legend" }, series.length > 1 ? keys : []);
    const head = element("header", {}, element("h2", {}, title), legend);
    const plot = element("div", { class: "plot" }, this.drawing, this.told);
    this.scope = element("span", {});
    const words = element("p", { class: "about" }, about, this.scope);
    this.node = element("article", { class: "chart" }, head, words, plot);
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.choose(null));
    this.drawing.addEventListener("keydown", (event) => this.key(event));
    this.drawing.addEventListener("blur", () => this.choose(null));
  }

  /** `points` are `{at, values}` in order of time, `values` one a series or null. */
  draw(points, span) {
    [this.points, this.span] = [points, span];
    const values = points.flatMap((point) => point.values.filter((value) => value !== null));
    this.top = this.most ?? niceTop(Math.max(0, ...values));
    this.isEmpty = values.length === 0;
    const parts = [...this.grid(), ...this.series.flatMap((_, at) => this.line(at))];
    this.rule = svg("line", { class: "rule", y1: TOP, y2: HEIGHT - BOTTOM, x1: 0, x2: 0 });
    this.rule.style.display = "none";
    this.drawing.replaceChildren(...parts, this.rule);
    this.drawing.setAttribute("aria-label", this.inWords());
    this.choose(this.chosen ?? null);
  }

  /** Of what the values are, where that is not what was asked for. */
  tellScope(text) {
    this.scope.textContent = text === "" ? "" : ` (${text})`;
  }

  inWords() {
    const latest = this.points.at(-1);
    const values = this.series.map((name, at) => {
      const value = latest?.values[at] ?? null;
      return `${name} ${value === null ? "none" : this.format(value)}`;
    });
    return `${this.title}: ${values.join(", ")}`;
  }

  x(at) {
    const [from, to] = this.span;
    return LEFT + ((at - from) / (to - from)) * (WIDTH - LEFT - RIGHT);
  }

  y(value) {
    const share = Math.min(value / this.top, 1);
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
  }

  grid() {
    const parts = [];
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      const y = this.y(this.top * share);
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
      // Without values there is no scale to tell.
      if (share !== 0.25 && share !== 0.75 && !this.isEmpty) {
        const label = { class: "axis", x: LEFT - 8, y: y + 4, "text-anchor": "end" };
        parts.push(svg("text", label, this.format(this.top * share)));
      }
    }
    if (this.isEmpty) {
      const middle = { x: (LEFT + WIDTH - RIGHT) / 2, y: this.y(this.top / 2) - 6 };
      const label = { class: "axis", ...middle, "text-anchor": "middle" };
      parts.push(svg("text", label, "nothing yet"));
    }
    const minutes = Math.round((this.span[1] - this.span[0]) / 60_000);
    const foot = { class: "axis", y: HEIGHT - 6 };
    parts.push(
      svg("text", { ...foot, x: LEFT }, `${minutes} min ago`),
      svg("text", { ...foot, x: WIDTH - RIGHT, "text-anchor": "end" }, "now"),
    );
    return parts;
  }

  /** A line for each run of values; where there are none, there is a gap. */
  line(series) {
    const runs = [[]];
    for (const { at, values } of this.points) {
      if (values[series] === null) {
        runs.push([]);
      } else {
        runs.at(-1).push([this.x(at), this.y(values[series])]);
      }
    }
    return runs.filter((run) => run.length > 0).flatMap((run) => {
      const path = run.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
      const line = svg("path", { class: `line series-${series}`, d: `M${path}` });
      const [first, last] = [run[0][0], run.at(-1)[0]];
      const floor = HEIGHT - BOTTOM;
      const area = `M${first.toFixed(1)} ${floor}L${path}L${last.toFixed(1)} ${floor}Z`;
      const filled = svg("path", { class: `area series-${series}`, d: area });
      if (run.length === 1) {
        const [x, y] = run[0];
        return [svg("circle", { class: `dot series-${series}`, cx: x, cy: y, r: 2 })];
      }
      return this.series.length === 1 ? [filled, line] : [line];
    });
  }

  point(event) {
    const box = this.drawing.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDTH;
    const near = (point) => Math.abs(this.x(point.at) - x);
    const best = this.points.reduce((found, point, at) => {
      return found === null || near(point) < near(this.points[found]) ? at : found;
    }, null);
    this.choose(best);
  }

  key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (Object.hasOwn(steps, event.key) && this.points.length > 0) {
      event.preventDefault();
      const from = this.chosen ?? this.points.length;
      this.choose(Math.min(Math.max(from + steps[event.key], 0), this.points.length - 1));
    } else if (event.key === "Escape") {
      this.choose(null);
    }
  }

  choose(at) {
    this.chosen = at;
    const point = at === null ? undefined : this.points[at];
    this.rule.style.display = point === undefined ? "none" : "";
    this.told.hidden = point === undefined;
    if (point === undefined) {
      return;
    }
    const x = this.x(point.at);
    this.rule.setAttribute("x1", x);
    this.rule.setAttribute("x2", x);
    const values = this.series.map((name, series) => {
      const value = point.values[series];
      const key = element("span", { class: `key series-${series}` });
      return element("span", {}, key, `${name} ${value === null ? "\u2013" : this.format(value)}`);
    });
    const time = new Date(point.wall).toLocaleTimeString();
    this.told.replaceChildren(element("span", { class: "time" }, time), ...values);
    this.told.classList.toggle("left", x > WIDTH / 2);
    this.told.style.setProperty("--at", `${(x / WIDTH) * 100}%`);
  }
}

/** The end of the scale: 1, 2 or 5 times a power of ten, with a little room. */
function niceTop(value) {
  if (value <= 0) {
    return 1;
  }
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = [1, 2, 4, 5, 8, 10].map((step) => step * power);
  return steps.find((step) => step >= value * 1.02) ?? 20 * power;
}

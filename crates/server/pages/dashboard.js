// The dashboard: what is the server doing now, and what did it do in the last minutes? Looks at the
// counters every two seconds and keeps the looks of five minutes.

import { ask, listModels } from "./api.js";
import { Chart } from "./charts.js";
import { parseMetrics, Span, valueOf } from "./counters.js";
import { byId, drawIcons, element, icon } from "./dom.js";
import { bytes, count, milliseconds, percent, seconds } from "./units.js";

const LOOK_MS = 2000;
const KEPT_MS = 300_000;
/** Percentiles and shares need some events: they are of the looks within this time. */
const WINDOW_MS = 30_000;

const FIRST = "pelton_time_to_first_token_seconds";
const NEXT = "pelton_inter_token_latency_seconds";

/** What is worked out at each look: from the latest span, the window's, and the counters. */
const FIGURES = {
  generated: (step) => step.rate("pelton_generation_tokens_total"),
  computed: (step) => step.rate("pelton_computed_tokens_total"),
  running: (_, __, now) => now("pelton_sequences_running"),
  waiting: (_, __, now) => now("pelton_sequences_waiting"),
  firstHalf: (_, window) => window.percentile(FIRST, 0.5),
  firstMost: (_, window) => window.percentile(FIRST, 0.95),
  firstLast: (_, window) => window.percentile(FIRST, 0.99),
  nextHalf: (_, window) => window.percentile(NEXT, 0.5),
  nextMost: (_, window) => window.percentile(NEXT, 0.95),
  nextLast: (_, window) => window.percentile(NEXT, 0.99),
  batch: (step) => step.share("pelton_computed_tokens_total", "pelton_steps_total"),
  kv: (_, __, now) => now("pelton_kv_blocks_used") / Math.max(now("pelton_kv_blocks_total"), 1),
  heapUsed: (_, __, now) => now("pelton_heap_pool_used_bytes"),
  heapHeld: (_, __, now) => now("pelton_heap_pool_reserved_bytes"),
  ringBusy: (step) => busyShare(step),
  overlap: (_, window) => hiddenShare(window),
  found: (_, window) => {
    return window.share("pelton_prefix_cache_hits_total", "pelton_prefix_cache_queries_total");
  },
  remembered: (_, window) => rememberedShare(window),
  refused: (step) => step.rate("pelton_requests_refused_total"),
  failed: (step) => step.rate("pelton_answers_failed_total"),
};

/** What is told of one model alone, by vLLM's names; the rest is of the whole server. */
const OF_MODEL = {
  generated: (model, step) => step.rate("vllm:generation_tokens_total", model),
  computed: () => null,
  running: (model, _, __, metrics) => valueOf(metrics, "vllm:num_requests_running", model),
  waiting: (model, _, __, metrics) => valueOf(metrics, "vllm:num_requests_waiting", model),
  kv: (model, _, __, metrics) => valueOf(metrics, "vllm:kv_cache_usage_perc", model),
  found: (model, _, window) => {
    return window.share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total", model);
  },
};

function figuresOf(id, step, window, metrics) {
  const figures = {};
  for (const [name, figure] of Object.entries(OF_MODEL)) {
    figures[name] = figure({ model_name: id }, step, window, metrics);
  }
  return figures;
}

/** Of the time with work, what the device computed. */
function busyShare(step) {
  const run = step.growth("pelton_ring_run_seconds_total");
  const idle = step.growth("pelton_ring_idle_seconds_total");
  return run === null || idle === null || run + idle === 0 ? null : run / (run + idle);
}

/** Of the time that copies took, what no step waited for. */
function hiddenShare(window) {
  const busy = window.growth("pelton_blit_busy_seconds_total");
  const waited = window.growth("pelton_blit_waited_seconds_total");
  return busy === null || waited === null || busy === 0 ? null : Math.max(0, 1 - waited / busy);
}

/** Of the requests that may share an answer, those that did. */
function rememberedShare(window) {
  const of = (name) => window.growth(`pelton_sharing_${name}_total`) ?? 0;
  const shared = of("hits") + of("joins");
  const all = shared + of("misses");
  return all === 0 ? null : shared / all;
}

const TILES = [
  ["Tokens a second", "generated", count, "generated"],
  ["Running", "running", count, "answers at once"],
  ["Waiting", "waiting", count, "requests in the queue"],
  ["First token", "firstHalf", seconds, "median", "firstMost", "p95"],
  ["Between tokens", "nextHalf", milliseconds, "median", "nextMost", "p95"],
  ["KV cache", "kv", percent, "of its blocks in use"],
];

const CHARTS = [
  [["generated", "computed"], count, {
    title: "Throughput", about: "Tokens a second, and positions computed with prompts",
    series: ["generated", "computed"],
  }],
  [["firstHalf", "firstMost", "firstLast"], seconds, {
    title: "Time to first token", about: "From a request's arrival",
    series: ["p50", "p95", "p99"],
  }],
  [["nextHalf", "nextMost", "nextLast"], milliseconds, {
    title: "Time between tokens", about: "What a reader sees", series: ["p50", "p95", "p99"],
  }],
  [["running", "waiting"], count, {
    title: "Requests", about: "Being answered, and in the queue", series: ["running", "waiting"],
  }],
  [["batch"], count, {
    title: "Batch", about: "Tokens computed in one step, on average", series: ["tokens a step"],
  }],
  [["kv", "found", "remembered"], percent, {
    title: "Caches", about: "KV blocks in use, prompt tokens found, answers shared",
    series: ["KV", "prompts", "answers"], most: 1,
  }],
  [["heapUsed", "heapHeld"], bytes, {
    title: "Heaps", about: "Device memory in buffers, and all that was reserved",
    series: ["used", "reserved"],
  }],
  [["ringBusy", "overlap"], percent, {
    title: "Ring and copies", about: "Of the time with work, and of that of copies",
    series: ["device busy", "copies hidden"], most: 1,
  }],
  [["refused", "failed"], count, {
    title: "Troubles", about: "Requests refused and answers that failed, a second",
    series: ["refused", "failed"],
  }],
];

/** Columns of numbers in the table of models; a phone shows each beside its number. */
const NUMBERS = ["Running", "Waiting", "Tokens a second", "KV used", "Prompts found", "Memory"];

class Dashboard {
  constructor() {
    this.looks = [];
    this.points = [];
    this.isPaused = false;
    this.model = "";
    this.tiles = TILES.map(([title]) => {
      const value = element("p", { class: "value" }, "\u2013");
      const about = element("p", { class: "about" });
      const tile = element("article", { class: "tile" }, element("h2", {}, title), value, about);
      byId("tiles").append(tile);
      return { value, about };
    });
    this.charts = CHARTS.map(([names, format, about]) => {
      const chart = new Chart({ ...about, format });
      byId("charts").append(chart.node);
      return { chart, names };
    });
    this.wire();
    this.drawChoice([]);
    this.draw();
    this.look();
    setInterval(() => this.look(), LOOK_MS);
  }

  wire() {
    byId("pause").addEventListener("click", () => {
      this.isPaused = !this.isPaused;
      byId("pause").textContent = this.isPaused ? "Go on" : "Pause";
      byId("pause").setAttribute("aria-pressed", String(this.isPaused));
    });
    byId("of-model").addEventListener("change", (event) => {
      this.model = event.target.value;
      this.draw();
      this.drawTiles();
    });
    byId("theme").addEventListener("click", () => dispatchEvent(new Event("themetoggle")));
    addEventListener("themechange", drawTheme);
    drawTheme();
  }

  async look() {
    // Nobody sees a hidden page, and one slow look is enough at a time.
    if (this.isPaused || this.isLooking || document.hidden) {
      return;
    }
    this.isLooking = true;
    try {
      const [text, models] = await Promise.all([
        ask("/metrics").then((response) => response.text()),
        listModels(),
      ]);
      this.take(parseMetrics(text), models);
      byId("notice").hidden = true;
    } catch (trouble) {
      this.missed(trouble);
    } finally {
      this.isLooking = false;
    }
  }

  missed(trouble) {
    byId("notice").hidden = false;
    byId("notice").textContent = trouble.kind === "key"
      ? "This server asks for an API key: give one on the chat page, under Settings."
      : trouble.message;
    tellHealth("away", "No answer");
  }

  take(metrics, models) {
    const look = { at: performance.now(), wall: Date.now(), metrics };
    const before = this.looks.at(-1);
    this.looks.push(look);
    this.looks = this.looks.filter((old) => look.at - old.at <= WINDOW_MS + LOOK_MS);
    const now = (name) => valueOf(metrics, name) ?? 0;
    const step = new Span(before ?? look, look);
    const window = new Span(this.looks[0], look);
    const figures = {};
    for (const [name, figure] of Object.entries(FIGURES)) {
      figures[name] = figure(step, window, now);
    }
    // Where nobody looked for a while, the lines have a gap.
    if (before !== undefined && look.at - before.at > 3 * LOOK_MS) {
      this.points.push({ at: before.at + 1, wall: look.wall, figures: {}, ofModels: new Map() });
    }
    const ofModels = new Map(models.map(({ id }) => [id, figuresOf(id, step, window, metrics)]));
    this.points.push({ at: look.at, wall: look.wall, figures, ofModels });
    this.points = this.points.filter((point) => look.at - point.at <= KEPT_MS);
    this.drawChoice(models);
    this.drawTiles();
    this.draw();
    this.drawModels(metrics, models, window);
    drawHealth(metrics);
  }

  /** The figures of a look, of the model that was chosen where they are told of one. */
  chosen({ figures, ofModels }) {
    return this.model === "" ? figures : { ...figures, ...ofModels.get(this.model) };
  }

  drawChoice(models) {
    const select = byId("of-model");
    select.hidden = models.length < 2;
    const names = ["", ...models.map((model) => model.id)];
    if (select.options.length !== names.length
      || names.some((name, at) => select.options[at].value !== name)) {
      const options = names.map((name) => element("option", { value: name }, name || "All models"));
      select.replaceChildren(...options);
      // A model that has gone is no longer looked at.
      this.model = names.includes(this.model) ? this.model : "";
      select.value = this.model;
    }
  }

  drawTiles() {
    const latest = this.points.at(-1);
    if (latest === undefined) {
      return;
    }
    const figures = this.chosen(latest);
    TILES.forEach(([, name, format, about, second, secondAbout], at) => {
      const value = figures[name];
      const tile = this.tiles[at];
      tile.value.textContent = value === null ? "\u2013" : format(value);
      const more = second === undefined || figures[second] === null
        ? ""
        : ` \u00b7 ${secondAbout} ${format(figures[second])}`;
      const isOfAll = this.model !== "" && !Object.hasOwn(OF_MODEL, name);
      const told = value === null ? "nothing in the last 30 s" : about + more;
      tile.about.textContent = isOfAll ? `${told} \u00b7 all models` : told;
    });
  }

  draw() {
    const now = this.points.at(-1)?.at ?? performance.now();
    for (const { chart, names } of this.charts) {
      const points = this.points.map((point) => {
        const figures = this.chosen(point);
        const values = names.map((name) => figures[name] ?? null);
        return { at: point.at, wall: point.wall, values };
      });
      const isOfAll = this.model !== "" && !names.some((name) => Object.hasOwn(OF_MODEL, name));
      chart.tellScope(isOfAll ? "of all models" : "");
      chart.draw(points, [now - KEPT_MS, now]);
    }
  }

  drawModels(metrics, models, window) {
    const rows = models.map((model) => {
      const wanted = { model_name: model.id };
      const rate = window.rate("vllm:generation_tokens_total", wanted);
      const kv = valueOf(metrics, "vllm:kv_cache_usage_perc", wanted);
      const found = window.share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total",
        wanted);
      const [memory, estimate] = [model.memory?.used?.total, model.memory?.estimate?.total ?? 0];
      const { running, running_limit: limit, waiting } = model.queue ?? {};
      const state = element("span", { class: `state ${model.state}` }, model.state);
      const why = model.state_reason ? element("small", {}, ` ${model.state_reason}`) : "";
      const numbers = [
        model.state === "ready" ? `${running ?? 0} of ${limit ?? 0}` : "\u2013",
        count((waiting ?? 0) + (model.requests_waiting_for_load ?? 0)),
        rate === null ? "\u2013" : count(rate),
        kv === null ? "\u2013" : percent(kv),
        found === null ? "\u2013" : percent(found),
        memory === undefined ? `${bytes(estimate)} if loaded` : bytes(memory),
      ];
      const cells = numbers.map((text, at) => {
        return element("td", { class: "number", "data-name": NUMBERS[at] }, text);
      });
      return element("tr", {}, element("th", { scope: "row" }, model.id),
        element("td", {}, state, why), cells);
    });
    byId("models").replaceChildren(...rows);
  }
}

function drawHealth(metrics) {
  const isHealthy = valueOf(metrics, "pelton_healthy") !== 0;
  const isReady = valueOf(metrics, "pelton_ready") === 1;
  if (!isHealthy) {
    tellHealth("bad", "In trouble");
  } else {
    tellHealth(isReady ? "good" : "waiting", isReady ? "Ready" : "Loading");
  }
}

function tellHealth(kind, words) {
  const health = byId("health");
  health.className = `health ${kind}`;
  // Told to screen readers when it changes only.
  if (health.textContent !== words) {
    health.textContent = words;
  }
}

function drawTheme() {
  const isDark = document.documentElement.dataset.theme === "dark";
  byId("theme").replaceChildren(icon(isDark ? "light" : "dark"));
  byId("theme").setAttribute("aria-label", isDark ? "Light colors" : "Dark colors");
}

drawIcons();
new Dashboard();

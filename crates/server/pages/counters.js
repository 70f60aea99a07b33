// What do the server's counters say? Prometheus' text as samples, and rates, shares and
// percentiles between two of them.

/** The samples of a metrics page: from each name to its lines. */
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const parts = LINE.exec(line);
    if (parts !== null) {
      const [, name, labels, value] = parts;
      if (!found.has(name)) {
        found.set(name, []);
      }
      found.get(name).push({ labels: parseLabels(labels ?? ""), value: Number(value) });
    }
  }
  return found;
}

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

function parseLabels(text) {
  const found = {};
  for (const [, name, value] of text.matchAll(LABEL)) {
    found[name] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
  }
  return found;
}

/** The sum of a name's lines whose labels are as wanted; null where there is none. */
export function valueOf(metrics, name, wanted = {}) {
  const lines = (metrics.get(name) ?? []).filter(({ labels }) => {
    return Object.entries(wanted).every(([label, value]) => labels[label] === value);
  });
  return lines.length === 0 ? null : lines.reduce((sum, line) => sum + line.value, 0);
}

/** What happened between two looks at the counters. */
export class Span {
  constructor(before, after) {
    this.before = before.metrics;
    this.after = after.metrics;
    this.seconds = (after.at - before.at) / 1000;
  }

  /** Null where it is not told, or where the server has begun to count anew. */
  growth(name, wanted = {}) {
    const [before, after] = [this.before, this.after].map((one) => valueOf(one, name, wanted));
    return before === null || after === null || after < before ? null : after - before;
  }

  rate(name, wanted = {}) {
    const growth = this.growth(name, wanted);
    return growth === null || this.seconds <= 0 ? null : growth / this.seconds;
  }

  /** `part` of `whole`; null while there is nothing to share. */
  share(part, whole, wanted = {}) {
    const [one, all] = [this.growth(part, wanted), this.growth(whole, wanted)];
    return one === null || all === null || all === 0 ? null : one / all;
  }

  /**
   * Below which value a share of the durations lies, to the width of the histogram's buckets:
   * within one it is taken to be even. Null where there was none.
   */
  percentile(name, share) {
    const buckets = this.buckets(name);
    const total = buckets.at(-1)?.count ?? 0;
    if (total <= 0) {
      return null;
    }
    const wanted = share * total;
    let [low, below] = [0, 0];
    for (const { bound, count } of buckets) {
      if (count >= wanted && count > below) {
        // Above the last bound nothing is known but that.
        const width = bound === Infinity ? 0 : bound - low;
        return low + (width * (wanted - below)) / (count - below);
      }
      [low, below] = [bound === Infinity ? low : bound, count];
    }
    return low;
  }

  buckets(name) {
    const bounds = (this.after.get(`${name}_bucket`) ?? []).map(({ labels }) => labels.le);
    const counts = [...new Set(bounds)].map((le) => ({
      bound: le === "+Inf" ? Infinity : Number(le),
      count: this.growth(`${name}_bucket`, { le }) ?? 0,
    }));
    return counts.sort((one, other) => one.bound - other.bound);
  }
}

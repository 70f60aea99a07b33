// How are numbers told? With three figures or so, and their unit.

export function count(value) {
  if (value >= 999_500) {
    return `${(value / 1_000_000).toFixed(1)}M`;
  }
  if (value >= 10_000) {
    return `${Math.round(value / 1000)}k`;
  }
  return value >= 100 || Number.isInteger(value)
    ? Math.round(value).toLocaleString("en")
    : value.toFixed(value >= 10 ? 0 : 1);
}

export function seconds(value) {
  if (value < 1) {
    return milliseconds(value);
  }
  return value >= 100 ? `${Math.round(value)} s` : `${value.toFixed(value >= 10 ? 0 : 1)} s`;
}

/** Of a value in seconds. */
export function milliseconds(value) {
  const thousandths = value * 1000;
  if (value >= 10) {
    return seconds(value);
  }
  const digits = thousandths >= 10 || Number.isInteger(thousandths) ? 0 : 1;
  return `${thousandths.toFixed(digits)} ms`;
}

export function percent(share) {
  const value = share * 100;
  const isSmall = value > 0 && value < 9.95 && !Number.isInteger(value);
  return `${isSmall ? value.toFixed(1) : Math.round(value)}%`;
}

export function bytes(value) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  let [size, at] = [value, 0];
  while (size >= 1000 && at < units.length - 1) {
    size /= 1000;
    at += 1;
  }
  return `${size >= 100 || at === 0 ? Math.round(size) : size.toFixed(1)} ${units[at]}`;
}

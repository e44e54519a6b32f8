// Numbers as people read them: three digits or so, and always a unit.

const SPACE = "\u00a0";
export const NONE = "–";

const known = (value) => typeof value === "number" && Number.isFinite(value);

function digits(value) {
  const size = Math.abs(value);
  return value.toFixed(size >= 99.95 || size === 0 ? 0 : size >= 9.995 ? 1 : 2);
}

function scaled(value, step, units) {
  let place = 0;
  let left = value;
  while (Math.abs(left) >= step * 0.9995 && place < units.length - 1) {
    left /= step;
    place += 1;
  }
  return (place === 0 ? String(Math.round(left)) : digits(left)) + SPACE + units[place];
}

/** A count, without a unit: `9 876`, `48.2 K`. */
export function count(value) {
  if (!known(value)) return NONE;
  if (Math.abs(value) < 10000) return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
  return scaled(value, 1000, ["", "K", "M", "G", "T"]);
}

export const tokens = (value) => (known(value) ? `${count(value)}${SPACE}tok` : NONE);

export const bytes = (value) =>
  known(value) ? scaled(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]) : NONE;

export const speed = (value) => (known(value) ? `${bytes(value)}/s` : NONE);

/** A duration of so many seconds: `0.42 ms`, `34.0 ms`, `2.31 s`, `3 min 20 s`, `5 h 2 min`, `3 d 4 h`. */
export function seconds(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size === 0) return `0${SPACE}s`;
  if (size < 0.9995) return `${digits(value * 1000)}${SPACE}ms`;
  if (size < 99.95) return `${digits(value)}${SPACE}s`;
  return long(value);
}

/** A duration that is told in whole seconds at most. */
export function long(value) {
  if (!known(value)) return NONE;
  const whole = Math.max(Math.round(value), 0);
  const steps = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = steps.findIndex(([size]) => whole >= size);
  if (first < 0) return `0${SPACE}s`;
  let left = whole;
  const parts = [];
  for (const [size, unit] of steps.slice(first, first + 2)) {
    const number = Math.floor(left / size);
    left -= number * size;
    if (number || !parts.length) parts.push(`${number}${SPACE}${unit}`);
  }
  return parts.join(SPACE);
}

/** A share of one. */
export function share(value) {
  if (!known(value)) return NONE;
  const percent = value * 100;
  const text = percent > 0 && percent < 1 ? "<1" : percent > 99 && percent < 100 ? ">99" : percent.toFixed(0);
  return `${text}${SPACE}%`;
}

/** What a mean of logarithms says as a factor: `×1.08`. */
export const factor = (logarithm) => (known(logarithm) ? `×${digits(Math.exp(logarithm))}` : NONE);

/** A time of day, here, of seconds since 1970. */
export function clock(at) {
  if (!known(at)) return NONE;
  const time = new Date(at * 1000);
  return [time.getHours(), time.getMinutes(), time.getSeconds()]
    .map((part) => String(part).padStart(2, "0"))
    .join(":");
}

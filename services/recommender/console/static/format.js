// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const short = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});

export const count = value => (value < 1e5 ? whole : short).format(value);

/** A rate: two digits that mean something. */
export function rate(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1e4) return short.format(value);
  if (value >= 10) return whole.format(value);
  return value === 0 ? "0" : value.toFixed(1);
}

export const share = (value, digits = 1) => (100 * value).toFixed(digits) + "\u202f%";

/** Recall and the like: .612 */
export const ratio = value => (value === null || value === undefined ? "–" : value.toFixed(3).replace(/^0/, ""));

/** Milliseconds as [number, unit]. */
export function duration(ms) {
  if (ms < 1000) return [String(Math.round(ms)), "ms"];
  const s = ms / 1000;
  if (s < 10) return [s.toFixed(1), "s"];
  if (s < 120) return [String(Math.round(s)), "s"];
  if (s < 7200) return [String(Math.round(s / 60)), "min"];
  if (s < 172800) return [String(Math.round(s / 3600)), "h"];
  return [whole.format(s / 86400), "days"];
}

export const inWords = ms => duration(ms).join("\u202f");

export const ago = ms => (ms < 2000 ? "just now" : inWords(ms) + " ago");

const pad = number => String(number).padStart(2, "0");

/** Local time of a day; the date where it is not today's. */
export function clock(ms, seconds = true) {
  const at = new Date(ms), today = new Date().toDateString() === at.toDateString();
  const time = pad(at.getHours()) + ":" + pad(at.getMinutes()) + (seconds ? ":" + pad(at.getSeconds()) : "");
  return today ? time : at.getDate() + " " + at.toLocaleString("en", {month: "short"}) + " " + time;
}

export const plural = (n, one, many = one + "s") => count(n) + " " + (n === 1 ? one : many);

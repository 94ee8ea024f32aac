// From values to pixels and back, and where ticks belong.

export const linear = (from, to, low, high) => {
  const scale = value => low + (value - from) / (to - from) * (high - low);
  scale.back = pixel => from + (pixel - low) / (high - low) * (to - from);
  return scale;
};

/** The smallest round step that gives at most `most` ticks up to `top`. */
export function step(top, most) {
  const raw = top / most, power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 2.5, 5, 10].map(n => n * power).find(n => n >= raw - 1e-12);
}

const TIMES_S = [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600];

/** Times (ms) that are round on this machine's clock, at most `most`. */
export function times(from, to, most) {
  const every = 1000 * (TIMES_S.find(s => (to - from) / 1000 / s <= most) || 43200);
  const zone = new Date(to).getTimezoneOffset() * 60000;
  const found = [];
  for (let at = Math.ceil((from - zone) / every) * every + zone; at <= to; at += every) found.push(at);
  return found;
}

/** Wilson's 95% interval of a share. */
export function interval(hits, count) {
  const z = 1.96, p = hits / count, d = 1 + z * z / count;
  const middle = (p + z * z / (2 * count)) / d;
  const half = z * Math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / d;
  return [Math.max(0, middle - half), Math.min(1, middle + half)];
}

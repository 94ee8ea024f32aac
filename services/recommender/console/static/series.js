// The line of one model version: outcomes taken together until they mean something, and the shapes drawn of them.

import {interval} from "./scale.js";

const ENOUGH = 60;  // outcomes of a point; steps with fewer are taken together
const TOGETHER = 24;  // steps, at most
const NEAR = 6;  // steps between two that are taken together, at most
const FEW = 10;  // outcomes of a point, below which it says nothing: left out, where others say something
const HUES = 4;

export const hue = version => (version === "" ? "trending" : "hue-" + (Number(version) % HUES || 0));
export const named = version => (version === "" ? "trending" : "version " + version);

/** Points with enough outcomes to mean something: {at, from, to, count, share, low, high, first, mrr}. */
export function pointsOf(series, {from_ms: from, step_s: size}) {
  const points = [];
  let held = null;
  for (const [at, count, hits, first, reciprocal] of series.points) {
    if (held && (at - held.last > NEAR || held.count >= ENOUGH || at - held.start >= TOGETHER)) {
      points.push(held);
      held = null;
    }
    held = held || {start: at, count: 0, hits: 0, first: 0, reciprocal: 0};
    held.last = at;
    held.count += count;
    held.hits += hits;
    held.first += first;
    held.reciprocal += reciprocal;
  }
  if (held) points.push(held);
  const telling = points.filter(p => p.count >= FEW);
  return (telling.length ? telling : points).map(p => {
    const [low, high] = interval(p.hits, p.count);
    const begin = from + p.start * size * 1000, end = from + (p.last + 1) * size * 1000;
    return {at: (begin + end) / 2, from: begin, to: end, count: p.count, share: p.hits / p.count, low, high,
      first: p.first / p.count, mrr: p.reciprocal / p.count};
  });
}

export const path = (points, x, y) => points.map((p, n) => `${n ? "L" : "M"}${x(p.at).toFixed(1)},${y(p.share).toFixed(1)}`).join("");

export function band(points, x, y, limit) {
  const upper = points.map(p => `${x(p.at).toFixed(1)},${y(Math.min(p.high, limit)).toFixed(1)}`);
  const lower = points.map(p => `${x(p.at).toFixed(1)},${y(p.low).toFixed(1)}`).reverse();
  return "M" + [...upper, ...lower].join("L") + "Z";
}

/** Runs of points without a hole between them: one of three times what a point spans, or more. */
export function runs(points) {
  const found = [];
  for (const point of points) {
    const run = found.at(-1);
    if (run && point.from - run.at(-1).to < 3 * Math.max(point.to - point.from, run.at(-1).to - run.at(-1).from)) run.push(point);
    else found.push([point]);
  }
  return found;
}

// A small curve of the last minutes, without axes.

import {svg} from "./dom.js";
import {linear} from "./scale.js";

const WIDTH = 120, HEIGHT = 28;

/** samples: [ms, value or null]; the vertical axis begins at 0. */
export function spark(samples, span_ms, now, gap_ms = 4000) {
  const known = samples.filter(([, value]) => value !== null);
  const top = Math.max(1e-9, ...known.map(([, value]) => value)) * 1.08;
  const x = linear(now - span_ms, now, 0, WIDTH), y = linear(0, top, HEIGHT - 1, 1);
  let line = "", area = "", begun = null, last = null;
  const close = () => {
    if (begun !== null) area += `L${last[0].toFixed(1)},${HEIGHT}L${begun.toFixed(1)},${HEIGHT}Z`;
    begun = null;
  };
  for (const [at, value] of known) {
    if (at < now - span_ms) continue;
    const point = [x(at), y(value), at];
    const joined = begun !== null && at - last[2] < gap_ms;
    if (!joined) close();
    const move = `${joined ? "L" : "M"}${point[0].toFixed(1)},${point[1].toFixed(1)}`;
    line += move;
    area += move;
    if (!joined) begun = point[0];
    last = point;
  }
  close();
  return svg("svg", {class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true"},
    svg("path", {class: "spark-area", d: area}),
    svg("path", {class: "spark-line", d: line, "vector-effect": "non-scaling-stroke"}));
}

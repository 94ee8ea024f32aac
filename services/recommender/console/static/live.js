// The row of numbers: what happens now.

import {el, say} from "./dom.js";
import {count, duration, plural, rate, share} from "./format.js";
import {spark} from "./spark.js";

const SPAN_MS = 180000;

const TILES = [
  {id: "events", name: "Events", column: 1, show: events},
  {id: "rankings", name: "Rankings", column: sample => sum(sample[2], sample[3]), show: rankings},
  {id: "freshness", name: "Event to state", column: 5, show: freshness},
  {id: "lag", name: "Consumer lag", column: 4, show: lag},
  {id: "hits", name: "In the top 20", column: null, show: hits},
];

const sum = (a, b) => (a === null && b === null ? null : (a || 0) + (b || 0));

function events(view) {
  const total = view.now.events_total;
  return [rate(view.now.events_per_s), "/s", total === null ? "not known" : count(total) + " so far"];
}

function rankings(view) {
  const {http_per_s: http, topic_per_s: topic, recommenders} = view.now;
  const by = http === null ? "not known" : `HTTP ${rate(http)}, topic ${rate(topic)}`;
  return [rate(sum(http, topic)), "/s", recommenders > 1 ? `${by}, ${recommenders} recommenders` : by];
}

function freshness(view) {
  const {state_ms: state, ranking_ms: ranking, emits, recommenders} = view.now;
  if (recommenders === null) return ["–", "", "not known"];
  if (!state) return ["–", "", emits ? "no event within 15 s" : "not measured: EMIT_TOPIC is off"];
  const [number, unit] = duration(state.p50);
  const late = duration(state.p95).join("\u202f");
  return [number, unit, `95%: ${late}` + (ranking ? `, to ranking ${duration(ranking.p50).join("\u202f")}` : "")];
}

function lag(view) {
  const value = view.now.lag;
  if (value === null) return ["–", "", "not known"];
  const per = view.now.events_per_s;
  if (per > 0 && value > 2 * per) return [count(value), "", `events, ${duration(1000 * value / per).join("\u202f")} of stream`, true];
  return [count(value), "", `${value === 1 ? "event" : "events"} not committed yet`];
}

/** Of the last minute, whatever the chart shows. */
function hits({last_minute: {count: asked, hits: found}}) {
  if (!asked) return ["–", "", "no outcome within a minute"];
  return [share(found / asked).replace("\u202f%", ""), "%", `of ${plural(asked, "action")}, last minute`];
}

const made = new Map();

function tile({id, name}) {
  const parts = {
    number: el("span", {class: "number"}), unit: el("span", {class: "unit"}),
    detail: el("dd", {class: "detail"}), spark: el("dd", {class: "sparkbox"}),
  };
  parts.box = el("div", {class: "tile", "data-tile": id}, el("dt", {}, name),
    el("dd", {class: "value"}, parts.number, parts.unit), parts.detail, parts.spark);
  made.set(id, parts);
  return parts.box;
}

export function drawLive(box, view) {
  if (!made.size) box.replaceChildren(...TILES.map(tile));
  for (const {id, column, show} of TILES) {
    const parts = made.get(id), [number, unit, detail, alarming] = show(view);
    say(parts.number, number);
    say(parts.unit, unit);
    say(parts.detail, detail);
    parts.box.classList.toggle("alarming", Boolean(alarming));
    const samples = column === null ? shares(view)
      : view.history.map(s => [s[0], typeof column === "function" ? column(s) : s[column]]);
    const {from_ms: from, step_s: step} = view.engagement;
    parts.spark.replaceChildren(column === null
      ? spark(samples, view.at - from, view.at, 4000 * step) : spark(samples, SPAN_MS, view.at));
  }
}

function shares(view) {
  const {from_ms: from, step_s: step, series} = view.engagement, sums = new Map();
  for (const one of series)
    for (const [at, outcomes, in20] of one.points) {
      const held = sums.get(at) || [0, 0];
      sums.set(at, [held[0] + outcomes, held[1] + in20]);
    }
  return [...sums].sort((a, b) => a[0] - b[0]).map(([at, [n, k]]) => [from + (at + 0.5) * step * 1000, k / n]);
}

// The models as a lineage: newest first, each joined to its parent, with the numbers that the gate saw.

import {el, redraw, say, set, svg} from "./dom.js";
import {ago, clock, count, inWords, ratio} from "./format.js";
import {named} from "./series.js";

const SHOWN = 6;
const ROLES = {
  champion: ["good", "in service"], candidate: ["plain", "candidate"], rejected: ["warn", "kept back"],
  "rolled back": ["warn", "rolled back"], retired: ["faint", "retired"],
};

export function drawModels(box, models, now) {
  const key = JSON.stringify([models.champion, models.problem, models.loaded, models.versions.map(v => [v.version, v.role])]);
  const before = box.querySelector(".older"), focused = before?.contains(document.activeElement);
  const anew = redraw(box, key, () => [
    models.problem ? el("p", {class: "note tone-bad"}, models.problem) : null,
    ...lineage([...models.versions].reverse(), models),
  ].filter(Boolean));
  const older = box.querySelector(".older");
  if (anew && before && older) {
    older.open = before.open;
    if (focused) older.querySelector("summary").focus({preventScroll: true});
  }
  const told = new Map(models.versions.map(v => [v.version, v.lineage]));
  for (const row of box.querySelectorAll(".model")) age(row.querySelector(".facts"), told.get(row.dataset.version), now);
  connect(box, models.versions);
}

/** What passes with time: only these texts change while the models stay as they are. */
function age(facts, from, now) {
  say(facts, [
    from.parent ? "from version " + from.parent : null,
    from.trained_at ? "trained " + ago(now - from.trained_at) : null,
    from.train_s !== undefined ? inWords(1000 * from.train_s) : null,
    from.events ? count(from.events) + " events" : null,
  ].filter(Boolean).join(" · "));
  if (from.trained_at) set(facts, {title: clock(from.trained_at)});
}

function lineage(versions, models) {
  if (!versions.length) return [el("p", {class: "nothing"}, "No model yet: rankings are what is trending. The retrainer"
    + " trains the first one when the session log holds enough sessions (TRAIN_MIN_SESSIONS).")];
  const list = versions.map(version => row(version, models));
  const shown = el("ol", {class: "lineage"}, svg("svg", {class: "rails", "aria-hidden": "true"}), ...list.slice(0, SHOWN));
  if (list.length <= SHOWN) return [shown];
  return [shown, el("details", {class: "older"}, el("summary", {}, `${list.length - SHOWN} older`),
    el("ol", {class: "lineage plain"}, ...list.slice(SHOWN)))];
}

function row({version, role, lineage: from, gate}, models) {
  const [tone, word] = ROLES[role] || ["plain", role];
  const lags = role === "champion" && models.loaded && models.loaded.version !== version;
  return el("li", {class: "model tone-" + tone, "data-version": version, "data-parent": from.parent || "",
      "data-aside": role === "champion" || role === "retired" ? null : true},
    el("span", {class: "node", "aria-hidden": "true"}),
    el("div", {},
      el("p", {class: "model-head"}, el("b", {}, named(version)), el("span", {class: "chip tone-" + tone}, word),
        lags ? el("span", {class: "soft"}, `this process still ranks with ${models.loaded.version}`) : null,
        el("span", {class: "soft facts"})),
      gate ? bars(gate) : el("p", {class: "soft"}, "published without a gate"),
      gate && gate.decision !== "promoted" ? el("p", {class: "why"}, gate.reason + ".") : null));
}

/** Recall@20 on the newest events, side by side. */
function bars(gate) {
  const asked = [["this one", gate.challenger, "mine"], [gate.champion ? named(gate.champion.version) : null, gate.champion, "rival"],
    ["popularity", gate.popularity, "rival"]].filter(([name, numbers]) => name && numbers);
  const top = Math.max(0.01, ...asked.map(([, numbers]) => numbers.recall20));
  const sure = (gate.over_champion || gate.over_popularity || {}).confidence;
  const rows = asked.flatMap(([name, numbers, kind]) => {
    const bar = el("i", {class: kind});
    bar.style.width = 100 * numbers.recall20 / top + "%";
    return [el("dt", {}, name), el("dd", {}, el("span", {class: "track"}, bar), el("b", {}, ratio(numbers.recall20)))];
  });
  return el("figure", {class: "gate"}, el("dl", {}, ...rows), el("figcaption", {class: "soft"},
    `Recall@20 on the newest ${count(gate.events)} events` + (sure === undefined || sure === null ? "" : `, better with confidence ${ratioOrOne(sure)}`)));
}

const ratioOrOne = value => (value > 0.9995 ? "1.0" : ratio(value));

/** Draws the lines from parent to child between the nodes, where the layout has put them. */
function connect(box, versions) {
  const list = box.querySelector(".lineage"), rails = box.querySelector(".rails");
  if (!list || !rails) return;
  const draw = () => {
    const origin = list.getBoundingClientRect(), at = new Map();
    for (const row of list.querySelectorAll(".model")) {
      const node = row.querySelector(".node").getBoundingClientRect();
      at.set(row.dataset.version, [node.left + node.width / 2 - origin.left, node.top + node.height / 2 - origin.top]);
    }
    const lines = versions.filter(v => v.lineage.parent && at.has(v.version)).map(v => {
      const [x, y] = at.get(v.version), parent = at.get(String(v.lineage.parent));
      const [px, py] = parent || [x, origin.height];
      return svg("path", {class: v.role === "champion" || v.role === "retired" ? "main" : "aside",
        d: x === px ? `M${x},${y}V${py}` : `M${x},${y}V${(y + 18).toFixed(1)}C${x},${y + 34} ${px},${y + 26} ${px},${y + 44}V${py}`});
    });
    rails.setAttribute("width", origin.width);
    rails.setAttribute("height", origin.height);
    rails.replaceChildren(...lines);
  };
  draw();
  if (!list.dataset.watched) {
    list.dataset.watched = "yes";
    new ResizeObserver(draw).observe(list);
  }
}

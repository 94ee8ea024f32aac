// The engagement chart: a line for each model version with its 95% interval, and what happened marked on it.

import {byId, el, say, set, svg} from "./dom.js";
import {clock, plural, share} from "./format.js";
import {layout, marksOf} from "./marks.js";
import {linear, step, times} from "./scale.js";
import {band, hue, named, path, pointsOf, runs} from "./series.js";

const YOUNG = 0.2;  // of the time shown, at least
const LEFT = 46, RIGHT = 18, BOTTOM = 30, TOP = 10, LANE = 24;

const pen = document.createElement("canvas").getContext("2d");
function measure(text) {
  pen.font = "600 11px system-ui, sans-serif";
  return pen.measureText(text).width;
}

const holds = id => label => label.marks.some(mark => mark.id === id);

export class Chart {
  constructor(box) {
    this.box = box;
    this.pick = null;  // what is told of: a time (ms), or a mark's id
    this.stop = null;  // a mark's id: the tab key stops at its label
    this.tip = el("div", {class: "tip", hidden: true});  // for the eye: the focused part says the same itself
    this.legend = byId("legend");
    this.root = svg("svg", {class: "plot", role: "group"}, this.ground = svg("g", {"aria-hidden": "true"}),
      this.cross = svg("g", {class: "cross", "aria-hidden": "true"}), this.surface = this.makeSurface(),
      this.flags = svg("g", {class: "flags"}));
    new ResizeObserver(() => this.view && this.draw(this.view)).observe(box);
    box.addEventListener("pointermove", event => this.hover(event));
    box.addEventListener("pointerleave", () => this.choose(null));
  }

  draw(view) {
    this.view = view;
    const {from_ms: from, step_s: size, steps, series} = view.engagement;
    const width = Math.max(260, this.box.clientWidth), narrow = width < 560;
    const {marks, trainings} = marksOf(view.marks);
    this.to = from + steps * size * 1000;
    this.lines = series.map(one => ({version: one.version, points: pointsOf(one, view.engagement)}));
    this.from = this.begin(from, marks);
    this.x = linear(this.from, this.to, LEFT, width - RIGHT);
    const placed = layout(marks, this.x, LEFT, width - 2, measure);
    const top = TOP + placed.lanes * LANE, height = (narrow ? 200 : 250) + placed.lanes * LANE;
    const highest = Math.max(0.05, ...this.lines.flatMap(l => l.points.map(p => p.share)));
    const tick = step(highest * 1.08, narrow ? 3 : 4), limit = Math.min(1, Math.ceil(highest * 1.08 / tick) * tick);
    this.y = linear(0, limit, height - BOTTOM, top + 6);
    Object.assign(this, {top, height, width, labels: placed.labels, trainings, limit, hole: size * 1000 * 16});
    set(this.root, {width, height, viewBox: `0 0 ${width} ${height}`, "aria-label": this.summary()});
    this.ground.replaceChildren(this.grid(limit, tick), this.spans(), ...this.lines.map(line => this.line(line)));
    set(this.surface, {x: LEFT, y: top, width: width - LEFT - RIGHT, height: height - BOTTOM - top});
    if (!this.root.isConnected) this.box.append(this.root, this.tip);
    this.drawFlags();
    this.drawLegend();
    if (document.activeElement !== this.surface) this.tell();
    this.show();
  }

  /** Of a system that is younger than the time shown, only its life is shown. */
  begin(from, marks) {
    const first = Math.min(...this.lines.flatMap(l => l.points.slice(0, 1).map(p => p.from)), ...marks.map(m => m.at));
    const span = Math.max(this.to - first, YOUNG * (this.to - from)) * 1.03;
    return Number.isFinite(first) ? Math.max(from, this.to - span) : from;
  }

  summary() {
    const last = this.lines.filter(l => l.points.length).map(l => `${named(l.version)} ${share(l.points.at(-1).share)}`);
    return "Hits in the top 20 over time. " + (last.length ? "Last: " + last.join(", ") : "No outcome in this time") + ".";
  }

  grid(limit, tick) {
    const {x, y, width, height} = this, group = svg("g", {class: "grid", "aria-hidden": "true"});
    for (let value = 0; value <= limit + 1e-9; value += tick) {
      const at = Math.round(y(value)) + 0.5;
      group.append(svg("line", {x1: LEFT, x2: width - RIGHT, y1: at, y2: at, class: value ? "" : "base"}),
        svg("text", {x: LEFT - 8, y: at + 3.5, "text-anchor": "end"}, Math.round(100 * value) + "%"));
    }
    const seconds = this.to - this.from < 480000;
    for (const at of times(this.from, this.to, width / 90))
      if (x(at) > LEFT + 14 && x(at) < width - RIGHT - 12)
        group.append(svg("line", {x1: x(at), x2: x(at), y1: height - BOTTOM, y2: height - BOTTOM + 4, class: "base"}),
          svg("text", {x: x(at), y: height - BOTTOM + 18, "text-anchor": "middle"}, clock(at, seconds && at % 60000 !== 0)));
    return group;
  }

  /** Since when engagement fell, and when trainings ran. */
  spans() {
    const {x, y, top, height} = this, group = svg("g", {"aria-hidden": "true"});
    const clip = at => Math.max(LEFT, Math.min(x(at), this.width - RIGHT));
    for (const label of this.labels)
      for (const mark of label.marks)
        if (mark.kind === "alarm")
          group.append(svg("rect", {class: "fall", x: clip(mark.since), width: Math.max(0, x(mark.at) - clip(mark.since)),
            y: top, height: height - BOTTOM - top}));
    for (const training of this.trainings)
      group.append(svg("rect", {class: "training", x: clip(training.from), y: y(0) - 5, height: 5, rx: 2,
        width: Math.max(3, clip(training.at) - clip(training.from))}));
    return group;
  }

  line({version, points}) {
    const {x, y} = this, group = svg("g", {class: "line " + hue(version), "aria-hidden": "true"});
    for (const run of runs(points)) {
      if (run.length === 1) group.append(svg("circle", {cx: x(run[0].at), cy: y(run[0].share), r: 2.2, class: "dot"}));
      else group.append(svg("path", {d: band(run, x, y, this.limit), class: "band"}), svg("path", {d: path(run, x, y), class: "stroke"}));
    }
    return group;
  }

  /** Takes the pointer, and the arrow keys. */
  makeSurface() {
    const take = event => {
      const moves = {ArrowLeft: -1, ArrowRight: 1}[event.key];
      if (event.key === "Escape") this.choose(null);
      if (!moves && event.key !== "Home" && event.key !== "End") return;
      event.preventDefault();
      const every = this.view.engagement.step_s * 1000;
      let at = typeof this.pick === "number" ? this.pick : this.to - every / 2;
      if (moves) at += moves * every * 2;
      else at = event.key === "Home" ? this.from : this.to - every / 2;
      this.choose(Math.max(this.from, Math.min(at, this.to)));
    };
    return svg("rect", {class: "surface", rx: 3, tabindex: 0, role: "slider", "aria-label": "Time; the arrow keys move it",
      onkeydown: take, onblur: () => this.choose(null)});
  }

  /** What the slider says of itself, in ms since the epoch and in words. Screen readers read out each change: while a
   * person is on it, only their own moves change it. */
  tell() {
    const at = typeof this.pick === "number" ? this.pick : null;
    set(this.surface, {"aria-valuemin": Math.round(this.from), "aria-valuemax": Math.round(this.to),
      "aria-valuenow": Math.round(at ?? this.to), "aria-valuetext": at === null ? "now" : this.words(at)});
  }

  /** Labels with their poles: one stop for the tab key, the arrows go from one to the next. A label keeps its element as
   * long as it is there, and so the focus. */
  drawFlags() {
    const focused = this.flags.contains(document.activeElement) ? document.activeElement : null;
    const made = new Map([...this.flags.children].map(flag => [flag.dataset.mark, flag]));
    const flags = this.labels.map((label, n) => {
      const flag = made.get(label.marks[0].id) || this.makeFlag(label.marks[0].id);
      this.place(flag, label, n);
      return flag;
    });
    for (const flag of made.values()) if (!flags.includes(flag)) flag.remove();
    flags.forEach((flag, n) => {
      if (this.flags.children[n] !== flag) this.flags.insertBefore(flag, this.flags.children[n] || null);
    });
    this.rove();
    if (focused && !focused.isConnected)  // its mark joined another label, or is older than what is shown
      (flags[this.labels.findIndex(holds(focused.dataset.mark))] || flags[0] || this.surface).focus({preventScroll: true});
  }

  makeFlag(id) {
    return svg("g", {class: "flag", role: "button", "data-mark": id, onkeydown: event => this.walk(event),
      onfocus: () => { this.stop = id; this.rove(); this.choose(id); }, onblur: () => this.choose(null),
      onpointerenter: () => this.choose(id)},
      svg("line", {class: "pole"}), svg("rect", {class: "pill", height: 18, rx: 4}), svg("text", {"text-anchor": "middle"}));
  }

  place(flag, label, n) {
    const y = TOP + label.lane * LANE, x = Math.max(LEFT, Math.min(label.x, this.width - 2));
    const [pole, pill, text] = flag.children;
    set(flag, {class: "flag tone-" + label.tone, "data-flag": n, "aria-label": label.marks.map(m => `${m.when} ${m.title}. ${m.text}`).join(" ")});
    set(pole, {x1: x, x2: x, y1: y + 18, y2: this.height - BOTTOM});
    set(pill, {x: label.left, y, width: label.width});
    set(text, {x: label.left + label.width / 2, y: y + 13});
    say(text, label.text);
  }

  /** The tab key stops at the label where it was last, else at the newest. */
  rove() {
    const at = this.labels.findIndex(holds(this.stop)), stop = at < 0 ? this.labels.length - 1 : at;
    [...this.flags.children].forEach((flag, n) => set(flag, {tabindex: n === stop ? 0 : -1}));
  }

  walk(event) {
    const n = Number(event.currentTarget.dataset.flag);
    const to = {ArrowLeft: n - 1, ArrowRight: n + 1, Home: 0, End: this.labels.length - 1}[event.key];
    if (event.key === "Escape") this.choose(null);
    const next = this.flags.children[to];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  hover(event) {
    if (event.target.closest("[data-flag]")) return;
    const at = event.clientX - this.box.getBoundingClientRect().left;
    this.choose(at < LEFT || at > this.width - RIGHT ? null : this.x.back(at));
  }

  /** Tells of a time or of a label; null: of none. */
  choose(pick) {
    this.pick = pick;
    this.tell();
    this.show();
  }

  /** Shows what is known of what was chosen, where it is now. */
  show() {
    const pick = this.pick, label = typeof pick === "string" ? this.labels.find(holds(pick)) : null;
    this.cross.replaceChildren();
    if (typeof pick === "number") this.showTime(pick);
    else if (label) this.showLabel(label);
    else this.tip.hidden = true;
  }

  /** The points of a time, with their versions. */
  at(time) {
    return this.lines.map(l => [l.version, l.points.find(p => p.from <= time && time < p.to)]).filter(([, p]) => p);
  }

  rows(time) {
    const rows = this.at(time).map(([version, p]) => el("p", {class: hue(version)}, el("i"), el("b", {}, share(p.share)), " ",
      named(version), el("span", {class: "soft"}, ` of ${plural(p.count, "action")}; first place ${share(p.first)}`)));
    if (!rows.length) rows.push(el("p", {class: "soft"}, "no outcome at that time"));
    const trained = this.trainings.filter(t => t.from <= time && time <= t.at);
    return [...rows, ...trained.map(t => el("p", {class: "soft"}, `${t.title}: ${t.text}`))];
  }

  words(time) {
    return clock(time) + ": " + this.rows(time).map(row => row.textContent).join("; ");
  }

  showTime(time) {
    const x = this.x(time);
    this.cross.append(svg("line", {x1: x, x2: x, y1: this.top, y2: this.height - BOTTOM}),
      ...this.at(time).map(([version, p]) => svg("circle", {cx: x, cy: this.y(p.share), r: 3.5, class: hue(version)})));
    this.put(x, [el("time", {}, clock(time)), ...this.rows(time)]);
  }

  showLabel(label) {
    this.put(label.x, label.marks.map(m => el("div", {class: "tone-" + m.tone}, el("time", {}, m.when),
      el("p", {}, el("b", {}, m.title), " ", m.text))), this.top);
  }

  put(x, children, y = this.top + 8) {
    this.tip.replaceChildren(...children);
    this.tip.hidden = false;
    const wide = this.tip.offsetWidth, right = x + 14 + wide < this.width;
    this.tip.style.left = Math.max(0, Math.min(right ? x + 14 : x - 14 - wide, this.width - wide)) + "px";
    this.tip.style.top = y + "px";
  }

  drawLegend() {
    const items = this.lines.filter(l => l.points.length).map(({version, points}) => {
      const last = points.at(-1), now = this.to - last.to < this.hole;
      return el("span", {class: `key ${hue(version)}${now ? "" : " past"}`}, el("i"), named(version),
        now ? el("b", {}, share(last.share)) : null);
    });
    if (this.trainings.length) items.push(el("span", {class: "key training"}, el("i"), "training"));
    this.legend.replaceChildren(...items);
  }
}

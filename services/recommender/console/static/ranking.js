// A ranking whose items move to their new places, with scores as bars.

import {calm, el, say} from "./dom.js";

const MOVE_MS = 380;

export class Ranking {
  /** onpick: what an item does when it is chosen; without, items are not to be chosen. */
  constructor(label, onpick) {
    this.onpick = onpick;
    this.rows = new Map();
    this.list = el("ol", {class: "ranking", "aria-label": label});
  }

  /** items: [{item_id, score}], best first. moved: whether to tell how each moved since the last time. */
  update(items, moved) {
    const before = new Map([...this.rows].map(([id, row]) => [id, [row.place, row.node.getBoundingClientRect().top]]));
    const held = document.activeElement, focused = this.list.contains(held) ? Number(held.dataset.place) : null;
    const scores = items.map(item => item.score), low = Math.min(...scores), high = Math.max(...scores);
    const rows = new Map();
    items.forEach(({item_id: id, score}, place) => {
      const row = this.rows.get(id) || this.row(id);
      row.place = place;
      row.button.dataset.place = place;
      say(row.number, String(place + 1));
      say(row.score, score.toFixed(Math.abs(score) < 100 ? 2 : 0));
      row.bar.style.width = (high > low ? 6 + 94 * (score - low) / (high - low) : 100) + "%";
      this.tell(row, before.get(id), place, moved && before.size > 0);
      rows.set(id, row);
    });
    this.rows = rows;
    const nodes = [...rows.values()].map(row => row.node), shown = this.list.children;
    if (nodes.length !== shown.length || nodes.some((node, n) => node !== shown[n])) this.list.replaceChildren(...nodes);
    if (focused !== null) this.list.querySelector(`[data-place="${Math.min(focused, rows.size - 1)}"]`)?.focus({preventScroll: true});
    if (moved && !calm()) for (const [id, row] of rows) this.move(row.node, before.get(id));
  }

  row(id) {
    const row = {number: el("span", {class: "place"}), bar: el("i"), score: el("span", {class: "score"}), step: el("span", {class: "step"})};
    const name = el("span", {class: "item", title: id}, id);
    row.button = this.onpick ? el("button", {type: "button", class: "pick", onclick: () => this.onpick(id)}, name) : name;
    row.node = el("li", {}, row.number, row.button, row.step, el("span", {class: "track", "aria-hidden": "true"}, row.bar), row.score);
    return row;
  }

  tell(row, before, place, moved) {
    const up = before ? before[0] - place : null;
    row.step.className = "step" + (!moved || up === 0 ? "" : up === null ? " new" : up > 0 ? " up" : " down");
    say(row.step, !moved || up === 0 ? "" : up === null ? "new" : (up > 0 ? "↑" : "↓") + Math.abs(up));
  }

  move(node, before) {
    const from = before ? before[1] - node.getBoundingClientRect().top : 12;
    if (!from) return;
    node.animate([{transform: `translateY(${from}px)`, opacity: before ? 1 : 0}, {transform: "none", opacity: 1}],
      {duration: MOVE_MS, easing: "cubic-bezier(.2,.8,.2,1)"});
  }
}

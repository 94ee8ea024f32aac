// Try an anonymous session: pick items, and the ranking follows. Nothing is stored, here or on the server.

import {call} from "./api.js";
import {byId, el, say} from "./dom.js";
import {Ranking} from "./ranking.js";
import {named} from "./series.js";

const K = 10;
const MOST = 1000;

export class SessionCard {
  constructor() {
    this.items = [];
    this.running = null;
    this.ranking = new Ranking("Offered now", item => this.add(item));
    this.says = el("p", {class: "soft", role: "status"});
    this.problem = el("p", {class: "note tone-bad", role: "status", hidden: true});
    this.chips = byId("picked");
    byId("session").append(this.problem, this.says, this.ranking.list);
    this.again = byId("again");
    this.again.addEventListener("click", () => { this.restart([]); byId("itemid").focus(); });
    byId("itemform").addEventListener("submit", event => {
      event.preventDefault();
      this.add(byId("itemid").value);
      byId("itemid").value = "";
    });
  }

  add(item) { this.restart([...this.items, item].slice(-MOST)); }

  restart(items) {
    this.items = items;
    this.draw();
    return this.rank();
  }

  remove(at) {
    this.restart(this.items.filter((_, n) => n !== at));
    const buttons = this.chips.querySelectorAll("button");
    (buttons[Math.min(at, buttons.length - 1)] || byId("itemid")).focus();
  }

  draw() {
    this.again.disabled = !this.items.length;
    this.chips.replaceChildren(...this.items.map((item, at) => el("li", {class: "chip"}, el("span", {}, item),
      el("button", {type: "button", "aria-label": `Take ${item} out of the session`, onclick: () => this.remove(at)}, "×"))));
  }

  /** Asks anew; an answer to what was asked before is not waited for. */
  async rank() {
    this.running?.abort();
    const mine = this.running = new AbortController();
    try {
      const ranking = await call("POST", "v1/recommendations", {items: this.items, k: K}, mine.signal);
      this.problem.hidden = true;
      this.ranking.list.classList.remove("stale");
      this.ranking.update(ranking.items, true);
      say(this.says, this.words(ranking));
    } catch (error) {
      if (mine.signal.aborted) return;
      this.problem.hidden = false;
      say(this.problem, `Not ranked: ${error.message}.`);
      this.ranking.list.classList.add("stale");
    }
  }

  words({strategy, model_version: version, items}) {
    if (!items.length) return "There is nothing to offer yet.";
    if (strategy === "gru") return `Ranked by ${named(version)}, best first.`;
    return this.items.length ? "What is trending: no model knows any of these items." : "What is trending. Pick an item to begin.";
  }

  /** Another model, or a first look: asks again, unless a person is about to pick. */
  refresh(key) {
    if (this.key === key || byId("session").matches(":hover, :focus-within")) return;
    this.key = key;
    this.rank();
  }
}

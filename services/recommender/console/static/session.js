// Try an anonymous session: pick items, and the ranking follows. Nothing is stored, here or on the server.

import {call} from "./api.js";
import {byId, el, say} from "./dom.js";
import {Ranking} from "./ranking.js";
import {named} from "./series.js";

const K = 10;
const MOST = 1000;
const AGAIN_MS = 5000;

export class SessionCard {
  constructor() {
    this.items = [];
    this.running = null;
    this.asked = 0;
    this.owed = false;  // whether a person's own choice has no answer yet
    this.anew();
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
    this.owed = true;
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
    const mine = this.running = new AbortController(), wanted = this.tried = this.wanted;
    this.asked = performance.now();
    try {
      const ranking = await call("POST", "v1/recommendations", {items: this.items, k: K}, mine.signal);
      if (!this.owed && this.watched()) return;
      this.problem.hidden = true;
      this.ranking.list.classList.remove("stale");
      this.ranking.update(ranking.items, true);
      say(this.says, this.words(ranking));
      this.key = wanted;
      this.owed = false;
    } catch (error) {
      if (mine.signal.aborted) return;
      this.key = [413, 422].includes(error.status) ? wanted : null;  // these would be refused again
      this.problem.hidden = false;
      say(this.problem, `Not ranked: ${error.message}.`);
      this.ranking.list.classList.add("stale");
    } finally {
      if (this.running === mine) this.running = null;
    }
  }

  words({strategy, model_version: version, items}) {
    if (!items.length) return "There is nothing to offer yet.";
    if (strategy === "gru") return `Ranked by ${named(version)}, best first.`;
    return this.items.length ? "What is trending: no model knows any of these items." : "What is trending. Pick an item to begin.";
  }

  /** As if it had never asked. */
  anew() { this.key = this.tried = null; }

  /** To be called again and again. Asks anew at once where `key` is another, as with another model, and every few seconds
   * where the last try failed, nothing is offered or nothing is picked. Where a person is about to pick, what is offered
   * stays where it is; but one whose pick has no answer yet waits for just that. */
  refresh(key) {
    this.wanted = key;
    const unsure = this.key !== key || !this.ranking.rows.size || !this.items.length;
    if (this.running || !(this.tried !== key || (unsure && performance.now() - this.asked >= AGAIN_MS))) return;
    if (this.owed || !this.watched()) this.rank();
  }

  watched() { return this.ranking.rows.size > 0 && byId("session").matches(":hover, :focus-within"); }
}

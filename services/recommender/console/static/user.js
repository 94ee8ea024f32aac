// Look up a user: what is known of them, and the ranking that they get, followed while they are shown.

import {call, userPath} from "./api.js";
import {byId, el, redraw, say} from "./dom.js";
import {ago, clock, plural} from "./format.js";
import {Ranking} from "./ranking.js";
import {named} from "./series.js";

const FOLLOW_MS = 2000;
const K = 10;

export class UserCard {
  /** tryout: called with recent items, to go on from there in the anonymous session. */
  constructor(tryout) {
    this.tryout = tryout;
    this.asked = null;
    this.box = byId("user");
    this.ranking = new Ranking("Their ranking");
    this.facts = el("dl", {class: "facts-list"});
    this.recent = el("ol", {class: "chips", "aria-label": "Recent items, oldest first"});
    this.why = el("p", {class: "note", hidden: true});
    this.from = el("button", {type: "button", class: "quiet", onclick: () => this.tryout(this.view.recent_items)}, "Go on from here in a session");
    this.parts = el("div", {class: "result", hidden: true}, this.facts, this.recent, this.from, this.why, this.ranking.list);
    this.problem = el("p", {class: "note tone-bad", role: "status", hidden: true});
    this.box.append(this.problem, this.parts);
    byId("userform").addEventListener("submit", event => { event.preventDefault(); this.look(byId("userid").value); });
  }

  /** Some who acted just now, for those who know no id. */
  suggest(users) {
    const line = byId("somebody"), few = users.slice(0, 3);
    line.hidden = !few.length || this.asked !== null;
    if (line.hidden || line.matches(":hover, :focus-within")) return;  // nothing moves away under the pointer
    redraw(line, few.join("\n"), () => ["Just now: ", ...few.map(user =>
      el("button", {type: "button", class: "link", onclick: () => { byId("userid").value = user; this.look(user); }}, user))]);
  }

  async look(id) {
    const asked = this.asked = {id};
    this.first = true;
    this.box.setAttribute("aria-busy", "true");
    byId("somebody").hidden = true;
    while (this.asked === asked) {
      if (!document.hidden) await this.turn(asked);
      await new Promise(done => setTimeout(done, FOLLOW_MS));
    }
  }

  async turn(asked) {
    try {
      const [view, ranking] = await Promise.all([call("GET", userPath(asked.id)),
        call("GET", `${userPath(asked.id)}/recommendations?k=${K}`)]);
      if (this.asked === asked) this.show(view, ranking);
    } catch (error) {
      if (this.asked !== asked) return;
      this.problem.hidden = false;
      say(this.problem, `Not known now: ${error.message}.`);
      this.parts.classList.add("stale");
      if (this.first) this.parts.hidden = true;
      if ([401, 403, 422].includes(error.status)) this.asked = null;
    }
    this.box.removeAttribute("aria-busy");
  }

  show(view, ranking) {
    this.view = view;
    this.problem.hidden = true;
    this.parts.hidden = false;
    this.parts.classList.remove("stale");
    const state = view.state_model_version ? named(view.state_model_version) + (view.state_is_current ? "" : ", made anew when needed")
      : view.recent_items.length ? "none: no item of theirs is known to a model" : "none";
    const facts = [
      ["Last event", view.last_event_at ? `${ago(view.state_age_ms)}, ${clock(view.last_event_at)}` : "none"],
      ["Events taken in", plural(view.events, "event").split(" ")[0]],
      ["Hidden state of", state],
      ["Ranked by", ranking.strategy === "gru" ? named(ranking.model_version) : "what is trending"],
    ];
    if (view.dismissed) facts.push(["Dismissed", plural(view.dismissed, "item") + " not offered now"]);
    redraw(this.facts, JSON.stringify(facts), () => facts.flatMap(([name, text]) => [el("div", {}, el("dt", {}, name), el("dd", {}, text))]));
    redraw(this.recent, view.recent_items.join("\n"), () => view.recent_items.map(item => el("li", {class: "chip"}, item)));
    this.from.hidden = !view.recent_items.length;
    this.why.hidden = !view.why;
    if (view.why) say(this.why, "Trending: " + view.why.text);
    this.ranking.update(ranking.items, !this.first);
    this.first = false;
  }
}

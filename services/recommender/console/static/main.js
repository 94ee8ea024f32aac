// The page: asks once a second what is new, and shows it; says so where nobody answers, and goes on by itself.

import {call, key, useKey} from "./api.js";
import {Chart} from "./chart.js";
import {byId, el, redraw, say} from "./dom.js";
import {drawEmpty} from "./empty.js";
import {ago, count} from "./format.js";
import {drawJournal} from "./journal.js";
import {drawLive} from "./live.js";
import {drawModels} from "./models.js";
import {SessionCard} from "./session.js";
import {UserCard} from "./user.js";

const TURN_MS = 1000;
const MOST_MS = 8000;
const STALE_MS = 5000;
const WINDOWS = [[900, "15 min"], [3600, "1 hour"], [21600, "6 hours"]];
const SYSTEMS = {kafka: "Kafka", redis: "Redis", registry: "The model registry", model: "The newest model"};
const MEANS = {
  kafka: "Numbers of the stream are not known until it is back.",
  redis: "Users cannot be ranked until it is back: they are answered with 503.",
  registry: "Models in service go on.",
  model: "The one before goes on.",
};
const NEEDS = {401: "Needs a key", 403: "Needs another key"};

const state = {window: WINDOWS[0][0], view: null, heard: 0, failures: 0, modelsKey: null, models: null, problem: null, timer: 0, turn: 0};
const chart = new Chart(byId("chart"));
const session = new SessionCard();
const user = new UserCard(items => { session.restart(items); byId("session-title").scrollIntoView({block: "nearest"}); });

async function turn() {
  clearTimeout(state.timer);
  const mine = ++state.turn;
  try {
    const view = await call("GET", "v1/console?window=" + state.window);
    if (mine !== state.turn) return;
    Object.assign(state, {view, heard: performance.now(), failures: 0, problem: null});
    byId("keyform").hidden = true;
    show(view);
    await models(view);
  } catch (error) {
    if (mine !== state.turn) return;
    if (error.status === undefined) throw error;
    state.failures++;
    state.problem = error;
    if (NEEDS[error.status]) askForKey(error);
  }
  status();
  const pause = Math.min(MOST_MS, TURN_MS * 2 ** Math.max(0, state.failures - 1));
  if (!document.hidden && mine === state.turn) state.timer = setTimeout(turn, pause);
}

function show(view) {
  const empty = view.now.events_total === 0 && !view.engagement.series.length;
  byId("empty").hidden = !empty;
  byId("engagement").hidden = byId("learning").hidden = empty && !view.champion;
  if (empty) drawEmpty(byId("empty"));
  drawLive(byId("live"), view);
  if (!byId("engagement").hidden) chart.draw(view);
  say(byId("engagement-says"), says(view));
  user.suggest(view.users);
  session.refresh(`${view.loaded}/${empty}`);
}

function says(view) {
  const series = view.engagement.series;
  if (!view.engagement.complete) return "Reading the outcomes of the last hours: the lines are not whole yet";
  if (!series.length) return view.now.events_total ? "No outcome in this time: an action counts when a ranking was held for its user" : "Nothing to show yet";
  return "Next actions that were in the top\u00a020 held for the user; the band is the 95% interval";
}

async function models(view) {
  if (state.modelsKey !== view.models_key) {
    try {
      state.models = await call("GET", "v1/models");
      state.modelsKey = view.models_key;
    } catch (error) {
      if (error.status === undefined) throw error;
      say(byId("models-says"), `Not known now: ${error.message}.`);
      return;
    }
  }
  drawModels(byId("models"), state.models, view.at);
  drawJournal(byId("journal"), state.models.events);
  const items = view.catalogue ? `, ${count(view.catalogue)} items` : "";
  say(byId("models-says"), view.loaded ? `Ranks with version ${view.loaded}${items}` : "Each is trained from its parent, and let in by the gate");
}

/** Whether what is shown is of now; each second, and after each turn. */
function status() {
  const age = state.heard ? performance.now() - state.heard : null, stale = age === null ? state.failures > 0 : age > STALE_MS;
  const box = byId("status");
  const missing = Object.keys((state.view && state.view.problems) || {});
  box.dataset.state = state.problem ? "away" : stale || missing.length ? "late" : state.view ? "live" : "begins";
  const text = state.problem ? NEEDS[state.problem.status] || "Reconnecting" : stale ? "Waiting" : missing.length ? "Without " + missing.map(name => SYSTEMS[name]).join(", ").replace(/The/g, "the")
    : state.view ? "Live" : "Connecting";
  say(box.querySelector(".says"), text);  // read out; the age, which changes each second, is not
  say(box.querySelector(".age"), age !== null && (state.problem || stale) ? `, data of ${ago(age)}` : "");
  byId("main").classList.toggle("stale-page", Boolean(stale && state.view));
  alerts();
}

function alerts() {
  const lines = [];
  if (state.problem && !NEEDS[state.problem.status])
    lines.push(`This recommender cannot be asked: ${state.problem.message}. Trying again by itself.`);
  for (const [name, why] of Object.entries((state.view && !state.problem && state.view.problems) || {}))
    lines.push(`${SYSTEMS[name]} ${name === "model" ? "cannot be used" : "does not answer"}. ${MEANS[name]} (${why})`);
  redraw(byId("alerts"), lines.join("\n"), () => lines.map(text => el("p", {class: "note tone-bad"}, text)));
}

function askForKey({status, message}) {
  const form = byId("keyform"), hidden = form.hidden;
  form.hidden = false;
  say(byId("keysays"), status === 403 ? `The key that was given may not read: ${message}.` : key() ? "The key that was given is not known." : "");
  if (hidden) byId("key").focus();
}

byId("keyform").addEventListener("submit", event => {
  event.preventDefault();
  useKey(byId("key").value);
  say(byId("keysays"), "");
  state.modelsKey = null;
  session.anew();
  turn();
});

function windows() {
  const box = byId("windows");
  const choose = seconds => {
    state.window = seconds;
    for (const button of box.children) {
      const chosen = Number(button.dataset.seconds) === seconds;
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen ? 0 : -1;
    }
  };
  box.append(...WINDOWS.map(([seconds, name]) => el("button", {type: "button", role: "radio", "data-seconds": seconds,
    onclick: () => { choose(seconds); turn(); }}, name)));
  box.addEventListener("keydown", event => {
    const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!by) return;
    event.preventDefault();
    const all = [...box.children], next = all[(all.indexOf(document.activeElement) + by + all.length) % all.length];
    next.focus();
    next.click();
  });
  choose(state.window);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) turn(); });
addEventListener("online", turn);
setInterval(status, 1000);
windows();
turn();

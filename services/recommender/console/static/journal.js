// What happened to the models, in words.

import {el, redraw} from "./dom.js";
import {clock, inWords, ratio, share} from "./format.js";

const WHY = {drift: "after an alarm", cold: "the first model", age: "for the model's age"};

/** {tone, title, text} of a note of the registry's journal. */
export function told({kind, details}) {
  return (WORDS[kind] || other)(details, kind);
}

const other = (details, kind) => ({tone: "plain", title: kind, text: JSON.stringify(details)});

const WORDS = {
  alarm: d => ({
    tone: "bad",
    title: d.repeat ? "Alarm, repeated" : "Alarm",
    text: `Version ${d.version}: hits fell from ${share(d.before)} to ${share(d.after)} since ${clock(d.since)}.`,
  }),
  training: d => ({
    tone: d.problem ? "bad" : "plain",
    title: d.problem ? "Training failed" : "Training",
    text: `${WHY[d.reason] || d.reason}, ${inWords(1000 * d.seconds)}: ${d.problem || outcome(d)}.`,
  }),
  gate: d => ({
    tone: d.decision === "promoted" ? "good" : "warn",
    title: d.decision === "promoted" ? `Version ${d.version} let in` : `${d.version ? "Version " + d.version : "Challenger"} kept back`,
    text: [recalls(d), d.decision === "promoted" ? "" : d.reason].filter(Boolean).join(". ") + ".",
  }),
  swap: d => ({
    tone: "good",
    title: `Version ${d.version} in service`,
    text: `${d.from ? "In place of version " + d.from : "The first"}${d.why === "gate" ? "" : ", put there from outside"}.`,
  }),
  rollback: d => ({
    tone: "warn",
    title: `Back to version ${d.back_to}`,
    text: d.after === undefined ? `Version ${d.version}: ${d.why}.`
      : `Version ${d.version} had ${share(d.after)} hits, ${share(d.before)} before it (${d.events} outcomes).`,
  }),
};

const outcome = d => (d.outcome === "nothing" ? "too little in the session log" : d.outcome);

export function recalls(gate) {
  const parts = [];
  for (const name of ["challenger", "champion", "popularity"])
    if (gate[name] && gate[name].recall20 !== undefined) parts.push(`${name} ${ratio(gate[name].recall20)}`);
  return parts.length ? "Recall@20 " + parts.join(", ") : "";
}

export function drawJournal(box, notes) {
  const day = new Date().toDateString();  // times of other days are told with their date
  redraw(box, [day, ...notes.map(note => note.id)].join(), () => notes.length ? notes.map(line)
    : [el("li", {class: "nothing"}, "Nothing yet. The first entry will be the first model.")]);
}

function line(note) {
  const {tone, title, text} = told(note);
  return el("li", {class: "tone-" + tone}, el("time", {datetime: new Date(note.at).toISOString()}, clock(note.at)),
    el("p", {}, el("b", {}, title), " ", el("span", {class: "soft"}, text)));
}

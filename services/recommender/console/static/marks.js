// What is marked on the engagement line, and where its labels go: none covers another.

import {told} from "./journal.js";
import {clock} from "./format.js";

const LANES = 4;
const GAP = 5;
const PADDING = 16;
const MORE = 24;  // room kept for "+9" behind a label

/** Marks of the notes, oldest first: {id, at, since, kind, label, title, text}. Trainings are spans of their own. */
export function marksOf(notes) {
  const swapped = new Set(notes.filter(n => n.kind === "swap").map(n => String(n.details.version)));
  const marks = [], trainings = [];
  for (const note of notes) {
    const {tone, title, text} = told(note), d = note.details;
    const mark = {id: note.id, at: note.at, kind: note.kind, tone, title, text, when: clock(note.at)};
    if (note.kind === "training") trainings.push({...mark, from: note.at - 1000 * d.seconds});
    else if (note.kind === "alarm") marks.push({...mark, label: d.repeat ? "alarm again" : "alarm", since: d.since});
    else if (note.kind === "swap") marks.push({...mark, label: "version " + d.version});
    else if (note.kind === "rollback") marks.push({...mark, label: "back to " + d.back_to});
    else if (note.kind === "gate" && d.decision !== "promoted") marks.push({...mark, label: "kept back"});
    else if (note.kind === "gate" && !swapped.has(String(d.version))) marks.push({...mark, label: `version ${d.version} let in`});
  }
  return {marks, trainings};
}

/** Adds to each mark its pixel `x`, lane, and the label's left edge and width; where lanes are full, a mark joins the
 * label nearest to it. Returns the labels: {lane, left, width, text, x, marks}. */
export function layout(marks, x, left, right, measure) {
  const labels = [];
  for (const mark of [...marks].sort((a, b) => a.at - b.at)) {
    const at = x(mark.at), width = measure(mark.label) + PADDING;
    const label = {x: at, width, text: mark.label, tone: mark.tone, marks: [mark]};
    label.left = at + width + MORE > right ? Math.max(left, at - width) : at;
    label.lane = [...Array(LANES).keys()].findIndex(lane => labels.every(other => apart(label, lane, other)));
    if (label.lane >= 0) labels.push(label);
    else join(labels, mark, at, measure);
  }
  return {labels, lanes: Math.max(0, ...labels.map(label => label.lane + 1))};
}

/** Whether a label may have this lane: on no other one, nor any pole behind a label. */
function apart(label, lane, other) {
  if (lane === other.lane)
    return label.left + label.width + MORE + GAP <= other.left || other.left + other.width + GAP <= label.left;
  return lane < other.lane ? !covers(other, label.x) : !covers(label, other.x);
}

const covers = ({left, width, x}, pole) => x !== pole && pole > left - GAP && pole < left + width + GAP;

function join(labels, mark, at, measure) {
  const near = labels.reduce((best, one) => (Math.abs(one.x - at) < Math.abs(best.x - at) ? one : best));
  near.marks.push(mark);
  near.text = `${near.marks[0].label} +${near.marks.length - 1}`;
  const width = measure(near.text) + PADDING;
  if (near.left < near.x) near.left -= width - near.width;
  near.width = width;
  if (mark.tone === "bad") near.tone = "bad";
}

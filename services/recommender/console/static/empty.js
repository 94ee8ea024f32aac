// What to do next, where nothing has arrived yet.

import {el, redraw} from "./dom.js";
import {key} from "./api.js";

const curl = base => `curl -X POST '${base}v1/interactions' \\
     -H 'Content-Type: application/json' \\
${key() ? "     -H 'X-API-Key: …' \\\n" : ""}     -d '{"user_id": "ada", "item_id": "kettle",
          "event_type": "view", "ts": '$(date +%s000)'}'`;

const PRODUCER = `import json, time
from kafka import KafkaProducer

producer = KafkaProducer(bootstrap_servers="localhost:9092")
event = {"user_id": "ada", "item_id": "kettle",
         "event_type": "view", "ts": int(time.time() * 1000)}
producer.send("interactions", key=b"ada", value=json.dumps(event).encode())
producer.flush()`;

export function drawEmpty(box) {
  const base = new URL(".", location.href).href;
  redraw(box, base + key(), () => [
    el("h2", {id: "empty-title"}, "Nothing has arrived yet"),
    el("p", {class: "soft"}, "Driftwood learns from interactions: who did what, and when. Send the first one, over HTTP or to the"
      + " topic. This page follows by itself."),
    el("ol", {class: "steps"},
      step("Send an interaction", "Its user has a state a moment later; look them up below.", example("HTTP", curl(base)),
        example("Kafka, in Python", PRODUCER)),
      step("Send some more, or replay a log", "make replay DATA=log.csv publishes one in time order. Until there is a model,"
        + " everybody is offered what is trending."),
      step("The first model comes by itself", "The retrainer trains it when the session log holds enough sessions"
        + " (TRAIN_MIN_SESSIONS), or at once: make train DATA=log.csv. It is in service without a restart.")),
  ]);
}

const step = (title, text, ...more) => el("li", {}, el("h3", {}, title), el("p", {class: "soft"}, text), ...more);

function example(name, text) {
  const button = el("button", {type: "button", class: "quiet"}, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  const code = el("code", {}, text);
  return el("figure", {class: "example"}, el("figcaption", {}, name, button), el("pre", {tabindex: 0}, code));
}

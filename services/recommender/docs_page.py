"""The page at /docs: it draws /openapi.json and lets a person try each call.

Ours and small, because FastAPI's page loads its script from another server: it stays empty where there is no way out,
and tells that server who reads the documentation.
"""

from __future__ import annotations

DOCS_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Driftwood API</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { --ink: #1d2a30; --soft: #5c6b73; --line: #d9dfe2; --back: #fafbfb; --deep: #0b6e74; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3eaec; --soft: #93a3aa; --line: #2f3b41; --back: #12191c; --deep: #58c4c9; --card: #192226; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back); margin: 0 auto;
  max-width: 860px; padding: 2rem 1rem 4rem; }
h1 { margin: 0; font-weight: 650; } a { color: var(--deep); }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: .6rem 0; }
summary { cursor: pointer; padding: .7rem 1rem; display: flex; gap: .8rem; align-items: baseline; flex-wrap: wrap; }
summary b { font: 600 .8rem ui-monospace, monospace; color: var(--deep); min-width: 3.6rem; }
code, pre, textarea, input { font: .85rem/1.45 ui-monospace, monospace; }
.body { padding: 0 1rem 1rem; } .soft { color: var(--soft); }
label { display: grid; grid-template-columns: 9rem 1fr; gap: .6rem; margin: .35rem 0; align-items: start; }
input, textarea { background: var(--back); color: inherit; border: 1px solid var(--line); border-radius: 5px;
  padding: .35rem .5rem; width: 100%; box-sizing: border-box; }
textarea { min-height: 7rem; }
button { background: var(--deep); color: var(--card); border: 0; border-radius: 5px; padding: .45rem 1rem;
  font: inherit; cursor: pointer; margin-top: .5rem; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 5px; padding: .7rem; overflow: auto;
  max-height: 26rem; white-space: pre-wrap; }
</style></head><body>
<h1>Driftwood</h1><p class="soft" id="about"></p>
<label id="keybox" hidden><span>X-API-Key</span><input id="key" autocomplete="off"></label>
<main id="calls">Loading&hellip;</main>
<p class="soft">The same for machines: <a href="openapi.json">openapi.json</a></p>
<script>
"use strict";
const make = (tag, text, attributes) =>
  Object.assign(document.createElement(tag), {textContent: text || ""}, attributes);
const examples = {
  Interaction: () => ({user_id: "u1", item_id: "a", event_type: "click", ts: Date.now()}),
  SessionRequest: () => ({items: ["a", "b"], k: 20}),
};
const schemaOf = operation => {
  const schema = operation.requestBody.content["application/json"].schema;
  return (schema.anyOf ? schema.anyOf[0] : schema).$ref.split("/").pop();
};
const field = (box, name, hint, value) => {
  const label = make("label"), input = make("input", "", {value: value ?? "", placeholder: hint || ""});
  label.append(make("span", name), input);
  box.append(label);
  return input;
};
async function send(method, path, inputs, area, out) {
  const query = new URLSearchParams();
  for (const [parameter, input] of inputs) {
    if (parameter.in === "path") path = path.replace("{" + parameter.name + "}", encodeURIComponent(input.value));
    else if (input.value !== "") query.set(parameter.name, input.value);
  }
  const url = path + (String(query) ? "?" + query : ""), headers = {}, key = document.getElementById("key").value;
  if (key) headers["X-API-Key"] = key;
  if (area) headers["Content-Type"] = "application/json";
  out.hidden = false;
  out.textContent = method + " " + url;
  const began = performance.now();
  try {
    const answer = await fetch(url, {method, headers, body: area ? area.value : undefined});
    let text = await answer.text();
    const took = (performance.now() - began).toFixed(1);
    try { text = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON: shown as it is */ }
    out.textContent = `${method} ${url}\\n${answer.status} in ${took} ms\\n\\n${text}`;
  } catch (error) { out.textContent += "\\n" + error; }
}
function call(method, path, operation) {
  const details = make("details"), summary = make("summary"), body = make("div", "", {className: "body"});
  summary.append(make("b", method), make("code", path));
  body.append(make("p", operation.description));
  const inputs = (operation.parameters || []).map(parameter =>
    [parameter, field(body, parameter.name, parameter.description, parameter.schema.default)]);
  let area = null;
  if (operation.requestBody) {
    area = make("textarea", JSON.stringify(examples[schemaOf(operation)](), null, 2), {spellcheck: false});
    body.append(area);
  }
  const statuses = Object.entries(operation.responses).map(([status, it]) => status + ": " + it.description);
  const answers = make("p", statuses.join(" · "), {className: "soft"});
  const out = make("pre", "", {hidden: true}), go = make("button", "Send");
  go.onclick = () => send(method, path, inputs, area, out);
  body.append(answers, go, out);
  details.append(summary, body);
  return details;
}
fetch("openapi.json").then(answer => answer.json()).then(api => {
  document.getElementById("about").textContent = api.info.description;
  document.getElementById("keybox").hidden = !api.security;
  const calls = document.getElementById("calls");
  calls.textContent = "";
  for (const [path, operations] of Object.entries(api.paths))
    for (const [method, operation] of Object.entries(operations))
      calls.append(call(method.toUpperCase(), path, operation));
});
</script></body></html>
"""

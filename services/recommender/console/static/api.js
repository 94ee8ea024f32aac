// Calls to this server. The key, where one is needed, is kept for this tab only.

const KEY = "driftwood-api-key";
const PATIENCE_MS = 8000;

/** An answer that is none: status 0 where nobody answered. */
export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

let held = null;

export function key() {
  if (held === null) {
    try { held = sessionStorage.getItem(KEY) || ""; } catch { held = ""; }
  }
  return held;
}

export function useKey(text) {
  held = text.trim();
  try { sessionStorage.setItem(KEY, held); } catch { /* kept until the page is loaded anew */ }
}

/** The answer's JSON. Paths are relative, so that a proxy may serve all this below a path of its own. */
export async function call(method, path, body, signal) {
  const headers = {Accept: "application/json"};
  if (key()) headers["X-API-Key"] = key();  // Authorization is left to a proxy that has people log in
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const limit = AbortSignal.timeout(PATIENCE_MS);
  let answer, text;
  try {
    answer = await fetch(path, {
      method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    text = await answer.text();
  } catch (error) {
    if (signal && signal.aborted) throw error;
    throw new Refusal(0, error.name === "TimeoutError" ? "no answer within 8 s" : "the server does not answer");
  }
  let value = null;
  try { value = JSON.parse(text); } catch { /* a proxy's page, perhaps */ }
  if (!answer.ok) throw new Refusal(answer.status, told(answer.status, value));
  if (value === null) throw new Refusal(answer.status, "the answer is not JSON");
  return value;
}

function told(status, value) {
  if (!value || !value.error) return "the server answered with status " + status;
  const details = (value.details || []).map(d => d.field + " " + d.reason).join("; ");
  return details || value.error;
}

export const userPath = id => "v1/users/" + encodeURIComponent(id);

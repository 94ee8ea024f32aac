// Elements made in one call, and text changed only where it differs.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}

export const el = (tag, props, ...children) => fill(document.createElement(tag), props, children);

export const svg = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

export const byId = id => document.getElementById(id);

/** Replaces the text only where it is another: what a person has selected stays selected. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets only the attributes that are others: nobody is told of those that stay. */
export function set(node, props) {
  for (const [name, value] of Object.entries(props))
    if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Replaces the children only where `key` is another than the last time. True where it did. */
export function redraw(node, key, make) {
  if (node.dataset.drawn === key) return false;
  node.dataset.drawn = key;
  node.replaceChildren(...make());
  return true;
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

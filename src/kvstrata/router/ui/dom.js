// Elements, and a page that changes only where it has to: focus, selection and scrolling stay.

const SVG = "http://www.w3.org/2000/svg";

function make(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") {
      // The page's policy forbids style attributes, not properties that a script sets.
      for (const [property, text] of Object.entries(value)) node.style.setProperty(property, text);
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** An element of HTML. Children that are no elements become text, never markup. */
export const h = (tag, attributes, ...children) =>
  make(document.createElement(tag), attributes, children);

/** The same of SVG. */
export const s = (tag, attributes, ...children) =>
  make(document.createElementNS(SVG, tag), attributes, children);

/** Text that only screen readers tell. */
export const spoken = (text) => h("span", { class: "spoken" }, text);

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.dataset.key : undefined);

function sameAttributes(node, wanted) {
  for (const { name, value } of wanted.attributes) {
    if (name !== "style" && node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  for (const { name } of [...node.attributes]) {
    if (name !== "style" && !wanted.hasAttribute(name)) node.removeAttribute(name);
  }
  if (node.style.cssText !== wanted.style.cssText) node.style.cssText = wanted.style.cssText;
}

function sameNode(node, wanted) {
  if (node.nodeType === Node.TEXT_NODE) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  sameAttributes(node, wanted);
  sameChildren(node, [...wanted.childNodes]);
}

function sameChildren(parent, wanted) {
  const keys = new Set(wanted.map(keyOf));
  const known = new Map();
  for (const node of [...parent.childNodes]) {
    const key = keyOf(node);
    if (key === undefined) continue;
    if (keys.has(key)) known.set(key, node);
    else node.remove();
  }
  let place = parent.firstChild;
  for (const next of wanted) {
    const key = keyOf(next);
    let node = key === undefined ? place : known.get(key);
    if (node && (node.nodeName !== next.nodeName || keyOf(node) !== key)) node = undefined;
    if (!node) {
      parent.insertBefore(next, place);
      continue;
    }
    if (node === place) place = place.nextSibling;
    else parent.insertBefore(node, place);
    sameNode(node, next);
  }
  while (place) {
    const after = place.nextSibling;
    place.remove();
    place = after;
  }
}

/** Make `parent` hold just `children`; those with the same `data-key` stay the elements they are. */
export function show(parent, ...children) {
  sameChildren(parent, children.flat(Infinity).filter((one) => one instanceof Node));
}

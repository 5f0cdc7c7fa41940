// @ts-check
/** The few things that the page does to the DOM. Nothing here, or elsewhere, parses HTML. */

/** Sets an element's text; what only grows is appended to. @param {HTMLElement} element @param {string} text */
export function setText(element, text) {
  const node = element.firstChild;
  if (!(node instanceof Text)) {
    if (text) element.textContent = text;
  } else if (node.length < text.length && text.startsWith(node.data)) {
    node.appendData(text.slice(node.length));
  } else if (node.data !== text) {
    node.data = text;
  }
}

/** @param {string} tag @param {string} className @param {string} [text] */
export function create(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

/** @param {string} label @param {string} className @param {() => void} action */
export function button(label, className, action) {
  const element = /** @type {HTMLButtonElement} */ (create("button", className, label));
  element.type = "button";
  element.addEventListener("click", action);
  return element;
}

/** @param {string} id */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no #${id}`);
  return element;
}

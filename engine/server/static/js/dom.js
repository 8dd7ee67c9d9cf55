// Elements in one expression. Text is always text: nothing here reads HTML.

export const byId = (id) => document.getElementById(id);

/** An element with properties, event handlers ("onclick"), attributes ("aria-label") and children. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "draggable") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const number = (n) => new Intl.NumberFormat("en").format(n);

export function seconds(s) {
  if (s < 0.0095) return "0.01 s";
  return `${s < 10 ? s.toPrecision(2) : Math.round(s)} s`;
}

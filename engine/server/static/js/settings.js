// Parameters of the answers, and the theme. Both are kept in the browser's storage.

import { byId } from "./dom.js";

const STORED = "lariat-settings";
const THEMES = [["", "◐", "as the system"], ["light", "☀", "light"], ["dark", "☾", "dark"]];

const form = byId("parameters");

const stored = (() => {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
})();

function keep() {
  try {
    localStorage.setItem(STORED, JSON.stringify(stored));
  } catch { /* storage is full or forbidden */ }
}

export const system = () => form.elements.system.value;
export const reuse = () => form.elements.reuse.value;

/** The fields of a request that the user has set. */
export function parameters() {
  const body = {};
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    const { value } = form.elements[name];
    if (value !== "") body[name] = Number(value);
  }
  return body;
}

function showTheme() {
  const [name, sign, words] = THEMES.find(([theme]) => theme === (stored.theme ?? ""));
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = sign;
  byId("theme").setAttribute("aria-label", `Theme: ${words}`);
  byId("theme").title = `Theme: ${words}`;
}

/** Fill the form and watch it. `onChange` is called when the prompt or its reuse changes. */
export function start(onChange) {
  for (const [name, value] of Object.entries(stored.values ?? {})) {
    if (form.elements[name]) form.elements[name].value = value;
  }
  form.addEventListener("input", (event) => {
    stored.values = Object.fromEntries(new FormData(form));
    keep();
    if (["system", "reuse"].includes(event.target.name)) onChange();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("theme").addEventListener("click", () => {
    const at = THEMES.findIndex(([theme]) => theme === (stored.theme ?? ""));
    stored.theme = THEMES[(at + 1) % THEMES.length][0];
    keep();
    showTheme();
  });
  showTheme();
}

/** Hide what a server without the raw cache cannot do. */
export function allowReuse(allowed) {
  byId("reuse").hidden = !allowed;
  if (!allowed) form.elements.reuse.value = "exact";
}

// The shelf: documents that the server has computed once and keeps.

import * as api from "./api.js";
import { byId, el, number } from "./dom.js";
import { DRAGGED } from "./strip.js";

let handlers = { add() {}, gone() {} };

/** handlers: add(name) puts a document into the context, gone(name) tells that it was removed */
export async function start(given) {
  handlers = given;
  byId("add-document").addEventListener("submit", onSubmit);
  byId("document-file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    byId("document-name").value ||= file.name;
    byId("document-text").value = await file.text();
  });
  await refresh();
}

export async function refresh() {
  const { data } = await api.get("v1/documents");
  byId("shelf").replaceChildren(...data.map((one) => el("li", {
    draggable: "true", title: one.id,
    ondragstart: (event) => event.dataTransfer.setData(DRAGGED, one.id),
  },
  el("span", { className: "name" }, one.id),
  el("span", { className: "muted" }, number(one.n_tokens)),
  el("button", { type: "button", "aria-label": `Add ${one.id} to the context`, onclick: () => handlers.add(one.id) }, "Add"),
  el("button", {
    type: "button", "aria-label": `Remove ${one.id} from the server`,
    onclick: async () => {
      await api.remove(`v1/documents/${encodeURIComponent(one.id)}`);
      handlers.gone(one.id);
      await refresh();
    },
  }, "×"))));
}

/** Compute a document and keep it; resolves to its name. */
export async function keep(id, text) {
  await api.post("v1/documents", { id, text });
  await refresh();
  return id;
}

async function onSubmit(event) {
  event.preventDefault();
  const form = event.target;
  const button = form.querySelector("button");
  const error = byId("document-error");
  error.textContent = "";
  button.disabled = true;
  button.textContent = "Computing…";
  try {
    await keep(byId("document-name").value.trim(), byId("document-text").value);
    form.reset();
  } catch (problem) {
    error.textContent = problem.message;
  } finally {
    button.disabled = false;
    button.textContent = "Keep document";
  }
}

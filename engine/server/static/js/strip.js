// The context strip: the parts of the context as coloured segments, in order and in proportion.
// Documents can be dragged within it and out of it; parts can be taken out.

import { byId, el, number, seconds } from "./dom.js";

const box = byId("segments");
export const DRAGGED = "application/x-lariat-document";

let handlers = { move() {}, take() {}, open() {} };
let shown = [];
let selected = 0;

/** handlers: move(name, to) for documents, take(segment), open(segment) */
export function start(given) {
  handlers = given;
  box.addEventListener("keydown", onKey);
  box.addEventListener("dragover", onDragOver);
  box.addEventListener("dragleave", clearTarget);
  box.addEventListener("drop", onDrop);
  box.addEventListener("focusin", () => { byId("strip-help").hidden = false; });
  box.addEventListener("focusout", () => { byId("strip-help").hidden = true; });
}

/** Show segments as the server tells of them: kind, role or id, n_tokens, n_computed, n_moved. */
export function show(segments) {
  const documents = [...new Set(segments.filter((s) => s.kind === "document").map((s) => s.id))].sort();
  const hadFocus = box.contains(document.activeElement);
  shown = segments.filter((segment) => segment.n_tokens > 0);
  selected = Math.min(selected, Math.max(0, shown.length - 1));
  box.replaceChildren(...shown.map((segment, i) => element(segment, i, documents)));
  if (hadFocus) box.children[selected]?.focus();
}

export function showCost(text) {
  byId("cost").textContent = text;
}

/** "0 of 2,048 tokens computed, 0.7 s; cold 55 s" */
export function costOf(told) {
  const parts = [`${number(told.n_computed)} of ${number(told.n_tokens)} tokens computed`];
  if (told.n_recomputed) parts[0] += ` (${number(told.n_recomputed)} to repair)`;
  let text = parts[0];
  if (told.prompt_s !== null) text += `, ${seconds(told.prompt_s)}`;
  if (told.cold_s) text += `; cold ${seconds(told.cold_s)}`;
  if (told.n_moved) text += told.exact ? "" : `; ${number(told.n_moved)} moved, which is not exact`;
  return text;
}

function element(segment, i, documents) {
  const kind = segment.kind === "document"
    ? `document-${documents.indexOf(segment.id) % 4}` : segment.role ?? segment.kind;
  const state = segment.n_moved > segment.n_tokens / 2 ? "moved"
    : segment.n_computed > segment.n_tokens / 2 ? "computed" : "reused";
  const name = nameOf(segment);
  const words = `${name}: ${number(segment.n_tokens)} tokens, ${number(segment.n_computed)} to compute`
    + (segment.n_moved ? `, ${number(segment.n_moved)} moved` : "");
  const button = el("button", {
    type: "button", className: `segment ${kind} ${state}`, title: words, tabIndex: i === selected ? 0 : -1,
    role: "option", "aria-label": words, "aria-selected": String(i === selected),
    draggable: segment.kind === "document" ? "true" : "false",
    onclick: () => { select(i); handlers.open(segment); },
    ondragstart: (event) => {
      event.dataTransfer.setData(DRAGGED, segment.id);
      event.dataTransfer.effectAllowed = "move";
    },
    ondragend: (event) => {
      // Dropped outside of the strip, which takes no part in it: the document leaves the context.
      if (event.dataTransfer.dropEffect === "none" && !within(event)) handlers.take(segment);
      clearTarget();
    },
  }, segment.kind === "template" ? "" : name);
  button.style.flexGrow = segment.n_tokens;
  return button;
}

export function nameOf(segment) {
  if (segment.kind === "document") return segment.id;
  if (segment.kind === "template") return "template";
  return { system: "system prompt", user: "you", assistant: "model" }[segment.role] ?? segment.role;
}

function within(event) {
  const { left, right, top, bottom } = box.getBoundingClientRect();
  return event.clientX >= left && event.clientX <= right && event.clientY >= top - 20 && event.clientY <= bottom + 20;
}

function select(i) {
  selected = Math.max(0, Math.min(i, shown.length - 1));
  [...box.children].forEach((child, at) => {
    child.tabIndex = at === selected ? 0 : -1;
    child.setAttribute("aria-selected", String(at === selected));
  });
  box.children[selected]?.focus();
}

const documentIds = () => shown.filter((segment) => segment.kind === "document").map((segment) => segment.id);

function onKey(event) {
  const segment = shown[selected];
  if (!segment) return;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && event.altKey && segment.kind === "document") {
    handlers.move(segment.id, documentIds().indexOf(segment.id) + step);
  } else if (step) {
    select(selected + step);
  } else if (event.key === "Home" || event.key === "End") {
    select(event.key === "Home" ? 0 : shown.length - 1);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    handlers.take(segment);
  } else {
    return;
  }
  event.preventDefault();
}

/** How many documents stand before the pointer. */
function placeAt(event) {
  const children = [...box.children];
  let n = 0;
  for (const [i, child] of children.entries()) {
    const { left, width } = child.getBoundingClientRect();
    if (shown[i].kind === "document" && left + width / 2 < event.clientX) n += 1;
  }
  return n;
}

function onDragOver(event) {
  const types = event.dataTransfer.types;
  if (!types.includes(DRAGGED) && !types.includes("Files")) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = types.includes(DRAGGED) ? "move" : "copy";
  clearTarget();
  box.classList.add("receives");
  const name = documentIds()[placeAt(event)];
  const at = shown.findIndex((segment) => segment.kind === "document" && segment.id === name);
  box.children[at]?.classList.add("before");
}

function onDrop(event) {
  event.preventDefault();
  clearTarget();
  const name = event.dataTransfer.getData(DRAGGED);
  let to = placeAt(event);
  if (!name) {
    handlers.drop([...event.dataTransfer.files], to);
    return;
  }
  const from = documentIds().indexOf(name);
  if (from >= 0 && from < to) to -= 1;
  handlers.move(name, to);
}

function clearTarget() {
  box.classList.remove("receives");
  for (const child of box.children) child.classList.remove("before");
}

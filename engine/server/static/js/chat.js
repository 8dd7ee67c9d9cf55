// The messages of the chosen branches, and what can be done with each.

import { byId, el } from "./dom.js";
import { Rendered } from "./markdown.js";

const box = byId("messages");
const NAMES = { user: "You", assistant: "Model" };

/** A message on the screen, which an answer can be written into. */
export class MessageView {
  constructor(node) {
    this.text = el("div", { className: "text plain" });
    this.thoughts = el("details", { hidden: true }, el("summary", {}, "Thoughts"), el("div", { className: "plain" }));
    this.who = el("div", { className: "who" }, NAMES[node.role] ?? node.role);
    this.actions = el("div", { className: "actions" });
    this.element = el("article", { className: `message ${node.role}`, tabIndex: -1 },
      this.who, this.thoughts, this.text, this.actions);
    this.rendered = new Rendered(this.text);
    this.ready = this.show(node);
  }

  show(node) {
    if (node.thoughts) {
      this.thoughts.hidden = false;
      this.thoughts.lastChild.textContent = node.thoughts;
    }
    if (node.role === "assistant") return this.rendered.show(node.content);
    this.text.textContent = node.content;
    return Promise.resolve();
  }

  fail(message) {
    this.element.classList.add("failed");
    this.element.append(el("p", { className: "error", role: "alert" }, message));
  }
}

/** Show all messages of `tree`. actions: turn, edit, regenerate, remove, compare. Returns the views
 *  by the ids of their messages. */
export function showAll(tree, actions) {
  const follows = isAtEnd();
  const { scrollTop } = box;
  const path = tree.path();
  const views = new Map(path.map((id) => [id, viewOf(tree, id, actions, id === path.at(-1))]));
  box.replaceChildren(...[...views.values()].map((view) => view.element));
  if (!path.length) {
    box.append(el("p", { className: "empty" },
      "Write a message below. The strip above shows what the model's context holds, and what of it was computed."));
  }
  const place = () => { if (follows) scrollDown(); else box.scrollTop = scrollTop; };
  place();
  Promise.all([...views.values()].map((view) => view.ready)).then(place);
  return views;
}

export function scrollDown() {
  box.scrollTop = box.scrollHeight;
}

export const isAtEnd = () => box.scrollHeight - box.scrollTop - box.clientHeight < 60;

function viewOf(tree, id, actions, isLast) {
  const node = tree.nodes[id];
  const view = new MessageView(node);
  const { at, of } = tree.place(id);
  if (of > 1) {
    view.who.append(el("span", { className: "branches" },
      el("button", { type: "button", "aria-label": "Branch before", disabled: at === 1, onclick: () => actions.turn(id, -1) }, "‹"),
      `${at} / ${of}`,
      el("button", { type: "button", "aria-label": "Branch behind", disabled: at === of, onclick: () => actions.turn(id, 1) }, "›")));
  }
  const button = (name, act) => el("button", { type: "button", onclick: act }, name);
  view.actions.append(button("Edit", () => openEditor(view, node, (text) => actions.edit(id, text))));
  if (node.role === "assistant") view.actions.append(button("Regenerate", () => actions.regenerate(id)));
  if (node.role === "assistant" && isLast && actions.compare) view.actions.append(button("Compare", () => actions.compare(id)));
  view.actions.append(button("Delete", () => actions.remove(id)));
  view.actions.append(button("Copy", () => navigator.clipboard?.writeText(node.content)));
  return view;
}

function openEditor(view, node, done) {
  if (view.element.querySelector(".edit")) return;
  const area = el("textarea", { value: node.content, rows: 4, "aria-label": "Text of the message" });
  const close = () => { editor.remove(); view.text.hidden = false; };
  const save = () => { close(); if (area.value !== node.content) done(area.value); };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  });
  const editor = el("div", { className: "edit" }, area,
    el("div", { className: "actions" },
      el("button", { type: "button", onclick: save }, "Save"),
      el("button", { type: "button", onclick: close }, "Cancel")));
  view.text.hidden = true;
  view.text.after(editor);
  area.focus();
}

// The page: joins the conversation, the strip, the documents and the server.

import * as api from "./api.js";
import * as chat from "./chat.js";
import { compare } from "./compare.js";
import * as documents from "./documents.js";
import { byId, number } from "./dom.js";
import * as settings from "./settings.js";
import * as strip from "./strip.js";
import { Tree } from "./tree.js";

const tree = new Tree();
let server = { model: "", n_ctx: 0, documents: false, reuse: false };
let running = null; // the AbortController of the answer that is being written
let planned = 0; // counts requests for a plan, so that an old one is not shown
let views = new Map(); // of the messages on the screen, by their ids

// ---- requests ----

function bodyOf(last, reuse = settings.reuse()) {
  const messages = tree.messages(last);
  if (settings.system()) messages.unshift({ role: "system", content: settings.system() });
  const body = { model: server.model, messages, ...settings.parameters() };
  if (server.reuse) body.reuse = reuse;
  if (tree.documents.length) body.documents = tree.documents.map((id) => ({ id }));
  return body;
}

const streamed = (body) => ({ ...body, stream: true, stream_options: { include_usage: true }, return_segments: true });

async function answer(question) {
  const id = tree.add(question, "assistant", "");
  const node = tree.nodes[id];
  showMessages();
  running = new AbortController();
  showRunning();
  let failure = "";
  try {
    for await (const chunk of api.stream("v1/chat/completions", streamed(bodyOf(question)), running.signal)) {
      const delta = chunk.choices[0]?.delta ?? {};
      node.content += delta.content ?? "";
      node.thoughts += delta.reasoning_content ?? "";
      const follows = chat.isAtEnd();
      // The messages may be shown anew meanwhile, or another branch may be.
      if (delta.content || delta.reasoning_content) views.get(id)?.show(node).then(() => follows && chat.scrollDown());
      if (chunk.lariat) showContext(chunk.lariat);
    }
  } catch (error) {
    if (error.name !== "AbortError") failure = error.message;
  } finally {
    running = null;
    showRunning();
    tree.save();
  }
  if (node.content || node.thoughts) showMessages();
  if (failure) views.get(id)?.fail(failure); // behind what was written until then
}

/** What the next question would cost, before it is asked. */
async function plan() {
  const mine = ++planned;
  if (!tree.path().length && !tree.documents.length) {
    strip.show([]);
    strip.showCost("");
    return;
  }
  try {
    const body = bodyOf(tree.last());
    // Documents stand in front of what the user says first, which may still be missing.
    if (!body.messages.some((m) => m.role === "user")) body.messages.push({ role: "user", content: "" });
    const told = await api.post("v1/chat/plan", body);
    if (mine === planned && !running) showContext(told);
  } catch (error) {
    if (mine === planned) strip.showCost(error.message);
  }
}

// ---- what is shown ----

function showContext(told) {
  planned += 1;
  if (told.segments) strip.show(told.segments);
  strip.showCost(strip.costOf(told));
}

function showMessages() {
  views = chat.showAll(tree, actions);
}

function showRunning() {
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
}

function changed() {
  tree.save();
  showMessages();
  plan();
}

// ---- what the user does ----

const actions = {
  turn(id, step) { tree.turnTo(id, step); changed(); },
  edit(id, text) {
    const isLast = tree.last() === id;
    const edited = tree.edit(id, text);
    changed();
    if (isLast && tree.nodes[edited].role === "user") answer(edited);
  },
  regenerate(id) {
    if (!running) answer(tree.nodes[id].parent);
  },
  remove(id) { tree.without([id]); changed(); },
  compare(id) {
    running = new AbortController();
    showRunning();
    compare((reuse) => ({ ...streamed(bodyOf(tree.nodes[id].parent, reuse)), keep_context: false }), running.signal)
      .finally(() => { running = null; showRunning(); });
  },
};

function send() {
  const input = byId("input");
  const text = input.value.trim();
  if (!text || running) return;
  input.value = "";
  grow();
  const question = tree.add(tree.last(), "user", text);
  showMessages();
  chat.scrollDown();
  answer(question);
}

function grow() {
  const input = byId("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

function take(segment) {
  if (segment.kind === "document") tree.dropDocument(segment.id);
  else if (segment.kind === "message" && segment.role !== "system") tree.without([messageOf(segment)]);
  else return;
  changed();
}

/** The id of the message that a segment belongs to; segments count the system prompt too. */
function messageOf(segment) {
  return tree.path()[segment.index - (settings.system() ? 1 : 0)];
}

function open(segment) {
  if (segment.kind === "document") showPanel("documents", true);
  if (segment.kind !== "message") return;
  if (segment.role === "system") showPanel("settings", true);
  else byId("messages").children[tree.path().indexOf(messageOf(segment))]?.scrollIntoView({ block: "center" });
}

async function dropFiles(files, to) {
  for (const file of files) {
    strip.showCost(`computes ${file.name}…`);
    try {
      tree.moveDocument(await documents.keep(file.name, await file.text()), to);
    } catch (error) {
      strip.showCost(error.message);
      return;
    }
  }
  changed();
}

function showPanel(name, shown) {
  for (const other of ["documents", "settings"]) {
    const isShown = other === name && shown;
    byId(other).hidden = !isShown;
    byId(`show-${other}`).setAttribute("aria-expanded", String(isShown));
  }
}

function askForKey() {
  const dialog = byId("key-dialog");
  byId("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(byId("key").value), { once: true });
  });
}

async function begin() {
  api.onKeyNeeded(askForKey);
  settings.start(plan);
  strip.start({
    move(name, to) { tree.moveDocument(name, to); changed(); },
    take, open, drop: dropFiles,
  });
  byId("composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  byId("input").addEventListener("input", grow);
  byId("input").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("new").addEventListener("click", () => { running?.abort(); tree.clear(); changed(); byId("input").focus(); });
  for (const name of ["documents", "settings"]) {
    byId(`show-${name}`).addEventListener("click", () => showPanel(name, byId(name).hidden));
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    if (running) running.abort();
    else showPanel("", false);
  });
  tree.load();
  try {
    server = await api.get("ui/server");
    byId("model").textContent = `${server.model}, context of ${number(server.n_ctx)} tokens`;
    settings.allowReuse(server.reuse);
    byId("show-documents").hidden = !server.documents;
    if (!server.documents) tree.documents = [];
    if (server.documents) {
      await documents.start({
        add(name) { tree.moveDocument(name, tree.documents.length); changed(); },
        gone(name) { tree.dropDocument(name); changed(); },
      });
    }
    if (!server.reuse) delete actions.compare;
  } catch (error) {
    strip.showCost(error.message);
  }
  changed();
  byId("messages").setAttribute("aria-busy", "false");
  byId("input").focus();
}

begin();

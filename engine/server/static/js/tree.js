// A conversation as a tree: an edited message, or another answer, is a branch beside the first one.
// It is kept in the browser's storage; the page works without it.

const STORED = "lariat-conversation";

export class Tree {
  constructor() {
    this.clear();
  }

  clear() {
    this.nodes = { root: { parent: null, children: [], chosen: null } };
    this.documents = []; // names, in the order of the context
    this.nextId = 1;
  }

  /** Add a message behind `parent` ("root" for the first) and choose its branch. */
  add(parent, role, content) {
    const id = `m${this.nextId++}`;
    this.nodes[id] = { parent, role, content, thoughts: "", children: [], chosen: null };
    this.nodes[parent].children.push(id);
    this.nodes[parent].chosen = id;
    return id;
  }

  /** Ids from the first message to the last of the chosen branches. */
  path() {
    const ids = [];
    for (let id = this.nodes.root.chosen; id; id = this.nodes[id].chosen) ids.push(id);
    return ids;
  }

  last() {
    return this.path().at(-1) ?? "root";
  }

  /** The messages of the chosen branches up to and with `last`, as the API has them. */
  messages(last = this.last()) {
    const ids = this.path();
    return ids.slice(0, ids.indexOf(last) + 1)
      .map((id) => ({ role: this.nodes[id].role, content: this.nodes[id].content }));
  }

  /** Which branch beside its siblings a message is, from 1, and how many there are. */
  place(id) {
    const siblings = this.nodes[this.nodes[id].parent].children;
    return { at: siblings.indexOf(id) + 1, of: siblings.length };
  }

  /** Choose the branch `step` (1 or -1) further. */
  turnTo(id, step) {
    const parent = this.nodes[this.nodes[id].parent];
    const to = parent.children[parent.children.indexOf(id) + step];
    if (to) parent.chosen = to;
  }

  /** A branch with another text for message `id`, and the same messages behind it. */
  edit(id, content) {
    const behind = this.path().slice(this.path().indexOf(id) + 1);
    let at = this.add(this.nodes[id].parent, this.nodes[id].role, content);
    const edited = at;
    for (const old of behind) at = this.add(at, this.nodes[old].role, this.nodes[old].content);
    return edited;
  }

  /** A branch without messages `ids`. */
  without(ids) {
    const path = this.path();
    const first = Math.min(...ids.map((id) => path.indexOf(id)));
    let at = first > 0 ? path[first - 1] : "root";
    const kept = path.slice(first).filter((id) => !ids.includes(id));
    this.nodes[at].chosen = null;
    for (const id of kept) at = this.add(at, this.nodes[id].role, this.nodes[id].content);
  }

  moveDocument(name, to) {
    const rest = this.documents.filter((one) => one !== name);
    rest.splice(Math.max(0, Math.min(to, rest.length)), 0, name);
    this.documents = rest;
  }

  dropDocument(name) {
    this.documents = this.documents.filter((one) => one !== name);
  }

  save() {
    try {
      const { nodes, documents, nextId } = this;
      localStorage.setItem(STORED, JSON.stringify({ nodes, documents, nextId }));
    } catch { /* storage is full or forbidden */ }
  }

  load() {
    try {
      const stored = JSON.parse(localStorage.getItem(STORED));
      if (stored?.nodes?.root) Object.assign(this, stored);
    } catch { /* another version's, or none */ }
  }
}

// Markdown becomes safe HTML on the server. One request runs at a time; of texts that come
// meanwhile only the newest is asked for.

import { post } from "./api.js";

export class Rendered {
  constructor(element) {
    this.element = element;
    this.wanted = null;
    this.running = null;
  }

  /** Show `text`; resolves when the newest text is shown. */
  show(text) {
    this.wanted = text;
    this.running ??= this.run().finally(() => { this.running = null; });
    return this.running;
  }

  async run() {
    while (this.wanted !== null) {
      const text = this.wanted;
      this.wanted = null;
      try {
        const { html } = await post("ui/markdown", { text });
        this.element.classList.remove("plain");
        this.element.innerHTML = html; // cleaned by the server, see lariat.server.page
      } catch {
        this.element.classList.add("plain");
        this.element.textContent = text;
      }
    }
  }
}

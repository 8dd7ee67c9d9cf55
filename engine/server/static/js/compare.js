// The last question in three ways, one after the other: what each costs, and what the model answers.

import { stream } from "./api.js";
import { byId, el } from "./dom.js";
import { costOf } from "./strip.js";

const WAYS = [["placed", "As placed"], ["repaired", "Repaired"], ["exact", "Exact"]];

/** `bodyOf(reuse)` is the request; `signal` stops it. */
export async function compare(bodyOf, signal) {
  const box = byId("compare");
  const columns = WAYS.map(([, name]) => {
    const cost = el("p", { className: "muted" }, "waits");
    const text = el("p", { className: "plain" });
    return { cost, text, element: el("article", {}, el("h3", {}, name), cost, text) };
  });
  const close = el("button", { type: "button", className: "close", onclick: () => { box.hidden = true; } }, "Close");
  box.replaceChildren(...columns.map((column) => column.element), close);
  box.hidden = false;
  for (const [i, [reuse]] of WAYS.entries()) {
    const { cost, text } = columns[i];
    cost.textContent = "reads the context…";
    try {
      for await (const chunk of stream("v1/chat/completions", bodyOf(reuse), signal)) {
        text.textContent += chunk.choices[0]?.delta.content ?? "";
        if (chunk.lariat) cost.textContent = costOf(chunk.lariat);
      }
    } catch (error) {
      cost.textContent = error.name === "AbortError" ? "stopped" : error.message;
      if (error.name === "AbortError") return;
    }
  }
}

// The server: JSON requests and streams of events. Asks for an API key when the server wants one.

const KEY = "lariat-key";

export class ServerError extends Error {}

let askForKey = async () => null;

/** `ask` is an async function that returns the key that the user gave. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

async function send(method, path, body, signal) {
  for (;;) {
    const headers = {};
    const key = sessionStorage.getItem(KEY);
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The server does not answer.");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      const given = await askForKey();
      if (given) {
        sessionStorage.setItem(KEY, given);
        continue;
      }
    }
    const told = await response.json().catch(() => null);
    throw new ServerError(told?.error?.message ?? `The server answered with ${response.status}.`);
  }
}

export const get = async (path) => (await send("GET", path)).json();
export const post = async (path, body, signal) => (await send("POST", path, body, signal)).json();
export const remove = async (path) => send("DELETE", path);

/** The events of a stream, each as an object. */
export async function* stream(path, body, signal) {
  const response = await send("POST", path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split(/\r?\n\r?\n/);
    held = events.pop();
    for (const event of events) {
      const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trimStart()).join("\n");
      if (!data) continue; // a comment, which keeps the connection open
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ServerError(parsed.error.message);
      yield parsed;
    }
  }
}

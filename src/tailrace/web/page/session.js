// One stream, watched through a native EventSource: tokens, reconnecting, cutting, resuming. No DOM.
//
// Rules of this file
// 1. The cursor is the last id the browser was given, and nothing else; every connection begins there.
// 2. A native EventSource reconnects by itself with its Last-Event-ID header. Only when it gave up (CLOSED) is a new
//    token minted and a new one opened, with the cursor in the address, after a jittered, growing wait.
// 3. A close code tells what to do by its range: 4000-4499 come back, 4500-4999 stay away.
// 4. Whatever a connection that was left behind still says is ignored.

import { Problem } from "./api.js";

const FINISHED = [4506, 4507]; // EXPIRED, ENDED
const TOKEN_EXPIRED = 4002;
const LONGEST_WAIT_MS = 30_000;

/** What a close code asks of a client: "end", "stay-away", "renew" (with a new token) or "return". */
export function policyOf(code) {
  if (FINISHED.includes(code)) return "end";
  if (code >= 4500 && code <= 4999) return "stay-away";
  return code === TOKEN_EXPIRED ? "renew" : "return";
}

/** Milliseconds before attempt n (from 0): doubled each time, jittered, never below what the server asked for. */
export function waitBefore(attempt, retryAfterSeconds = null, random = Math.random) {
  const ceiling = Math.min(LONGEST_WAIT_MS, 500 * 2 ** attempt);
  return (retryAfterSeconds ?? 0) * 1000 + ceiling * (0.5 + random() / 2);
}

export class Session extends EventTarget {
  state = { name: "idle" };
  cursor;
  #api;
  #stream;
  #name = newName();
  #source = null;
  #timer = null;
  #turn = 0; // counts connections; callbacks of earlier ones are ignored
  #attempt = 0;
  #opened = false; // whether this EventSource was ever accepted
  #farewell = null; // what the server said before it closed

  constructor(api, stream, cursor) {
    super();
    this.#api = api;
    this.#stream = stream;
    this.cursor = cursor;
  }

  /** Begin, or go on from the cursor. */
  resume() {
    // One that was sent away for good comes back as another, because somebody asked for it.
    if (this.state.name === "refused") this.#name = newName();
    this.#attempt = 0;
    return this.#connect();
  }

  /** Close the connection and keep the cursor. */
  cut() {
    this.#leave();
    this.#become({ name: "cut" });
  }

  /** End for good; no more events come. */
  close() {
    this.#leave();
    this.state = { name: "idle" };
  }

  /** The network came back: do not wait any longer, and do not trust a connection from before. */
  hurry() {
    if (["waiting", "reconnecting", "live", "degraded", "connecting"].includes(this.state.name)) this.resume();
  }

  async #connect() {
    this.#leave();
    const turn = this.#turn;
    this.#become({ name: "connecting", attempt: this.#attempt });
    try {
      const minted = await this.#api.mint();
      if (turn !== this.#turn) return;
      this.#listen(this.#api.streamAddress(this.#stream, this.cursor, this.#name, minted));
    } catch (problem) {
      if (turn === this.#turn) this.#failed(problem);
    }
  }

  #listen(address) {
    const source = new EventSource(address);
    const turn = this.#turn;
    const on = (name, handler) =>
      source.addEventListener(name, (event) => {
        if (turn !== this.#turn) return;
        if (event.lastEventId) this.cursor = event.lastEventId;
        handler(event);
      });
    this.#source = source;
    this.#opened = false;
    on("message", (event) => this.#emit("record", { record: parse(event), size: event.data.length }));
    on("stream.open", (event) => this.#welcomed(event));
    on("stream.gap", (event) => this.#emit("gap", parse(event)));
    on("stream.degraded", (event) => this.#degraded(parse(event)));
    on("stream.refused", (event) => this.#dismissed(parse(event), "refused"));
    on("stream.closed", (event) => this.#dismissed(parse(event), "closed"));
    on("error", () => this.#dropped(address));
  }

  #welcomed(event) {
    this.#opened = true;
    this.#attempt = 0;
    this.#farewell = null;
    this.#become({ name: "live" });
    this.#emit("opened", { id: event.lastEventId, ...parse(event) });
  }

  #degraded({ active }) {
    this.#become({ name: active ? "degraded" : "live" });
    this.#emit(active ? "degraded" : "restored", {});
  }

  /** The server says good-bye, or not now. It closes the connection itself; a native reconnect may follow. */
  #dismissed(farewell, how) {
    const policy = policyOf(farewell.code);
    this.#farewell = { ...farewell, how };
    this.#emit("farewell", this.#farewell);
    if (policy === "return") return;
    this.#leave();
    if (policy === "renew") this.#wait(0, null);
    else this.#become({ name: policy === "end" ? "ended" : "refused", ...describe(farewell) });
  }

  /** What `farewell` told: `{code, detail}` for people. */
  static describe(farewell) {
    return describe(farewell);
  }

  #dropped(address) {
    const farewell = this.#farewell;
    if (this.state.name === "live" || this.state.name === "degraded") this.#emit("lost", farewell ?? {});
    if (this.#source.readyState !== EventSource.CLOSED) {
      this.#become({ name: "reconnecting", ...(farewell ? describe(farewell) : {}) });
      return;
    }
    // The browser gave up: an answer that was no event stream. Only a request of our own can tell which.
    if (this.#opened) this.#wait(this.#attempt++, farewell?.retry_after ?? null);
    else this.#diagnose(address);
  }

  async #diagnose(address) {
    this.#leave();
    const turn = this.#turn;
    const problem = await this.#api.whyRefused(address);
    if (turn === this.#turn) this.#failed(problem ?? new Problem({ status: 0, code: "CLOSED", detail: "" }));
  }

  #failed(problem) {
    if (!(problem instanceof Problem)) throw problem;
    const { code, message: detail, status } = problem;
    if (problem.retryable) this.#wait(this.#attempt++, problem.retryAfter, detail);
    else this.#become({ name: "refused", code, detail, signIn: status === 401 });
  }

  #wait(attempt, retryAfter, detail = "") {
    this.#leave();
    const milliseconds = waitBefore(attempt, retryAfter);
    this.#timer = setTimeout(() => this.#connect(), milliseconds);
    this.#become({ name: "waiting", until: performance.now() + milliseconds, detail });
  }

  #leave() {
    this.#turn += 1;
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
    this.#farewell = null;
  }

  #become(state) {
    this.state = state;
    this.#emit("state", state);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function newName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function parse(event) {
  try {
    const value = LONG_NUMBER.test(event.data) ? JSON.parse(event.data, exactNumber) : JSON.parse(event.data);
    return value !== null && typeof value === "object" ? value : { data: value };
  } catch {
    return { data: event.data };
  }
}

// A number that a double cannot hold is kept as it was written, where the browser can do that.
const LONG_NUMBER = /\d{16}/;
function exactNumber(_key, value, context) {
  const loses = typeof value === "number" && context?.source && String(value) !== context.source;
  return loses && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
}

function describe({ reason, code, state, detail }) {
  return { code: reason ?? String(code ?? ""), detail: detail ?? state ?? "" };
}

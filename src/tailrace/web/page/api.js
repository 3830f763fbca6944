// The gateway's HTTP answers this page needs (PROTOCOL.md): tokens, publishing, and why a stream was refused.

/** The gateway said no, in its own words: `code` is stable, `status` 0 means it was not reached at all. */
export class Problem extends Error {
  constructor({ status, code, detail, retryAfter = null }) {
    super(detail || code);
    this.name = "Problem";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  /** Whether the same request may succeed later. */
  get retryable() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

export class Api {
  token; // may be replaced by a newer one
  #prefix;

  constructor(prefix, token) {
    this.#prefix = prefix;
    this.token = token;
  }

  /** A short-lived token that may stand in an address, made from the bearer token. */
  async mint() {
    const { sse_token: minted } = await this.#post("/auth/sse-token", "{}");
    return minted;
  }

  /** Publish one event and return its id. Resolves only when it is in the log. */
  async publish(stream, event) {
    const { events } = await this.#post(`/streams/${encodeURIComponent(stream)}/events`, JSON.stringify(event));
    return events[0].id;
  }

  /** The newest runs that the token may see; none where there are no runs or they cannot be asked for now. */
  async runs() {
    try {
      const headers = { Authorization: `Bearer ${this.token}` };
      const answer = await fetch(`${this.#prefix}/runs?limit=30`, { headers, cache: "no-store" });
      return answer.ok ? (await answer.json()).runs : [];
    } catch {
      return [];
    }
  }

  /**
   * Where a native EventSource reads a stream; `cursor` null means the stream kind's own choice.
   *
   * A connection that comes back under the same name takes its own seat among those a user may have.
   */
  streamAddress(stream, cursor, connection, minted) {
    const query = new URLSearchParams({ stream, named: "0", format: "envelope", connection });
    query.set("sse_token", minted);
    if (cursor !== null) query.set("last_event_id", cursor);
    return `${this.#prefix}/events/stream?${query}`;
  }

  /** Why the gateway refuses an address, which an EventSource does not tell: the problem, or null if it does not. */
  async whyRefused(address) {
    const abort = new AbortController();
    try {
      const answer = await fetch(address, {
        headers: { Accept: "application/problem+json" },
        signal: abort.signal,
        cache: "no-store",
      });
      return answer.ok ? null : await problemOf(answer);
    } catch {
      return new Problem({ status: 0, code: "UNREACHABLE", detail: "the gateway does not answer" });
    } finally {
      abort.abort();
    }
  }

  async #post(path, body) {
    const headers = { "Content-Type": "application/json", Authorization: `Bearer ${this.token}` };
    let answer;
    try {
      answer = await fetch(this.#prefix + path, { method: "POST", headers, body, cache: "no-store" });
    } catch {
      throw new Problem({ status: 0, code: "UNREACHABLE", detail: "the gateway does not answer" });
    }
    if (!answer.ok) throw await problemOf(answer);
    return answer.json();
  }
}

async function problemOf(answer) {
  const body = await answer.json().catch(() => ({}));
  const seconds = Number(answer.headers.get("Retry-After"));
  return new Problem({
    status: answer.status,
    code: String(body.code ?? `HTTP_${answer.status}`),
    detail: String(body.detail ?? body.title ?? answer.statusText),
    retryAfter: seconds > 0 ? seconds : null,
  });
}

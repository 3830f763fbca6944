// The line that says how the connection is, and the counters that say whether anything is missing.

import { byId, count, plural, setText } from "./dom.js";

const WORDS = {
  idle: ["idle", "Not watching"],
  connecting: ["busy", "Connecting…"],
  live: ["live", "Live"],
  degraded: ["warn", "Degraded"],
  reconnecting: ["busy", "Reconnecting…"],
  waiting: ["busy", "Reconnecting"],
  cut: ["idle", "Cut"],
  ended: ["done", "Ended"],
  refused: ["bad", "Refused"],
};

const EXPLAINED = {
  degraded: "the log does not answer; what was missed follows when it is back",
  cut: "connection closed by you; the cursor is kept",
};

// Codes with which a server sends its readers away for a moment.
const COMING_BACK = {
  GOING_AWAY: "the server is going away, or starts again",
  SLOW: "nothing was read for too long",
  TOKEN_EXPIRED: "with a new token",
  LOG_UNAVAILABLE: "the log does not answer",
  LIMITED: "a limit was reached",
  INTERNAL: "a defect of the server; nothing is lost",
};

const ENDS = {
  closed: "the stream was closed, and this is all of it",
  expired: "the stream reached the end of its life",
  deleted: "the stream was deleted",
};

/** What to show for a state: tone, word, explanation. Pure. */
export function wordsFor(state, now) {
  const [tone, word] = WORDS[state.name];
  if (state.name === "waiting") {
    const seconds = Math.max(0, Math.ceil((state.until - now) / 1000));
    return { tone, word: `Reconnecting in ${seconds} s`, detail: state.detail };
  }
  if (state.name === "reconnecting" && COMING_BACK[state.code]) return { tone, word, detail: COMING_BACK[state.code] };
  if (state.name === "ended") return { tone, word, detail: ENDS[state.detail] ?? state.code };
  const detail = [state.code, state.detail || EXPLAINED[state.name]].filter(Boolean).join(" · ");
  return { tone, word, detail };
}

export class Status {
  #state = { name: "idle" };

  constructor() {
    setInterval(() => this.#state.name === "waiting" && this.show(this.#state), 250);
  }

  show(state) {
    this.#state = state;
    const { tone, word, detail } = wordsFor(state, performance.now());
    const pill = byId("state");
    pill.dataset.tone = tone;
    pill.dataset.state = state.name;
    setText(byId("state-word"), word);
    setText(byId("state-detail"), detail);
    byId("state-detail").title = detail;
    // A countdown must not be read out every second.
    if (state.name !== "waiting") setText(byId("spoken-state"), `${word}. ${detail}`);
    document.title = `${MARKS[tone]} ${byId("stream").value || "tailrace"}`;
  }

  showCounts(chain, cursor) {
    setText(byId("count-records"), `${plural(chain.records, "record")}`);
    this.#counter("count-missing", chain.missing, "missing");
    this.#counter("count-duplicate", chain.duplicate, "duplicate");
    const announced = byId("count-announced");
    announced.hidden = chain.announced === 0;
    setText(announced, `${count(chain.announced)} announced as lost`);
    setText(byId("cursor"), cursor ?? "–");
  }

  #counter(id, n, noun) {
    const node = byId(id);
    setText(node, `${count(n)} ${noun}`);
    node.classList.toggle("wrong", n > 0);
  }
}

const MARKS = { idle: "○", busy: "◌", live: "●", warn: "◐", done: "■", bad: "✕" };

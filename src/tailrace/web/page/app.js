// The page: one stream, watched. Wires the parts to the elements of index.html.

import { Api } from "./api.js";
import { Chain } from "./chain.js";
import { Composer } from "./composer.js";
import * as credentials from "./credentials.js";
import { byId, count, el, plural, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { History, OTHER_TYPES } from "./history.js";
import { Session } from "./session.js";
import { Status } from "./status.js";

const PREFIX = document.querySelector('meta[name="tailrace-api"]').content;
const CHIPS = 24; // types with a filter button of their own
const SPEAK_EVERY_MS = 10_000;

class Page {
  #status = new Status();
  #composer = new Composer((type, data) => this.#publish(type, data));
  #history = new History();
  #feed = this.#newFeed();
  #chain = new Chain();
  #api = null;
  #session = null;
  #stream = null; // what is watched
  #spoken = 0;
  #runs = []; // the newest ones, to choose from

  start() {
    byId("watch").addEventListener("submit", (event) => {
      event.preventDefault();
      this.watch(byId("stream").value.trim(), byId("from").value);
    });
    byId("cut").addEventListener("click", () => this.#cut());
    byId("resume").addEventListener("click", () => this.#resume());
    byId("clear").addEventListener("click", () => this.#clear());
    byId("follow").addEventListener("click", () => (this.#feed.following = !this.#feed.following));
    byId("jump").addEventListener("click", () => (this.#feed.following = true));
    byId("search").addEventListener("input", () => this.#search());
    byId("stream").addEventListener("focus", () => this.#lookForRuns());
    byId("copy-cursor").addEventListener("click", () => navigator.clipboard?.writeText(byId("cursor").textContent));
    this.#wireSignIn();
    addEventListener("hashchange", () => this.#obeyFragment());
    addEventListener("online", () => this.#session?.hurry());
    setInterval(() => this.#speak(), SPEAK_EVERY_MS);
    this.#showRecent();
    this.#showToken();
    this.#status.show({ name: "idle" });
    this.#obeyFragment();
    this.#lookForRuns();
  }

  #obeyFragment() {
    const { stream, from } = credentials.readFragment();
    this.#showToken();
    if (from !== null) byId("from").value = from;
    if (stream) byId("stream").value = stream;
    if (!credentials.token()) this.#askForToken();
    else if (stream) this.watch(stream, byId("from").value);
  }

  /** Watch a stream from the beginning of the page's knowledge; `from` is "", "0" or "$". */
  watch(stream, from) {
    this.#session?.close();
    this.#chain = new Chain();
    this.#history = new History();
    this.#feed.end();
    this.#feed = this.#newFeed();
    credentials.writeFragment(stream, from);
    credentials.rememberStream(stream);
    this.#showRecent();
    this.#api = new Api(PREFIX, credentials.token());
    const session = new Session(this.#api, stream, from === "" ? null : from);
    this.#session = session;
    this.#stream = stream;
    this.#listen(session);
    byId("welcome").hidden = true;
    setText(byId("publish-stream"), stream);
    session.resume();
    this.#feed.rebuild();
  }

  #listen(session) {
    const on = (name, handler) => session.addEventListener(name, (event) => handler(event.detail));
    on("record", ({ record, size }) => this.#received(record, size));
    on("gap", (gap) => this.#gap(gap));
    on("state", (state) => this.#became(state));
    on("opened", ({ id }) => this.#opened(id));
    on("lost", (farewell) => this.#note("warn", "Connection lost", Session.describe(farewell).code));
    on("degraded", () => this.#note("warn", "The log does not answer. The connection stays; nothing is lost."));
    on("restored", () => this.#note("good", "The log answers again"));
    on("farewell", (farewell) => farewell.how === "refused" && this.#refused(farewell));
  }

  #received(record, size) {
    const verdict = this.#chain.take(record);
    if (verdict !== "duplicate") {
      const item = this.#history.addRecord(record, size, verdict);
      if (this.#history.types.get(item.type) === 1) this.#showTypes();
    }
    this.#feed.refresh();
  }

  #gap(gap) {
    this.#chain.gap(gap);
    this.#history.addGap(gap);
    this.#feed.refresh();
  }

  #opened(id) {
    const first = this.#chain.records === 0 && this.#history.items.length === 0;
    this.#chain.opened(id);
    if (!first) this.#note("good", "Resumed", this.#session.cursor ?? "");
  }

  #became(state) {
    this.#status.show(state);
    const { name } = state;
    const watching = !["idle", "cut", "ended", "refused"].includes(name);
    swap(byId("cut"), byId("resume"), watching);
    if (name === "idle" || name === "ended") byId("resume").hidden = true;
    setText(byId("resume"), name === "refused" ? "Try again" : "Resume");
    this.#composer.enabled = name !== "idle" && !(name === "ended" && state.detail === "closed");
    if (name === "ended") this.#note("done", `End of the stream: ${state.detail || state.code}`);
    if (name === "refused") this.#note("bad", `Refused: ${state.code ?? ""}`, state.detail);
    if (state.signIn) this.#askForToken(`This token is refused: ${state.detail || state.code}.`);
    this.#showEmpty(name);
    this.#showCounts();
  }

  #refused(farewell) {
    const { code, detail } = Session.describe(farewell);
    this.#note("warn", `Refused for now: ${code}`, detail);
  }

  #cut() {
    this.#session.cut();
    this.#note("idle", "Cut here", this.#session.cursor ?? "");
  }

  #resume() {
    this.#session.resume();
  }

  #note(tone, text, detail = "") {
    this.#history.addNote(tone, text, detail ?? "");
    this.#feed.refresh();
  }

  #clear() {
    this.#history.clear();
    this.#feed.rebuild();
  }

  async #publish(type, data) {
    return this.#api.publish(this.#stream, { type, data });
  }

  // What is shown

  #newFeed() {
    return new Feed(byId("feed"), byId("rows"), this.#history, () => this.#showFeed());
  }

  #showFeed() {
    const { following, waiting, empty } = this.#feed;
    byId("follow").setAttribute("aria-pressed", String(following));
    byId("jump").hidden = following;
    setText(byId("jump"), waiting ? `↓ ${count(waiting)} new` : "↓ To the end");
    byId("dropped").hidden = this.#history.dropped === 0;
    setText(byId("dropped"), `${plural(this.#history.dropped, "earlier row")} not kept in this page`);
    if (!empty) byId("empty").hidden = true;
    this.#countTypes();
    this.#showCounts();
  }

  #showCounts() {
    this.#status.showCounts(this.#chain, this.#session?.cursor ?? null);
  }

  #showEmpty(name) {
    byId("empty").hidden = !this.#feed.empty || !["live", "degraded"].includes(name);
    const stream = byId("stream").value;
    setText(byId("empty-stream"), stream);
    const lines = [`tailrace publish ${stream} '{"text": "hello"}'`, `tailrace exec --stream ${stream} -- uname -a`];
    setText(byId("empty-command"), lines.join("\n"));
  }

  #showTypes() {
    const types = [...this.#history.types.keys()].filter((type) => type !== OTHER_TYPES).slice(0, CHIPS);
    if (this.#history.types.has(OTHER_TYPES) || this.#history.types.size > CHIPS) types.push(OTHER_TYPES);
    byId("types").replaceChildren(...types.map((type) => this.#chip(type)));
  }

  #chip(type) {
    const pressed = String(!this.#history.hidden.has(type));
    const label = el("span", {}, type);
    const chip = el("button", { type: "button", className: "chip", attrs: { "aria-pressed": pressed }, dataset: { type } });
    chip.append(label, el("span", { className: "n" }));
    chip.addEventListener("click", () => {
      const { hidden } = this.#history;
      if (!hidden.delete(type)) hidden.add(type);
      chip.setAttribute("aria-pressed", String(!hidden.has(type)));
      this.#feed.rebuild();
    });
    return chip;
  }

  #countTypes() {
    for (const chip of byId("types").children) {
      setText(chip.lastChild, count(this.#history.types.get(chip.dataset.type) ?? 0));
    }
  }

  #search() {
    this.#history.search = byId("search").value.trim().toLowerCase();
    this.#feed.rebuild();
  }

  async #lookForRuns() {
    if (!credentials.token()) return;
    this.#runs = await new Api(PREFIX, credentials.token()).runs();
    this.#showRecent();
  }

  #showRecent() {
    const runs = new Map(this.#runs.map((run) => [`run:${run.id}`, `${run.status} · ${run.title || run.kind}`]));
    const names = [...new Set([...credentials.recentStreams(), ...runs.keys()])];
    byId("recent").replaceChildren(...names.map((value) => el("option", { value, label: runs.get(value) ?? "" })));
    const buttons = names.slice(0, 12).map((name) => {
      const button = el("button", { type: "button", className: "chip", title: runs.get(name) ?? "" }, name);
      button.addEventListener("click", () => {
        byId("stream").value = name;
        this.watch(name, byId("from").value);
      });
      return button;
    });
    byId("welcome-recent").replaceChildren(...buttons);
  }

  #showToken() {
    const claims = credentials.describeToken(credentials.token());
    setText(byId("who"), claims ? claims.subject : "Sign in");
    const grants = claims?.admin
      ? ["administrator: may read and write every stream"]
      : [
          `may read: ${claims?.read.join(", ") || "its own user stream and system:all"}`,
          `may write: ${claims?.write.join(", ") || "nothing"}`,
        ];
    const facts = claims && [
      ...grants,
      claims.expires ? `until ${new Date(claims.expires).toLocaleString()}` : "no end",
    ];
    byId("who").title = facts ? facts.join("\n") : "";
    byId("token-facts").replaceChildren(...(facts ?? []).map((fact) => el("li", {}, fact)));
  }

  #askForToken(why = "") {
    setText(byId("sign-in-why"), why);
    byId("sign-in-why").hidden = why === "";
    if (!byId("sign-in").open) byId("sign-in").showModal();
  }

  #wireSignIn() {
    const dialog = byId("sign-in");
    byId("who").addEventListener("click", () => this.#askForToken());
    byId("close-sign-in").addEventListener("click", () => dialog.close());
    byId("sign-in-form").addEventListener("submit", (event) => {
      event.preventDefault();
      credentials.keepToken(byId("token").value);
      byId("token").value = "";
      dialog.close();
      this.#showToken();
      this.#signedIn();
      this.#lookForRuns();
    });
  }

  /** There is another token: go on where the last one left off, or begin. */
  #signedIn() {
    const stream = byId("stream").value.trim();
    if (this.#session && stream === this.#stream) {
      this.#api.token = credentials.token();
      this.#session.resume();
    } else if (stream && byId("stream").checkValidity()) this.watch(stream, byId("from").value);
  }

  /** For screen readers: how many came, now and then, instead of every line. */
  #speak() {
    const fresh = this.#chain.records - this.#spoken;
    this.#spoken = this.#chain.records;
    if (fresh > 0) setText(byId("spoken-records"), `${plural(fresh, "new record")}, ${count(this.#chain.missing)} missing`);
  }
}

/** Show one of two buttons, and keep the keyboard where it was. */
function swap(first, second, showFirst) {
  const focused = document.activeElement === first || document.activeElement === second;
  first.hidden = !showFirst;
  second.hidden = showFirst;
  if (focused) (showFirst ? first : second).focus();
}

new Page().start();

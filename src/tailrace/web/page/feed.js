// The list of rows: at most what the history holds, appended once a frame, following the end unless told not to.

import { createRow } from "./rows.js";

const ROWS_PER_FRAME = 400;
const AT_END_PIXELS = 32;

export class Feed {
  #box; // scrolls
  #list;
  #history;
  #rows = []; // {number, node}, in order, as they are in the list
  #rendered = 0; // number of the last item that was looked at
  #following = true;
  #scheduled = false;
  #ended = new AbortController();
  #changed; // called when following or the number of waiting rows changed

  constructor(box, list, history, changed) {
    this.#box = box;
    this.#list = list;
    this.#history = history;
    this.#changed = changed;
    box.addEventListener("scroll", () => this.#scrolled(), { passive: true, signal: this.#ended.signal });
  }

  /** Another feed takes the list. */
  end() {
    this.#ended.abort();
  }

  get following() {
    return this.#following;
  }

  set following(value) {
    this.#following = value;
    if (value) this.refresh();
    this.#changed();
  }

  /** How many items came since the list stopped following. */
  get waiting() {
    if (this.#following) return 0;
    return this.#history.items.filter((item) => item.number > this.#rendered && this.#history.shows(item)).length;
  }

  get empty() {
    return this.#rows.length === 0;
  }

  /** Something was added to the history. */
  refresh() {
    if (this.#scheduled) return;
    this.#scheduled = true;
    requestAnimationFrame(() => {
      this.#scheduled = false;
      if (!this.#ended.signal.aborted) this.#render();
    });
  }

  /** The filters changed, or everything did. */
  rebuild() {
    this.#rows = [];
    this.#rendered = 0;
    this.#list.replaceChildren();
    this.#following = true;
    this.refresh();
  }

  #render() {
    if (this.#following) {
      this.#append();
      this.#trim();
      this.#box.scrollTop = this.#box.scrollHeight;
    }
    this.#changed();
  }

  #append() {
    const fresh = [];
    for (const item of this.#unseen()) {
      this.#rendered = item.number;
      if (!this.#history.shows(item)) continue;
      fresh.push({ number: item.number, node: createRow(item) });
      if (fresh.length === ROWS_PER_FRAME) {
        this.refresh();
        break;
      }
    }
    this.#rows.push(...fresh);
    this.#list.append(...fresh.map((row) => row.node));
  }

  #unseen() {
    const { items } = this.#history;
    if (items.length === 0) return [];
    return items.slice(Math.max(0, this.#rendered + 1 - items[0].number));
  }

  /** Rows whose items the history let go. */
  #trim() {
    const oldest = this.#history.items[0]?.number ?? Infinity;
    let gone = 0;
    while (gone < this.#rows.length && this.#rows[gone].number < oldest) gone += 1;
    for (const { node } of this.#rows.splice(0, gone)) node.remove();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#box;
    const atEnd = scrollHeight - scrollTop - clientHeight < AT_END_PIXELS;
    if (atEnd !== this.#following) this.following = atEnd;
  }
}

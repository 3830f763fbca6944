// What the page keeps of a stream: bounded in items and in size, the oldest go first. No DOM.

import { PLAIN, parseAnsi } from "./ansi.js";
import { describeProcess } from "./process.js";

export const MAX_ITEMS = 2_000;
export const MAX_SIZE = 16 * 1024 * 1024;
const MAX_TYPES = 200; // beyond these, types are counted together
export const OTHER_TYPES = "(other types)";

export class History {
  items = []; // {number, kind: "record" | "gap" | "note", …} in the order they came
  dropped = 0; // how many went because of the bounds
  types = new Map(); // type → how many records came
  hidden = new Set(); // types that are filtered away
  search = "";
  #number = 0;
  #size = 0;
  #styles = {}; // the colours a line leaves on, per output stream of the process

  addRecord(record, size, verdict) {
    const type = this.#counted(String(record.type));
    const process = describeProcess(record);
    const item = { kind: "record", record, size, verdict, type, process };
    if (process?.what === "line") this.#carryStyle(item, process);
    this.#push(item);
    return item;
  }

  addGap(gap) {
    this.#push({ kind: "gap", gap, size: 200 });
  }

  addNote(tone, text, detail = "") {
    this.#push({ kind: "note", tone, text, detail, time: Date.now(), size: 200 });
  }

  clear() {
    this.dropped += this.items.length;
    this.items = [];
    this.#size = 0;
  }

  /** Whether the filters let an item through. Gaps and notes are never hidden. */
  shows(item) {
    if (item.kind !== "record") return true;
    if (this.hidden.has(item.type)) return false;
    if (this.search === "") return true;
    return (item.text ??= searchable(item.record)).includes(this.search);
  }

  #push(item) {
    item.number = this.#number += 1;
    this.items.push(item);
    this.#size += item.size;
    while (this.items.length > MAX_ITEMS || (this.#size > MAX_SIZE && this.items.length > 1)) {
      this.#size -= this.items.shift().size;
      this.dropped += 1;
    }
  }

  #counted(type) {
    const key = this.types.has(type) || this.types.size < MAX_TYPES ? type : OTHER_TYPES;
    this.types.set(key, (this.types.get(key) ?? 0) + 1);
    return key;
  }

  /** A colour stays on until it is changed, also over line ends, as in a terminal. */
  #carryStyle(item, { fd, text }) {
    item.style = this.#styles[fd] ?? PLAIN;
    if (text.includes("\x1b")) this.#styles[fd] = parseAnsi(text, item.style).style;
  }
}

/** What a search looks at: small, so that a page of large records stays quick. */
function searchable({ type, data, id, key, actor }) {
  const text = typeof data === "string" ? data : JSON.stringify(data) ?? "";
  return `${type} ${id} ${key ?? ""} ${actor ?? ""} ${text.slice(0, 4_000)}`.toLowerCase();
}

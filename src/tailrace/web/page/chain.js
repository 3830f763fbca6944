// The chain check of PROTOCOL.md §5, in the page: a reader at cursor c missed nothing exactly when the next
// record's `prev` is c. Pure: values in, values out.

const ENTRY_ID = /^(0|[1-9]\d{0,19})-(0|[1-9]\d{0,19})$/;

/** The two numbers of an entry id, or null when the text is no entry id. They need all 64 bits. */
export function parseId(text) {
  const match = ENTRY_ID.exec(text ?? "");
  return match && { ms: BigInt(match[1]), seq: BigInt(match[2]) };
}

/** Negative, zero or positive, as ids are ordered in a stream. */
export function compareIds(left, right) {
  const a = parseId(left);
  const b = parseId(right);
  if (!a || !b) return 0;
  if (a.ms !== b.ms) return a.ms < b.ms ? -1 : 1;
  return a.seq === b.seq ? 0 : a.seq < b.seq ? -1 : 1;
}

/** Counts what one reader of one stream was given, and what it was not. */
export class Chain {
  records = 0;
  missing = 0; // not announced: must stay 0
  duplicate = 0; // must stay 0
  announced = 0; // told by gaps
  foreign = 0; // written by others than tailrace, outside the chain
  #chained = null; // the last record of the chain; null: not known, the next one is taken as it comes
  #last = null; // the last record that was given, to recognise repetitions

  /** The server says where it begins to read: what follows must follow this id. */
  opened(id) {
    if (this.#chained === null && parseId(id)) this.#chained = id;
  }

  /** An announced loss: the next record is taken as it comes. */
  gap({ missed, reason }) {
    this.announced += missed ?? 0;
    this.#chained = null;
    if (reason === "reset" || reason === "ahead") this.#last = null;
  }

  /** Judge one record: "next", "foreign", "duplicate" or "hole". */
  take({ id, prev }) {
    if (this.#last !== null && compareIds(id, this.#last) <= 0) {
      this.duplicate += 1;
      return "duplicate";
    }
    this.#last = id;
    this.records += 1;
    if (prev === null || prev === undefined) {
      this.foreign += 1;
      return "foreign";
    }
    const follows = this.#chained === null || this.#chained === prev;
    if (!follows) this.missing += this.#lost(id);
    this.#chained = id;
    return follows ? "next" : "hole";
  }

  #lost(id) {
    const lost = parseId(id).seq - parseId(this.#chained).seq - 1n;
    return lost > 0n ? Number(lost) : 1; // numbers are reused after a lost suffix: at least one, then
  }
}

// One item of the history as one list element. Everything that came over the network is a text node.

import { lastRewrite, parseAnsi } from "./ansi.js";
import { bytes, clockTime, count, el, plural } from "./dom.js";

const PREVIEW = 400; // characters of data in a closed row
const SHOWN = 16 * 1024; // characters of a long text before "show all"
const JSON_TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\b(?:true|false|null)\b/g;

/** Make the row of an item. */
export function createRow(item) {
  if (item.kind === "gap") return gapRow(item.gap);
  if (item.kind === "note") return noteRow(item);
  const { process } = item;
  const row = process === null ? recordRow(item) : process.what === "line" ? lineRow(item) : processRow(item);
  row.dataset.id = item.record.id;
  if (item.verdict === "hole") row.classList.add("after-hole");
  if (item.verdict === "foreign") row.classList.add("foreign");
  return row;
}

function recordRow({ record, size }) {
  const preview = el("span", { className: "data" });
  const text = dataText(record.data);
  if (typeof record.data === "string") preview.textContent = text.slice(0, PREVIEW);
  else preview.append(...highlight(text.slice(0, PREVIEW)));
  if (text.length > PREVIEW) preview.append(el("span", { className: "more" }, ` … ${bytes(size)}`));
  const summary = el("summary", {}, ...gutter(record), typeBadge(record.type), preview);
  const details = el("details", {}, summary);
  details.addEventListener("toggle", () => {
    if (details.open && !details.querySelector(".facts")) details.append(recordDetail(record));
  });
  return el("li", { className: "row record" }, details);
}

function gutter(record) {
  const seq = String(record.id ?? "").split("-")[1] ?? "";
  return [
    el("span", { className: "seq", title: `id ${record.id}` }, seq),
    el("time", { className: "time", title: isoTime(record.time) }, clockTime(record.time)),
  ];
}

function isoTime(ms) {
  return Number.isFinite(ms) && Math.abs(ms) < 8.64e15 ? new Date(ms).toISOString() : "";
}

/** A type's colour comes from its first word, so that `order.created` and `order.paid` look related. */
function typeBadge(type) {
  let hash = 7;
  for (const char of String(type).split(/[./:-]/, 1)[0]) hash = (hash * 31 + char.charCodeAt(0)) % 12;
  return el("span", { className: "type", dataset: { hue: hash } }, String(type));
}

function recordDetail(record) {
  const rows = ["id", "prev", "stream", "type", "time", "uid", "key", "actor", "trace"]
    .filter((name) => record[name] !== undefined && record[name] !== null)
    .map((name) => [name, name === "time" ? `${isoTime(record.time)} (${record.time})` : String(record[name])]);
  const pretty = typeof record.data === "string" ? record.data : dataText(record.data, 2);
  const code = longText(pretty, typeof record.data === "string" ? (text) => [text] : highlight);
  const copy = el("button", { type: "button", className: "quiet copy" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard?.writeText(pretty);
    copy.textContent = "Copied";
  });
  return el("div", { className: "facts" }, factList(rows), el("div", { className: "code" }, copy, code));
}

function factList(rows) {
  return el("dl", {}, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

/** A text that may be a megabyte: its beginning, and the rest when it is asked for (plain, to stay quick). */
function longText(text, dress) {
  const pre = el("pre", { tabIndex: 0 });
  pre.append(...dress(text.slice(0, SHOWN)));
  if (text.length > SHOWN) pre.append(showAll(text.slice(SHOWN)));
  return pre;
}

function showAll(rest) {
  const label = `Show all, ${count(rest.length)} more characters`;
  const button = el("button", { type: "button", className: "quiet" }, label);
  button.addEventListener("click", () => button.replaceWith(rest));
  return button;
}

function dataText(data, indent) {
  return typeof data === "string" ? data : JSON.stringify(data, null, indent) ?? "null";
}

function* highlight(text) {
  let from = 0;
  for (const match of text.matchAll(JSON_TOKEN)) {
    if (match.index > from) yield text.slice(from, match.index);
    const [token, string, colon] = match;
    const kind = string ? (colon ? "j-key" : "j-string") : /^[-\d]/.test(token) ? "j-number" : "j-word";
    yield el("span", { className: kind }, string ?? token);
    if (colon) yield colon;
    from = match.index + token.length;
  }
  if (from < text.length) yield text.slice(from);
}

function lineRow({ record, process, style }) {
  const body = el("span", { className: "text" });
  let room = SHOWN;
  let rest = "";
  for (const { text, style: dress } of parseAnsi(lastRewrite(process.text), style).pieces) {
    if (room > 0) body.append(piece({ text: text.slice(0, room), style: dress }));
    rest += text.slice(Math.max(0, room));
    room -= text.length;
  }
  if (rest) body.append(showAll(rest));
  const marks = process.marks.map((mark) => el("span", { className: "mark" }, mark));
  const tag = process.fd === "stderr" ? el("span", { className: "fd", title: "standard error" }, "err") : null;
  return el("li", { className: `row line ${process.fd}` }, ...gutter(record), tag, body, ...marks);
}

/** The 16 named colours are classes; the others were made by us from checked numbers. */
function piece({ text, style }) {
  const span = el("span", {}, text);
  const [fg, bg] = style.inverse ? [style.bg ?? "ground", style.fg ?? "ink"] : [style.fg, style.bg];
  for (const [colour, property, prefix] of [
    [fg, "color", "fg"],
    [bg, "backgroundColor", "bg"],
  ]) {
    if (colour === null) continue;
    if (typeof colour === "string" && colour.startsWith("rgb(")) span.style[property] = colour;
    else span.classList.add(`${prefix}-${colour}`);
  }
  for (const name of ["bold", "dim", "italic", "underline", "strike"]) if (style[name]) span.classList.add(name);
  return span.className || span.getAttribute("style") ? span : document.createTextNode(text);
}

function processRow({ record, process }) {
  const { what, ok, facts } = process;
  const tone = what === "exited" ? (ok ? "good" : "bad") : what;
  const sign = { started: "▶", good: "✓", bad: "✕", skipped: "!" }[tone];
  const headline = what === "started" ? el("code", {}, process.command) : el("strong", {}, process.headline);
  const notes = facts.map(([name, value]) => el("span", { className: "fact" }, `${name} `, el("b", {}, value)));
  return el(
    "li",
    { className: `row process ${tone}` },
    ...gutter(record),
    el("span", { className: "sign", attrs: { "aria-hidden": "true" } }, sign),
    el("span", { className: "headline" }, headline),
    el("span", { className: "fact-line" }, ...notes),
  );
}

const WHY_GAP = {
  trimmed: "older records were trimmed by retention",
  reset: "the log lost or replaced its end; the history that exists now follows",
  ahead: "the cursor was never part of this stream; its history follows",
  expired: "the stream reached the end of its life",
  deleted: "records were deleted",
  refused: "the producer could not store them",
};

function gapRow({ after, before, missed, reason }) {
  const amount = typeof missed === "number" ? plural(missed, "record") : "an unknown number of records";
  const between = `after ${after ?? "the beginning"}${before ? `, before ${before}` : ""}`;
  return el(
    "li",
    { className: "row gap" },
    el("strong", {}, `Gap: ${amount} missing`),
    el("span", {}, `${WHY_GAP[reason] ?? reason ?? "no reason given"}`),
    el("code", {}, between),
  );
}

function noteRow({ tone, text, detail, time }) {
  return el(
    "li",
    { className: `row note ${tone}` },
    el("span", { className: "note-text" }, text, detail ? el("code", {}, detail) : null),
    el("time", {}, clockTime(time)),
  );
}

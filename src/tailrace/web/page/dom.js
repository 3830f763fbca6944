// Elements without markup: everything that came over the network becomes a text node, never HTML.

/** Make an element. Properties are set, `dataset`, `attrs` and `on` are spread; children are nodes or text. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  const { dataset = {}, attrs = {}, on = {}, ...rest } = properties;
  Object.assign(node, rest);
  Object.assign(node.dataset, dataset);
  for (const [name, value] of Object.entries(attrs)) node.setAttribute(name, value);
  for (const [name, listener] of Object.entries(on)) node.addEventListener(name, listener);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** The element with this id; a page without it is a defect. */
export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`no element #${id}`);
  return node;
}

/** Set text only when it changed, so that screen readers and layout are left alone. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const TIME = new Intl.DateTimeFormat([], {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
  hour12: false,
});

/** Time of day with milliseconds, in the reader's zone. */
export function clockTime(ms) {
  return Number.isFinite(ms) ? TIME.format(ms) : "–";
}

const NUMBER = new Intl.NumberFormat();

/** A count as people read it. */
export function count(n) {
  return NUMBER.format(n);
}

/** "1 record", "2 records". */
export function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** A size as people read it. */
export function bytes(n) {
  if (n < 1024) return `${n} B`;
  if (n < 1024 * 1024) return `${(n / 1024).toFixed(1)} KiB`;
  return `${(n / 1024 / 1024).toFixed(1)} MiB`;
}

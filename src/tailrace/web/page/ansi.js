// Terminal output as styled pieces of text. Only colours and styles (SGR) are obeyed; every other sequence is dropped,
// so that no output can move, hide or link anything in the page. Pure: text in, values out.

/** No colour, no style: how a terminal begins. */
export const PLAIN = Object.freeze({
  fg: null,
  bg: null,
  bold: false,
  dim: false,
  italic: false,
  underline: false,
  strike: false,
  inverse: false,
});

// CSI … final | OSC/DCS/… up to BEL or ST (or the end) | any other two- or three-byte escape
const ESCAPE =
  // eslint-disable-next-line no-control-regex
  /\x1b\[([0-9:;<=>?]*)[ -/]*([@-~])|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|$)|\x1b[ -/]*[0-~]?|\x9b[0-9:;<=>?]*[ -/]*[@-~]/g;
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g; // all but tab and newline
const SWITCHES = {
  1: { bold: true },
  2: { dim: true },
  3: { italic: true },
  4: { underline: true },
  7: { inverse: true },
  9: { strike: true },
  22: { bold: false, dim: false },
  23: { italic: false },
  24: { underline: false },
  27: { inverse: false },
  29: { strike: false },
  39: { fg: null },
  49: { bg: null },
};

/**
 * Split text into pieces of one style each.
 *
 * At most `limit` pieces come back: what is beyond them is one plain piece, so that a line made of nothing but
 * colour changes costs no more than any other.
 */
export function parseAnsi(text, style = PLAIN, limit = 500) {
  const pieces = [];
  let from = 0;
  const add = (part) => {
    const clean = visible(part);
    if (clean === "") return;
    const last = pieces.at(-1);
    if (last && last.style === style) last.text += clean;
    else pieces.push({ text: clean, style });
  };
  for (const match of text.matchAll(ESCAPE)) {
    add(text.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[2] !== "m") continue;
    if (pieces.length >= limit) style = PLAIN;
    else style = restyle(style, match[1]);
  }
  add(text.slice(from));
  return { pieces, style };
}

/** What is left of a line when a carriage return starts it again, as progress bars do. */
export function lastRewrite(text) {
  const line = text.replace(/\r+$/, "");
  const at = line.lastIndexOf("\r");
  return at < 0 ? line : line.slice(at + 1);
}

/** Control characters as their visible pictures, so that nothing is hidden. */
function visible(text) {
  return text.replace(CONTROL, (char) => {
    const code = char.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : "\u2421";
  });
}

function restyle(style, parameters) {
  if (!/^[0-9:;]*$/.test(parameters)) return style;
  const codes = parameters.split(/[;:]/, 64).map(Number);
  let next = style;
  for (let i = 0; i < codes.length; i += 1) {
    const code = codes[i];
    if (code === 0) next = PLAIN;
    else if (code === 38 || code === 48) {
      const [colour, used] = extended(codes, i + 1);
      if (colour !== null) next = { ...next, [code === 38 ? "fg" : "bg"]: colour };
      i += used;
    } else next = { ...next, ...(SWITCHES[code] ?? basic(code)) };
  }
  return same(next, PLAIN) ? PLAIN : next;
}

/** The 16 named colours: 0-15, as the style sheet has them. */
function basic(code) {
  if (code >= 30 && code <= 37) return { fg: code - 30 };
  if (code >= 90 && code <= 97) return { fg: code - 82 };
  if (code >= 40 && code <= 47) return { bg: code - 40 };
  if (code >= 100 && code <= 107) return { bg: code - 92 };
  return {};
}

/** `5;n` or `2;r;g;b` behind a 38 or 48: the colour, and how many numbers it took. */
function extended(codes, at) {
  if (codes[at] === 5) return [palette(codes[at + 1]), 2];
  if (codes[at] === 2) {
    const rgb = codes.slice(at + 1, at + 4);
    return [rgb.length === 3 && rgb.every(isByte) ? `rgb(${rgb.join(" ")})` : null, 4];
  }
  return [null, 1];
}

function palette(n) {
  if (!isByte(n)) return null;
  if (n < 16) return n;
  if (n >= 232) return `rgb(${Array(3).fill(8 + (n - 232) * 10).join(" ")})`;
  const level = (step) => (step === 0 ? 0 : 55 + step * 40);
  const cube = n - 16;
  return `rgb(${[Math.floor(cube / 36), Math.floor(cube / 6) % 6, cube % 6].map(level).join(" ")})`;
}

const isByte = (n) => Number.isInteger(n) && n >= 0 && n <= 255;
const same = (a, b) => Object.keys(PLAIN).every((key) => a[key] === b[key]);

// Where the token comes from and where it stays: the fragment of the address, then this tab's session storage.

const TOKEN_KEY = "tailrace.token";
const RECENT_KEY = "tailrace.recent";
const RECENT_STREAMS = 8;

/** Read `#token=…&stream=…`, keep the token for this tab, and take it out of the address bar and its history. */
export function readFragment() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const token = fragment.get("token");
  if (token) {
    keepToken(token);
    fragment.delete("token");
    history.replaceState(null, "", `${location.pathname}${location.search}${asHash(fragment)}`);
  }
  return { stream: fragment.get("stream"), from: fragment.get("from") };
}

/** The address names what is watched, so that a refresh or a bookmark shows the same. */
export function writeFragment(stream, from) {
  const fragment = new URLSearchParams({ stream });
  if (from) fragment.set("from", from);
  history.replaceState(null, "", `${location.pathname}${location.search}${asHash(fragment)}`);
}

// A colon may stand in a fragment as it is, and reads better.
const asHash = (fragment) => (fragment.size ? `#${fragment.toString().replaceAll("%3A", ":")}` : "");

export const token = () => read(sessionStorage, TOKEN_KEY) ?? "";

export function keepToken(text) {
  const clean = text.trim().replace(/^Bearer\s+/i, "");
  write(sessionStorage, TOKEN_KEY, clean || null);
}

/** What the token says about itself. Only shown; the gateway is the one that checks it. */
export function describeToken(text) {
  try {
    const part = text.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const claims = JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (char) => char.charCodeAt(0))));
    return {
      subject: String(claims.sub ?? "?"),
      expires: typeof claims.exp === "number" ? claims.exp * 1000 : null,
      admin: claims.tailrace?.admin === true,
      read: [claims.tailrace?.read ?? []].flat().map(String),
      write: [claims.tailrace?.write ?? []].flat().map(String),
    };
  } catch {
    return null;
  }
}

export function recentStreams() {
  try {
    const names = JSON.parse(read(localStorage, RECENT_KEY) ?? "[]");
    return Array.isArray(names) ? names.filter((name) => typeof name === "string").slice(0, RECENT_STREAMS) : [];
  } catch {
    return [];
  }
}

export function rememberStream(stream) {
  const names = [stream, ...recentStreams().filter((name) => name !== stream)].slice(0, RECENT_STREAMS);
  write(localStorage, RECENT_KEY, JSON.stringify(names));
}

// Storage can be forbidden by the browser; the page works without it.
function read(storage, key) {
  try {
    return storage.getItem(key);
  } catch {
    return null;
  }
}

function write(storage, key, value) {
  try {
    if (value === null) storage.removeItem(key);
    else storage.setItem(key, value);
  } catch {
    // not kept, then
  }
}

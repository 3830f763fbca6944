// Records of a run's life: its start, its end, and what `tailrace exec` writes between. Pure: record in, description out.

const OUTCOMES = ["run.completed", "run.failed", "run.cancelled", "run.lost"];

/**
 * What a record says about a process, or null when it says nothing about one.
 *
 * {what: "line", fd, text, marks} · {what: "started", command, facts} ·
 * {what: "exited" | "skipped", ok, headline, facts}
 */
export function describeProcess({ type, data }) {
  if (data === null || typeof data !== "object") return null;
  if (type === "run.output") return line(data);
  if (type === "run.started") return started(data);
  if (type === "run.exited") return exited(data);
  if (OUTCOMES.includes(type) && type === `run.${data.status}`) return outcome(data);
  if (type === "run.lost") return ended(false, `lost: ${data.reason ?? "nobody knows how it ended"}`, []);
  if (type === "run.skipped") return skipped(data);
  return null;
}

function line(data) {
  if (typeof data.text !== "string") return null;
  const marks = [];
  let { text } = data;
  if (data.encoding === "base64") {
    text = decoded(text);
    marks.push("not UTF-8");
  }
  if (data.partial) marks.push("no line end");
  return { what: "line", fd: data.stream === "stderr" ? "stderr" : "stdout", text, marks };
}

/** Bytes that are no text, as well as they can be shown. */
function decoded(base64) {
  try {
    return new TextDecoder().decode(Uint8Array.from(atob(base64), (char) => char.charCodeAt(0)));
  } catch {
    return base64;
  }
}

function started(data) {
  if (data.argv === undefined && data.command === undefined) {
    const name = data.title || data.kind;
    return name ? { what: "started", command: String(name), facts: data.title ? facts(data, ["kind"]) : [] } : null;
  }
  const command = Array.isArray(data.argv) ? data.argv.map(quote).join(" ") : String(data.command ?? "");
  return { what: "started", command, facts: facts(data, ["cwd", "host", "pid"]) };
}

function exited(data) {
  const code = data.exit_code;
  const how = data.signal ? `ended by ${data.signal}` : `exited with ${code}`;
  const took = typeof data.seconds === "number" ? ` after ${duration(data.seconds)}` : "";
  return ended(code === 0 && !data.signal, how + took, facts(data, ["lines"]));
}

function outcome(data) {
  // A command has said itself how long it ran; the run began when the server knew it.
  const timed = data.started_at > 0 && data.result?.exit_code === undefined;
  const took = timed ? ` after ${duration(Math.max(0, data.ended_at - data.started_at) / 1000)}` : "";
  const why = data.error ? `: ${data.error}` : "";
  const { result } = data;
  const shown = result !== null && typeof result === "object" ? JSON.stringify(result) : result;
  return ended(data.status === "completed", `${data.status}${took}${why}`, facts({ result: shown }, ["result"]));
}

function skipped(data) {
  const headline = `${data.pieces ?? "some"} pieces of output were not recorded: ${data.reason ?? "no reason given"}`;
  return { what: "skipped", ok: false, headline, facts: facts(data, ["bytes"]) };
}

const ended = (ok, headline, facts) => ({ what: "exited", ok, headline, facts });

function facts(data, names) {
  return names.filter((name) => data[name] !== undefined && data[name] !== null).map((name) => [name, String(data[name])]);
}

/** As a shell would need it. */
function quote(argument) {
  const text = String(argument);
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 2 : 1)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

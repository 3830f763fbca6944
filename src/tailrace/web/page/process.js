// Records that `tailrace exec` writes: a start, output lines, an exit. Pure: record in, description out.

/**
 * What a record says about a process, or null when it says nothing about one.
 *
 * {what: "line", fd, text, marks} · {what: "started", command, facts} · {what: "exited", ok, headline, facts}
 */
export function describeProcess({ type, data }) {
  if (data === null || typeof data !== "object") return null;
  if (type === "run.output") return line(data);
  if (type === "run.started") return started(data);
  if (type === "run.exited") return exited(data);
  return null;
}

function line(data) {
  if (typeof data.text !== "string") return null;
  const marks = [];
  if (data.partial) marks.push("no newline yet");
  if (data.truncated) marks.push("cut off");
  if (data.encoding && data.encoding !== "utf-8") marks.push(String(data.encoding));
  return { what: "line", fd: data.stream === "stderr" ? "stderr" : "stdout", text: data.text, marks };
}

function started(data) {
  const command = Array.isArray(data.argv) ? data.argv.map(quote).join(" ") : String(data.command ?? "");
  return { what: "started", command, facts: facts(data, ["cwd", "host", "pid"]) };
}

function exited(data) {
  const code = data.exit_code ?? data.code;
  const ok = code === 0;
  const how = data.signal ? `killed by ${data.signal}` : `exited with ${code}`;
  const took = typeof data.seconds === "number" ? ` after ${duration(data.seconds)}` : "";
  return { what: "exited", ok, headline: how + took, facts: facts(data, ["lines"]) };
}

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

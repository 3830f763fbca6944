"""Flask with tailrace: a request starts a run in a thread; its viewers follow it here, or at a gateway beside it.

    pip install flask
    TAILRACE_CORS_ORIGINS=http://127.0.0.1:5000 tailrace dev     # in another terminal, same folder
    export TAILRACE_URL=http://127.0.0.1:8080 TAILRACE_TOKEN=$(cat .tailrace/token)
    flask --app examples/flask/app.py run --with-threads

`/` has two viewers of the same run. The first reads `/jobs/<id>/events`, Flask's own route: every viewer holds a thread
of this server. The second reads the gateway, which serves thousands from one process.
"""

from __future__ import annotations

import json
import os
import threading
import time

from flask import Flask, Response, request

from tailrace.features.runs.active import ActiveRun
from tailrace.features.runs.events import SyncEventStore
from tailrace.features.runs.producing_sync import RunsSync
from tailrace.features.runs.steps import RunCancelled

app = Flask(__name__)
runs = RunsSync.connect()
store = SyncEventStore(max_viewers=8)
"""Eight of the server's threads may be viewers; the ninth is told to come back later."""

PAGE = """<!doctype html><meta charset="utf-8"><title>Flask and tailrace</title>
<h1>Counting to ten</h1><button id="start">Start</button>
<h2>Through Flask</h2><pre id="flask"></pre><h2>Through the gateway</h2><pre id="gateway"></pre>
<script>
const gateway = %s, token = %s;
function follow(id, url) {
  const pre = document.getElementById(id), source = new EventSource(url);
  pre.textContent = "";
  source.addEventListener("count", (event) => { pre.textContent += JSON.parse(event.data).n + " "; });
  source.addEventListener("run.completed", () => { pre.textContent += "done"; source.close(); });
}
document.getElementById("start").onclick = async () => {
  const { run } = await (await fetch("/jobs", { method: "POST" })).json();
  follow("flask", `/jobs/${run}/events`);
  const asked = { method: "POST", headers: { Authorization: `Bearer ${token}` } };
  const answer = await fetch(`${gateway}/api/v1/auth/sse-token`, asked);
  const { sse_token } = await answer.json();
  follow("gateway", `${gateway}/api/v1/streams/run:${run}/events/stream?format=raw&sse_token=${sse_token}`);
};
</script>"""


def count(run: ActiveRun) -> None:
    """The job: it never waits for Redis, and stops where it is asked to."""
    for n in range(1, 11):
        run.check_cancelled()
        run.emit("count", {"n": n})
        time.sleep(0.05)


def work(run_id: str) -> None:
    """The thread of one run."""
    try:
        with runs.claim(run_id) as run, run.step("count"):
            count(run)
    except RunCancelled:
        app.logger.info("cancelled %s", run_id)


@app.get("/")
def page() -> str:
    """Two viewers. A real application gives its user a token of their own here, not the server's."""
    given = (os.environ.get("TAILRACE_URL"), os.environ.get("TAILRACE_TOKEN"))
    return PAGE % tuple(json.dumps(each).replace("<", "\\u003c") for each in given)


@app.post("/jobs")
def start() -> dict[str, str]:
    """Start a run."""
    run = runs.create(kind="count", title="Counting to ten")
    threading.Thread(target=work, args=(run.id,), name=run.id).start()
    return {"run": run.id}


@app.get("/jobs/<run_id>/events")
def follow(run_id: str) -> Response:
    """Flask's own viewer route; an EventSource that comes back says where it was."""
    parts = store.generate_events(run_id, request.headers.get("Last-Event-ID"))
    return Response(parts, mimetype="text/event-stream", headers={"Cache-Control": "no-store"})

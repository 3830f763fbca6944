"""A page as it was written before there were streams: it knows nothing of ids, of controls, of cursors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Page, WebSocket

from tailrace.core.rollout import Mode
from tailrace.eventlog.redis.log import RedisLog
from tailrace.features.workflow.feature import WorkflowFeature
from tailrace.features.workflow.publisher import WorkflowPublisher
from tests.browser.conftest import OpenPage
from tests.features.workflow.conftest import OldSubscriber
from tests.support.redis_servers import RedisServer
from tests.support.tokens import token
from tests.support.wait import eventually
from tests.support.ws import Gate, gate

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(240)]

PAGE = b"""<!doctype html>
<html><head><meta charset="utf-8"><title>workflow</title></head>
<body><pre id="shown"></pre>
<script>
  const shown = document.getElementById("shown");
  function show(line) { shown.textContent += line + "\\n"; }
  const id = location.search.slice(1);
  const socket = new WebSocket("ws://" + location.host + "/streams/workflow:" + id + "/ws");
  socket.onmessage = function (event) {
    const message = JSON.parse(event.data);
    switch (message.type) {
      case "node_output":
        show(message.node_id + ": " + JSON.stringify(message.output));
        break;
      case "workflow_complete":
        show("done: " + JSON.stringify(message.result));
        break;
      case "workflow_error":
        show("failed: " + message.error);
        break;
    }
  };
  socket.onclose = function () { show("closed"); };
</script></body></html>
"""
WAIT = 60.0


def with_old_page(app: Any) -> Any:
    """The application, and the page on the same origin, as the users have it."""

    async def served(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/workflow.html":
            headers = [(b"content-type", b"text/html"), (b"content-length", b"%d" % len(PAGE))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": PAGE})
        elif scope["type"] == "http" and scope["path"] == "/favicon.ico":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, send)

    return served


class Site:
    """A gateway with the old page, and a publisher, on one Redis."""

    def __init__(self, running: Gate, publisher: WorkflowPublisher, open_page: OpenPage) -> None:
        self.publisher = publisher
        self.frames: list[dict[str, Any]] = []
        """What came over the page's socket."""
        self._running = running
        self._open_page = open_page

    async def look(self) -> Page:
        """The page in a tab, by the session's cookie; its socket is open."""
        page = (await self._open_page()).page
        url = f"http://127.0.0.1:{self._running.port}"
        await page.context.add_cookies([{"name": "session", "value": token(read=["workflow:*"]), "url": url}])
        page.on("websocket", self._listen)
        await page.goto(f"{url}/workflow.html?w1")
        await eventually(lambda: self.frames, WAIT)
        return page

    def _listen(self, socket: WebSocket) -> None:
        socket.on("framereceived", lambda text: self.frames.append(json.loads(text)))

    async def wait_messages(self, count: int) -> None:
        """Wait until the page was given so many."""
        await eventually(lambda: sum("type" in frame for frame in self.frames) >= count, WAIT)

    @property
    def ways(self) -> list[str]:
        """The ways the page was served by; it does not know."""
        return [frame["mode"] for frame in self.frames if frame.get("control") in ("open", "mode")]


@asynccontextmanager
async def site(
    redis: RedisServer, prefix: str, mode: Mode, open_page: OpenPage, reads: Callable[[], bool] | None = None
) -> AsyncIterator[Site]:
    names = {"key_prefix": prefix, "workflow_channel": f"{prefix}old:{{id}}"}
    log = RedisLog.connect(redis.url, prefix=prefix)
    feature = WorkflowFeature(None if reads is None else lambda _: reads())
    given: dict[str, Any] = {**names, "workflow_mode": mode.value, "cookie_name": "session"}
    publisher = WorkflowPublisher(
        redis.url, mode=mode, key_prefix=prefix, channel=names["workflow_channel"], timeout_seconds=20.0
    )
    try:
        async with gate(log, features=[feature], wrap=with_old_page, **given) as running:
            yield Site(running, publisher, open_page)
    finally:
        await publisher.aclose()
        await log.aclose()


async def shows(page: Page, text: str) -> None:
    async def shown() -> bool:
        assert await page.text_content("#shown") == text
        return True

    await eventually(shown, WAIT, every=0.05)


async def test_the_old_page_shows_the_same_text_in_every_mode_and_old_subscribers_hear_the_same_bytes(
    redis70: RedisServer, key_prefix: str, open_page: OpenPage
) -> None:
    for mode in Mode:
        prefix = f"{key_prefix}{mode}:"
        async with (
            site(redis70, prefix, mode, open_page) as made,
            OldSubscriber.of(redis70, f"{prefix}old:w1") as old,
        ):
            page, publish = await made.look(), made.publisher
            await publish.publish_node_output("w1", "split", {"parts": ["é", 1.0, None]}, attempt=1)
            await publish.publish("w1", {"type": "of another time", "n": 1})
            await publish.publish_workflow_error("w1", "first try")
            await publish.publish_workflow_complete("w1", "three files")

            await shows(page, 'split: {"parts":["é",1,null]}\nfailed: first try\ndone: "three files"\n')
            assert made.ways == ["pubsub" if mode is Mode.PUBSUB else "streams"]
            if mode is Mode.STREAMS:
                # Who moved to streams alone writes no old channels; who hears them goes on hearing others.
                await publish.publish_to_channel("w1", "still here")
                assert await old.get() == b"still here"
            else:
                output = {"parts": ["é", 1.0, None]}
                assert (await old.many(4))[0].decode() == json.dumps(
                    {"type": "node_output", "workflow_id": "w1", "node_id": "split", "output": output, "attempt": 1}
                )
            await page.close()


async def test_the_old_page_goes_through_a_rollout_and_back_and_shows_every_line_once(
    redis70: RedisServer, key_prefix: str, open_page: OpenPage
) -> None:
    moved = asyncio.Event()
    sent = 0
    async with (
        site(redis70, key_prefix, Mode.DUAL, open_page, moved.is_set) as made,
        OldSubscriber.of(redis70, f"{key_prefix}old:w1") as old,
    ):
        page = await made.look()
        for ways in (["pubsub", "streams"], ["pubsub", "streams", "pubsub"]):
            (moved.set if ways[-1] == "streams" else moved.clear)()
            more = 10
            while more:
                await made.publisher.publish_node_output("w1", "count", sent)
                sent += 1
                more -= made.ways == ways
                await made.wait_messages(sent)

        await shows(page, "".join(f"count: {n}\n" for n in range(sent)))
        assert made.ways == ["pubsub", "streams", "pubsub"]
        heard = [json.loads(text)["output"] for text in await old.many(sent)]
        assert heard == list(range(sent))

"""SSE over a real server: raw where the connection is lent, by `send` elsewhere, with the same promises."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import pytest

from tailrace.codes import CloseCode
from tailrace.core.cursor import Resume, Special, parse_cursor
from tailrace.core.event import Event
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.core.sse import ServerEvent, SseComment, SseParser
from tailrace.eventlog.memory import MemoryLog
from tailrace.hub.hub import Hub
from tailrace.transports.pulse import Pulse
from tailrace.transports.rawhttp import EXTENSION
from tailrace.transports.sse import SseOptions, SseResponse, open_sse
from tests.hub.support import RUN, events, history
from tests.support.serving import Client, Serving, serving
from tests.support.wait import deadline, eventually
from tests.transports.test_rawhttp import lifespan, rewriting

OTHER = StreamName.parse("run:other")


class Site:
    """A server that answers every request with the same subscription."""

    def __init__(self, *, heartbeat: float = 15.0) -> None:
        self.kinds = Kinds()
        self.log = MemoryLog(kinds=self.kinds)
        self.hub = Hub(self.log, self.kinds)
        self.pulse = Pulse(heartbeat)
        self.options = SseOptions(retry_seconds=(0.01, 0.02))
        self.resume: Mapping[StreamName, Resume] = {RUN: Special.DEFAULT}
        self.responses: list[SseResponse] = []
        self.server: Serving

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        headers = dict(scope["headers"])
        resume = self.resume
        if b"last-event-id" in headers:
            resume = parse_cursor(headers[b"last-event-id"].decode(), list(resume))
        response = await open_sse(self.hub, resume, self.options, self.pulse)
        self.responses.append(response)
        await response(scope, receive, send)

    async def append(self, *numbers: int, stream: StreamName = RUN) -> None:
        await self.log.append(stream, events(*numbers))

    async def wait_live(self, count: int = 1) -> None:
        await eventually(lambda: self.hub.statistics().live_lanes >= count)


def forget_extension(app: Any) -> Any:
    """As another server would: no lent connections."""

    async def plain(scope: dict[str, Any], receive: Any, send: Any) -> None:
        scope.get("extensions", {}).pop(EXTENSION, None)
        await app(scope, receive, send)

    return plain


@asynccontextmanager
async def running(site: Site, *, raw: bool, **settings: Any) -> AsyncIterator[Site]:
    owned = [asyncio.create_task(site.hub.run()), asyncio.create_task(site.pulse.run())]
    await site.hub.wait_running()
    try:
        async with serving(site.app if raw else forget_extension(site.app), **settings) as server:
            site.server = server
            yield site
    finally:
        for task in owned:
            task.cancel()
        await asyncio.gather(*owned, return_exceptions=True)


@pytest.fixture(params=[True, False], ids=["raw", "send"])
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async with running(Site(), raw=request.param) as made:
        yield made


class Stream:
    """The events of one connection."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.parser = SseParser(comments=True)
        self.events: list[ServerEvent] = []
        self.heartbeats = 0

    @classmethod
    async def open(cls, client: Client, *headers: str) -> Stream:
        await client.get("/", *headers)
        head = await client.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return cls(client)

    async def more(self) -> None:
        """Read one chunk."""
        size = int(await self.client.until(b"\r\n"), 16)
        async with deadline():
            while len(self.client.received) < size + 2:
                assert await self.client.more(), "ended in a chunk"
        chunk = bytes(self.client.received[:size])
        del self.client.received[: size + 2]
        for event in self.parser.feed(chunk):
            if isinstance(event, SseComment):
                self.heartbeats += 1
            else:
                self.events.append(event)
        if size == 0:
            raise EOFError

    async def until(self, count: int) -> list[ServerEvent]:
        """Read until there are this many events that are not control events."""
        async with deadline():
            while len(self.records) < count:
                await self.more()
        return self.records

    async def until_end(self) -> None:
        async with deadline():
            with suppress(EOFError):
                while True:
                    await self.more()

    @property
    def records(self) -> list[ServerEvent]:
        return [event for event in self.events if not event.event.startswith("stream.")]

    def controls(self, name: str) -> list[dict[str, Any]]:
        return [msgspec.json.decode(event.data) for event in self.events if event.event == f"stream.{name}"]


async def test_history_then_live_each_with_its_id(site: Site) -> None:
    await site.append(1, 2)
    async with site.server.client() as client:
        stream = await Stream.open(client)
        await stream.until(2)
        await site.append(3)
        records = await stream.until(3)

    assert [record.id for record in records] == [str(id_) for id_ in await history(site.log)]
    assert [msgspec.json.decode(record.data)["data"]["n"] for record in records] == [1, 2, 3]
    assert {record.event for record in records} == {"test.step"}


async def test_the_raw_and_the_sent_response_are_the_same_bytes() -> None:
    bodies = []
    for raw in (True, False):
        async with running(Site(), raw=raw) as site, site.server.client() as client:
            stream = await Stream.open(client)
            await site.wait_live()
            await site.append(1, 2, 3)
            await stream.until(3)
            bodies.append([(event.event, msgspec.json.decode(event.data).get("data")) for event in stream.records])
    assert bodies[0] == bodies[1]


async def test_the_connection_is_lent_unless_a_middleware_rewrites_the_body() -> None:
    for spoiled in (False, True):
        site = Site()

        def touch(message: dict[str, Any]) -> dict[str, Any]:
            return {**message, "body": message["body"] + b":\n"} if message.get("body") else message

        owned = asyncio.create_task(site.hub.run())
        await site.hub.wait_running()
        async with serving(rewriting(site.app, touch) if spoiled else site.app) as server, server.client() as client:
            stream = await Stream.open(client)
            await site.wait_live()
            await site.append(1)
            await stream.until(1)
            assert (type(site.responses[0].subscription.sink).__name__ == "RawSink") is not spoiled
        owned.cancel()
        await asyncio.gather(owned, return_exceptions=True)


async def test_the_first_event_says_where_the_reader_is(site: Site) -> None:
    await site.append(1, 2)
    site.resume = {RUN: Special.NOW}
    head = (await history(site.log))[-1]
    async with site.server.client() as client:
        stream = await Stream.open(client)
        await stream.more()

    opened = stream.events[0]
    assert opened.event == "stream.open"
    assert opened.id == str(head)
    assert stream.parser.retry_ms in range(10, 21)


async def test_a_reader_comes_back_with_its_last_event_id(site: Site) -> None:
    await site.append(1, 2, 3)
    async with site.server.client() as client:
        stream = await Stream.open(client)
        last = (await stream.until(3))[1].id
    async with site.server.client() as client:
        stream = await Stream.open(client, f"Last-Event-ID: {last}")
        records = await stream.until(1)

    assert [record.id for record in records] == [str((await history(site.log))[2])]


async def test_a_reader_of_several_streams_comes_back_with_one_token(site: Site) -> None:
    site.resume = dict.fromkeys((RUN, OTHER), Special.DEFAULT)
    await site.append(1, 2)
    await site.append(1, 2, stream=OTHER)
    async with site.server.client() as client:
        stream = await Stream.open(client)
        first = await stream.until(4)
        lengths = {len(event.id) for event in first}
        last = first[2].id
    async with site.server.client() as client:
        stream = await Stream.open(client, f"Last-Event-ID: {last}")
        rest = await stream.until(1)
        await site.append(3)
        await site.append(3, stream=OTHER)
        rest = await stream.until(3)

    given = [msgspec.json.decode(event.data) for event in (*first[:3], *rest)]
    for name in (RUN, OTHER):
        assert [item["data"]["n"] for item in given if item["stream"] == name] == [1, 2, 3]
    assert len(lengths) == 1


async def test_a_closed_stream_ends_the_response_with_a_code_to_stay_away(site: Site) -> None:
    await site.append(1)
    async with site.server.client() as client:
        stream = await Stream.open(client)
        await stream.until(1)
        await site.log.close(RUN)
        await stream.until_end()

    assert stream.controls("closed")[-1]["code"] == CloseCode.ENDED
    assert site.hub.statistics().subscriptions == 0


async def test_draining_tells_readers_to_come_back_and_ends_the_responses(site: Site) -> None:
    async with site.server.client() as client:
        stream = await Stream.open(client)
        await site.wait_live()
        await site.hub.drain(0.05)
        await stream.until_end()

    assert stream.controls("closed")[-1]["code"] == CloseCode.GOING_AWAY


async def test_an_idle_connection_gets_heartbeats_and_a_busy_one_does_not() -> None:
    for raw in (True, False):
        async with running(Site(heartbeat=0.2), raw=raw) as site, site.server.client() as client:
            stream = await Stream.open(client)
            async with deadline():
                while stream.heartbeats < 2:
                    await stream.more()
            assert not stream.records


async def test_a_client_that_leaves_leaves_nothing_behind(site: Site) -> None:
    async with site.server.client() as client:
        await Stream.open(client)
        await site.wait_live()
    await eventually(lambda: site.hub.statistics().subscriptions == 0)

    assert site.hub.statistics().lanes == 0
    assert len(site.pulse) == 0


async def test_a_slow_reader_is_brought_back_from_the_log_and_its_neighbour_never_waits() -> None:
    for raw in (True, False):
        site = Site()
        site.options = msgspec.structs.replace(site.options, unsent_bytes=65_536)
        pad = "x" * 2_000
        async with (
            running(site, raw=raw, max_unsent_bytes=65_536, send_buffer_bytes=32_768),
            site.server.client(receive_buffer=16_384) as slow_client,
            site.server.client() as quick_client,
        ):
            slow, quick = await Stream.open(slow_client), await Stream.open(quick_client)
            await site.wait_live(2)
            for number in range(1, 501):
                await site.log.append(RUN, [Event("test.step", {"n": number, "pad": pad})])
                await quick.until(number)
            assert sum(response.subscription.left_live for response in site.responses) > 0

            await slow.until(500)
            ids = [str(id_) for id_ in await history(site.log)]
            assert [record.id for record in slow.records] == ids
            assert [record.id for record in quick.records] == ids


async def test_a_client_that_reads_nothing_is_cut_off() -> None:
    site = Site(heartbeat=0.2)
    site.options = msgspec.structs.replace(site.options, unsent_bytes=65_536, stuck_seconds=0.2, closing_seconds=0.1)
    async with (
        running(site, raw=True, max_unsent_bytes=65_536, send_buffer_bytes=32_768),
        site.server.client(receive_buffer=16_384) as client,
    ):
        await Stream.open(client)
        await site.wait_live()
        await site.log.append(RUN, [Event("test.step", "x" * 1_000_000)])
        await eventually(lambda: site.hub.statistics().subscriptions == 0)
        await eventually(lambda: not site.server.server.server_state.connections)


async def test_a_head_request_has_no_body(site: Site) -> None:
    async with site.server.client() as client:
        await client.get("/", "Connection: close", method="HEAD")
        answer = await client.rest()

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b""
    assert site.hub.statistics().subscriptions == 0


async def test_an_http_1_0_client_gets_events_without_chunks(site: Site) -> None:
    await site.append(1)
    await site.log.close(RUN)
    async with site.server.client() as client:
        await client.get("/", version="1.0")
        answer = await client.rest()

    head, _, body = answer.partition(b"\r\n\r\n")
    found = [event for event in SseParser().feed(body) if isinstance(event, ServerEvent)]
    assert b"chunked" not in head
    assert [event.event for event in found] == ["stream.open", "test.step", "stream.closed", "stream.closed"]


async def test_a_lost_log_is_told_and_nothing_is_missing_afterwards(site: Site) -> None:
    async with site.server.client() as client:
        stream = await Stream.open(client)
        await site.wait_live()
        site.hub.on_degraded(True)
        site.hub.on_degraded(False)
        await site.append(1)
        await stream.until(1)

    assert [notice["active"] for notice in stream.controls("degraded")] == [True, False]


async def test_a_guard_ends_the_reading_with_its_code_and_a_replaced_reader_is_told_to_wait() -> None:
    site = Site()
    revoked = asyncio.Event()

    async def guard() -> CloseCode:
        await revoked.wait()
        return CloseCode.REPLACED

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        response = await open_sse(site.hub, site.resume, site.options, site.pulse, guards=[guard])
        await response(scope, receive, send)

    site.app = app  # type: ignore[method-assign]
    async with running(site, raw=True), site.server.client() as client:
        stream = await Stream.open(client)
        await site.wait_live()
        revoked.set()
        await stream.until_end()

    assert stream.controls("closed")[-1]["code"] == CloseCode.REPLACED
    assert stream.parser.retry_ms == 600_000

"""How a subscription reads an SSE connection: where it asks to begin, what it believes, when it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl

import pytest

from tailrace.client.client import Tailrace
from tailrace.client.subscription import Subscription
from tailrace.codes import CloseCode, may_return
from tailrace.core import frames
from tailrace.core.codec import encode
from tailrace.core.cursor import format_cursor
from tailrace.core.event import Degraded, Ended, Gap, GapReason, Item, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.errors import (
    Conflict,
    CorruptRecord,
    Forbidden,
    Malformed,
    NotFound,
    TailraceError,
    TooLarge,
    Unauthorized,
    UsageError,
)
from tests.support.wait import deadline

RUN, OTHER = StreamName.parse("run:1"), StreamName.parse("run:2")
OPEN = frames.retry(0.001) + frames.sse_open({RUN: ZERO}, {RUN: ZERO})


def record(seq: int, stream: StreamName = RUN, *, foreign: bool = False) -> Record:
    prev = None if foreign else EntryId(seq - 1, seq - 1)
    return Record(stream, EntryId(seq, seq), prev, "note", encode(seq, max_bytes=99), 1)


def sent(*items: Item) -> bytes:
    form = frames.SseForm()
    return b"".join(form.item(item) for item in items)


class Scripted:
    """Answers each SSE request with the next script, and keeps what was asked."""

    def __init__(self, *scripts: bytes | tuple[int, bytes]) -> None:
        self.scripts = list(scripts)
        self.cursors: list[str | None] = []
        self.queries: list[dict[str, str]] = []
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        self.cursors.append(headers.get("last-event-id"))
        self.queries.append(dict(parse_qsl(lines[0].split(" ")[1].partition("?")[2])))
        script = self.scripts.pop(0) if self.scripts else b""
        status, body = script if isinstance(script, tuple) else (200, script)
        if status == 204:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            kind = "text/event-stream" if status == 200 else "application/problem+json"
            writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n\r\n".encode() + body)
        await writer.drain()
        if not self.scripts and status == 200:
            await reader.read()
        writer.close()
        await writer.wait_closed()


class Slow(Scripted):
    """Answers when it is let."""

    def __init__(self, *scripts: bytes | tuple[int, bytes]) -> None:
        super().__init__(*scripts)
        self.asked = 0
        self.gate = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        await self.gate.wait()
        await super().answer(reader, writer)


class Held(Scripted):
    """Says nothing more behind its script, and does not hang up."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.cursors.append(head.decode())
        script = self.scripts[0]
        assert isinstance(script, bytes)
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\n\r\n" + script)
        await reader.read()


@asynccontextmanager
async def scripted(
    *scripts: bytes | tuple[int, bytes], script: Scripted | None = None
) -> AsyncIterator[tuple[Tailrace, Scripted]]:
    script = script if script is not None else Scripted(*scripts)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(script.handle(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        async with (
            Tailrace(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", token="t") as client,
            deadline(15),
        ):
            yield client, script
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def take(subscription: Subscription, count: int) -> list[Item]:
    return [await anext(subscription) for _ in range(count)]


def seqs(items: list[Item]) -> list[int]:
    return [item.id.seq for item in items if isinstance(item, Record)]


async def brief(subscription: Subscription) -> None:
    """Wait for a moment, in which nothing comes."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(subscription)


async def test_waits_that_are_shorter_than_a_connect_are_all_for_the_same_one() -> None:
    slow = Slow(OPEN + sent(record(1)))
    async with scripted(script=slow) as (client, _):
        subscription = client.subscribe("run:1")
        for _ in range(4):
            await brief(subscription)
        slow.gate.set()
        items = await take(subscription, 1)

    assert (seqs(items), slow.asked) == ([1], 1)


async def test_a_connection_that_is_silent_through_many_brief_waits_is_made_anew() -> None:
    async with scripted(script=(held := Held(OPEN))) as (client, _):
        subscription = client.subscribe("run:1", heartbeat_seconds=0.1)
        while len(held.cursors) < 2:
            await brief(subscription)


async def test_closing_a_subscription_that_connects_ends_that() -> None:
    slow = Slow(OPEN)
    async with scripted(script=slow) as (client, _):
        subscription = client.subscribe("run:1")
        await brief(subscription)
        await subscription.aclose()

        assert not [task for task in asyncio.all_tasks() if task.get_name() == "tailrace-connect"]


async def test_it_comes_back_with_the_last_id_it_has() -> None:
    async with scripted(OPEN + sent(record(1), record(2)), OPEN + sent(record(3))) as (client, script):
        items = await take(client.subscribe("run:1"), 3)

    assert seqs(items) == [1, 2, 3]
    assert script.cursors == [None, "2-2"]
    assert script.queries[0] == {"format": "envelope", "stream": "run:1"}


async def test_it_comes_back_to_where_the_connection_opened_when_nothing_came() -> None:
    opened = frames.sse_open({RUN: EntryId(7, 7)}, {RUN: EntryId(7, 7)})
    async with scripted(opened, opened + sent(record(8))) as (client, script):
        items = await take(client.subscribe("run:1", since="$"), 1)

    assert seqs(items) == [8]
    assert script.cursors == ["$", "7-7"]


async def test_several_streams_come_back_with_a_token() -> None:
    opened = frames.sse_open({RUN: ZERO, OTHER: ZERO}, {})
    first = opened + sent(record(1), record(1, OTHER), record(2))
    async with scripted(first, opened + sent(record(2, OTHER))) as (client, script):
        subscription = client.subscribe("run:1", "run:2")
        await take(subscription, 4)

    assert script.cursors == [None, format_cursor({RUN: EntryId(2, 2), OTHER: EntryId(1, 1)})]
    assert subscription.cursor == format_cursor({RUN: EntryId(2, 2), OTHER: EntryId(2, 2)})


@pytest.mark.parametrize("code", [code for code in CloseCode if may_return(code)])
async def test_codes_that_say_so_let_it_come_back(code: CloseCode) -> None:
    first = OPEN + sent(record(1)) + frames.sse_closed(code, retry_after=0.01)
    async with scripted(first, OPEN + sent(record(2))) as (client, script):
        assert seqs(await take(client.subscribe("run:1"), 2)) == [1, 2]

    assert script.cursors == [None, "1-1"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (CloseCode.MALFORMED, Malformed),
        (CloseCode.UNAUTHORIZED, Unauthorized),
        (CloseCode.FORBIDDEN, Forbidden),
        (CloseCode.TOO_LARGE, TooLarge),
        (CloseCode.NOT_FOUND, NotFound),
        (CloseCode.REPLACED, Conflict),
        (4999, TailraceError),
    ],
)
async def test_codes_that_forbid_it_end_it_with_their_error(code: CloseCode, kind: type[TailraceError]) -> None:
    payload = frames.closed_payload(CloseCode.MALFORMED).replace(b"4500", b"%d" % code)
    closed = b"event: stream.closed\ndata: %b\n\n" % payload
    async with scripted(OPEN + sent(record(1)) + closed, b"") as (client, script):
        subscription = client.subscribe("run:1")
        assert seqs(await take(subscription, 1)) == [1]
        with pytest.raises(kind):
            await anext(subscription)

    assert len(script.cursors) == 1


async def test_a_refusal_that_may_pass_is_waited_out_and_one_that_cannot_is_an_error() -> None:
    refused = frames.sse_refused(CloseCode.LIMITED, retry_after=0.01)
    busy = (503, b'{"code":"LOG_UNAVAILABLE","retry_after":0}')
    async with scripted(refused, busy, (502, b"<html>"), OPEN + sent(record(1))) as (client, _):
        assert seqs(await take(client.subscribe("run:1"), 1)) == [1]
    async with scripted((404, b'{"code":"NOT_FOUND"}')) as (client, _):
        with pytest.raises(NotFound):
            await take(client.subscribe("run:1"), 1)


async def test_204_is_the_end() -> None:
    async with scripted((204, b"")) as (client, _):
        items = [item async for item in client.subscribe("run:1", since="5-5")]

    assert items == [Ended(RUN, EntryId(5, 5), StreamState.CLOSED)]


async def test_the_end_of_a_stream_is_told_once_though_the_server_tells_it_on_every_connection() -> None:
    ended = Ended(RUN, EntryId(1, 1), StreamState.CLOSED)
    opened = frames.sse_open({RUN: ZERO, OTHER: ZERO}, {})
    last = sent(record(1, OTHER), Ended(OTHER, EntryId(1, 1), StreamState.CLOSED)) + frames.sse_closed(CloseCode.ENDED)
    async with scripted(opened + sent(record(1), ended), opened + sent(ended) + last) as (client, _):
        items = [item async for item in client.subscribe("run:1", "run:2")]

    assert [type(item) for item in items] == [Record, Ended, Record, Ended]


async def test_a_record_that_comes_again_is_given_once() -> None:
    async with scripted(OPEN + sent(record(1)), OPEN + sent(record(1), record(2))) as (client, _):
        assert seqs(await take(client.subscribe("run:1"), 2)) == [1, 2]


async def test_a_break_in_the_chain_is_asked_again_and_then_told() -> None:
    broken = OPEN + sent(record(1), record(3))
    async with scripted(broken, OPEN + sent(record(3), record(4))) as (client, script):
        items = await take(client.subscribe("run:1"), 4)

    assert items == [
        record(1),
        Gap(RUN, EntryId(1, 1), EntryId(3, 3), 1, GapReason.DELETED, EntryId(2, 2)),
        record(3),
        record(4),
    ]
    assert script.cursors == [None, "1-1"]


async def test_a_gap_that_was_announced_starts_the_chain_anew_and_foreign_records_do_not_break_it() -> None:
    gap = Gap(RUN, EntryId(1, 1), EntryId(9, 9), None, GapReason.RESET, EntryId(8, 8))
    script_bytes = OPEN + sent(record(1), gap, record(9), record(77, foreign=True), record(10))
    async with scripted(script_bytes) as (client, script):
        subscription = client.subscribe("run:1")
        items = await take(subscription, 5)

    assert items[1] == gap
    assert seqs(items) == [1, 9, 77, 10]
    assert len(script.cursors) == 1
    assert subscription.cursor == "10-10"


async def test_notices_are_given_to_who_asks_for_them() -> None:
    noise = OPEN + sent(Degraded(True, 2.0), record(1))
    async with scripted(noise) as (client, _):
        assert await take(client.subscribe("run:1", notices=True), 2) == [Degraded(True, 2.0), record(1)]
    async with scripted(noise) as (client, _):
        assert await take(client.subscribe("run:1"), 1) == [record(1)]


@pytest.mark.parametrize(
    "nonsense", [b"event: note\ndata: {}\n\n", b"event: stream.gap\ndata: []\n\n", b"event: note\ndata: \xff\n\n"]
)
async def test_a_server_that_speaks_nonsense_is_not_believed(nonsense: bytes) -> None:
    async with scripted(OPEN + nonsense) as (client, _):
        with pytest.raises(CorruptRecord):
            await take(client.subscribe("run:1"), 1)


async def test_too_many_streams_for_one_connection_are_refused_here() -> None:
    async with scripted(b"") as (client, _):
        with pytest.raises(UsageError):
            client.subscribe(*(f"run:{n}" for n in range(33)))

"""The HTTP client, against servers that say exactly what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tailrace.client.http import HIGH_WATER, HttpClient, HttpFailure
from tailrace.errors import ConfigError, Malformed
from tests.support.wait import deadline, eventually

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[HttpClient]:
    """A server that gives each connection to a handler, and a client of it."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    client = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield client
    finally:
        await client.aclose()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(*answers: bytes, close: bool = False) -> Handler:
    """Answer the requests of each connection with these, one after the other."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            for byte in (answer[n : n + 7] for n in range(0, len(answer), 7)):
                writer.write(byte)
                await writer.drain()
        if not close:
            await reader.read()

    return handle


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "close", "body"),
    [
        (OK, False, b"ok"),
        (CHUNKED, False, b"abcde"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", True, b"to the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, b""),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, False, b"ok"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", True, b"x"),
    ],
)
async def test_every_framing_is_understood(answer: bytes, close: bool, body: bytes) -> None:
    async with served(answering(answer, close=close)) as client, deadline():
        response, read = await client.request("GET", "/", headers={})

    assert read == body
    assert response.status in (200, 204)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"", "lost"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "lost"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab", "lost"),
        (b"SMTP ready\r\n\r\n", "not HTTP"),
    ],
)
async def test_an_answer_that_is_cut_off_or_nonsense_is_a_failure(answer: bytes, what: str) -> None:
    async with served(answering(answer, close=True)) as client, deadline():
        with pytest.raises(HttpFailure, match=what) as caught:
            await client.request("POST", "/", headers={}, body=b"x")

    assert caught.value.sent


async def test_a_connection_is_used_again_and_replaced_when_the_server_closed_it() -> None:
    connections = 0

    async def two_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answering(OK, OK, close=True)(reader, writer)

    async with served(two_answers) as client, deadline():
        for _ in range(5):
            _, body = await client.request("GET", "/", headers={})
            assert body == b"ok"

    assert connections == 3


async def test_a_slow_reader_of_a_stream_stops_the_socket_and_loses_nothing() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for n in range(500):
            writer.write(b"10000\r\n" + bytes([n % 256]) * 65_536 + b"\r\n")
            await writer.drain()
            sent += 65_536
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with served(flood) as client, deadline(20):
        response = await client.stream("GET", "/", headers={})

        async def stopped() -> bool:
            before = sent
            await asyncio.sleep(0.1)
            return before == sent > 0

        await eventually(stopped)
        held = sent
        read = 0
        while chunk := await response.next_chunk():
            assert len(chunk) <= HIGH_WATER + 1_048_576
            read += len(chunk)

    assert held < 500 * 65_536
    assert read == 500 * 65_536


async def test_a_cancelled_request_does_not_leave_its_answer_to_the_next() -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/slow" in request:
            await reader.read()
        writer.write(OK)
        await reader.read()

    async with served(late) as client, deadline():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.request("GET", "/slow", headers={})
        _, body = await client.request("GET", "/fast", headers={})

    assert body == b"ok"


async def test_a_client_that_is_closed_while_it_connects_keeps_no_connection() -> None:
    left = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert not await reader.read()
        finally:
            left.set()

    async with served(handle) as client:
        asking = asyncio.create_task(client.request("GET", "/", headers={}))
        await asyncio.sleep(0)  # it connects now
        await client.aclose()

        with pytest.raises(HttpFailure):
            await asking
        async with deadline():
            await left.wait()


async def test_nothing_is_put_between_the_lines_of_a_request() -> None:
    async with served(answering(OK)) as client:
        for path, headers in (("/a\r\nx: y", {}), ("/", {"a": "b\nc"}), ("/", {"a": "€"})):
            with pytest.raises(Malformed):
                await client.request("GET", path, headers=headers)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://u:p@host", "http://host?token=x", "host:80"])
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        HttpClient(url)

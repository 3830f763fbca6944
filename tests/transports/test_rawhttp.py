"""The server lends its connection to a response only when nothing stands between them."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest

from tailrace.transports.rawhttp import EXTENSION, RawChannel
from tests.support.serving import serving
from tests.support.wait import deadline, eventually


class Streaming:
    """Primes, tries to arm, then writes what it is told: raw when it could, else by `send`."""

    def __init__(self, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.headers = headers or []
        self.channel: RawChannel | None = None
        self.offered = False
        self.armed = asyncio.Event()
        self.end = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        offer = scope.get("extensions", {}).get(EXTENSION)
        self.offered = offer is not None
        if offer is not None:
            offer.expect(b"priming")
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"priming", "more_body": True})
        self.channel = offer.arm() if offer is not None else None
        self.armed.set()
        await self.end.wait()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def rewriting(app: Any, rewrite: Any) -> Any:
    """A middleware that changes messages on their way out."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        async def changed(message: dict[str, Any]) -> None:
            await send(rewrite(message))

        await app(scope, receive, changed if scope["type"] == "http" else send)

    return middleware


async def test_an_untouched_response_is_lent_the_connection() -> None:
    app = Streaming()
    async with serving(app) as server, server.client() as client:
        await client.get("/")
        await client.until(b"7\r\npriming\r\n")
        async with deadline():
            await app.armed.wait()

        assert app.channel is not None
        app.channel.write(b"5\r\nhello\r\n")
        await client.until(b"5\r\nhello\r\n")

        app.end.set()
        await client.until(b"0\r\n\r\n")


async def test_the_connection_serves_the_next_request_after_a_lent_response() -> None:
    app = Streaming()
    app.end.set()
    async with serving(app) as server, server.client() as client:
        for _ in range(2):
            await client.get("/")
            await client.until(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "header", [(b"content-encoding", b"gzip"), (b"Content-Length", b"7"), (b"transfer-encoding", b"chunked")]
)
async def test_a_response_with_an_encoding_or_a_length_is_not_lent_the_connection(header: tuple[bytes, bytes]) -> None:
    app = Streaming([header])
    async with serving(app) as server, server.client() as client:
        await client.get("/")
        async with deadline():
            await app.armed.wait()
        assert app.offered
        assert app.channel is None
        app.end.set()


async def test_a_middleware_that_rewrites_the_body_keeps_the_connection_from_being_lent() -> None:
    def compress(message: dict[str, Any]) -> dict[str, Any]:
        return {**message, "body": gzip.compress(message["body"])} if "body" in message else message

    app = Streaming()
    async with serving(rewriting(app, compress)) as server, server.client() as client:
        await client.get("/")
        async with deadline():
            await app.armed.wait()
        assert app.channel is None
        app.end.set()
        await client.until(b"0\r\n\r\n")


async def test_a_middleware_that_adds_an_encoding_keeps_the_connection_from_being_lent() -> None:
    def encode(message: dict[str, Any]) -> dict[str, Any]:
        if message["type"] == "http.response.start":
            return {**message, "headers": [*message["headers"], (b"content-encoding", b"br")]}
        return message

    app = Streaming()
    async with serving(rewriting(app, encode)) as server, server.client() as client:
        await client.get("/")
        async with deadline():
            await app.armed.wait()
        assert app.channel is None
        app.end.set()


@pytest.mark.parametrize(("method", "version"), [("POST", "1.1"), ("HEAD", "1.1"), ("GET", "1.0")])
async def test_only_a_get_over_http_1_1_is_offered_the_connection(method: str, version: str) -> None:
    app = Streaming()
    async with serving(app) as server, server.client() as client:
        await client.get("/", "Content-Length: 0", method=method, version=version)
        async with deadline():
            await app.armed.wait()
        assert not app.offered
        app.end.set()


async def test_an_http_1_0_client_gets_the_body_unchunked_until_the_connection_closes() -> None:
    app = Streaming()
    app.end.set()
    async with serving(app) as server, server.client() as client:
        await client.get("/", version="1.0")
        answer = await client.rest()

    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert body == b"priming"


async def test_a_lost_connection_is_told_to_the_channel() -> None:
    app = Streaming()
    lost = asyncio.Event()
    async with serving(app) as server:
        async with server.client() as client:
            await client.get("/")
            await client.until(b"priming")
            async with deadline():
                await app.armed.wait()
            assert app.channel is not None
            app.channel.on_lost = lost.set
        async with deadline():
            await lost.wait()
        assert app.channel.lost
        assert app.channel.paused
        app.end.set()


async def test_a_client_that_does_not_read_pauses_the_channel_and_reading_resumes_it() -> None:
    app = Streaming()
    limits: dict[str, Any] = {"max_unsent_bytes": 65_536, "send_buffer_bytes": 32_768}
    async with serving(app, **limits) as server, server.client(receive_buffer=16_384) as client:
        await client.get("/")
        async with deadline():
            await app.armed.wait()
        channel = app.channel
        assert channel is not None
        written = 0
        while not channel.paused:
            channel.write(b"1000\r\n" + b"x" * 4_096 + b"\r\n")
            written += 4_096 + 8
            await asyncio.sleep(0)
        assert channel.unsent > 65_536

        resumed = channel.resumed()
        async with deadline():
            while len(client.received) < written:
                await client.more()
            await resumed
        assert not channel.paused
        app.end.set()


async def test_a_connection_that_sends_nothing_is_closed() -> None:
    async with serving(Streaming(), head_timeout_seconds=0.2) as server, server.client() as client:
        assert await client.rest() == b""


async def test_a_request_head_that_does_not_end_is_refused() -> None:
    async with serving(Streaming(), head_timeout_seconds=0.3) as server, server.client() as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: te")
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


async def test_the_head_deadline_holds_for_later_requests_of_a_connection_too() -> None:
    app = Streaming()
    app.end.set()
    async with serving(app, head_timeout_seconds=0.3) as server, server.client() as client:
        await client.get("/")
        await client.until(b"0\r\n\r\n")
        await client.send(b"GET / HT")
        assert (await client.rest()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("slices", [1, 8])
async def test_a_request_head_over_the_limit_is_refused(slices: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: test\r\nLast-Event-ID: " + b"x" * 70_000 + b"\r\n\r\n"
    async with serving(Streaming()) as server, server.client() as client:
        size = -(-len(head) // slices)
        for start in range(0, len(head), size):
            try:
                await client.send(head[start : start + size])
            except ConnectionError:
                break
        answer = await client.rest()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


async def test_a_streaming_response_outlives_the_head_deadline() -> None:
    app = Streaming()
    async with serving(app, head_timeout_seconds=0.2) as server, server.client() as client:
        await client.get("/")
        await client.until(b"priming")
        async with deadline():
            await app.armed.wait()
        assert app.channel is not None
        started = asyncio.get_running_loop().time()
        await eventually(lambda: asyncio.get_running_loop().time() > started + 0.4)

        app.channel.write(b"5\r\nstill\r\n")
        await client.until(b"still")
        app.end.set()


async def test_bytes_that_the_kernel_did_not_take_come_in_their_order() -> None:
    app = Streaming()
    limits: dict[str, Any] = {"max_unsent_bytes": 10_000_000, "send_buffer_bytes": 32_768}
    async with serving(app, **limits) as server, server.client(receive_buffer=16_384) as client:
        await client.get("/")
        await client.until(b"priming\r\n")
        async with deadline():
            await app.armed.wait()
        assert app.channel is not None
        parts = [b"%04x\r\n%s\r\n" % (1_000, b"%04d" % number * 250) for number in range(2_000)]
        for part in parts:
            app.channel.write(part)
        expected = b"".join(parts)
        async with deadline():
            while len(client.received) < len(expected):
                await client.more()
        app.channel.write(b"3\r\nend\r\n")
        async with deadline():
            while not client.received.endswith(b"end\r\n"):
                await client.more()

        assert bytes(client.received) == expected + b"3\r\nend\r\n"
        app.end.set()


async def test_a_write_to_a_connection_that_is_being_closed_goes_nowhere() -> None:
    app = Streaming()
    async with serving(app) as server, server.client() as client:
        await client.get("/")
        await client.until(b"priming\r\n")
        async with deadline():
            await app.armed.wait()
        channel = app.channel
        assert channel is not None
        channel.write(b"3\r\none\r\n")
        await client.until(b"one\r\n")
        aborting = asyncio.create_task(channel.abort())
        await asyncio.sleep(0)
        channel.write(b"3\r\ntwo\r\n")
        async with deadline():
            await aborting

        assert await client.rest() == b""
        app.end.set()

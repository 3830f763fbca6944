"""Whoever wastes a server's resources is cut off in time, and who behaves is served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from tailrace.app import create_app
from tailrace.codes import CloseCode
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.memory import MemoryLog
from tests.support.gateway import settings_of
from tests.support.serving import Client, Serving, serving
from tests.support.tokens import token
from tests.support.wait import eventually
from tests.support.ws import Gate, gate
from tests.support.ws_raw import RawSocket, frame, handshake, raw_socket

API = "/api/v1"
RUN = StreamName.parse("run:1")
ROOT = token("root", admin=True)
AUTH = f"Authorization: Bearer {ROOT}"
BEARER = {"Authorization": f"Bearer {ROOT}"}
CROWD = 100

pytestmark = pytest.mark.timeout(120)


class Site:
    """A served application and one reader who behaves."""

    def __init__(self, served: Serving, log: MemoryLog, reader: Client) -> None:
        self.served = served
        self.log = log
        self.reader = reader
        self.published = 0

    @property
    def open_connections(self) -> int:
        return len(self.served.server.server_state.connections)

    async def check_service(self) -> None:
        """What is published now is given to the reader, and asked for by a new client."""
        self.published += 1
        (stored,) = await self.log.append(RUN, [Event("n", f"healthy {self.published}")])
        await self.reader.until(f'"healthy {self.published}"'.encode(), 30)
        async with httpx.AsyncClient(base_url=self.served.url, timeout=30, trust_env=False, verify=False) as http:
            answer = await http.get(f"{API}/streams/run:1/events?start_id={stored.id}", headers=BEARER)
            assert answer.status_code == 200


@asynccontextmanager
async def site(**settings: Any) -> AsyncIterator[Site]:
    server = {name: settings[name] for name in ("head_timeout_seconds", "max_unsent_bytes") if name in settings}
    given = settings_of(max_connections_per_user=0, **settings)
    log = MemoryLog(kinds=given.stream_kinds())
    app = create_app(given, log=log)
    async with (
        serving(app, drain=lambda: app.state.gateway.drain(0), **server) as served,
        served.client() as reader,
    ):
        await reader.get(f"{API}/streams/run:1/events/stream", AUTH)
        await reader.until(b"event: stream.open", 30)
        yield Site(served, log, reader)
    await log.aclose()


@asynccontextmanager
async def crowd(served: Serving, count: int = CROWD) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(served.client()) for _ in range(count)]


async def drip(client: Client, text: bytes) -> None:
    """Send byte by byte, slowly, until the server has had enough."""
    with contextlib.suppress(OSError):
        for byte in text:
            await client.send(bytes((byte,)))
            await asyncio.sleep(0.02)


HEAD = f"GET {API}/streams/run:1 HTTP/1.1\r\nHost: test\r\nX-Slow: {'a' * 100_000}".encode()
BODY = (
    f"POST {API}/streams/run:1/events HTTP/1.1\r\nHost: test\r\n{AUTH}\r\nContent-Type: application/json\r\n".encode()
)


async def idle(client: Client) -> None:
    """Connects and says nothing."""


async def slow_head(client: Client) -> None:
    """A head without an end, a byte at a time."""
    await drip(client, HEAD)


async def slow_body(client: Client) -> None:
    """A body without an end."""
    await client.send(BODY + b"Content-Length: 100000\r\n\r\n")
    await drip(client, b"[" * 100_000)


async def slow_chunks(client: Client) -> None:
    """Chunks without an end."""
    await client.send(BODY + b"Transfer-Encoding: chunked\r\n\r\n")
    await drip(client, b"1\r\n[\r\n" * 10_000)


async def slow_handshake(client: Client) -> None:
    """A WebSocket's handshake without its last line."""
    await client.send(handshake(f"{API}/ws", AUTH)[:-2])


async def half_a_second_request(client: Client) -> None:
    """A good request, then half of one on the same connection."""
    await client.get(f"{API}/streams/run:1", AUTH)
    await client.send(HEAD[:60])


@pytest.mark.parametrize(
    "waste",
    [idle, slow_head, slow_body, slow_chunks, slow_handshake, half_a_second_request],
    ids=lambda each: each.__name__,
)
async def test_slow_senders_are_reclaimed_and_others_served(
    waste: Callable[[Client], Coroutine[Any, Any, None]],
) -> None:
    async with site(head_timeout_seconds=0.5, body_timeout_seconds=0.5) as it, crowd(it.served) as clients:
        tasks = [asyncio.create_task(waste(client)) for client in clients]
        await it.check_service()

        # Only the reader, and at most the last asker's connection, stay.
        await eventually(lambda: it.open_connections <= 2, 60)

        await it.check_service()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("path", ["streams/run:9/events/stream?last_id=0", "streams/run:9/ws?last_id=0"])
async def test_clients_that_never_read_are_cut_off_and_others_served(path: str) -> None:
    """Their connection holds a bounded number of bytes until then."""
    limits: dict[str, Any] = {"max_unsent_bytes": 65_536, "stall_seconds": 1.0, "heartbeat_seconds": 0.3}
    async with site(**limits) as it, AsyncExitStack() as stack:
        for number in range(20):
            await it.log.append(StreamName.parse("run:9"), [Event("big", "x" * 100_000 + str(number))])
        clients = [await stack.enter_async_context(it.served.client(receive_buffer=4_096)) for _ in range(20)]
        for client in clients:
            if "/ws" in path:
                await client.send(handshake(f"{API}/{path}", AUTH))
            else:
                await client.get(f"{API}/{path}", AUTH)

        await eventually(lambda: it.open_connections > 10, 30)
        for connection in list(it.served.server.server_state.connections):
            transport: Any = connection.transport
            assert transport.get_write_buffer_size() <= 65_536 + 2 * 100_200
        await eventually(lambda: it.open_connections <= 2, 60)
        await it.check_service()


# -- requests that ask for much ----------------------------------------------------------------------------

DEEP = b"[" * 100_000 + b"]" * 100_000
HUGE = "1" * 70_000


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=1000000000", 400),
        ("limit=-1", 400),
        ("limit=" + "9" * 5_000, 400),
        ("start_id=" + "1" * 5_000, 400),
        ("since_id=-1-1", 400),
        ("types=" + ",".join("t" * 100 for _ in range(200)), 400),
        ("order=desc&limit=1&end_id=0-1", 200),
    ],
)
async def test_page_of_any_wish_is_bounded(query: str, status: int) -> None:
    async with site() as it, httpx.AsyncClient(base_url=it.served.url, timeout=30, trust_env=False) as http:
        answer = await http.get(f"{API}/streams/run:1/events?{query}", headers=BEARER)
        assert answer.status_code == status, answer.text
        await it.check_service()


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        b'{"type":"n","data":' + DEEP + b"}",
        b'{"type":"n","data":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"[" + b'{"type":"n"},' * 1_000 + b'{"type":"n"}]',
        b'{"type":"n","data":' + b"9" * 1_000_000 + b"}",
        b'{"type":"n","data":1e999999999}',
        b'{"type":"n","data":"' + b"\\u0000" * 200_000 + b'"}',
    ],
    ids=["deep", "deep data", "deep objects", "1001 events", "a number of a million digits", "1e999999999", "1.2 MB"],
)
async def test_body_of_any_shape_is_refused_or_stored_and_never_a_defect(body: bytes) -> None:
    async with site() as it, httpx.AsyncClient(base_url=it.served.url, timeout=60, trust_env=False) as http:
        answer = await http.post(
            f"{API}/streams/run:2/events", content=body, headers={**BEARER, "Content-Type": "application/json"}
        )
        assert answer.status_code in (400, 413), answer.text
        await it.check_service()


async def test_cursor_of_70_kilobytes_is_refused_wherever_it_is() -> None:
    async with site() as it, it.served.client() as one, it.served.client() as two:
        await one.get(f"{API}/streams/run:1/events/stream", AUTH, f"Last-Event-ID: {HUGE}")
        await two.get(f"{API}/streams/run:1/events/stream?last_id={HUGE}", AUTH)
        for client in (one, two):
            answer = await client.rest(30)
            assert answer == b"" or answer.split(b" ")[1] in (b"400", b"414", b"431")
        await it.check_service()


async def test_streams_without_number_are_refused_in_an_address() -> None:
    async with site() as it, it.served.client() as client:
        many = "&".join(f"stream=run:{number}" for number in range(33))
        for path in ("events/stream", "events/history", "events/poll"):
            async with httpx.AsyncClient(base_url=it.served.url, timeout=30, trust_env=False) as http:
                assert (await http.get(f"{API}/{path}?{many}", headers=BEARER)).status_code in (400, 413)
        await client.get(f"{API}/events/stream?" + "&".join(["stream=run:1"] * 10_000), AUTH)
        answer = await client.rest(30)
        assert answer == b"" or answer.split(b" ")[1] in (b"400", b"413", b"414", b"431")
        await it.check_service()


# -- WebSocket ---------------------------------------------------------------------------------------------


@pytest.fixture
async def running() -> AsyncIterator[Gate]:
    async with gate(commands_per_minute=60, max_connections_per_user=0) as made:
        yield made


async def test_ten_thousand_streams_in_one_subscribe_are_refused(running: Gate) -> None:
    names = {f"run:{number}": "" for number in range(10_000)}
    async with raw_socket(running) as socket:
        await socket.send(frame(1, json.dumps({"cmd": "subscribe", "id": 1, "streams": names}).encode()))
        assert await socket.close_code() == CloseCode.TOO_LARGE
    # What fits into a message is bounded by the number of streams.
    names = {f"a:{number:x}": "" for number in range(4_000)}
    async with raw_socket(running) as socket:
        text = json.dumps({"cmd": "subscribe", "id": 1, "streams": names}, separators=(",", ":")).encode()
        assert len(text) <= 65_536
        await socket.send(frame(1, text))
        reply = json.loads(await socket.until(1))
        assert "error" in reply or len(reply["streams"]) <= 500
    assert await eventually(lambda: running.gateway.hub.statistics().topics <= 1, 30)


@pytest.mark.parametrize(
    ("flood", "codes"),
    [
        (frame(1, b'{"cmd":"ping","id":1}'), {CloseCode.LIMITED}),
        (frame(1, b"nonsense"), {CloseCode.LIMITED}),
        (frame(1, b"[" * 30_000), {CloseCode.LIMITED}),
        (frame(1, b"{" * 100), {CloseCode.LIMITED}),
        (frame(2, b"binary"), {CloseCode.LIMITED}),
        (frame(1, b""), {CloseCode.LIMITED}),
    ],
    ids=["pings", "nonsense", "deep", "broken", "binary", "empty"],
)
async def test_flood_of_commands_ends_its_own_connection(running: Gate, flood: bytes, codes: set[int]) -> None:
    async with raw_socket(running) as neighbour, raw_socket(running) as socket:
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                await socket.send(flood)
        assert int.from_bytes((await socket.until(8))[:2], "big") in codes
        await still_good(neighbour)


async def test_flood_of_protocol_pings_holds_up_nobody_and_fills_no_memory(running: Gate) -> None:
    pings = frame(9, b"x" * 125) * 50
    async with raw_socket(running) as neighbour, running.server.client(receive_buffer=4_096) as flooder:
        await flooder.send(handshake(f"{API}/ws", AUTH))
        await flooder.until(b"\r\n\r\n", 30)
        for number in range(20):
            # 4 MB of pings in all, and not a byte of an answer is read.
            for _ in range(30):
                await flooder.send(pings)
                await asyncio.sleep(0)
            await still_good(neighbour, number)
        connections: Any = running.server.server.server_state.connections
        assert max(each.transport.get_write_buffer_size() for each in connections) < 2 * 262_144


async def still_good(socket: RawSocket, number: int = 7) -> None:
    """A command is answered; heartbeats may come between."""
    await socket.send(frame(1, b'{"cmd":"ping","id":%d}' % number))
    while (reply := json.loads(await socket.until(1))) == {"control": "ping"}:
        pass
    assert reply == {"reply": number}


async def test_message_in_fragments_without_an_end_is_bounded(running: Gate) -> None:
    async with raw_socket(running) as neighbour, raw_socket(running) as socket:
        await socket.send(frame(1, b" ", fin=False))
        with contextlib.suppress(ConnectionError):
            for _ in range(600):
                await socket.send(frame(0, b" " * 125, fin=False))
        assert await socket.close_code() == CloseCode.TOO_LARGE
        await still_good(neighbour)


async def test_message_that_is_never_finished_ends_with_the_unanswered_heartbeats() -> None:
    async with gate(heartbeat_seconds=0.3) as running, raw_socket(running) as socket:
        await socket.send(frame(1, b'{"cmd":', fin=False))
        # Empty fragments cost no bytes; they are no sign of life either.
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await socket.send(frame(0, b"", fin=False))
        async with asyncio.timeout(60):
            while await socket.client.more():
                pass
        assert await eventually(lambda: len(running.gateway.connections) == 0, 30)


# -- compression -------------------------------------------------------------------------------------------


async def test_nothing_is_compressed(running: Gate) -> None:
    """What a user knows and what an attacker can add are never squeezed together, and no bomb can be sent."""
    port = running.server.port
    offers = {"Accept-Encoding": "gzip, deflate, br, zstd", **BEARER}
    await running.log.append(RUN, [Event("n", "x" * 10_000)])
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
        for path in ("/", "/docs", "/openapi.json", "/metrics", f"{API}/streams/run:1/events", f"{API}/events/history"):
            assert "content-encoding" not in (await http.get(path, headers=offers)).headers, path
        async with http.stream("GET", f"{API}/streams/run:1/events/stream?last_id=0", headers=offers) as response:
            assert "content-encoding" not in response.headers
        bomb = await http.post(
            f"{API}/streams/run:1/events",
            content=b"\x1f\x8b" + b"\0" * 100,
            headers={**BEARER, "Content-Encoding": "gzip", "Content-Type": "application/json"},
        )
    assert bomb.status_code in (400, 415)
    async with running.server.client() as client:
        extension = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-webkit-deflate-frame"
        await client.send(handshake(f"{API}/ws", AUTH, extension))
        head = await client.until(b"\r\n\r\n", 30)
        assert b" 101 " in head
        assert b"sec-websocket-extensions" not in head.lower()

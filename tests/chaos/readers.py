"""Readers of every transport that lose their connections, stall, change gateways, and come back with their cursors."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Collection, Sequence
from typing import Any

import httpx
import msgspec
from websockets.asyncio.client import connect

from tailrace import Tailrace
from tailrace.client.wire import Closed, Opened, decode_control
from tailrace.codes import CloseCode
from tailrace.core.cursor import CursorToken, parse_cursor
from tailrace.core.event import Ended, Gap, Record
from tailrace.core.ids import ZERO
from tailrace.core.names import StreamName
from tests.chaos.judge import Body, Walk, parse_id
from tests.chaos.wire import LOST, Url, http_client
from tests.e2e.harness import EventSource

__all__ = ["ClientReader", "PollReader", "Reader", "SocketReader", "SourceReader"]


POLL_LIMIT = 1_000
LEAVE_SECONDS = 60.0
"""Whoever is cancelled and has not left after that never will."""


class _Envelope(msgspec.Struct):
    id: str
    stream: str
    data: Body
    prev: str | None


class _Page(msgspec.Struct):
    events: list[_Envelope]
    gaps: list[dict[str, Any]]
    ended: list[dict[str, Any]]
    cursor: str


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_PAGE = msgspec.json.Decoder(_Page)


class Reader:
    """Reads until it is cancelled; `cut` and `stall` are what happens to it."""

    def __init__(
        self, url: Url, walk: Walk, token: str, *, asked: Sequence[str] = (), ends: Collection[str] = ()
    ) -> None:
        self.url = url
        self.ends = frozenset(ends) & frozenset(walk.positions)
        """Streams that may end and come back."""
        self.walk = walk
        self.token = token
        self.streams = [StreamName.parse(stream) for stream in (asked or walk.positions)]
        self.stays = True
        """Whether being sent away for good is wrong."""
        self._visit: asyncio.Task[None] | None = None
        self._left: asyncio.Task[None] | None = None
        """The visit that was cut."""
        self._go, self._home = asyncio.Event(), asyncio.Event()
        self.heal()

    async def run(self) -> None:
        """Connect, read, lose the connection, and so on."""
        try:
            while True:
                await self._home.wait()
                self._visit = asyncio.create_task(self.visit())
                await asyncio.wait((self._visit,))
                if not self._visit.cancelled() and (error := self._visit.exception()) is not None:
                    if not isinstance(error, LOST):
                        self.walk.broken(f"{type(error).__name__}: {error}"[:300])
                    await asyncio.sleep(0.05)
                await asyncio.sleep(random.uniform(0.01, 0.1))
        finally:
            self.cut()
            if self._visit is not None:
                await asyncio.gather(self._visit, return_exceptions=True)

    def cut(self) -> None:
        """Lose the connection; one that is being left already is not disturbed, or half of it would stay open."""
        if self._visit is not None and self._visit is not self._left:
            self._left = self._visit
            self._visit.cancel()
            asyncio.get_running_loop().call_later(LEAVE_SECONDS, self._overstays, self._visit)

    def _overstays(self, visit: asyncio.Task[None]) -> None:
        if not visit.done():
            self.walk.broken(f"was cancelled {LEAVE_SECONDS:.0f} s ago, and is still there")
            visit.cancel()

    def stall(self, seconds: float) -> None:
        """Read nothing for a while."""
        self._go.clear()
        asyncio.get_running_loop().call_later(seconds, self._go.set)

    def leave(self) -> None:
        """Lose the connection and stay away until `heal`."""
        self._home.clear()
        self.cut()

    def heal(self) -> None:
        """Be there, and read on."""
        self._go.set()
        self._home.set()

    async def visit(self) -> None:
        """One connection."""
        raise NotImplementedError

    def refused(self, why: object) -> None:
        """It was told that it may not."""
        if self.ends:
            return
        if self.stays:
            self.walk.broken(f"refused: {why}"[:300])
        else:
            self.walk.board.count(self.walk.transport, "refusals")

    def take(self, message: bytes) -> None:
        """One record or control in JSON."""
        if b'"control"' not in message[:14]:
            self.given(_ENVELOPE.decode(message))
            return
        told = decode_control(message)
        if isinstance(told, Gap):
            self.walk.gap(told)
        elif isinstance(told, Opened):
            self.walk.placed(told.cursors, "open")
        elif isinstance(told, Closed) and told.code >= 4_500 and self.stays:
            if not (told.code in (CloseCode.ENDED, CloseCode.EXPIRED) and self.ends):
                self.walk.broken(f"sent away for good: {told}")
        elif isinstance(told, Ended):
            self.ended(told)

    def given(self, record: _Envelope) -> None:
        """One record."""
        prev = parse_id(record.prev) if record.prev is not None else None
        self.walk.take(record.stream, parse_id(record.id), prev, record.data.v, record.data.s)

    async def may_read(self) -> None:
        """Wait while it is stalled."""
        await self._go.wait()

    def ended(self, told: Ended) -> None:
        """A stream ended: it comes back for the next one of that name."""
        if told.stream not in self.ends:
            self.walk.broken(f"told that its stream ended: {told}")
        self.walk.board.count(self.walk.transport, "ends")
        raise ConnectionResetError("its stream ended")

    def cursor(self) -> str:
        """What it has, as a cursor."""
        if len(self.streams) == 1:
            return str(self.walk.positions.get(self.streams[0], ZERO))
        token = CursorToken(self.streams)
        for stream in self.streams:
            token.move(stream, self.walk.positions.get(stream, ZERO))
        return str(token)


class _Source(EventSource):
    """An EventSource whose events go to a reader. Its parser knows only what our server writes: it is the cheapest."""

    def __init__(self, reader: Reader) -> None:
        super().__init__("http://127.0.0.1:1", *reader.streams, token=reader.token)
        self._reader = reader

    async def visit(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        if self.last_event_id:
            self._reader.walk.placed(parse_cursor(self.last_event_id, self._reader.streams), "the last event's id")
        await self._connect()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        self._reader.walk.connected()
        rest = b""
        while True:
            await self._reader.may_read()
            size = int(await reader.readuntil(b"\r\n"), 16)
            if not size:
                return
            chunk = await reader.readexactly(size + 2)
            *events, rest = (rest + chunk[:-2]).split(b"\n\n")
            for event in events:
                self._take(event)
            # What is buffered comes without a wait; others want their turn too.
            await asyncio.sleep(0)

    def _take(self, event: bytes) -> None:
        data = b""
        for line in event.split(b"\n"):
            if line.startswith(b"data: "):
                data = line[6:]
            elif line.startswith(b"id: "):
                self.last_event_id = line[4:].decode()
        if data:
            self._reader.take(data)


class SourceReader(Reader):
    """Server-Sent Events, one stream or several."""

    def __init__(
        self, url: Url, walk: Walk, token: str, *, asked: Sequence[str] = (), ends: Collection[str] = ()
    ) -> None:
        super().__init__(url, walk, token, asked=asked, ends=ends)
        self._source = _Source(self)

    async def visit(self) -> None:
        """See `Reader`."""
        await self._source.visit(self.url())
        if self._source.ended.is_set():
            self._source.ended.clear()
            self.refused(self._source.controls[-1:])
            await asyncio.sleep(0.5)


class SocketReader(Reader):
    """A WebSocket: of one stream, or with commands of several."""

    def __init__(
        self,
        url: Url,
        walk: Walk,
        token: str,
        *,
        asked: Sequence[str] = (),
        ends: Collection[str] = (),
        commands: bool = False,
    ) -> None:
        super().__init__(url, walk, token, asked=asked, ends=ends)
        self._commands = commands

    async def visit(self) -> None:
        """See `Reader`."""
        base = self.url().replace("http", "ws", 1) + "/api/v1"
        path = "/ws" if self._commands else f"/streams/{self.streams[0]}/ws?last_id={self.cursor()}"
        headers = {"Authorization": f"Bearer {self.token}"}
        socket = await connect(
            base + path, additional_headers=headers, ping_interval=None, max_size=None, close_timeout=1
        )
        try:
            async with socket:
                await self._read(socket)
        finally:
            # Who is cut again while it says good-bye would leave its socket open.
            socket.transport.abort()

    async def _read(self, socket: Any) -> None:
        self.walk.connected()
        if self._commands:
            wanted = {str(stream): str(self.walk.positions.get(stream, "0")) for stream in self.streams}
            await socket.send(json.dumps({"cmd": "subscribe", "id": 1, "streams": wanted}))
        while True:
            await self.may_read()
            await self._got(socket, await socket.recv(decode=False))

    async def _got(self, socket: Any, message: bytes) -> None:
        if message == b'{"control":"ping"}':
            if self._commands:
                await socket.send('{"cmd":"pong"}')
        elif b'"reply"' in message[:10]:
            body = json.loads(message)
            refused = {**body.get("refused", {}), **({"": body["error"]} if "error" in body else {})}
            if any(error.get("status") != 503 for error in refused.values()):
                self.refused(refused)
            if refused and self.stays:
                raise ConnectionResetError("refused for now")
        elif b'"control":"unsubscribed"' in message[:30]:
            raise ConnectionResetError("unsubscribed by the server")
        else:
            self.take(message)


class PollReader(Reader):
    """Long-polls. After an answer that was not full it rests: a request for each batch is all that a run would do."""

    rest = 0.0

    async def visit(self) -> None:
        """See `Reader`."""
        async with http_client(self.token) as client:
            self.walk.connected()
            while True:
                await self.may_read()
                await self._poll(client)

    async def _poll(self, client: httpx.AsyncClient) -> None:
        query: list[tuple[str, str | int | float | bool | None]] = [("stream", str(stream)) for stream in self.streams]
        query += [("cursor", self.cursor()), ("timeout", "5"), ("limit", str(POLL_LIMIT))]
        answer = await client.get(f"{self.url()}/api/v1/events/poll", params=query)
        if answer.status_code != 200:
            if answer.status_code != 503:
                self.refused(f"{answer.status_code} {answer.text}")
            raise ConnectionResetError("refused for now")
        page = _PAGE.decode(answer.content)
        self._in_order(page.events, page.gaps)
        self.walk.placed(parse_cursor(page.cursor, self.streams), "the answer's cursor")
        if len(page.events) < POLL_LIMIT:
            await asyncio.sleep(self.rest)
        for ended in page.ended:
            self.take(json.dumps(ended, separators=(",", ":")).encode())

    def _in_order(self, events: list[_Envelope], gaps: list[dict[str, Any]]) -> None:
        """A gap comes after the record that it names, as soon as the next record does not follow."""
        for event in events:
            if gaps:
                self._told_at(event.stream, gaps, event.prev)
            self.given(event)
        for gap in gaps:
            self.take(json.dumps(gap, separators=(",", ":")).encode())

    def _told_at(self, stream: str, gaps: list[dict[str, Any]], prev: str | None) -> None:
        while str(position := self.walk.positions.get(stream)) != prev:
            gap = next((gap for gap in gaps if gap["stream"] == stream and gap["after"] == str(position)), None)
            if gap is None:
                return
            gaps.remove(gap)
            self.take(json.dumps(gap, separators=(",", ":")).encode())


class ClientReader(Reader):
    """The Python client, over HTTP or straight on Redis; it comes back by itself, and sometimes is made anew."""

    def __init__(
        self, url: Url, walk: Walk, token: str, *, ends: Collection[str] = (), key_prefix: str | None = None
    ) -> None:
        super().__init__(url, walk, token, ends=ends)
        self._key_prefix = key_prefix
        self._cursor: str | None = None

    async def visit(self) -> None:
        """See `Reader`."""
        client = Tailrace(self.url(), token=self.token, key_prefix=self._key_prefix)
        reading = client.subscribe(
            *self.streams, since=self._cursor, on_link=lambda link: self.walk.connected() if link.up else None
        )
        try:
            while True:
                await self.may_read()
                item = await anext(reading)
                if isinstance(item, Record):
                    self.walk.record(item)
                elif isinstance(item, Gap):
                    self.walk.gap(item)
                elif isinstance(item, Ended):
                    self.ended(item)
        except StopAsyncIteration:
            if not self.ends:
                self.walk.broken("its subscription ended")
        finally:
            self._cursor = reading.cursor or self._cursor
            self.walk.placed(reading.cursors, "the subscription")
            await client.aclose()

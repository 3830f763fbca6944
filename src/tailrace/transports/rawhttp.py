"""The raw-write server extension: an uvicorn protocol that lends its transport to a response.

Under plain ASGI every record costs one `send()` per client. Here a response that streams writes shared, already
chunk-framed bytes to the connection itself. Rules of this file
1. Offered for GET on HTTP/1.1 only, as `scope["extensions"]["tailrace.raw"]`.
2. Armed only after this server saw, outside of all middleware, the response start with status 200 and neither
   content-encoding nor content-length, and the priming bytes pass unchanged as one body message. Anything else means
   that a middleware buffers, compresses or rewrites: the response then goes on with `send()`.
3. The protocol owns pause, resume and loss of the connection and tells the channel.
4. A connection whose request head is not complete in time, or is too large, is closed.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HEADER_RE, HEADER_VALUE_RE, HttpToolsProtocol

from tailrace.transports.joined import JoiningTransport

__all__ = ["EXTENSION", "Lender", "RawChannel", "RawHttpProtocol", "RawOffer"]

EXTENSION = "tailrace.raw"
USER_TIMEOUT_MS = 30_000
"""An unacknowledged byte kills the connection after this long (TCP_USER_TIMEOUT): clients that vanished."""


class RawChannel:
    """A connection's transport, lent to one streaming response. Every write is one or more whole HTTP chunks."""

    __slots__ = ("_buffered", "_fd", "_resumed", "_transport", "lost", "on_lost", "paused", "touched")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # A TLS transport has to see every byte; -1 leaves them all to the transport.
        sock = transport.get_extra_info("socket") if transport.get_extra_info("sslcontext") is None else None
        self._fd: int = sock.fileno() if sock is not None else -1
        self._buffered = True
        """The transport may hold bytes that were not sent yet: they go first."""
        self.paused = False
        """More bytes are unsent than the limit: do not write."""
        self.lost = False
        self.on_lost: Callable[[], None] = _nothing
        """Called once, when the connection is gone."""
        self.touched = False
        self._resumed: asyncio.Future[None] | None = None

    def write(self, data: bytes) -> None:
        """Hand bytes to the kernel, or buffer what it does not take; look at `paused` before.

        While the transport holds nothing, the kernel is asked directly: that saves the transport's own accounting.
        """
        transport = self._transport
        if self._buffered:
            if self._fd < 0 or transport.get_write_buffer_size():
                transport.write(data)
                return
            self._buffered = False
        # Asked before every write: after a close the number may already belong to another connection.
        if transport.is_closing():
            return
        try:
            sent = os.write(self._fd, data)
        except OSError:
            sent = 0  # full, or broken: the transport finds out which
        if sent != len(data):
            self._buffered = True
            transport.write(data[sent:])

    @property
    def unsent(self) -> int:
        """Bytes that the kernel did not take yet."""
        return self._transport.get_write_buffer_size()

    def resumed(self) -> asyncio.Future[None]:
        """Done when `paused` ends or the connection is lost."""
        if self._resumed is None or self._resumed.done():
            self._resumed = asyncio.get_running_loop().create_future()
        return self._resumed

    async def abort(self) -> None:
        """Close the connection at once, with what is unsent, and wait until it is gone."""
        self._transport.abort()
        while not self.lost:
            await self.resumed()

    def pause(self) -> None:
        """From the protocol: the buffer is over its limit."""
        self.paused = True

    def resume(self) -> None:
        """From the protocol: the buffer has drained."""
        self.paused = False
        self._tell()

    def lose(self) -> None:
        """From the protocol: the connection is gone. A write to a closed handle would raise."""
        self.lost = True
        self.paused = True
        self._tell()
        self.on_lost()

    def _tell(self) -> None:
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)


def _nothing() -> None:
    pass


class RawOffer:
    """What the application finds in its scope: `expect` the priming bytes, `send` them, then `arm`."""

    def __init__(self, protocol: RawHttpProtocol) -> None:
        self._protocol = protocol
        self._expected: bytes | None = None
        self._eligible = False
        self._passed = False

    def expect(self, priming: bytes) -> None:
        """Say which bytes the next body message will carry."""
        self._expected = priming

    def arm(self) -> RawChannel | None:
        """The channel, if the priming bytes reached the server as they were; None: go on with `send()`."""
        if not self._passed:
            return None
        return self._protocol.lend()

    def saw_start(self, message: dict[str, Any]) -> None:
        """The response's start as it leaves the outermost application."""
        names = {name.lower() for name, _ in message.get("headers", ())}
        spoiled = names & {b"content-encoding", b"content-length", b"transfer-encoding"}
        self._eligible = message["status"] == 200 and not spoiled

    def saw_body(self, message: dict[str, Any]) -> None:
        """A body message as it leaves the outermost application."""
        self._passed = (
            self._eligible
            and self._expected is not None
            and bool(message.get("more_body"))
            and message.get("body", b"") == self._expected
        )
        self._expected = None


class Lender(asyncio.Protocol):
    """What our protocols share: the channel they lent, and what they must tell it. Stands before uvicorn's class."""

    unsent_bytes = 262_144
    """A lent transport with more unsent bytes is paused."""

    channel: RawChannel | None = None

    def pause_writing(self) -> None:
        """The transport's buffer is over its limit."""
        super().pause_writing()
        if self.channel is not None:
            self.channel.pause()

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        super().resume_writing()
        if self.channel is not None:
            self.channel.resume()

    def lend_transport(self, transport: asyncio.Transport, *, paused: bool) -> RawChannel:
        """A channel on the transport, which from now on is paused by our limit."""
        transport.set_write_buffer_limits(high=self.unsent_bytes, low=self.unsent_bytes // 4)
        self.channel = RawChannel(transport)
        if paused:
            self.channel.pause()
        return self.channel

    def take_back(self) -> None:
        """No raw write may follow."""
        if self.channel is not None:
            self.channel.lose()
            self.channel = None


class RawHttpProtocol(Lender, HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol with the extension, a deadline and a limit for the request head."""

    head_seconds = 10.0
    """The request head must be complete within this time."""
    head_bytes = 32_768

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first request head."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=65_536)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Count the bytes of an unfinished head, then parse."""
        if self.transport.is_closing():
            return
        if self._in_head:
            if self._head_timer is None:
                self._await_head()
            self._head_bytes += len(data)
            super().data_received(data)
            self._limit_head()
            return
        super().data_received(data)

    def _limit_head(self) -> None:
        if self._in_head and self._head_bytes > self.head_bytes and not self.transport.is_closing():
            self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        """A request begins: its head is being read, perhaps behind another one in the same bytes."""
        super().on_message_begin()
        self._in_head = True
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """The head is whole: stop the clock and offer the extension."""
        self._end_head()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.head_bytes:
            self._refuse(b"431 Request Header Fields Too Large")
            return
        parser = self.parser
        if parser.get_method() == b"GET" and parser.get_http_version() == "1.1" and not parser.should_upgrade():
            extensions: dict[Any, Any] = self.scope.setdefault("extensions", {})
            extensions[EXTENSION] = RawOffer(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a request's body; nobody wants it from a connection that is being closed."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole; what comes next is another head."""
        if self.transport.is_closing():
            return
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def handle_websocket_upgrade(self) -> None:
        """Give the connection to the WebSocket protocol, without our clock."""
        self._end_head()
        super().handle_websocket_upgrade()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        cycle.transport = JoiningTransport(cycle.transport, self.loop)
        offer = cycle.scope.get("extensions", {}).get(EXTENSION)
        if offer is not None:
            app = _watched(app, offer)
        elif cycle.scope["http_version"] == "1.0":
            app = _unchunked(app, cycle)
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._end_head()
        self.take_back()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The response has ended: the connection is ours again."""
        self.channel = None
        super().on_response_complete()

    def lend(self) -> RawChannel | None:
        """Lend the transport to the response that is being sent; None: it is closing."""
        if self.transport.is_closing():
            return None
        return self.lend_transport(self.transport, paused=self.flow.write_paused)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._head_overdue)

    def _end_head(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_overdue(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self._refuse(b"408 Request Timeout") if self._head_bytes else self.transport.close()

    def _refuse(self, status: bytes) -> None:
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        busy = cycle is not None and not cycle.response_complete
        if not busy:
            self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()


def _watched(app: Any, offer: RawOffer) -> Any:
    """The application with the server's eyes outside of it (rule 2)."""

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        state = 0

        async def watch(message: dict[str, Any]) -> None:
            nonlocal state
            if state == 0 and message["type"] == "http.response.start":
                offer.saw_start(message)
                state = 1
            elif state == 1:
                offer.saw_body(message)
                state = 2
            await send(message)

        await app(scope, receive, watch)

    return watched


def _unchunked(app: Any, cycle: Any) -> Any:
    """For an HTTP/1.0 client, who knows no chunks: a body of unknown length ends with the connection."""

    async def unchunked(scope: Any, receive: Any, send: Any) -> None:
        endless = False

        async def identity(message: dict[str, Any]) -> None:
            nonlocal endless
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                if scope["method"] == "GET" and b"content-length" not in names and message["status"] == 200:
                    endless = True
                    cycle.response_started, cycle.keep_alive = True, False
                    cycle.transport.write(_head(message, cycle.default_headers))
                    return
            if not endless:
                await send(message)
                return
            await cycle.flow.drain()
            if not cycle.disconnected:
                cycle.transport.write(message.get("body", b""))
            if not message.get("more_body"):
                cycle.response_complete = True
                cycle.message_event.set()
                cycle.transport.close()

        await app(scope, receive, identity)

    return unchunked


def _head(message: dict[str, Any], default: list[tuple[bytes, bytes]]) -> bytes:
    lines = [b"HTTP/1.1 200 OK"]
    for name, value in [*default, *message.get("headers", ())]:
        if HEADER_RE.search(name) or HEADER_VALUE_RE.search(value):
            raise RuntimeError("invalid HTTP header")
        if name.lower() != b"connection":
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"connection: close", b"", b""])

"""Server-Sent Events: a response that follows streams (PROTOCOL.md §6).

The response owns its subscription. It sends the start and the priming chunk through ASGI, then writes raw where the
server lends the connection (`rawhttp.py`), and with `send()` elsewhere; both sinks keep the same promises.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from tailrace.codes import CloseCode, may_return
from tailrace.core import frames
from tailrace.core.cursor import CursorToken, Resume
from tailrace.core.event import Degraded
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.hub.block import Block, Form, Sink, SinkClosed, SinkStuck
from tailrace.hub.hub import Hub
from tailrace.hub.subscription import Subscription
from tailrace.transports.pulse import Pulse
from tailrace.transports.rawhttp import EXTENSION, RawChannel, RawOffer

__all__ = ["HEADERS", "MAX_STREAMS", "Guard", "SseOptions", "SseResponse", "open_sse"]

Guard: TypeAlias = Callable[[], Awaitable[CloseCode]]
"""Runs beside the response and returns when the reading has to end: a lease was lost, a token ran out, …"""

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)
MAX_STREAMS = 32


class SseOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How one reader wants its events, and what the server allows it."""

    format: str = "envelope"
    named: bool = True
    """Whether records carry `event:`; without it an EventSource gives them to `onmessage`."""
    retry_seconds: tuple[float, float] = (1.0, 3.0)
    """The range the client's reconnection delay is drawn from."""
    stuck_seconds: float = 30.0
    """A client that reads nothing for this long is closed with 4001."""
    unsent_bytes: int = 262_144
    """Above this a reader goes back to replaying."""
    closing_seconds: float = 5.0
    """How long the end of a response may take to be read."""


class _Chunks(msgspec.Struct, frozen=True):
    """A form whose blocks are one HTTP chunk each."""

    inner: frames.SseForm

    def item(self, item: Any) -> bytes:
        """As the inner form."""
        return self.inner.item(item)

    def join(self, parts: Sequence[bytes]) -> bytes:
        """All frames in one chunk (RFC 9112 §7.1)."""
        return chunk(b"".join(parts))


def chunk(body: bytes) -> bytes:
    """One HTTP/1.1 chunk; the body must not be empty, that would end the response."""
    return b"%x\r\n%b\r\n" % (len(body), body)


class _Tokens:
    """The `id:` lines of a subscription to several streams: where it is in each of them, after each record."""

    def __init__(self, cursors: Mapping[StreamName, EntryId]) -> None:
        self._token = CursorToken(cursors)
        for stream, cursor in cursors.items():
            self._token.move(stream, cursor)

    def encode(self, block: Block, form: Form) -> bytes:
        """The block with an `id:` line before every record and gap."""
        parts: list[bytes] = []
        for cell in block.cells:
            after = frames.position_of(cell.item)
            if after is not None and block.stream is not None:
                self._token.move(block.stream, after)
                parts.append(b"id: %b\n" % bytes(self._token))
            parts.append(cell.frame(form))
        return b"".join(parts)


class RawSink:
    """Writes to the connection that the server lent."""

    __slots__ = ("_channel", "_form", "_stuck_seconds", "_tokens")

    def __init__(self, channel: RawChannel, form: frames.SseForm, tokens: _Tokens | None, stuck_seconds: float) -> None:
        self._channel = channel
        self._form: Form = _CHUNKED[form]
        self._tokens = tokens
        self._stuck_seconds = stuck_seconds

    def write(self, block: Block) -> bool:
        """See `Sink`: one write of bytes that all readers of the same form share."""
        channel = self._channel
        if channel.paused:
            return False
        channel.touched = True
        if self._tokens is None:
            channel.write(block.encode(self._form))
        else:
            channel.write(chunk(self._tokens.encode(block, self._form)))
        return True

    async def wait_writable(self) -> None:
        """See `Sink`; a client that takes single bytes is slow, not stuck."""
        channel = self._channel
        while channel.paused and not channel.lost:
            before = channel.unsent
            try:
                async with asyncio.timeout(self._stuck_seconds):
                    await channel.resumed()
            except TimeoutError:
                if channel.unsent >= before and not channel.lost:
                    raise SinkStuck from None
        if channel.lost:
            raise SinkClosed

    def beat(self) -> None:
        """A heartbeat, if nothing was written since the last one."""
        channel = self._channel
        if not channel.touched and not channel.paused:
            channel.write(_HEARTBEAT_CHUNK)
        channel.touched = False


class SendSink:
    """Sends through ASGI: one pump task, a bounded buffer, the same promises."""

    def __init__(
        self,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        form: frames.SseForm,
        tokens: _Tokens | None,
        options: SseOptions,
    ) -> None:
        self._send = send
        self._form = form
        self._tokens = tokens
        self._limit = options.unsent_bytes
        self._stuck_seconds = options.stuck_seconds
        self._parts: list[bytes] = []
        self._size = 0
        self._sending = 0
        self._lost = False
        self._stuck = False
        self._touched = False
        self._more = asyncio.Event()
        self._room = asyncio.Event()

    def write(self, block: Block) -> bool:
        """See `Sink`."""
        if self._size + self._sending > self._limit or self._lost:
            return False
        data = block.encode(self._form) if self._tokens is None else self._tokens.encode(block, self._form)
        self._put(data)
        return True

    def _put(self, data: bytes) -> None:
        self._touched = True
        self._parts.append(data)
        self._size += len(data)
        self._more.set()

    async def wait_writable(self) -> None:
        """See `Sink`."""
        while self._size + self._sending > self._limit and not self._lost:
            self._room.clear()
            await self._room.wait()
        if self._stuck:
            raise SinkStuck
        if self._lost:
            raise SinkClosed

    def beat(self) -> None:
        """A heartbeat, if nothing was written since the last one."""
        if not self._touched and not self._size and not self._sending:
            self._put(frames.HEARTBEAT)
        self._touched = False

    async def flush(self, seconds: float) -> None:
        """Wait until all that was written is sent, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (self._size or self._sending) and not self._lost:
                    self._room.clear()
                    await self._room.wait()

    async def pump(self) -> None:
        """Send what was written, until the client is gone or takes nothing for too long."""
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                body, self._parts = b"".join(self._parts), []
                self._sending, self._size = self._size, 0
                async with asyncio.timeout(self._stuck_seconds):
                    await self._send({"type": "http.response.body", "body": body, "more_body": True})
                self._sending = 0
                self._room.set()
        except TimeoutError:
            self._stuck = True
        except OSError:
            pass
        finally:
            self._lost = True
            self._room.set()


class _Waiting:
    """The sink of a subscription whose response has not started: takes nothing."""

    def write(self, block: Block) -> bool:
        return False

    async def wait_writable(self) -> None:
        raise SinkClosed


_CHUNKED: dict[frames.SseForm, _Chunks] = {
    form: _Chunks(form)
    for form in (
        frames.SseForm(format=format_, named=named, with_id=with_id)
        for format_ in ("envelope", "raw")
        for named in (True, False)
        for with_id in (True, False)
    )
}
_HEARTBEAT_CHUNK = chunk(frames.HEARTBEAT)


async def open_sse(
    hub: Hub,
    resume: Mapping[StreamName, Resume],
    options: SseOptions,
    pulse: Pulse,
    *,
    guards: Sequence[Guard] = (),
) -> SseResponse:
    """Open a subscription and make the response that will feed it.

    The response has to be called or `discard`ed; either gives everything back.

    Raises:
        LogUnavailable: the log did not answer.
    """
    waiting: Sink = _Waiting()
    subscription = await hub.open(resume, waiting)
    return SseResponse(hub, subscription, options, pulse, guards)


class SseResponse:
    """An ASGI response that follows streams until they end, the client leaves, or the server sends it away."""

    media_type = "text/event-stream"
    status_code = 200
    background = None

    def __init__(
        self,
        hub: Hub,
        subscription: Subscription,
        options: SseOptions,
        pulse: Pulse,
        guards: Sequence[Guard],
    ) -> None:
        self.subscription = subscription
        self.headers: list[tuple[bytes, bytes]] = []
        """More headers to send."""
        self._hub = hub
        self._options = options
        self._pulse = pulse
        self._guards = guards

    @property
    def finished(self) -> bool:
        """Whether every stream has ended and the reader has all of it: the 204 of DESIGN §6."""
        return self.subscription.finished

    def discard(self) -> None:
        """Give back the subscription of a response that will not be called."""
        self.subscription.detach()

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        try:
            await self._respond(scope, receive, send)
        finally:
            self.subscription.detach()

    async def _respond(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = [*HEADERS, *self.headers]
        if scope["method"] == "HEAD":
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        priming = self._priming()
        offer: RawOffer | None = scope.get("extensions", {}).get(EXTENSION)
        if offer is not None:
            offer.expect(priming)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": priming, "more_body": True})
        channel = offer.arm() if offer is not None else None
        try:
            code = await (self._feed_raw(channel) if channel is not None else self._feed_send(receive, send))
        except SinkClosed:
            return
        await self._close(code, channel, send)

    def _priming(self) -> bytes:
        retry = frames.retry(random.uniform(*self._options.retry_seconds))
        opened = frames.sse_open(self.subscription.cursors, self.subscription.heads)
        degraded = frames.sse_item(Degraded(active=True)) if self._hub.degraded else b""
        return retry + opened + degraded

    def _form(self) -> tuple[frames.SseForm, _Tokens | None]:
        cursors = self.subscription.cursors
        several = len(cursors) > 1
        form = frames.SseForm(format=self._options.format, named=self._options.named, with_id=not several)
        return form, _Tokens(cursors) if several else None

    async def _feed_raw(self, channel: RawChannel) -> CloseCode:
        """Write to the connection itself. No task beside this one, unless there are guards."""
        if channel.lost:
            raise SinkClosed
        channel.on_lost = self.subscription.abandon
        sink = RawSink(channel, *self._form(), self._options.stuck_seconds)
        return await self._run(sink, [])

    async def _feed_send(self, receive: Any, send: Any) -> CloseCode:
        """Send through ASGI: a task that pumps, and one that sees the client leave."""
        sink = SendSink(send, *self._form(), self._options)
        leaving = (sink.pump(), _disconnected(receive))
        return await self._run(sink, [asyncio.create_task(self._abandon_after(each)) for each in leaving], sink.flush)

    async def _run(
        self,
        sink: RawSink | SendSink,
        tasks: list[asyncio.Task[None]],
        flush: Callable[[float], Awaitable[None]] | None = None,
    ) -> CloseCode:
        tasks += [asyncio.create_task(self._close_after(guard)) for guard in self._guards]
        self.subscription.sink = sink
        self._pulse.add(sink)
        try:
            code = await self.subscription.run()
            if flush is not None:
                await flush(self._options.closing_seconds)
            return code
        finally:
            self._pulse.remove(sink)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _abandon_after(self, leaving: Awaitable[None]) -> None:
        try:
            await leaving
        finally:
            self.subscription.abandon()

    async def _close_after(self, guard: Guard) -> None:
        self.subscription.close(await guard())

    async def _close(self, code: CloseCode, channel: RawChannel | None, send: Any) -> None:
        """Tell why, tell when to come back, and end the response; a client that does not read is cut off."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(self._options.closing_seconds):
                if code is not CloseCode.SLOW:
                    last = frames.sse_closed(code) + frames.retry(self._come_back(code))
                    await send({"type": "http.response.body", "body": last, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
        if channel is not None:
            await channel.abort()

    def _come_back(self, code: CloseCode) -> float:
        low, high = self._options.retry_seconds
        return random.uniform(low, high * 3 if may_return(code) else high)


async def _disconnected(receive: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Wait until the client is gone. Nothing else tells an idle stream (a `send()` after it is silent)."""
    while (await receive())["type"] != "http.disconnect":
        pass

"""Where SSE blocks go: a lent connection, or ASGI's `send`. Both keep the promises of `Sink`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from tailrace.core import frames
from tailrace.core.cursor import CursorToken
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.hub.block import Block, Form, SinkClosed, SinkStuck
from tailrace.transports.rawhttp import RawChannel

__all__ = ["RawSink", "SendSink", "SseOptions", "Tokens"]


class SseOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How one reader wants its events, and what the server allows it."""

    format: str = "envelope"
    named: bool = True
    """Whether records carry `event:`; without it an EventSource gives them to `onmessage`."""
    conflate: bool = False
    """Whether a reader that lags wants only the latest record per key."""
    compact: bool = False
    """Whether a reader that is behind wants pieces of text that follow each other as one record."""
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


class Tokens:
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

    __slots__ = ("_channel", "_form", "_on_stuck", "_stalled", "_stuck_seconds", "_tokens")

    def __init__(
        self,
        channel: RawChannel,
        form: frames.SseForm,
        tokens: Tokens | None,
        stuck_seconds: float,
        on_stuck: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._form: Form = _CHUNKED[form]
        self._tokens = tokens
        self._stuck_seconds = stuck_seconds
        self._on_stuck = on_stuck
        self._stalled: tuple[int, float] | None = None
        """What was unsent when the client was first seen to take nothing, and when that was."""

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
        if channel.paused:
            self._watch_stall()
        else:
            self._stalled = None
            if not channel.touched:
                channel.write(_HEARTBEAT_CHUNK)
        channel.touched = False

    def _watch_stall(self) -> None:
        """A full connection that nothing more is written to is noticed here."""
        unsent, now = self._channel.unsent, asyncio.get_running_loop().time()
        if self._stalled is None or unsent < self._stalled[0]:
            self._stalled = (unsent, now)
        elif now - self._stalled[1] >= self._stuck_seconds:
            self._on_stuck()


class SendSink:
    """Sends through ASGI: one pump task, a bounded buffer, the same promises."""

    def __init__(
        self,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        form: frames.SseForm,
        tokens: Tokens | None,
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

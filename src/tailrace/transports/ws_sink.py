"""Where the records of a WebSocket go: raw frames on a lent connection, or one `send()` per message.

Both sinks take a block whole or not at all, never wait, and take none while more than their limit is unsent: what comes
then stays in the log. Replies and other words of the server (`say`) are few, come from the server's own answers to a
limited number of commands, and are always taken; a client that does not even read those is stuck.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, Protocol, TypeAlias

import msgspec

from tailrace.codes import CloseCode
from tailrace.core.event import Item
from tailrace.core.wsframe import text_frame
from tailrace.hub.block import Block, Form, Sink, SinkClosed, SinkStuck
from tailrace.transports.rawhttp import RawChannel

__all__ = ["RawWsSink", "SendWsSink", "WsSink", "WsSinkOptions"]

TURN_MESSAGES = 64
"""A pump that finds its connection always writable lets the others have a turn after so many messages."""
SAID_FACTOR = 4
"""A client that leaves so many times the limit unread, because it asks and asks, is stuck."""


OnEnd: TypeAlias = Callable[[CloseCode | None], None]
"""Told how a connection ends that its client ended: SLOW when it is stuck, None when it is gone."""


class WsSinkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may hold, and for how long it may stand still."""

    unsent_bytes: int = 262_144
    """Above this a reader goes back to replaying."""
    stuck_seconds: float = 30.0
    """A client that reads nothing for this long is closed with 4001."""


class Framed(msgspec.Struct, frozen=True):
    """A form whose frames are whole WebSocket messages, for writing past the server's library."""

    inner: Form

    def item(self, item: Item) -> bytes:
        """The inner frame as one text message."""
        return text_frame(self.inner.item(item))

    def join(self, frames: Sequence[bytes]) -> bytes:
        """Messages follow each other with nothing between."""
        return b"".join(frames)


@lru_cache(maxsize=64)
def framed(form: Form) -> Framed:
    """One `Framed` per form: blocks keep what they encoded by it."""
    return Framed(form)


class WsSink(Sink, Protocol):
    """What the session needs beside `Sink`."""

    def say(self, payload: bytes) -> None:
        """Send one message of the server's own; always taken, in order with the blocks."""

    def beat(self) -> bool:
        """A heartbeat, if nothing was written since the last call. Answer whether it was sent."""

    async def flush(self, seconds: float) -> bool:
        """Wait until all that was written has left. False: the time was over first, or the client is gone."""

    def begin(self, on_end: OnEnd) -> asyncio.Task[None] | None:
        """Begin to send; `on_end` is called when the client is gone or stuck. A task belongs to the caller."""


class RawWsSink:
    """Writes shared frames to the connection that the server lent."""

    def __init__(
        self,
        channel: RawChannel,
        form: Form,
        heartbeat: bytes,
        options: WsSinkOptions,
    ) -> None:
        self._channel = channel
        self._form = framed(form)
        self._heartbeat = text_frame(heartbeat)
        self._options = options
        self._on_end: OnEnd = _nobody
        self._standing: tuple[int, float] | None = None

    def write(self, block: Block) -> bool:
        """See `Sink`: one write of bytes that all readers of the same form share."""
        channel = self._channel
        if channel.paused:
            return False
        channel.touched = True
        channel.write(block.encode(self._form))
        return True

    def say(self, payload: bytes) -> None:
        """See `WsSink`."""
        channel = self._channel
        if channel.lost:
            return
        channel.touched = True
        channel.write(text_frame(payload))
        if channel.unsent > SAID_FACTOR * self._options.unsent_bytes:
            self._on_end(CloseCode.SLOW)

    async def wait_writable(self) -> None:
        """See `Sink`; a client that takes single bytes is slow, not stuck."""
        channel = self._channel
        while channel.paused and not channel.lost:
            before = channel.unsent
            try:
                async with asyncio.timeout(self._options.stuck_seconds):
                    await asyncio.shield(channel.resumed())
            except TimeoutError:
                if channel.unsent >= before and not channel.lost:
                    raise SinkStuck from None
        if channel.lost:
            raise SinkClosed

    def beat(self) -> bool:
        """See `WsSink`. Also notices a client that stands still while nothing but our own words waits for it."""
        channel = self._channel
        if channel.paused:
            self._watch()
            return False
        self._standing = None
        idle = not channel.touched
        if idle:
            channel.write(self._heartbeat)
        channel.touched = False
        return idle

    def _watch(self) -> None:
        unsent, now = self._channel.unsent, asyncio.get_running_loop().time()
        if self._standing is None or unsent < self._standing[0]:
            self._standing = (unsent, now)
        elif now - self._standing[1] >= self._options.stuck_seconds:
            self._on_end(CloseCode.SLOW)

    async def flush(self, seconds: float) -> bool:
        """See `WsSink`."""
        # The server closes after what it was given; only an overfull connection has to be waited for.
        with suppress(TimeoutError, SinkClosed, SinkStuck):
            async with asyncio.timeout(seconds):
                await self.wait_writable()
                return True
        return False

    def begin(self, on_end: OnEnd) -> None:
        """See `WsSink`: the channel sends by itself, and the server tells its end."""
        self._on_end = on_end
        self._channel.on_lost = partial(on_end, None)
        if self._channel.lost:
            on_end(None)


class SendWsSink:
    """Sends through ASGI: one pump, a bounded buffer, the same promises."""

    def __init__(
        self,
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
        form: Form,
        heartbeat: bytes,
        options: WsSinkOptions,
    ) -> None:
        self._send = send
        self._form = form
        self._heartbeat = heartbeat
        self._limit = options.unsent_bytes
        self._stuck_seconds = options.stuck_seconds
        self._messages: deque[bytes] = deque()
        self._unsent = 0
        self._full = False
        self._touched = False
        self._deadline: asyncio.Timeout | None = None
        self._ended: type[SinkClosed] | type[SinkStuck] | None = None
        self._more = asyncio.Event()
        self._room = asyncio.Event()

    def write(self, block: Block) -> bool:
        """See `Sink`."""
        if self._full or self._ended is not None:
            return False
        messages = [cell.frame(self._form) for cell in block.cells]
        self._messages.extend(messages)
        self._put(sum(map(len, messages)))
        return True

    def say(self, payload: bytes) -> None:
        """See `WsSink`."""
        if self._ended is None:
            self._messages.append(payload)
            self._put(len(payload))
            if self._unsent > SAID_FACTOR * self._limit and self._deadline is not None:
                self._deadline.reschedule(asyncio.get_running_loop().time())

    def _put(self, size: int) -> None:
        self._touched = True
        self._unsent += size
        self._full = self._full or self._unsent > self._limit
        self._more.set()

    async def wait_writable(self) -> None:
        """See `Sink`."""
        while self._full and self._ended is None:
            self._room.clear()
            await self._room.wait()
        if self._ended is not None:
            raise self._ended

    def beat(self) -> bool:
        """See `WsSink`."""
        idle = not self._touched and not self._unsent
        if idle:
            self.say(self._heartbeat)
        self._touched = False
        return idle

    async def flush(self, seconds: float) -> bool:
        """See `WsSink`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._unsent and self._ended is None:
                    self._room.clear()
                    await self._room.wait()
        return not self._unsent and self._ended is None

    def begin(self, on_end: OnEnd) -> asyncio.Task[None]:
        """See `WsSink`: the task is the pump."""
        return asyncio.create_task(self._pump(on_end))

    async def _pump(self, on_end: OnEnd) -> None:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                await self._drain()
        except TimeoutError:
            self._ended = SinkStuck
            on_end(CloseCode.SLOW)
        except OSError:
            on_end(None)
        finally:
            self._ended = self._ended or SinkClosed
            self._room.set()

    async def _drain(self) -> None:
        messages, now = self._messages, asyncio.get_running_loop().time
        while messages:
            # One timer for a handful of messages; each of them may stand still for as long.
            async with asyncio.timeout(self._stuck_seconds) as self._deadline:
                for _ in range(min(TURN_MESSAGES, len(messages))):
                    payload = messages.popleft()
                    await self._send({"type": "websocket.send", "text": payload.decode()})
                    self._unsent -= len(payload)
                    if self._unsent <= self._limit // 4:
                        # Not before most of it has left: a slow reader is given pages, not crumbs.
                        self._full = False
                        self._room.set()
                    self._deadline.reschedule(now() + self._stuck_seconds)
            self._deadline = None
            if messages:
                await asyncio.sleep(0)


def _nobody(code: CloseCode | None) -> None:
    """Nobody is to be told yet."""

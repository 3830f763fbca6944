"""WebSockets: what all of them share, and `…/ws` on one stream, which just sends records (PROTOCOL.md §7).

Rules of this file
1. Who may connect was decided before; here a connection is accepted, served and closed with a code.
2. One function owns all tasks of a connection; whichever ends first decides how the connection ends.
3. A client that does not read is cut off: nothing of ours waits for it longer than `closing_seconds`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from tailrace.codes import CloseCode
from tailrace.core import commands, frames
from tailrace.core.cursor import Resume
from tailrace.core.event import Degraded
from tailrace.core.names import StreamName
from tailrace.errors import LogError, TailraceError
from tailrace.hub.block import Block, Form, SinkClosed, SinkStuck
from tailrace.hub.hub import Hub
from tailrace.hub.subscription import Subscription
from tailrace.transports.pulse import Pulse
from tailrace.transports.rawhttp import EXTENSION
from tailrace.transports.ws_protocol import WsOffer
from tailrace.transports.ws_session import Meter, SessionOptions, Verdict
from tailrace.transports.ws_sink import RawWsSink, SendWsSink, WsSink, WsSinkOptions

__all__ = ["Guard", "Socket", "StreamSocket", "WsOptions", "awaited", "cancel_all", "refuse"]

log = logging.getLogger("tailrace.websocket")

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Guard: TypeAlias = Callable[[], Awaitable[CloseCode]]
"""Runs beside the connection and returns when it has to end: a lease was lost, a token ran out, …"""


class WsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How connections are served."""

    session: SessionOptions = SessionOptions()
    sink: WsSinkOptions = WsSinkOptions()
    message_bytes: int = 65_536
    """A larger message of a client ends its connection."""
    retry_seconds: tuple[float, float] = (1.0, 3.0)
    """The range that a client's reconnection delay is drawn from."""
    closing_seconds: float = 5.0
    """How long the end of a connection may take to be read."""
    parallel_commands: int = 16
    """Commands of one connection that may wait for the log at the same time; the next are not read before."""


class Nowhere:
    """The sink of a subscription whose connection has no sink yet: takes nothing."""

    def write(self, block: Block) -> bool:
        return False

    async def wait_writable(self) -> None:
        raise SinkClosed


class Socket:
    """What both kinds share: the handshake's end, the tasks, the close."""

    def __init__(self, hub: Hub, pulse: Pulse, options: WsOptions, guards: Sequence[Guard]) -> None:
        self._hub = hub
        self._pulse = pulse
        self._options = options
        self._guards = guards
        self._sink: WsSink
        self._subscription: Subscription
        self._offer: WsOffer | None = None
        self._retry_after = random.uniform(*options.retry_seconds)

    async def _accept(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, subprotocol: str | None
    ) -> bool:
        if (await receive())["type"] != "websocket.connect":
            return False
        self._offer = scope.get("extensions", {}).get(EXTENSION)
        await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
        return True

    async def _start(self, send: Send, form: Form) -> None:
        """Send the first message, and the others from now on by what the server offers."""
        first = frames.open_payload(self._subscription.cursors, self._subscription.heads).decode()
        if self._offer is not None:
            self._offer.expect(first)
        await send({"type": "websocket.send", "text": first})
        channel = self._offer.arm() if self._offer is not None else None
        heartbeat = commands.ping_payload()
        if channel is not None:
            self._sink = RawWsSink(channel, form, heartbeat, self._options.sink)
        else:
            self._sink = SendWsSink(send, form, heartbeat, self._options.sink)
        self._subscription.sink = self._sink
        if self._hub.degraded:
            self._sink.say(frames.degraded_payload(Degraded(active=True)))

    async def _live(self, send: Send, parts: Sequence[Coroutine[Any, Any, CloseCode]]) -> CloseCode | None:
        """Run everything until something ends, then close. Return the code; None: the client left."""
        pump = asyncio.create_task(self._sink.run())
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(part)
            for part in (self._subscription.run(), *(awaited(guard) for guard in self._guards), *parts)
        ]
        try:
            await asyncio.wait((pump, *tasks), return_when=asyncio.FIRST_COMPLETED)
            code = _outcome((pump, *tasks))
            await cancel_all(tasks)
            if code is not None:
                await self._close(code, send)
            return code
        finally:
            await cancel_all((pump, *tasks))

    async def _close(self, code: CloseCode, send: Send) -> None:
        """Say why and when to come back, then close; a client that does not read is cut off (rule 3)."""
        read = False
        if code is not CloseCode.SLOW:
            if code is not CloseCode.ENDED:
                retry_after = round(self._retry_after, 3) if code < CloseCode.MALFORMED else None
                self._sink.say(frames.closed_payload(code, retry_after=retry_after))
            read = await self._sink.flush(self._options.closing_seconds)
        await _send_close(send, code, self._options.closing_seconds if read else 0.1)
        if not read and self._offer is not None:
            self._offer.abort()

    def _check_size(self, message: Mapping[str, Any]) -> str | None:
        """The text of a message; None: too large, for servers that let it pass."""
        text: str = message.get("text") or ""
        limit = self._options.message_bytes
        oversized = len(text) > limit or (4 * len(text) > limit and len(text.encode()) > limit)
        return None if oversized or len(message.get("bytes") or b"") > limit else text


class StreamSocket(Socket):
    """A connection that is sent the records of one stream, and asked nothing."""

    def __init__(
        self,
        hub: Hub,
        pulse: Pulse,
        options: WsOptions,
        stream: StreamName,
        resume: Resume,
        *,
        format: str = "envelope",  # noqa: A002 - the word of the wire
        guards: Sequence[Guard] = (),
    ) -> None:
        super().__init__(hub, pulse, options, guards)
        self._stream = stream
        self._resume = resume
        self._form = frames.WsForm(format=format)

    async def serve(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, subprotocol: str | None = None
    ) -> CloseCode | None:
        """Accept the connection and serve it to its end. Return the code it was closed with; None: the client left."""
        if not await self._accept(scope, receive, send, subprotocol):
            return None
        try:
            self._subscription = await self._hub.open({self._stream: self._resume}, Nowhere())
        except LogError as error:
            await refuse(send, error, retry_after=self._retry_after, seconds=self._options.closing_seconds)
            return error.close_code
        try:
            with suppress(OSError):
                await self._start(send, self._form)
                self._pulse.add(self)
                return await self._live(send, [self._receive(receive)])
            return None
        finally:
            self._pulse.remove(self)
            self._subscription.detach()

    def beat(self) -> None:
        """See `Beating`."""
        self._sink.beat()

    async def _receive(self, receive: Receive) -> CloseCode:
        """What the client says is not for us, but may not be without end."""
        now = asyncio.get_running_loop().time
        meter = Meter(self._options.session.commands_per_minute, now())
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                raise SinkClosed
            if self._check_size(message) is None:
                return CloseCode.TOO_LARGE
            if meter.take(now()) is Verdict.CLOSE:
                return CloseCode.LIMITED


# -- ends --------------------------------------------------------------------------------------------------


async def refuse(send: Send, error: TailraceError, *, retry_after: float | None, seconds: float) -> None:
    """Tell an accepted client why it is not served, and close."""
    code = error.close_code
    if code >= CloseCode.MALFORMED:
        retry_after = None
    payload = frames.refused_payload(code, retry_after=retry_after, detail=error.detail)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            await send({"type": "websocket.send", "text": payload.decode()})
    await _send_close(send, code, seconds)


async def _send_close(send: Send, code: CloseCode, seconds: float) -> None:
    with suppress(OSError, RuntimeError, TimeoutError):
        async with asyncio.timeout(seconds):
            await send({"type": "websocket.close", "code": int(code), "reason": code.name})


async def awaited(guard: Callable[[], Awaitable[CloseCode]]) -> CloseCode:
    return await guard()


def _outcome(tasks: Sequence[asyncio.Task[Any]]) -> CloseCode | None:
    """What ended a connection; None: the client is gone."""
    errors = [task.exception() for task in tasks if task.done()]
    if any(isinstance(error, SinkClosed) for error in errors):
        return None
    if any(isinstance(error, SinkStuck) for error in errors):
        return CloseCode.SLOW
    for error in errors:
        if error is not None:
            log.error("a connection failed", exc_info=error)
            return CloseCode.INTERNAL
    code: CloseCode = next(task.result() for task in tasks if task.done())
    return code


async def cancel_all(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

"""WebSockets: what all of them share, and `…/ws` on one stream, which just sends records (PROTOCOL.md §7).

Rules of this file
1. Who may connect was decided before; here a connection is accepted, served and closed with a code.
2. The subscription's end is the connection's end: whatever else ends it (the client, a lost lease, a limit, a defect)
   closes the subscription with a code, and the first one counts. One function owns all tasks.
3. A client that does not read is cut off: nothing of ours waits for it longer than `closing_seconds`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, TypeAlias

import msgspec

from tailrace.codes import CloseCode
from tailrace.core import commands, frames
from tailrace.core.cursor import Resume
from tailrace.core.event import Degraded
from tailrace.core.names import StreamName
from tailrace.errors import LogError, TailraceError
from tailrace.hub.block import Block, Form, SinkClosed
from tailrace.hub.hub import Hub
from tailrace.hub.subscription import Subscription
from tailrace.transports.pulse import Pulse
from tailrace.transports.rawhttp import EXTENSION
from tailrace.transports.ws_protocol import WsOffer
from tailrace.transports.ws_session import Meter, SessionOptions, Verdict
from tailrace.transports.ws_sink import RawWsSink, SendWsSink, WsSink, WsSinkOptions

__all__ = ["Socket", "StreamSocket", "WsOptions", "cancel_all", "refuse"]

log = logging.getLogger("tailrace.websocket")

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


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

    def __init__(self, hub: Hub, pulse: Pulse, options: WsOptions) -> None:
        self._hub = hub
        self._pulse = pulse
        self._options = options
        self._sink: WsSink
        self._subscription: Subscription
        self._ending: CloseCode | None = None
        self._reads = False
        self._offer: WsOffer | None = None
        self._retry_after = random.uniform(*options.retry_seconds)

    async def _accept(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, subprotocol: str | None
    ) -> bool:
        if (await receive())["type"] != "websocket.connect":
            return False
        self._offer = scope.get("extensions", {}).get(EXTENSION)
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
        except OSError:
            return False
        return True

    async def _start(self, send: Send, form: Form) -> None:
        """Send the first message, and the others from now on by what the server offers."""
        first = self._first().decode()
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
        if self._begins_degraded():
            self._sink.say(frames.degraded_payload(Degraded(active=True)))

    def _first(self) -> bytes:
        """The first message."""
        return frames.open_payload(self._subscription.cursors, self._subscription.heads)

    def _begins_degraded(self) -> bool:
        """Whether the second one says that the log does not answer."""
        return self._subscription.degraded

    async def _live(self, receive: Receive, send: Send) -> CloseCode | None:
        """Feed the client until something ends, then close. Return the code; None: the client left."""
        listener = asyncio.create_task(self._listen(receive))
        pump = self._sink.begin(self._ended)
        try:
            code = await self._feed()
            await cancel_all(listener)
            await self._close(code, send)
        except SinkClosed:
            return None
        finally:
            await cancel_all(listener, pump)
        return code

    async def _feed(self) -> CloseCode:
        try:
            return await self._subscription.run()
        except SinkClosed:
            raise
        except Exception:
            log.exception("a subscription failed")
            return CloseCode.INTERNAL

    async def _receive(self, receive: Receive) -> CloseCode:
        """Deal with what the client says; return why the connection has to end. Raises: SinkClosed when it left."""
        raise NotImplementedError

    async def _listen(self, receive: Receive) -> None:
        try:
            self.close(await self._receive(receive))
        except SinkClosed:
            self._ended(None)
        except Exception:
            log.exception("a connection failed")
            self.close(CloseCode.INTERNAL)

    def close(self, code: CloseCode) -> None:
        """Let the connection end with `code`, from whatever reason. The first call counts."""
        self._ending = self._ending or code
        if self._reads:
            self._subscription.close(code)

    def _adopt(self, subscription: Subscription) -> None:
        """Take the subscription that this connection is for."""
        self._subscription = subscription
        self._reads = True
        if self._ending is not None:
            subscription.close(self._ending)

    def _ended(self, code: CloseCode | None) -> None:
        if code is None:
            self._subscription.abandon()
        else:
            self._subscription.close(code)

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
        conflate: bool = False,
        compact: bool = False,
    ) -> None:
        super().__init__(hub, pulse, options)
        self._conflate = conflate
        self._compact = compact
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
            resume = {self._stream: self._resume}
            self._adopt(await self._hub.open(resume, Nowhere(), conflate=self._conflate, compact=self._compact))
        except LogError as error:
            await refuse(send, error, retry_after=self._retry_after, seconds=self._options.closing_seconds)
            return error.close_code
        try:
            with suppress(OSError):
                await self._start(send, self._form)
                self._pulse.add(self)
                return await self._live(receive, send)
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
    payload = frames.refused_payload(code, retry_after=retry_after, detail=error.shown)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            await send({"type": "websocket.send", "text": payload.decode()})
    await _send_close(send, code, seconds)


async def _send_close(send: Send, code: CloseCode, seconds: float) -> None:
    with suppress(OSError, RuntimeError, TimeoutError):
        async with asyncio.timeout(seconds):
            await send({"type": "websocket.close", "code": int(code), "reason": code.name})


async def cancel_all(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        if task is not None:
            task.cancel()
    await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)

"""Server-Sent Events: a response that follows streams (PROTOCOL.md §6).

The response owns its subscription. It sends the start and the priming chunk through ASGI, then writes raw where the
server lends the connection (`rawhttp.py`), and with `send()` elsewhere; both sinks keep the same promises.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from tailrace.codes import CloseCode, may_return
from tailrace.core import frames
from tailrace.core.cursor import Resume
from tailrace.core.event import Degraded
from tailrace.core.names import StreamName
from tailrace.hub.block import Block, Sink, SinkClosed
from tailrace.hub.hub import Hub
from tailrace.hub.subscription import Subscription
from tailrace.transports.pulse import Pulse
from tailrace.transports.rawhttp import EXTENSION, RawChannel, RawOffer
from tailrace.transports.sse_sink import RawSink, SendSink, SseOptions, Tokens

__all__ = ["HEADERS", "Guard", "SseOptions", "SseResponse", "open_sse"]

Guard: TypeAlias = Callable[[], Awaitable[CloseCode]]
"""Runs beside the response and returns when the reading has to end: a lease was lost, a token ran out, …"""

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
)
REPLACED_SECONDS = 600.0


class _Waiting:
    """The sink of a subscription whose response has not started: takes nothing."""

    def write(self, block: Block) -> bool:
        return False

    async def wait_writable(self) -> None:
        raise SinkClosed


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
    subscription = await hub.open(resume, waiting, conflate=options.conflate, compact=options.compact)
    return SseResponse(subscription, options, pulse, guards)


class SseResponse:
    """An ASGI response that follows streams until they end, the client leaves, or the server sends it away."""

    def __init__(
        self,
        subscription: Subscription,
        options: SseOptions,
        pulse: Pulse,
        guards: Sequence[Guard],
    ) -> None:
        self.subscription = subscription
        self.ended: CloseCode | None = None
        """Why the server ended the reading; None: it did not, or not yet."""
        self._options = options
        self._pulse = pulse
        self._guards = guards

    @property
    def finished(self) -> bool:
        """Whether every stream has ended and the reader has all of it: the 204 of PROTOCOL.md §6.7."""
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
        headers = list(HEADERS)
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
        self.ended = code
        await self._close(code, channel, send)

    def _priming(self) -> bytes:
        retry = frames.retry(random.uniform(*self._options.retry_seconds))
        opened = frames.sse_open(self.subscription.cursors, self.subscription.heads)
        degraded = frames.sse_item(Degraded(active=True)) if self.subscription.degraded else b""
        return retry + opened + degraded

    def _form(self) -> tuple[frames.SseForm, Tokens | None]:
        cursors = self.subscription.cursors
        several = len(cursors) > 1
        form = frames.SseForm(format=self._options.format, named=self._options.named, with_id=not several)
        return form, Tokens(cursors) if several else None

    async def _feed_raw(self, channel: RawChannel) -> CloseCode:
        """Write to the connection itself. No task beside this one, unless there are guards."""
        if channel.lost:
            raise SinkClosed
        channel.on_lost = self.subscription.abandon
        stuck = partial(self.subscription.close, CloseCode.SLOW)
        sink = RawSink(channel, *self._form(), self._options.stuck_seconds, stuck)
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
        if code is CloseCode.REPLACED:
            # The new connection is of the same page or user: coming back soon would replace that one in turn.
            return REPLACED_SECONDS
        low, high = self._options.retry_seconds
        return random.uniform(low, high * 3 if may_return(code) else high)


async def _disconnected(receive: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Wait until the client is gone. Nothing else tells an idle stream (a `send()` after it is silent)."""
    while (await receive())["type"] != "http.disconnect":
        pass

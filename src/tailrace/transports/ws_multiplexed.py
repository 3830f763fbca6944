"""`/ws`: one WebSocket that reads and writes many streams by commands (PROTOCOL.md §7).

Rules of this file
1. Between the log's answer to a subscribe and its reply nothing waits: no record of a stream comes before the reply.
2. `ws_session.py` decides; here is what waits: permissions, the log, the hub.
3. Appends are called in the order of their commands; everything else may overtake.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

from tailrace.codes import CloseCode
from tailrace.core import commands, frames
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.errors import TailraceError
from tailrace.eventlog.base import Appended
from tailrace.hub.block import SinkClosed
from tailrace.hub.hub import Hub
from tailrace.hub.subscription import Lane
from tailrace.transports import ws_session as session_
from tailrace.transports.pulse import Pulse
from tailrace.transports.websocket import Nowhere, Receive, Send, Socket, WsOptions, cancel_all
from tailrace.transports.ws_session import Session

__all__ = ["Gate", "MultiplexedSocket"]

log = logging.getLogger("tailrace.websocket")

Append: TypeAlias = Callable[[StreamName, Sequence[Event]], Awaitable[list[Appended]]]
"""`Log.append`, or something around it."""


class Gate(Protocol):
    """What this connection's user may do; the web layer implements it. Refuses by raising a `RequestError`."""

    async def check_read(self, stream: StreamName) -> None:
        """Pass who may read the stream. Raises: Forbidden."""

    async def check_write(self, stream: StreamName) -> None:
        """Pass who may append to the stream. Raises: Forbidden."""

    async def renew(self, token: str) -> float | None:
        """Take a newer token of the same user; return when it expires (Unix seconds).

        Raises:
            Unauthorized, Forbidden: not a good token, or somebody else's.
        """

    def watch(self, stream: StreamName) -> None:
        """A stream is being read: its permission is to be asked again and again."""

    def unwatch(self, stream: StreamName) -> None:
        """It is read no more."""


class MultiplexedSocket(Socket):
    """A connection that reads and writes streams by commands."""

    def __init__(self, hub: Hub, pulse: Pulse, append: Append, gate: Gate, options: WsOptions) -> None:
        super().__init__(hub, pulse, options)
        self._append_to_log = append
        self._gate = gate
        self._session = Session(options.session, asyncio.get_running_loop().time())
        self._works: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(options.parallel_commands)
        self._order = asyncio.Lock()

    async def serve(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, subprotocol: str | None = None
    ) -> CloseCode | None:
        """Accept the connection and serve it to its end. Return the code it was closed with; None: the client left."""
        if not await self._accept(scope, receive, send, subprotocol):
            return None
        self._adopt(await self._hub.open({}, Nowhere(), stays_open=True))
        try:
            with suppress(OSError):
                await self._start(send, frames.WsForm())
                self._pulse.add(self)
                return await self._live(receive, send)
            return None
        finally:
            self._pulse.remove(self)
            await cancel_all(*self._works)
            self._subscription.detach()

    def beat(self) -> None:
        """See `Beating`: a heartbeat when idle; a client that answers none is gone."""
        now = asyncio.get_running_loop().time()
        if self._session.is_gone(now):
            self.close(CloseCode.SLOW)
        elif self._sink.beat():
            self._session.pinged(now)

    def deny(self, stream: StreamName) -> None:
        """The permission to read a stream was lost."""
        self._unread(self._session.denied(stream))

    async def _receive(self, receive: Receive) -> CloseCode:
        now = asyncio.get_running_loop().time
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                raise SinkClosed
            text = self._check_size(message)
            if text is None:
                return CloseCode.TOO_LARGE
            # Binary messages are no commands: an empty text is answered as malformed.
            cursors = self._subscription.cursors
            for ended in self._session.forget_ended(cursors):
                self._gate.unwatch(ended)
            action = self._session.on_message(text, cursors, now())
            if isinstance(action, session_.End):
                return action.code
            await self._do(action)

    async def _do(self, action: session_.Action) -> None:
        match action:
            case session_.Say():
                self._sink.say(action.payload)
            case session_.Unread():
                self._unread(action)
            case session_.Open():
                await self._spawn(self._open(action))
            case session_.Append() | session_.Renew() | session_.Count():
                await self._spawn(self._answer(action))

    async def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Let a command wait for the log while the next ones are read, but not without limit."""
        try:
            await self._slots.acquire()
        except BaseException:
            work.close()
            raise
        task = asyncio.create_task(work)
        self._works.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._works.discard(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a command failed", exc_info=error)
            self.close(CloseCode.INTERNAL)

    # -- commands ------------------------------------------------------------------------------------------

    async def _open(self, work: session_.Open) -> None:
        lanes: dict[StreamName, Lane] = {}
        errors: dict[StreamName, TailraceError] = {}

        async def open_one(wish: session_.Opening) -> None:
            try:
                await self._gate.check_read(wish.stream)
                lanes[wish.stream] = await self._hub.open_lane(self._subscription, wish.stream, wish.resume)
            except TailraceError as error:
                errors[wish.stream] = error

        try:
            await asyncio.gather(*(open_one(wish) for wish in work.wishes))
            self._opened(work, lanes, errors)
        finally:
            for lane in lanes.values():
                self._hub.release_lane(lane)

    def _opened(
        self, work: session_.Open, lanes: dict[StreamName, Lane], errors: dict[StreamName, TailraceError]
    ) -> None:
        """Reply, and let the records come (rule 1). Lanes that are not wanted any more stay in `lanes`."""
        outcomes: dict[StreamName, session_.Opened | TailraceError] = {**errors}
        for wish in work.wishes:
            lane = lanes.get(wish.stream)
            if lane is not None and self._session.is_wanted(wish) and self._subscription.closing is None:
                outcomes[wish.stream] = session_.Opened(lane.position.cursor, lane.topic.position.cursor)
                self._subscription.put(lanes.pop(wish.stream))
                self._gate.watch(wish.stream)
        payload = self._session.opened(work, outcomes)
        if payload is not None:
            self._sink.say(payload)

    def _unread(self, action: session_.Unread | None) -> None:
        if action is None:
            return
        for stream in action.streams:
            self._subscription.remove(stream)
            self._gate.unwatch(stream)
        if action.payload is not None:
            self._sink.say(action.payload)

    async def _answer(self, action: session_.Append | session_.Renew | session_.Count) -> None:
        try:
            if isinstance(action, session_.Append):
                fields = await self._append(action)
            elif isinstance(action, session_.Renew):
                fields = {"expires_at": await self._gate.renew(action.token)}
            else:
                await self._gate.check_read(action.stream)
                fields = {"stream": action.stream, "readers": self._hub.readers(action.stream)}
        except TailraceError as error:
            self._sink.say(commands.error_reply(action.id, error))
            return
        if action.id is not None:
            self._sink.say(commands.reply(action.id, fields))

    async def _append(self, action: session_.Append) -> dict[str, Any]:
        async with self._order:
            # The log keeps the order of the calls, so the calls must be made in the order of the commands.
            await self._gate.check_write(action.stream)
            appending = asyncio.ensure_future(self._append_to_log(action.stream, action.events))
        answers = await appending
        return {
            "events": [
                {"id": str(answer.id), "stream": action.stream, "duplicate": answer.duplicate} for answer in answers
            ]
        }

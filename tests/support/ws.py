"""A whole gateway on a real server, and clients of its WebSockets and long-polls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tailrace.app import create_app
from tailrace.config import Settings
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log
from tailrace.eventlog.memory import MemoryLog
from tailrace.transports.rawhttp import EXTENSION
from tailrace.web.feature import Feature
from tailrace.web.gateway import Gateway
from tailrace.web.principal import Authorizer
from tests.support.serving import Serving, serving
from tests.support.tokens import SECRET, token
from tests.support.wait import deadline

__all__ = ["RUN", "Gate", "Wire", "gate", "publish", "unlent"]

RUN = StreamName.parse("run:1")
_OF_THE_SERVER = ("max_frame_bytes", "max_unsent_bytes", "send_buffer_bytes")


async def publish(log: Log, count: int, stream: str = RUN, *, size: int = 0, first: int = 1) -> list[str]:
    """Append numbered events and return their ids."""
    events = [Event("tick", {"n": n, "pad": "x" * size} if size else {"n": n}) for n in range(first, first + count)]
    return [str(each.id) for each in await log.append(StreamName.parse(stream), events)]


class Wire:
    """A WebSocket client that speaks JSON."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._next = 0

    async def get(self, seconds: float = 5.0) -> Any:
        """The next message that is no heartbeat."""
        async with deadline(seconds):
            while True:
                message = json.loads(await self.socket.recv())
                if message != {"control": "ping"}:
                    return message
                await self.socket.send('{"cmd":"pong"}')

    async def many(self, count: int, seconds: float = 10.0) -> list[Any]:
        """The next messages."""
        return [await self.get(seconds) for _ in range(count)]

    async def records(self, count: int, seconds: float = 10.0) -> list[Any]:
        """The next records; anything else between them is an error."""
        found = await self.many(count, seconds)
        assert all("data" in each for each in found), [each for each in found if "data" not in each]
        return found

    async def say(self, cmd: str, **fields: Any) -> int:
        """Send a command and return its id."""
        self._next += 1
        await self.socket.send(json.dumps({"cmd": cmd, "id": self._next, **fields}))
        return self._next

    async def ask(self, cmd: str, **fields: Any) -> Any:
        """Send a command and return its reply, which comes before anything else."""
        id_ = await self.say(cmd, **fields)
        reply = await self.get()
        assert reply.get("reply") == id_, reply
        return reply

    async def closed(self, seconds: float = 5.0) -> tuple[int, str]:
        """Read on to the end and return the close code and reason."""
        async with deadline(seconds):
            try:
                while True:
                    await self.socket.recv()
            except ConnectionClosed as closed:
                if closed.rcvd is None:
                    raise AssertionError("the connection was cut without a close frame") from closed
                return closed.rcvd.code, closed.rcvd.reason


class Gate:
    """A running gateway."""

    def __init__(self, server: Serving, gateway: Gateway, log: Log) -> None:
        self.server = server
        self.gateway = gateway
        self.log = log

    @property
    def port(self) -> int:
        return self.server.port

    def address(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}/api/v1{path}"

    @asynccontextmanager
    async def wire(
        self,
        path: str = "/ws",
        *,
        read: Sequence[str] = ("run:*", "user:*"),
        write: Sequence[str] = ("run:*",),
        jwt: str | None = None,
        opened: bool = True,
        **options: Any,
    ) -> AsyncIterator[Wire]:
        """A connection of alice; `opened`: its first message was read."""
        bearer = jwt if jwt is not None else token(read=list(read), write=list(write))
        headers = {"Authorization": f"Bearer {bearer}", **options.pop("headers", {})}
        async with connect(
            self.address(path), additional_headers=headers, ping_interval=None, compression=None, **options
        ) as socket:
            wire = Wire(socket)
            if opened:
                message = await wire.get()
                assert message["control"] == "open", message
            yield wire


@asynccontextmanager
async def gate(
    log: Log | None = None,
    *,
    authorizer: Authorizer | None = None,
    features: Sequence[Feature] | None = None,
    wrap: Callable[[Any], Any] | None = None,
    **given: Any,
) -> AsyncIterator[Gate]:
    """Serve a gateway; without a log, on one in memory. `wrap` puts something around the application."""
    settings = await asyncio.to_thread(lambda: Settings(**{"jwt_secret": SECRET, "runs_enabled": False, **given}))
    event_log: Any = log if log is not None else MemoryLog(kinds=settings.stream_kinds())
    app = create_app(settings, log=event_log, authorizer=authorizer, features=features)
    try:
        sizes = {
            name: given[name] for name in ("max_frame_bytes", "max_unsent_bytes", "send_buffer_bytes") if name in given
        }
        async with serving(wrap(app) if wrap is not None else app, **sizes) as running:
            yield Gate(running, app.state.gateway, event_log)
    finally:
        if log is None:
            await event_log.aclose()


def unlent(app: Any) -> Any:
    """The application as on any other server: nothing is lent."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        scope.get("extensions", {}).pop(EXTENSION, None)
        await app(scope, receive, send)

    return wrapped

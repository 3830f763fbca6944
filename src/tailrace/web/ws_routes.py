"""WebSocket routes: `/ws` for many streams, `/streams/{stream}/ws` for one (PROTOCOL.md §7).

Rules of this file
1. Who asks, from which page, and for what is decided before the connection is accepted. A page of a foreign origin
   gets a 403 and no connection.
2. A page cannot see the status of a refused handshake and would come back for ever. What it may know is therefore told
   on an accepted connection, by `refused` and a close code; a client without an Origin gets the HTTP problem.
3. The lease is given back by whoever took it.
4. Nothing that is logged later shows the token: it is taken out of the scope once it was read.
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from fastapi import APIRouter
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute

from tailrace.codes import CloseCode
from tailrace.core.codec import Limits
from tailrace.core.cursor import parse_resume
from tailrace.core.names import StreamName
from tailrace.errors import Forbidden, TailraceError
from tailrace.transports.websocket import StreamSocket, WsOptions, refuse
from tailrace.transports.ws_multiplexed import MultiplexedSocket
from tailrace.transports.ws_session import SessionOptions
from tailrace.transports.ws_sink import WsSinkOptions
from tailrace.web.auth import Identity, chosen_subprotocol
from tailrace.web.connections import Lease, new_nonce
from tailrace.web.feature import Asked
from tailrace.web.gateway import Gateway
from tailrace.web.params import boolean, choice, last_event_id
from tailrace.web.principal import Action
from tailrace.web.problems import problem
from tailrace.web.streams import append_counted

__all__ = ["StreamEndpoint", "ws_router"]

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Scope: TypeAlias = MutableMapping[str, Any]

_TOKEN = re.compile(rb"(?i)(sse_token|access_token|token)=[^&]*")
IDLE_HEARTBEATS = 4
"""A client that answered none of so many heartbeats is gone."""


def ws_router(gateway: Gateway) -> APIRouter:
    """`/ws` and `/streams/{stream}/ws`."""
    router = APIRouter()
    router.routes.append(WebSocketRoute("/ws", _Multiplexed(gateway), name="multiplexed_websocket"))
    router.routes.append(WebSocketRoute("/streams/{stream}/ws", StreamEndpoint(gateway), name="stream_websocket"))
    return router


class _Endpoint:
    """From the handshake to a leased connection, or a refusal."""

    transport = "websocket"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._options = _options(gateway)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = HTTPConnection(scope)
        nonce = new_nonce()
        try:
            identity = await self._identify(connection, nonce)
        except Forbidden as error:
            self._count_refusal(error)
            _redact(scope)
            await problem(connection, error)(scope, receive, send)
            return
        except TailraceError as error:
            await self._refuse(connection, error, scope, receive, send)
            return
        try:
            serve = await self._prepare(connection, identity, nonce)
        except TailraceError as error:
            await self._gateway.access.give_back(identity, nonce)
            await self._refuse(connection, error, scope, receive, send)
            return
        _redact(scope)
        await serve(receive, send)

    async def _identify(self, connection: HTTPConnection, nonce: str) -> Identity:
        return await self._gateway.access.identify(connection, holder=nonce)

    async def _prepare(
        self, connection: HTTPConnection, identity: Identity, nonce: str
    ) -> Callable[[Receive, Send], Awaitable[None]]:
        """Take the lease and make what serves the connection. Raises what refuses it."""
        raise NotImplementedError

    async def _admit(
        self, connection: HTTPConnection, identity: Identity, nonce: str, streams: Sequence[StreamName]
    ) -> Lease:
        return await self._gateway.connections.admit(
            connection, identity, nonce=nonce, transport=self.transport, streams=streams
        )

    async def _refuse(
        self, connection: HTTPConnection, error: TailraceError, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._count_refusal(error)
        _redact(scope)
        if "origin" not in connection.headers:
            await problem(connection, error)(scope, receive, send)
            return
        if (await receive())["type"] != "websocket.connect":
            return
        await send({"type": "websocket.accept", "subprotocol": chosen_subprotocol(connection), "headers": []})
        low, high = self._gateway.settings.retry_min_seconds, self._gateway.settings.retry_max_seconds
        retry_after = max(getattr(error, "retry_after", 0.0), low) + random.uniform(0, high - low)
        await refuse(send, error, retry_after=round(retry_after, 3), seconds=5.0)

    def _count_refusal(self, error: TailraceError) -> None:
        self._gateway.metrics.refused.labels(self.transport, error.code).inc()

    async def _serve_leased(
        self,
        lease: Lease,
        connection: HTTPConnection,
        socket: StreamSocket | MultiplexedSocket,
        receive: Receive,
        send: Send,
    ) -> None:
        metrics = self._gateway.metrics
        metrics.opened.labels(self.transport).inc()
        lease.begin(socket.close)
        code: CloseCode | None = None
        try:
            code = await socket.serve(connection.scope, receive, send, chosen_subprotocol(connection))
        finally:
            lease.release()
            metrics.closed.labels(self.transport, code.name if code is not None else "CLIENT").inc()


class _Multiplexed(_Endpoint):
    async def _prepare(
        self, connection: HTTPConnection, identity: Identity, nonce: str
    ) -> Callable[[Receive, Send], Awaitable[None]]:
        gateway = self._gateway
        hub = gateway.hub
        lease = await self._admit(connection, identity, nonce, ())
        gate = _LeaseGate(gateway, lease)

        async def serve(receive: Receive, send: Send) -> None:
            socket = MultiplexedSocket(hub, gateway.pulse, partial(append_counted, gateway), gate, self._options)
            lease.on_denied = socket.deny
            await self._serve_leased(lease, connection, socket, receive, send)

        return serve


class StreamEndpoint(_Endpoint):
    """Serves one stream. A feature may serve the streams of its kind in its own way."""

    def stream_of(self, connection: HTTPConnection) -> StreamName:
        """Which one. Raises what refuses it."""
        return StreamName.parse(connection.path_params["stream"])

    async def check(self, stream: StreamName) -> None:
        """Raise what else refuses a stream that the reader may read."""

    async def _prepare(
        self, connection: HTTPConnection, identity: Identity, nonce: str
    ) -> Callable[[Receive, Send], Awaitable[None]]:
        gateway = self._gateway
        stream = self.stream_of(connection)
        await gateway.access.require(identity.principal, Action.READ, stream)
        await self.check(stream)
        cursor, _ = last_event_id(connection, max_bytes=gateway.settings.max_cursor_bytes)
        resume = parse_resume(cursor)
        form = choice(connection, "format", ("envelope", "raw"))
        conflate = boolean(connection, "conflate", default=False)
        compact = boolean(connection, "compact", default=False)
        socket = self._socket(Asked(stream, resume, form, conflate, compact))
        lease = await self._admit(connection, identity, nonce, (stream,))

        async def serve(receive: Receive, send: Send) -> None:
            await self._serve_leased(lease, connection, socket, receive, send)

        return serve

    def _socket(self, asked: Asked) -> StreamSocket:
        gateway = self._gateway
        for feature in gateway.features:
            socket = feature.socket(gateway, self._options, asked)
            if socket is not None:
                return socket
        return StreamSocket(
            gateway.hub,
            gateway.pulse,
            self._options,
            asked.stream,
            asked.resume,
            format=asked.format or gateway.kinds.of(asked.stream).format,
            conflate=asked.conflate,
            compact=asked.compact,
        )


class _LeaseGate:
    """What a connection's user may do, asked of the same authorizer as everything else."""

    def __init__(self, gateway: Gateway, lease: Lease) -> None:
        self._access = gateway.access
        self._lease = lease

    async def check_read(self, stream: StreamName) -> None:
        """See `Gate`."""
        await self._access.require(self._lease.principal, Action.READ, stream)

    async def check_write(self, stream: StreamName) -> None:
        """See `Gate`."""
        await self._access.require(self._lease.principal, Action.WRITE, stream)

    async def renew(self, token: str) -> float | None:
        """See `Gate`."""
        self._lease.principal = await self._access.renew(self._lease.principal, token)
        return self._lease.expires_at

    def watch(self, stream: StreamName) -> None:
        """See `Gate`."""
        self._lease.watch(stream)

    def unwatch(self, stream: StreamName) -> None:
        """See `Gate`."""
        self._lease.unwatch(stream)


def _options(gateway: Gateway) -> WsOptions:
    settings = gateway.settings
    return WsOptions(
        session=SessionOptions(
            max_streams=settings.max_streams_per_websocket,
            commands_per_minute=settings.commands_per_minute,
            idle_seconds=IDLE_HEARTBEATS * settings.heartbeat_seconds,
            limits=Limits(
                max_events=settings.max_batch_events,
                max_body_bytes=settings.max_batch_bytes,
                max_event_bytes=settings.max_event_bytes,
                max_depth=settings.max_json_depth,
            ),
        ),
        sink=WsSinkOptions(unsent_bytes=settings.max_unsent_bytes, stuck_seconds=settings.stall_seconds),
        message_bytes=settings.max_frame_bytes,
        retry_seconds=(settings.retry_min_seconds, settings.retry_max_seconds),
    )


def _redact(scope: Scope) -> None:
    """Servers log a WebSocket's address when they answer it, out of this very scope."""
    scope["query_string"] = _TOKEN.sub(rb"\1=-", scope.get("query_string", b""))

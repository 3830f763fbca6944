"""Routes that follow streams: SSE, and the same streams by page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tailrace.core.cursor import Special
from tailrace.core.names import StreamName
from tailrace.errors import InvalidCursor, TailraceError
from tailrace.transports.sse import HEADERS, SseOptions, SseResponse, open_sse
from tailrace.web import openapi
from tailrace.web.auth import Identity
from tailrace.web.connections import Barred, Lease, new_nonce
from tailrace.web.gateway import Gateway
from tailrace.web.history import read_merged
from tailrace.web.params import boolean, choice, integer, last_event_id, one, resume_of, stream_list
from tailrace.web.principal import SYSTEM, Action, Principal
from tailrace.web.problems import ProblemRoute, accepts_event_stream
from tailrace.web.streams import json_response

__all__ = ["follow", "live_router", "own_streams"]


def own_streams(principal: Principal) -> list[StreamName]:
    """What a reader is given that names no stream."""
    return [principal.own_stream, SYSTEM]


def live_router(gateway: Gateway) -> APIRouter:
    """`/events/stream`, `/streams/{stream}/events/stream`, `/events/history`."""
    router = APIRouter(route_class=ProblemRoute, tags=["live"])
    access, settings = gateway.access, gateway.settings

    @router.head("/events/stream", include_in_schema=False)
    @router.get(
        "/events/stream",
        summary="Follow several streams (SSE)",
        response_class=Response,
        responses={**openapi.SSE, **openapi.problems(400, 401, 403, 429, 503)},
        openapi_extra={"parameters": [openapi.STREAMS, *openapi.SSE_PARAMETERS]},
    )
    async def follow_streams(request: Request) -> Response:
        """Server-Sent Events of up to 32 streams, from where the reader was, without a loss or with a gap."""
        return await follow(request, gateway, stream_list(request, most=settings.max_streams_per_sse))

    @router.head("/streams/{stream}/events/stream", include_in_schema=False)
    @router.get(
        "/streams/{stream}/events/stream",
        summary="Follow one stream (SSE)",
        response_class=Response,
        responses={**openapi.SSE, **openapi.problems(400, 401, 403, 429, 503)},
        openapi_extra={"parameters": openapi.SSE_PARAMETERS},
    )
    async def follow_stream(request: Request, stream: str) -> Response:
        """Server-Sent Events of one stream; the cursor is the record's id."""
        return await follow(request, gateway, [StreamName.parse(stream)])

    @router.get(
        "/events/history",
        summary="History of several streams",
        response_class=Response,
        responses={**openapi.HISTORY, **openapi.problems(400, 401, 403, 503)},
        openapi_extra={
            "parameters": [
                openapi.STREAMS,
                openapi.parameter("since_id", "A cursor that was given out, `0`, or a time in ms."),
                openapi.HISTORY_PARAMETERS[3],
            ]
        },
    )
    async def merged_history(request: Request) -> Response:
        """The same streams by page, merged by (ms, name). `cursor` is where to go on, by page or live."""
        principal = await access.principal(request)
        streams = stream_list(request, most=settings.max_streams_per_sse) or own_streams(principal)
        await access.require(principal, Action.READ, *streams)
        resume = resume_of(one(request, "since_id") or "0", streams)
        if Special.NOW in resume.values():
            raise InvalidCursor("history has nothing after $; since_id is a cursor, 0, or a time in milliseconds")
        limit = integer(request, "limit", settings.page_limit, low=1, high=1_000)
        page = await read_merged(gateway.log, resume, limit=limit, max_bytes=settings.max_page_bytes)
        return json_response(page.encode())

    return router


async def follow(
    request: Request, gateway: Gateway, streams: list[StreamName], check: Callable[[], Awaitable[None]] | None = None
) -> Response:
    """Open a connection that follows streams, or say why not (PROTOCOL.md §6.7).

    Args:
        request: the client's.
        gateway: whose hub.
        streams: which; none: the reader's own.
        check: raises what else refuses, once it is known that the reader may read them.
    """
    nonce = new_nonce()
    identity: Identity | None = None
    try:
        # Who asks with HEAD reads nothing: it takes no seat, and no short token from the connection that has it.
        identity = await gateway.access.identify(request, holder=None if request.method == "HEAD" else nonce)
        streams = streams or own_streams(identity.principal)
        await gateway.access.require(identity.principal, Action.READ, *streams)
        if check is not None:
            await check()
        return await _open(request, gateway, identity, nonce, streams)
    except TailraceError as error:
        gateway.metrics.refused.labels("sse", error.code).inc()
        if identity is not None:
            await gateway.access.give_back(identity, nonce)
        if isinstance(error, Barred) and accepts_event_stream(request):
            return _stay_away()
        raise


async def _open(
    request: Request, gateway: Gateway, identity: Identity, nonce: str, streams: list[StreamName]
) -> Response:
    cursor, from_header = last_event_id(request, max_bytes=gateway.settings.max_cursor_bytes)
    resume = resume_of(cursor, streams)
    options = _options(request, gateway, streams)
    if request.method == "HEAD":
        return Response(headers={name.decode(): value.decode() for name, value in HEADERS})
    hub = gateway.hub
    lease = await gateway.connections.admit(request, identity, nonce=nonce, transport="sse", streams=streams)
    try:
        response = await open_sse(hub, resume, options, gateway.pulse)
    except BaseException:
        lease.release()
        raise
    if from_header and response.finished:
        # Only the header proves that an EventSource was here before and has read all of it.
        response.discard()
        lease.release()
        return _stay_away()
    lease.on_forgotten = response.discard
    return _LeasedResponse(gateway, lease, response)


def _stay_away() -> Response:
    """What ends an EventSource for good. By itself a 204 may be cached."""
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _options(connection: HTTPConnection, gateway: Gateway, streams: list[StreamName]) -> SseOptions:
    settings = gateway.settings
    formats = {gateway.kinds.of(stream).format for stream in streams}
    default = formats.pop() if len(formats) == 1 else "envelope"
    return SseOptions(
        format=choice(connection, "format", ("envelope", "raw")) or default,
        named=boolean(connection, "named", default=True),
        conflate=boolean(connection, "conflate", default=False),
        compact=boolean(connection, "compact", default=False),
        retry_seconds=(settings.retry_min_seconds, settings.retry_max_seconds),
        stuck_seconds=settings.stall_seconds,
        unsent_bytes=settings.max_unsent_bytes,
    )


class _LeasedResponse(Response):
    """The SSE response together with the connection's lease."""

    def __init__(self, gateway: Gateway, lease: Lease, inner: SseResponse) -> None:
        self.background = None
        self.status_code = 200
        self.raw_headers = []
        self.body = b""
        self._gateway = gateway
        self._lease = lease
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        metrics = self._gateway.metrics
        metrics.opened.labels("sse").inc()
        self._lease.begin(self._inner.subscription.close)
        inner: Any = self._inner
        try:
            await inner(scope, receive, send)
        finally:
            self._lease.release()
            code = self._inner.ended
            metrics.closed.labels("sse", code.name if code is not None else "CLIENT").inc()

"""A run's events on every transport: what `/streams/run:{id}` does, and what only a run knows.

Rules of this file
1. A stream without a row (`tailrace exec`, older programs) is read as any other; where neither is there, 404.
2. 410 only when the run ended, its end was in the log, and the log does not have it any more. A run that ended without
   a word in the log yet is empty; a running one whose stream is gone is a gap.
3. While the database is away, what was known of a run will do: for its readers, and for its producer, whose epoch the
   log checks: it refuses smaller ones. A larger one than was known has to be in SQL.
"""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import BaseRoute, WebSocketRoute

from tailrace.core.event import StreamState
from tailrace.core.names import StreamName
from tailrace.errors import Fenced, LogError, RunEnded, RunExpired, RunNotFound
from tailrace.features.runs.model import run_stream
from tailrace.features.runs.owners import RecentRuns
from tailrace.features.runs.schemas import answer
from tailrace.web import openapi
from tailrace.web.gateway import Gateway
from tailrace.web.live import follow
from tailrace.web.params import integer, one
from tailrace.web.principal import Action
from tailrace.web.problems import ProblemRoute
from tailrace.web.streams import history_of, publish_to
from tailrace.web.ws_routes import StreamEndpoint

__all__ = ["event_routes"]

_GONE = frozenset({StreamState.MISSING, StreamState.EXPIRED, StreamState.DELETED})
MAX_EPOCH = 2**31 - 1


def event_routes(gateway: Gateway, recent: RecentRuns) -> list[BaseRoute]:
    """`/runs/{id}/events`, `…/events/stream`, `/runs/{id}/ws`."""
    router = APIRouter(route_class=ProblemRoute, tags=["runs"])
    access = gateway.access
    readable = partial(_check_readable, gateway, recent)

    @router.head("/runs/{run_id}/events/stream", include_in_schema=False)
    @router.get(
        "/runs/{run_id}/events/stream",
        summary="Follow a run (SSE)",
        response_class=Response,
        responses={**openapi.SSE, **openapi.problems(400, 401, 403, 404, 410, 429, 503)},
        openapi_extra={"parameters": openapi.SSE_PARAMETERS},
    )
    async def stream_events(request: Request, run_id: str) -> Response:
        """Server-Sent Events from the first one on, or from where the reader was, to the run's end."""
        stream = run_stream(run_id)
        return await follow(request, gateway, [stream], partial(readable, stream))

    @router.get(
        "/runs/{run_id}/events",
        summary="A run's events",
        response_class=Response,
        responses={**answer("EventListResponse"), **openapi.problems(400, 401, 403, 404, 410, 503)},
        openapi_extra={"parameters": openapi.HISTORY_PARAMETERS},
    )
    async def list_events(request: Request, run_id: str) -> Response:
        """By page, also after its end, for as long as they are kept."""
        stream = run_stream(run_id)
        await access.require(await access.principal(request), Action.READ, stream)
        await readable(stream)
        return await history_of(request, gateway, stream, format=gateway.kinds.of(stream).format)

    @router.post(
        "/runs/{run_id}/events",
        status_code=201,
        summary="Publish events of a run",
        response_class=Response,
        responses={**openapi.PUBLISHED, **openapi.problems(400, 401, 403, 404, 408, 409, 413, 415, 503)},
        openapi_extra={
            "requestBody": openapi.EVENTS_BODY,
            "parameters": [openapi.parameter("epoch", "The claim's: 409 FENCED for all but the last producer.")],
        },
    )
    async def add_events(request: Request, run_id: str) -> Response:
        """As publishing to its stream; after the run's end it is 409."""
        stream = run_stream(run_id)
        await access.require(await access.principal(request), Action.WRITE, stream)
        epoch = integer(request, "epoch", 0, low=1, high=MAX_EPOCH) if one(request, "epoch") is not None else None
        run = await recent.find(run_id, stale=epoch is not None)
        if run is not None and epoch is not None and epoch > run.owner_epoch:
            # What was known may be older than the claim. One that SQL never gave would fence the run's producer out.
            run = await recent.find(run_id, fresh=True)
        if run is None:
            raise RunNotFound("there is no such run")
        if epoch is not None and epoch > run.owner_epoch:
            raise Fenced("no claim of this run has this epoch", epoch=run.owner_epoch)
        # Who claimed it may still have events on their way when it ended; the log knows when it was sealed.
        if run.status.ended and (epoch is None or run.sealed):
            raise RunEnded(f"the run has ended: {run.status}", run_status=run.status.value)
        return await publish_to(request, gateway, stream, owner_epoch=epoch)

    return [*router.routes, WebSocketRoute("/runs/{run_id}/ws", _RunEndpoint(gateway, recent), name="run_ws")]


class _RunEndpoint(StreamEndpoint):
    """`WS /runs/{id}/ws`."""

    def __init__(self, gateway: Gateway, recent: RecentRuns) -> None:
        super().__init__(gateway)
        self._readable = partial(_check_readable, gateway, recent)

    def stream_of(self, connection: HTTPConnection) -> StreamName:
        return run_stream(connection.path_params["run_id"])

    async def check(self, stream: StreamName) -> None:
        await self._readable(stream)


async def _check_readable(gateway: Gateway, recent: RecentRuns, stream: StreamName) -> None:
    """Raises: RunNotFound, RunExpired, DatabaseUnavailable."""
    run = await recent.find(stream.name, stale=True)
    if run is not None and run.status.ended and not run.sealed:
        # The seal is put on a moment after the end.
        run = await recent.find(stream.name, stale=True, fresh=True)
    if run is not None and not run.sealed:
        return
    try:
        head = (await gateway.log.heads([stream]))[stream]
    except LogError:
        # The hub may still hold the stream's end; reading says itself when the log is away.
        return
    if run is None and head.state is StreamState.MISSING:
        raise RunNotFound("there is no such run")
    if run is not None and head.state in _GONE:
        raise RunExpired("the run is finished and its events are gone", run_status=run.status.value)

"""Routes of one stream: publish, history, info, close, delete."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from tailrace.core.codec import Limits, check_trace, decode_events
from tailrace.core.event import Event, StreamState
from tailrace.core.names import StreamName
from tailrace.errors import LogError, Malformed, NotFound, RequestError
from tailrace.eventlog.base import Appended
from tailrace.web import openapi
from tailrace.web.gateway import Gateway
from tailrace.web.history import HistoryQuery, read_history
from tailrace.web.params import boolean, choice, integer, range_id, read_body, since_id, type_list
from tailrace.web.principal import Action
from tailrace.web.problems import ProblemRoute

__all__ = ["append_counted", "history_of", "json_response", "publish_to", "streams_router"]

MAX_KEY_CHARACTERS = 128


def json_response(body: object, status: int = 200) -> Response:
    """A JSON answer that no cache keeps."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body, enc_hook=str)
    return Response(content, status_code=status, media_type="application/json", headers={"Cache-Control": "no-store"})


def streams_router(gateway: Gateway) -> APIRouter:
    """`/streams/{stream}` and what is below it, without the live parts."""
    router = APIRouter(route_class=ProblemRoute, tags=["streams"])
    access = gateway.access

    @router.post(
        "/streams/{stream}/events",
        status_code=201,
        summary="Publish",
        response_class=Response,
        responses={**openapi.PUBLISHED, **openapi.problems(400, 401, 403, 408, 409, 413, 415, 503)},
        openapi_extra={
            "requestBody": openapi.EVENTS_BODY,
            "parameters": [
                openapi.parameter("Idempotency-Key", "Makes a repeated request store nothing twice.", where="header")
            ],
        },
    )
    async def publish(request: Request, stream: str) -> Response:
        """Append one event, a JSON array of events, or one event per line (NDJSON): all or none.

        201 means that they are in the log. On 503 `LOG_UNAVAILABLE` nothing was stored; on 503 `OUTCOME_UNKNOWN` send
        the same request again with the same `uid` or `Idempotency-Key`.
        """
        name = StreamName.parse(stream)
        await access.require(await access.principal(request), Action.WRITE, name)
        return await publish_to(request, gateway, name)

    @router.get(
        "/streams/{stream}/events",
        summary="History",
        response_class=Response,
        responses={**openapi.HISTORY, **openapi.problems(400, 401, 403, 503)},
        openapi_extra={"parameters": openapi.HISTORY_PARAMETERS},
    )
    async def history(request: Request, stream: str) -> Response:
        """What the log holds, by page. `next_id` is the next page's `start_id`, with `order=desc` its `end_id`."""
        name = StreamName.parse(stream)
        await access.require(await access.principal(request), Action.READ, name)
        return await history_of(request, gateway, name)

    @router.get(
        "/streams/{stream}",
        summary="Info",
        response_class=Response,
        responses={**openapi.INFO, **openapi.problems(400, 401, 403, 404, 503)},
    )
    async def info(request: Request, stream: str) -> Response:
        """Length, ends, state and time to live."""
        name = StreamName.parse(stream)
        await access.require(await access.principal(request), Action.READ, name)
        found = await gateway.log.info(name)
        if found.state is StreamState.MISSING:
            raise NotFound("there is no such stream")
        body = msgspec.structs.asdict(found)
        body["ttl"] = body.pop("ttl_seconds")
        for end in ("first_id", "last_id"):
            body[end] = str(body[end]) if body[end] is not None else None
        return json_response(body)

    @router.post(
        "/streams/{stream}/close",
        summary="End a stream",
        response_class=Response,
        responses={**openapi.CLOSED, **openapi.problems(400, 401, 403, 404, 503)},
    )
    async def close(request: Request, stream: str) -> Response:
        """No more appends; readers are told when they have all of it. Closing twice is the same as once."""
        name = StreamName.parse(stream)
        await access.require(await access.principal(request), Action.CLOSE, name)
        head = await gateway.log.close(name)
        return json_response({"stream": name, "state": head.state.value, "last_id": str(head.id)})

    @router.delete(
        "/streams/{stream}",
        status_code=204,
        summary="Delete a stream",
        response_class=Response,
        responses=openapi.problems(400, 401, 403, 404, 503),
    )
    async def delete(request: Request, stream: str) -> Response:
        """Delete the entries. Readers get a gap; ids of a later stream of this name are larger."""
        name = StreamName.parse(stream)
        await access.require(await access.principal(request), Action.DELETE, name)
        if not await gateway.log.delete(name):
            raise NotFound("there is no such stream")
        return Response(status_code=204)

    return router


async def publish_to(
    request: Request, gateway: Gateway, stream: StreamName, *, owner_epoch: int | None = None
) -> Response:
    """Append a request's events to a stream that its sender may write. Raises: as `Log.append`."""
    events = await _read_events(request, gateway, stream)
    stored = await append_counted(gateway, stream, events, owner_epoch=owner_epoch)
    return json_response(
        {"events": [{"id": str(each.id), "stream": stream, "duplicate": each.duplicate} for each in stored]}, 201
    )


async def history_of(request: Request, gateway: Gateway, stream: StreamName, *, format: str = "envelope") -> Response:  # noqa: A002 - the parameter's name
    """A page of a stream that the request's sender may read, in `format` unless the request says another."""
    page = await read_history(gateway.log, stream, _history_query(request, gateway))
    return json_response(page.encode(choice(request, "format", ("envelope", "raw")) or format))


async def _read_events(request: Request, gateway: Gateway, stream: StreamName) -> list[Event]:
    settings = gateway.settings
    limits = Limits(
        max_events=settings.max_batch_events,
        max_body_bytes=settings.max_batch_bytes,
        max_event_bytes=gateway.kinds.of(stream).max_event_bytes,
        max_depth=settings.max_json_depth,
    )
    content_type = request.headers.get("content-type", "")
    body = await read_body(request, max_bytes=settings.max_batch_bytes, seconds=settings.body_timeout_seconds)
    events = decode_events(body, content_type, limits)
    return _traced(request, _keyed(request, events))


def _keyed(request: Request, events: list[Event]) -> list[Event]:
    """Name the events by the request's Idempotency-Key."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return events
    key = keys[0].strip().strip('"')
    if len(keys) > 1 or not 1 <= len(key) <= MAX_KEY_CHARACTERS or not (key.isascii() and key.isprintable()):
        raise Malformed(
            f"Idempotency-Key is 1-{MAX_KEY_CHARACTERS} printable ASCII characters", field="Idempotency-Key"
        )
    if any(event.uid is not None for event in events):
        raise Malformed("send an Idempotency-Key or uids, not both", field="Idempotency-Key")
    if len(events) == 1:
        return [msgspec.structs.replace(events[0], uid=key)]
    return [msgspec.structs.replace(event, uid=f"{key}#{index}") for index, event in enumerate(events)]


def _traced(request: Request, events: list[Event]) -> list[Event]:
    """Carry the request's `traceparent` on events that have none; an unreadable one is nobody's error but a proxy's."""
    trace = request.headers.get("traceparent")
    if trace is None:
        return events
    try:
        check_trace(trace)
    except RequestError:
        return events
    return [event if event.trace is not None else msgspec.structs.replace(event, trace=trace) for event in events]


async def append_counted(
    gateway: Gateway, stream: StreamName, events: Sequence[Event], *, owner_epoch: int | None = None
) -> list[Appended]:
    """Append for a client, and count what became of it. Raises: as `Log.append`."""
    metrics = gateway.metrics
    kind = stream.kind if stream.kind in gateway.kinds else "other"
    begun = time.perf_counter()
    try:
        stored = await gateway.log.append(stream, events, owner_epoch=owner_epoch)
    except LogError as error:
        metrics.published.labels(kind, error.code).inc(len(events))
        raise
    metrics.publish_seconds.observe(time.perf_counter() - begun)
    duplicates = sum(each.duplicate for each in stored)
    metrics.published.labels(kind, "stored").inc(len(stored) - duplicates)
    metrics.published.labels(kind, "duplicate").inc(duplicates)
    return stored


def _history_query(request: Request, gateway: Gateway) -> HistoryQuery:
    settings = gateway.settings
    start, end, since = range_id(request, "start_id"), range_id(request, "end_id"), since_id(request)
    if start is not None and since is not None:
        raise Malformed("send start_id or since_id, not both", field="since_id")
    return HistoryQuery(
        start=start,
        end=end,
        since=since,
        limit=integer(request, "limit", settings.page_limit, low=1, high=1_000),
        newest_first=choice(request, "order", ("asc", "desc")) == "desc",
        types=type_list(request),
        compact=boolean(request, "compact", default=False),
        max_bytes=settings.max_page_bytes,
    )

"""Long-poll: `/events/poll`, for networks that break both SSE and WebSocket (PROTOCOL.md §7)."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from tailrace.errors import Malformed, TailraceError
from tailrace.transports.poll import PollAnswer, PollOptions, poll
from tailrace.web import openapi
from tailrace.web.connections import new_nonce
from tailrace.web.gateway import Gateway
from tailrace.web.live import own_streams
from tailrace.web.params import choice, integer, one, resume_of, stream_list
from tailrace.web.principal import Action
from tailrace.web.problems import ProblemRoute
from tailrace.web.streams import json_response

__all__ = ["poll_router"]

DEFAULT_SECONDS = 25.0
MAX_EVENTS = 1_000

_PARAMETERS = [
    openapi.STREAMS,
    openapi.parameter("cursor", "The last answer's `cursor`; an id, `0`, `$`, a time in ms. Without one: at once."),
    openapi.parameter(
        "timeout", "Seconds to wait for news.", {"type": "number", "minimum": 0, "default": DEFAULT_SECONDS}
    ),
    openapi.parameter("limit", "Most events of an answer.", {"type": "integer", "minimum": 1, "maximum": MAX_EVENTS}),
    openapi.parameter("format", "How records are given.", {"type": "string", "enum": ["envelope", "raw"]}),
    openapi.parameter("connection", "The client's own name for this connection, kept over polls."),
    openapi.parameter("sse_token", "A short token, for clients that cannot send headers."),
]
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "News, or none within the time; poll on from `cursor` unless `closed` says otherwise.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["events", "cursor", "gap", "gaps", "ended", "closed"],
                    "properties": {
                        "events": {"type": "array", "items": {"type": "object"}},
                        "cursor": {"type": "string"},
                        "gap": {"type": ["object", "null"]},
                        "gaps": {"type": "array", "items": {"type": "object"}},
                        "ended": {"type": "array", "items": {"type": "object"}},
                        "closed": {"type": ["object", "null"]},
                    },
                },
                "example": {
                    "events": [],
                    "cursor": "1767225600000-1",
                    "gap": None,
                    "gaps": [],
                    "ended": [],
                    "closed": None,
                },
            }
        },
    }
}


def poll_router(gateway: Gateway) -> APIRouter:
    """`/events/poll`."""
    router = APIRouter(route_class=ProblemRoute, tags=["live"])

    @router.get(
        "/events/poll",
        summary="Wait for news (long-poll)",
        response_class=Response,
        responses={**_ANSWER, **openapi.problems(400, 401, 403, 429, 503)},
        openapi_extra={"parameters": _PARAMETERS},
    )
    async def poll_events(request: Request) -> Response:
        """What came after `cursor`, at once when there is something, else within `timeout`.

        Poll again with the answer's `cursor`: nothing is lost between two polls, nothing comes twice.
        """
        try:
            return await _poll(request, gateway)
        except TailraceError as error:
            gateway.metrics.refused.labels("poll", error.code).inc()
            raise

    return router


async def _poll(request: Request, gateway: Gateway) -> Response:
    nonce = new_nonce()
    settings, access = gateway.settings, gateway.access
    identity = await access.identify(request, holder=nonce)
    try:
        streams = stream_list(request, most=settings.max_streams_per_sse) or own_streams(identity.principal)
        await access.require(identity.principal, Action.READ, *streams)
        resume = resume_of(one(request, "cursor") or "", streams)
        formats = {gateway.kinds.of(stream).format for stream in streams}
        default = formats.pop() if len(formats) == 1 else "envelope"
        options = PollOptions(
            timeout_seconds=_timeout(request, gateway),
            max_events=integer(request, "limit", MAX_EVENTS, low=1, high=MAX_EVENTS),
            max_bytes=settings.max_page_bytes,
            format=choice(request, "format", ("envelope", "raw")) or default,
        )
        hub = gateway.hub
        lease = await gateway.connections.admit(request, identity, nonce=nonce, transport="poll", streams=streams)
    except TailraceError:
        await access.give_back(identity, nonce)
        raise
    lease.begin()
    gateway.metrics.opened.labels("poll").inc()
    answer: PollAnswer | None = None
    try:
        answer = await poll(hub, resume, options, leaving=_left(request), guards=(lease.wait_ended,))
    finally:
        lease.release()
        gateway.metrics.closed.labels("poll", _outcome(answer)).inc()
    if answer is None:
        return Response(status_code=204)
    return json_response(answer.encode())


def _outcome(answer: PollAnswer | None) -> str:
    if answer is None:
        return "CLIENT"
    return answer.closed.name if answer.closed is not None else "ANSWERED"


def _timeout(request: Request, gateway: Gateway) -> float:
    """`timeout=` in seconds; more than the server waits is cut to that, as the client cannot know it."""
    text = one(request, "timeout")
    most = gateway.settings.max_poll_seconds
    if text is None:
        return min(DEFAULT_SECONDS, most)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3_600:
        raise Malformed("timeout is a number of seconds, 0 or more", field="timeout")
    return min(seconds, most)


async def _left(request: Request) -> None:
    """Wait until the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass

"""Routes for load balancers and operators: liveness, readiness, health, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

import tailrace
from tailrace.errors import TailraceError
from tailrace.observe import METRICS_CONTENT_TYPE
from tailrace.web.gateway import Gateway
from tailrace.web.openapi import problems
from tailrace.web.params import choice
from tailrace.web.problems import ProblemRoute
from tailrace.web.streams import json_response

__all__ = ["health_router", "status_router"]


def status_router(gateway: Gateway) -> APIRouter:
    """`/healthz`, `/readyz`, `/metrics`: at the root, whatever the prefix."""
    router = APIRouter(route_class=ProblemRoute, tags=["health"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="Alive", response_class=Response, responses={503: {"description": "A defect."}})
    async def healthz() -> Response:
        """503 only when this process cannot recover by itself: a worker has ended by a defect."""
        if gateway.failed is not None:
            return json_response({"status": "failed", "worker": gateway.failed}, 503)
        return json_response({"status": "ok"})

    @router.head("/readyz", include_in_schema=False)
    @router.get(
        "/readyz",
        summary="Ready",
        response_class=Response,
        responses={503: {"description": "Not ready; the body says why."}, **problems(400)},
        openapi_extra={
            "parameters": [
                {
                    "name": "degraded",
                    "in": "query",
                    "description": "`ok`: stay ready while only the log is away, since readers stay served.",
                    "schema": {"type": "string", "enum": ["ok"]},
                }
            ]
        },
    )
    async def readyz(request: Request) -> Response:
        """Follows a real event through log and hub, once a second; on a server without Streams, through Pub/Sub."""
        degraded_ok = choice(request, "degraded", ("ok",)) == "ok"
        status = _status(gateway)
        standing = _without_log(gateway)
        ready = status == "ready" or (status == "degraded" and (degraded_ok or bool(standing)))
        body: dict[str, Any] = {"status": status, "log": gateway.probe.reason}
        if status == "degraded" and standing:
            body["without_log"] = standing
        if gateway.failed is not None:
            body["worker"] = gateway.failed
        return json_response(body, 200 if ready else 503)

    if gateway.settings.metrics_enabled:

        @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
        async def metrics() -> Response:
            """The exposition format of this process."""
            _measure(gateway)
            return Response(
                gateway.metrics.render(), headers={"Content-Type": METRICS_CONTENT_TYPE, "Cache-Control": "no-store"}
            )

    return router


def health_router(gateway: Gateway) -> APIRouter:
    """`/events/health`, below the prefix."""
    router = APIRouter(route_class=ProblemRoute, tags=["health"])

    @router.get("/events/health", summary="Health of the event service", response_class=Response)
    async def health() -> Response:
        """What a client may know: whether the log answers, and how busy this process is."""
        seconds = gateway.probe.seconds
        return json_response(
            {
                "status": _status(gateway),
                "version": tailrace.__version__,
                "connections": len(gateway.connections),
                "by_transport": gateway.connections.count_by_transport(),
                "probe_seconds": round(seconds, 6) if seconds is not None else None,
            }
        )

    return router


def _status(gateway: Gateway) -> str:
    if gateway.failed is not None:
        return "failed"
    if gateway.draining:
        return "draining"
    if gateway.probe.healthy:
        return "ready"
    return "starting" if gateway.probe.seconds is None and not _without_log(gateway) else "degraded"


def _without_log(gateway: Gateway) -> dict[str, Any]:
    """What is served although this server has no log, and never will: its features' facts."""
    facts = {feature.name: feature.without_log() for feature in gateway.features}
    return {name: dict(found) for name, found in facts.items() if found is not None}


def _measure(gateway: Gateway) -> None:
    """Bring the gauges up to date; they are read far less often than they change."""
    metrics = gateway.metrics
    counts = gateway.connections.count_by_transport()
    for transport in ("sse", "websocket", "poll"):
        metrics.connections.labels(transport).set(counts.get(transport, 0))
    try:
        statistics = gateway.hub.statistics()
    except TailraceError:
        return
    metrics.topics.set(statistics.topics)
    metrics.subscriptions.set(statistics.subscriptions)
    metrics.live_lanes.set(statistics.live_lanes)
    metrics.replaying_lanes.set(statistics.lanes - statistics.live_lanes)
    metrics.heals.set(statistics.heals)

"""What surrounds every request of an application of our own: host, CORS, security headers, metrics, defects.

Rules of this file
1. Messages of a response pass unchanged but for headers of its start: a live response writes raw behind them.
2. An allowed origin is a listed one, echoed as it is listed; `*` and credentials are never sent. Cookies count for
   our own origin only, so no foreign page ever needs them.
"""

from __future__ import annotations

import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.errors import Forbidden, Malformed
from tailrace.observe import Metrics
from tailrace.web.origin import OriginPolicy
from tailrace.web.problems import answer_defect, problem

__all__ = ["Shell"]

log = logging.getLogger("tailrace.web")

_METHODS = "GET, HEAD, POST, PUT, DELETE"
_HEADERS = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Traceparent, Cache-Control"
_EXPOSED = "Retry-After, ETag"
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Shell:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, origins: OriginPolicy, metrics: Metrics, *, cors: bool) -> None:
        self._app = app
        self._origins = origins
        self._metrics = metrics
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "websocket" and not self._origins.host_is_ours(HTTPConnection(scope)):
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        origin = connection.headers.get("origin")
        listed = origin if origin is not None and self._cors and self._origins.is_listed(origin) else None
        begun = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._dress(MutableHeaders(scope=message), listed)
            await send(message)

        try:
            early = self._answer_early(connection, listed)
            await (early if early is not None else self._app)(scope, receive, sending)
        except Exception:
            log.exception("a request met a defect", extra={"route": _route(scope)})
            if status:
                raise
            await answer_defect(connection)(scope, receive, sending)
        finally:
            self._count(scope, status, time.perf_counter() - begun)

    def _answer_early(self, connection: HTTPConnection, listed: str | None) -> Response | None:
        if not self._origins.host_is_ours(connection):
            return problem(connection, Malformed("this host is not served here"))
        wanted = connection.headers.get("access-control-request-method")
        if connection.scope["method"] != "OPTIONS" or wanted is None or "origin" not in connection.headers:
            return None
        if listed is None:
            return problem(connection, Forbidden("pages of this origin may not call this API"))
        return Response(
            status_code=204,
            headers={
                "Access-Control-Allow-Methods": _METHODS,
                "Access-Control-Allow-Headers": _HEADERS,
                "Access-Control-Max-Age": "600",
            },
        )

    def _dress(self, headers: MutableHeaders, listed: str | None) -> None:
        for name, value in _SECURITY.items():
            headers.setdefault(name, value)
        if self._cors:
            headers.add_vary_header("Origin")
        if listed is not None:
            headers["Access-Control-Allow-Origin"] = listed
            headers["Access-Control-Expose-Headers"] = _EXPOSED

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS") else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        if not route.endswith(("/stream", "/poll")):
            self._metrics.request_seconds.labels(route).observe(seconds)


def _route(scope: Scope) -> str:
    """The route's pattern; a path is the client's and would make labels without end."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "other"

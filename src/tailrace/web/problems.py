"""Errors on the wire: RFC 9457 problems, and what an EventSource is told instead (PROTOCOL.md §8, §6.7).

Rules of this file
1. A problem holds what its error says, and nothing of the request but its path.
2. An EventSource never comes back after an error status: what may succeed later is answered 200 with
   `stream.refused` and a reconnection delay. An error status means: never with this URL.
3. What nobody foresaw is a 500 without detail; the detail is in the log.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from tailrace.codes import CloseCode
from tailrace.core import frames
from tailrace.errors import Malformed, RequestTimeout, TailraceError, TooLarge, Unauthorized, UsageError

__all__ = [
    "ProblemRoute",
    "accepts_event_stream",
    "answer_defect",
    "answer_error",
    "install_handlers",
    "problem",
    "refuse_stream",
]

log = logging.getLogger("tailrace.web")

MEDIA_TYPE = "application/problem+json"
NO_STORE = {"Cache-Control": "no-store"}
_SHOWN = (str, int, float, bool, type(None))


def problem(connection: HTTPConnection, error: TailraceError) -> Response:
    """The problem of one of our errors. Errors of the calling program are shown as a bare 500."""
    if isinstance(error, UsageError):
        log.error("the application misused tailrace", exc_info=error)
        return _problem(connection, 500, "INTERNAL", "")
    extra = {name: value for name, value in error.data.items() if isinstance(value, _SHOWN)}
    headers = {}
    retry_after = _retry_after(error)
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        extra["retry_after"] = retry_after
    if isinstance(error, (TooLarge, RequestTimeout)):
        # The rest of the body was not read, and what follows on this connection could be taken for a request.
        headers["Connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = _challenge(error)
    return _problem(connection, error.status, error.code, error.shown, extra, headers)


def _challenge(error: Unauthorized) -> str:
    return 'Bearer realm="tailrace"' + (', error="invalid_token"' if error.data.get("reason") else "")


def _retry_after(error: TailraceError) -> float | None:
    value = getattr(error, "retry_after", None)
    return float(value) if isinstance(value, (int, float)) else None


def _problem(
    connection: HTTPConnection,
    status: int,
    code: str,
    detail: str,
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body: dict[str, Any] = {
        "type": f"urn:tailrace:problem:{code.lower().replace('_', '-')}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
    }
    if detail:
        body["detail"] = detail
    # Never the query: it may hold a token.
    body["instance"] = quote(connection.scope.get("path", ""), safe="/:@-._~")[:500]
    body = {**(extra or {}), **body}
    return Response(
        msgspec.json.encode(body, enc_hook=str),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={**NO_STORE, **(headers or {})},
    )


def accepts_event_stream(connection: HTTPConnection) -> bool:
    """Whether the client is an EventSource, or reads like one."""
    return any(
        part.partition(";")[0].strip().lower() == "text/event-stream"
        for part in connection.headers.get("accept", "").split(",")
    )


def refuse_stream(
    code: CloseCode, *, retry_after: float, spread: tuple[float, float] = (1.0, 3.0), detail: str = ""
) -> Response:
    """Tell an EventSource that it cannot read now, and when to come back: 200, `stream.refused`, the end."""
    delay = max(retry_after, spread[0]) + random.uniform(0, spread[1] - spread[0] + retry_after * 0.2)
    body = frames.retry(delay) + frames.sse_refused(code, retry_after=round(delay, 3), detail=detail)
    return Response(
        body,
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Connection": "close"},
    )


def answer_error(connection: HTTPConnection, error: TailraceError) -> Response:
    """The answer to an error: a problem, or for an EventSource a refusal where coming back makes sense."""
    if connection.scope.get("method") == "GET" and accepts_event_stream(connection):
        if error.retryable:
            return refuse_stream(error.close_code, retry_after=_retry_after(error) or 1.0, detail=error.shown)
        if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            log.error("a request met a defect", exc_info=error)
            return answer_defect(connection)
    return problem(connection, error)


def answer_defect(connection: HTTPConnection) -> Response:
    """The answer to what nobody foresaw."""
    if connection.scope.get("method") == "GET" and accepts_event_stream(connection):
        return refuse_stream(CloseCode.INTERNAL, retry_after=2.0)
    return _problem(connection, 500, "INTERNAL", "")


def _invalid(error: RequestValidationError) -> Malformed:
    first = error.errors()[0] if error.errors() else {"loc": (), "msg": ""}
    where = ".".join(str(part) for part in first["loc"])
    return Malformed(f"{where}: {first['msg']}" if where else "the request cannot be understood")


class ProblemRoute(APIRoute):
    """A route whose errors are answered the same wherever its router is mounted."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See the base class."""
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handler(request)
            except TailraceError as error:
                return answer_error(request, error)
            except RequestValidationError as error:
                return problem(request, _invalid(error))
            except Exception:
                # Elsewhere the application around us answers its defects; an EventSource would be gone for good.
                if request.method != "GET" or not accepts_event_stream(request):
                    raise
                log.exception("a request met a defect", extra={"route": self.path})
                return answer_defect(request)

        return guarded


def install_handlers(app: FastAPI) -> None:
    """Answer everything else in an application of our own as problems: 404, 405, …"""

    def typed(handler: Callable[[Request, Any], Awaitable[Response]]) -> Any:
        return handler

    async def on_tailrace(request: Request, error: TailraceError) -> Response:
        return answer_error(request, error)

    async def on_validation(request: Request, error: RequestValidationError) -> Response:
        return problem(request, _invalid(error))

    async def on_http(request: Request, error: HTTPException) -> Response:
        status = error.status_code
        code = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(status, HTTPStatus(status).name)
        detail = {404: "there is nothing at this path", 405: "this path does not take that method"}.get(status, "")
        return _problem(request, status, code, detail, headers=error.headers)

    app.add_exception_handler(TailraceError, typed(on_tailrace))
    app.add_exception_handler(RequestValidationError, typed(on_validation))
    app.add_exception_handler(HTTPException, typed(on_http))

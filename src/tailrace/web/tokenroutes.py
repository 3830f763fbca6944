"""Routes about tokens: mint a short one, revoke."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from tailrace.errors import Forbidden, Malformed
from tailrace.web import openapi
from tailrace.web.gateway import Gateway
from tailrace.web.params import read_body
from tailrace.web.problems import ProblemRoute
from tailrace.web.streams import json_response

__all__ = ["token_router"]

MAX_BODY_BYTES = 4_096


class _Revocation(msgspec.Struct, forbid_unknown_fields=True):
    sub: str | None = None
    jti: str | None = None


def token_router(gateway: Gateway) -> APIRouter:
    """`/auth/sse-token` and `/auth/revoke`."""
    router = APIRouter(prefix="/auth", route_class=ProblemRoute, tags=["auth"])
    access = gateway.access
    minted = {"sse_token": "st1_…", "expires_in": 60}

    @router.post(
        "/sse-token",
        summary="Mint a short token",
        response_class=Response,
        responses={
            200: {
                "description": "A token for `?sse_token=` on SSE, WebSocket and long-poll.",
                "content": {"application/json": {"schema": {"type": "object"}, "example": minted}},
            },
            **openapi.problems(401, 403, 503),
        },
    )
    async def mint(request: Request) -> Response:
        """Good for a first use within 60 s; from then on for one connection at a time, the newest, while it is
        connected and 5 minutes after, never longer than the token it was made from."""
        principal = await access.principal(request)
        seconds, token = access.short_seconds(principal), await access.mint(principal)
        good = int(seconds) if seconds.is_integer() else round(seconds, 3)
        return json_response({"sse_token": token, "expires_in": good})

    @router.post(
        "/revoke",
        status_code=204,
        summary="Revoke tokens",
        response_class=Response,
        responses=openapi.problems(400, 401, 403, 503),
        openapi_extra={
            "requestBody": {
                "content": {"application/json": {"schema": {"type": "object"}, "example": {"sub": "alice"}}}
            }
        },
    )
    async def revoke(request: Request) -> Response:
        """Make worthless what was issued until now: without a body the caller's own tokens (log out everywhere); an
        admin may name a `sub` or a `jti`. Live connections end within seconds, on every gateway."""
        principal = await access.principal(request)
        if principal.via == "application":
            raise Forbidden("the application that knows you ends your session")
        wanted = await _read(request, gateway)
        if wanted.sub is None and wanted.jti is None:
            wanted.sub = principal.sub
        own = wanted.sub in (None, principal.sub) and wanted.jti in (None, principal.token_id)
        if not own and not principal.grants.admin:
            raise Forbidden("only an admin revokes the tokens of others")
        await access.revocations.revoke(sub=wanted.sub, token_id=wanted.jti)
        return Response(status_code=204)

    return router


async def _read(request: Request, gateway: Gateway) -> _Revocation:
    body = await read_body(request, max_bytes=MAX_BODY_BYTES, seconds=gateway.settings.body_timeout_seconds)
    if not body.strip():
        return _Revocation()
    try:
        return msgspec.json.decode(body, type=_Revocation)
    except (ValueError, RecursionError) as exc:
        raise Malformed('the body is {"sub": …} or {"jti": …}') from exc

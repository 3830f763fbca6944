"""Live streams mounted into a Starlette application, with tokens and grants as the gateway has them.

export TAILRACE_REDIS_URL=redis://127.0.0.1:6379 TAILRACE_JWT_SECRET=…
uvicorn examples.embed_starlette:app --timeout-graceful-shutdown 1
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from tailrace.app import create_app, create_gateway, lifespan_of
from tailrace.config import load_settings

gateway = create_gateway(load_settings())


async def home(request: Request) -> PlainTextResponse:
    """One of your own pages."""
    return PlainTextResponse("the live streams are under /live")


# A mounted application's lifespan is not run by Starlette: the outer one runs the gateway.
app = Starlette(
    routes=[Route("/", home), Mount("/live", create_app(gateway=gateway))],
    lifespan=lifespan_of(gateway),
)

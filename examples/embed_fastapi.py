"""Live streams inside of your own FastAPI application: your users, your rules, your process.

    TAILRACE_REDIS_URL=redis://127.0.0.1:6379 uvicorn examples.embed_fastapi:app --timeout-graceful-shutdown 1
    curl -N -H 'X-User: ann' '127.0.0.1:8000/live/events/stream?stream=run:ann.1'

Without the time-out uvicorn waits at Ctrl-C for its readers to go. Any ASGI server works. On tailrace's own server
(`tailrace.server`) the same routes write to the socket directly.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.requests import HTTPConnection

from tailrace.app import create_gateway, lifespan_of, tailrace_router
from tailrace.config import load_settings
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.web.principal import Action, Principal


async def who_asks(connection: HTTPConnection) -> Principal | None:
    """Your own login; here a header, in earnest a session."""
    name = connection.headers.get("x-user")
    return Principal(sub=name, via="session") if name else None


class OwnRuns:
    """Your own rules: everybody reads their own runs, and only this application writes."""

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        """Asked for every request, and every few seconds again for what is being read."""
        return action is Action.READ and stream.startswith(f"run:{principal.sub}.")


gateway = create_gateway(load_settings(), authenticate=who_asks, authorizer=OwnRuns())
app = FastAPI(lifespan=lifespan_of(gateway))
app.include_router(tailrace_router(gateway), prefix="/live")


@app.post("/jobs/{number}")
async def start_job(number: int, request: Request) -> dict[str, str]:
    """One of your own routes; it publishes straight to the log."""
    stream = StreamName.parse(f"run:{request.headers['x-user']}.{number}")
    [stored] = await gateway.log.append(stream, [Event("job.started", {"job": number})])
    return {"stream": stream, "id": str(stored.id)}

"""Inside of somebody else's application: their routes, their users, their lifespan."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from tailrace.app import create_app, create_gateway, lifespan_of, tailrace_router
from tailrace.config import Settings
from tailrace.core.names import StreamName
from tailrace.errors import ConfigError
from tailrace.eventlog.memory import MemoryLog
from tailrace.web.principal import Action, Principal
from tests.support.gateway import settings_of
from tests.support.serving import Client, serving
from tests.support.tokens import token
from tests.support.wait import eventually


async def by_header(connection: HTTPConnection) -> Principal | None:
    """Who asks, as the application's session would know."""
    name = connection.headers.get("x-user")
    return Principal(sub=name) if name else None


class OwnStreams:
    """The application's rule: everybody has the runs that begin with their name."""

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        return stream.name.startswith(principal.sub)


def embedded(started: list[str]) -> FastAPI:
    gateway = create_gateway(
        Settings(runs_enabled=False), log=MemoryLog(), authenticate=by_header, authorizer=OwnStreams()
    )

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[dict[str, Any]]:
        started.append("begin")
        yield {"answer": 42}
        started.append("end")

    app = FastAPI(lifespan=lifespan_of(gateway, own))
    app.include_router(tailrace_router(gateway), prefix="/live")

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


async def use(url: str, prefix: str, client: Client, *headers: str, user: dict[str, str]) -> None:
    """Publish and follow."""
    await client.get(f"{prefix}/streams/run:alice-1/events/stream", *headers)
    await client.until(b"event: stream.open")
    async with httpx.AsyncClient(base_url=url, headers=user, trust_env=False) as http:
        published = await http.post(f"{prefix}/streams/run:alice-1/events", json={"type": "a", "data": "hello"})
        foreign = await http.get(f"{prefix}/streams/run:bob-1/events")
        malformed = await http.get(f"{prefix}/streams/run:alice-1/events?limit=0")
    assert published.status_code == 201
    await client.until(b'"data":"hello"}')
    assert (foreign.status_code, foreign.json()["code"]) == (403, "FORBIDDEN")
    assert malformed.headers["content-type"] == "application/problem+json"


async def test_router_in_a_fastapi_application_with_its_own_users() -> None:
    started: list[str] = []
    async with serving(embedded(started)) as served, served.client() as client:
        await use(served.url, "/live", client, "X-User: alice", user={"X-User": "alice"})
        async with httpx.AsyncClient(base_url=served.url, trust_env=False) as http:
            hello = await http.get("/hello")
            nobody = await http.get("/live/streams/run:alice-1/events")
            theirs = await http.get("/nothing")

    assert hello.json() == {"hello": "world"}
    assert (nobody.status_code, nobody.json()["code"]) == (401, "UNAUTHORIZED")
    assert theirs.json() == {"detail": "Not Found"}
    assert started[0] == "begin"


async def test_router_on_a_server_without_the_raw_extension() -> None:
    started: list[str] = []
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(embedded(started), log_config=None, timeout_graceful_shutdown=1))
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await eventually(lambda: server.started)
        client = await Client.open(port)
        try:
            await use(f"http://127.0.0.1:{port}", "/live", client, "X-User: alice", user={"X-User": "alice"})
        finally:
            client.close()
            server.should_exit = True
            await task

    assert started == ["begin", "end"]


async def test_whole_application_mounted_into_starlette() -> None:
    settings = settings_of()
    gateway = create_gateway(settings, log=MemoryLog())
    outer = Starlette(routes=[Mount("/events", create_app(gateway=gateway))], lifespan=lifespan_of(gateway))
    auth = f"Bearer {token('alice', read=['run:alice-1'], write=['run:alice-1'])}"
    async with serving(outer) as served, served.client() as client:
        await use(served.url, "/events/api/v1", client, f"Authorization: {auth}", user={"Authorization": auth})
        async with httpx.AsyncClient(base_url=served.url, trust_env=False) as http:
            page = await http.get("/events/")
            docs = await http.get("/events/docs")
            script = await http.get("/events/docs/docs.js")
            document = await http.get("/events/openapi.json")
            missing = await http.get("/events/nothing")

    assert [each.status_code for each in (page, docs, script, document, missing)] == [200, 200, 200, 200, 404]


def test_application_needs_a_log_or_a_place_for_one() -> None:
    with pytest.raises(ConfigError):
        create_app(settings_of())
    with pytest.raises(ConfigError):
        create_app()


async def test_defect_inside_of_another_application_does_not_end_an_event_source() -> None:
    class Broken:
        async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
            raise RuntimeError("canary")

    gateway = create_gateway(Settings(runs_enabled=False), log=MemoryLog(), authenticate=by_header, authorizer=Broken())
    app = FastAPI(lifespan=lifespan_of(gateway))
    app.include_router(tailrace_router(gateway))
    async with serving(app) as served, served.client() as client:
        await client.get("/streams/run:1/events/stream", "X-User: a", "Accept: text/event-stream")
        answer = await client.rest()

    assert b"event: stream.refused" in answer
    assert b"canary" not in answer

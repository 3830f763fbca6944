"""The whole application over a log in memory (or any other), spoken to without a socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from tailrace.app import create_app
from tailrace.config import Settings
from tailrace.eventlog.base import Log
from tailrace.eventlog.memory import MemoryLog
from tailrace.web.gateway import Gateway
from tests.support.tokens import SECRET, token
from tests.support.wait import deadline

__all__ = ["Api", "api", "settings_of"]


def settings_of(**settings: Any) -> Settings:
    """Settings of tests, with the secret of tests. Runs need a database: who tests them switches them on."""
    settings.setdefault("runs_enabled", False)
    if not any(name in settings for name in ("jwt_key_file", "jwt_jwks_file", "jwt_jwks_url")):
        settings.setdefault("jwt_secret", SECRET)
    return Settings(**settings)


class Api:
    """An application and who speaks to it. Finite answers only: the transport waits for the end of a response."""

    def __init__(self, app: FastAPI, log: Log, client: httpx.AsyncClient) -> None:
        self.app = app
        self.log = log
        self.client = client
        self.gateway: Gateway = app.state.gateway

    async def call(
        self, method: str, path: str, *, auth: str | None = "", headers: Any = None, **more: Any
    ) -> httpx.Response:
        """Ask; `auth` "" is a token that may do everything, None is none."""
        if auth == "":
            auth = token("root", admin=True)
        given = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
        if auth is not None:
            given.append(("Authorization", f"Bearer {auth}"))
        async with deadline(10):
            return await self.client.request(method, path, headers=given, **more)

    async def raw_get(self, path: str, query: str) -> tuple[int, dict[str, Any]]:
        """GET with a query that no client library would send; the answer is JSON."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"test"), (b"authorization", f"Bearer {token('root', admin=True)}".encode())],
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        async with deadline(10):
            await self.app(scope, receive, send)
        return sent[0]["status"], json.loads(b"".join(each.get("body", b"") for each in sent[1:]))

    async def publish(self, stream: str, *events: Any, **more: Any) -> list[str]:
        """Publish and answer the ids."""
        answer = await self.call("POST", f"/api/v1/streams/{stream}/events", json=list(events), **more)
        assert answer.status_code == 201, answer.text
        return [each["id"] for each in answer.json()["events"]]


@asynccontextmanager
async def api(
    *, log: Log | None = None, address: tuple[str, int] = ("127.0.0.1", 5_000), create: Any = None, **settings: Any
) -> AsyncIterator[Api]:
    """Run the application."""
    given = settings_of(**settings)
    event_log = log if log is not None else MemoryLog(kinds=given.stream_kinds())
    app = create_app(given, log=event_log, **(create or {}))
    gateway: Gateway = app.state.gateway
    transport = httpx.ASGITransport(app=app, client=address, raise_app_exceptions=True)
    async with gateway.running(), httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Api(app, event_log, client)
    if log is None:
        await event_log.aclose()

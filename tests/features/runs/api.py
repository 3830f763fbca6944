"""A served application with runs, and who asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tailrace.app import create_app
from tailrace.eventlog.base import Log
from tailrace.eventlog.memory import MemoryLog
from tailrace.features.runs.feature import RunsFeature
from tailrace.web.gateway import Gateway
from tests.support.gateway import settings_of
from tests.support.serving import Serving, serving
from tests.support.tokens import token
from tests.support.wait import deadline

__all__ = ["ADMIN", "OWNER", "SERVICE", "STRANGER", "Site", "site"]

SERVICE = token("service", read=["run:*"], write=["run:*"])
ADMIN = token("root", admin=True)
OWNER = token("ada")
STRANGER = token("eve")


class Site:
    """A server, its log and its feature."""

    def __init__(self, served: Serving, log: Log, gateway: Gateway, http: httpx.AsyncClient) -> None:
        self.served = served
        self.log = log
        self.gateway = gateway
        self.http = http
        (self.feature,) = [each for each in gateway.features if isinstance(each, RunsFeature)]

    async def ask(self, method: str, path: str, *, auth: str | None = SERVICE, **more: Any) -> httpx.Response:
        """One request that ends."""
        headers = {**more.pop("headers", {}), **({"Authorization": f"Bearer {auth}"} if auth is not None else {})}
        async with deadline(60):
            return await self.http.request(method, f"/api/v1{path}", headers=headers, **more)

    async def good(self, method: str, path: str, **more: Any) -> Any:
        """A request that succeeds, and its JSON."""
        answer = await self.ask(method, path, **more)
        assert answer.is_success, answer.text
        return answer.json()

    async def make(self, run_id: str = "r1", owner: str = "ada", **more: Any) -> Any:
        """A run of ada's."""
        return await self.good("POST", "/runs", json={"id": run_id, "owner": owner, **more})

    async def claim(self, run_id: str = "r1", producer: str = "p1") -> int:
        """A claim's epoch."""
        return int((await self.good("POST", f"/runs/{run_id}/claim", json={"producer": producer}))["epoch"])

    async def lines(self, path: str, *, auth: str = OWNER, until: str, **more: Any) -> list[str]:
        """What an SSE answers up to a text, without blank lines."""
        found: list[str] = []
        headers = {"Authorization": f"Bearer {auth}", "Accept": "text/event-stream", **more.pop("headers", {})}
        async with deadline(60), self.http.stream("GET", f"/api/v1{path}", headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                found += [line] if line else []
                if until in line:
                    break
        return found


@asynccontextmanager
async def site(folder: Path, *, log: Log | None = None, **settings: Any) -> AsyncIterator[Site]:
    """Serve it."""
    given = await asyncio.to_thread(
        lambda: settings_of(**{"runs_enabled": True, "data_dir": folder, "database_timeout_seconds": 30, **settings})
    )
    made = log if log is not None else MemoryLog(kinds=given.stream_kinds())
    app = create_app(given, log=made)
    gateway: Gateway = app.state.gateway
    async with (
        serving(app, drain=lambda: gateway.drain(0)) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False) as http,
    ):
        yield Site(served, made, gateway, http)
    if log is None:
        await made.aclose()

"""A served application with what the matrices ask about: runs with rows and without, other streams, and who asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from sqlalchemy import delete

from tailrace.app import create_app
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.memory import MemoryLog
from tailrace.features.runs.feature import RunsFeature
from tailrace.sql.models import ExecutionRun
from tests.security.routes import Where
from tests.support.gateway import settings_of
from tests.support.serving import Serving, serving
from tests.support.ws_raw import handshake

__all__ = ["CANARY", "OWNERS", "STREAMS", "THERE", "Answer", "Site", "open_site"]

CANARY = "canary"
OWNERS = {"run:alices": "alice", "run:bobs": "bob"}
"""The runs that have a row."""
THERE = {"user:alice", "user:bob", "task:1", "workflow:1", "run:rowless", *OWNERS}
STREAMS = [*sorted(THERE), "user:nobody", "task:none", "run:never"]


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    text: str


class Site:
    """A server, its log and its runs."""

    def __init__(self, served: Serving, log: MemoryLog, runs: RunsFeature, http: httpx.AsyncClient, app: Any) -> None:
        self.served = served
        self.log = log
        self.runs = runs
        self.http = http
        self.app = app

    async def restore_all(self) -> None:
        """Everything is as it is to be."""
        for stream in STREAMS:
            await self.restore(stream)

    async def restore(self, stream: str) -> None:
        """The stream is there, open, with one secret in it, and the run is queued; or they are not there."""
        name = StreamName.parse(stream)
        await self.log.delete(name)
        if stream in THERE:
            await self.log.append(name, [Event("secret", CANARY)])
        if name.kind == "run":
            await self.runs.database.run(
                lambda session: session.execute(delete(ExecutionRun).where(ExecutionRun.id == name.name))
            )
            await self.runs.service.leases.end(name.name)
            self.runs.recent.forget(name.name)
        if stream in OWNERS:
            await self.runs.service.create(owner=OWNERS[stream], run_id=name.name, title=CANARY)

    async def ask(
        self, where: Where, stream: str, headers: dict[str, str], *, body: Any = None, query: str | None = None
    ) -> Answer:
        """One request about `stream`; of what does not end the head and the first bytes."""
        path = where.at(stream)
        if query is not None or where.path == path:
            path += query if query is not None else f"?stream={stream}&timeout=0"
        if where.method == "WS":
            return await self._shake(path, headers)
        async with self.http.stream(where.method, path, headers=headers, json=body) as response:
            found = dict(response.headers)
            if found.get("content-type", "").startswith("text/event-stream"):
                return Answer(response.status_code, found, "")
            return Answer(response.status_code, found, (await response.aread()).decode())

    async def _shake(self, path: str, headers: dict[str, str]) -> Answer:
        async with self.served.client() as client:
            await client.send(handshake(path, *(f"{name}: {value}" for name, value in headers.items())))
            head = (await client.until(b"\r\n\r\n", 60)).decode().split("\r\n")
            found = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            status = int(head[0].split()[1])
            text = (await client.until(b"}", 60)).decode() if status != 101 else ""
            return Answer(status, found, text)


@asynccontextmanager
async def open_site(folder: Path, **settings: Any) -> AsyncIterator[Site]:
    """Serve it. The rollout adds workers and no routes, and needs a Redis: it is not served here."""
    given = await asyncio.to_thread(
        lambda: settings_of(
            runs_enabled=True,
            data_dir=folder,
            database_timeout_seconds=30,
            max_connections_per_user=0,
            **settings,
        )
    )
    log = MemoryLog(kinds=given.stream_kinds())
    app = create_app(given, log=log)
    gateway = app.state.gateway
    (runs,) = [each for each in gateway.features if isinstance(each, RunsFeature)]
    async with (
        serving(app, drain=lambda: gateway.drain(0)) as served,
        httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False, verify=False) as http,
    ):
        yield Site(served, log, runs, http, app)
    await log.aclose()

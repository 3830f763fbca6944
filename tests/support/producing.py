"""Runs in this process: real SQL in a file, and any log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.core.event import Record
from tailrace.eventlog.base import Log
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.run_leases import MemoryRunLeases
from tailrace.features.runs.backend import RunBackend
from tailrace.features.runs.model import Run
from tailrace.features.runs.producing import Runs
from tailrace.features.runs.producing_sync import RunsSync
from tailrace.features.runs.service import RunService
from tailrace.features.runs.store import RunStore
from tailrace.sql.database import Database
from tailrace.sql.migrate import upgrade
from tailrace.sql.url import database_url

__all__ = ["ServiceRuns", "Site", "site", "threads_on"]


class ServiceRuns(RunService):
    """The service as producing code has it."""

    async def create(self, *, owner: str | None = None, metadata: Mapping[str, Any] | None = None, **given: Any) -> Run:
        return await super().create(owner=owner or "tester", metadata=metadata, **given)

    closing: Callable[[], Awaitable[None]] | None = None

    async def aclose(self) -> None:
        """What is below is the test's, unless it said how it is closed."""
        if self.closing is not None:
            await self.closing()


class Site:
    """Runs, and what is known of them."""

    def __init__(self, service: ServiceRuns, log: Log) -> None:
        self.service = service
        self.log = log

    @property
    def backend(self) -> RunBackend:
        return self.service

    def runs(self, **options: Any) -> Runs:
        """A producing process. Call it on the loop that it is for."""
        return Runs(self.backend, DirectLog.on(self.log), **options)

    async def records(self, run_id: str) -> list[Record]:
        async with Tailrace.on(DirectLog.on(self.log)) as client:
            return await client.history(f"run:{run_id}").records()

    async def events(self, run_id: str) -> list[tuple[str, Any]]:
        """What is stored of a run."""
        return [(record.type, msgspec.json.decode(record.data)) for record in await self.records(run_id)]


@asynccontextmanager
async def site(folder: Path, log: Log, *, lease_seconds: float = 15.0) -> AsyncIterator[Site]:
    """Runs in a SQLite file of a folder."""
    url = database_url(None, folder)
    await asyncio.to_thread(upgrade, url)
    database = Database(url)
    leases = MemoryRunLeases()
    service = ServiceRuns(RunStore(database), lambda: log, lambda: leases, lease_seconds=lease_seconds)
    yield Site(service, log)
    await database.aclose()


def threads_on(folder: Path, redis_url: str, key_prefix: str) -> RunsSync:
    """The same for threads, on a loop of its own."""
    url = database_url(None, folder)
    upgrade(url)
    database = Database(url)

    def make() -> Runs:
        log, leases = RedisLog.connect(redis_url, prefix=key_prefix), MemoryRunLeases()
        service = ServiceRuns(RunStore(database), lambda: log, lambda: leases)

        async def closing() -> None:
            await log.aclose()
            await database.aclose()

        service.closing = closing
        return Runs(service, DirectLog.on(log))

    return RunsSync(make)

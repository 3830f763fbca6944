"""A service of runs on a log and leases in memory and a real database, with a clock of the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy.engine import URL

from tailrace.core.event import Record
from tailrace.core.kinds import Kinds
from tailrace.eventlog.base import Log
from tailrace.eventlog.memory import MemoryLog
from tailrace.eventlog.run_leases import MemoryRunLeases, RunLeases
from tailrace.features.runs.model import run_stream
from tailrace.features.runs.service import RunService
from tailrace.features.runs.store import RunStore
from tailrace.sql.database import Database
from tailrace.sql.url import database_url
from tailrace.sql.version import bring_up

__all__ = ["LEASE", "Clock", "Runs", "migrated", "runs_on"]

LEASE = 15.0


class Clock:
    """A time that stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Runs:
    """What a test of the service needs."""

    def __init__(self, service: RunService, log: Log, clock: Clock, database: Database) -> None:
        self.service = service
        self.log = log
        self.clock = clock
        self.database = database

    async def events(self, run_id: str) -> list[Record]:
        """What the log has of a run."""
        return list((await self.log.range(run_stream(run_id), limit=1_000)).records)

    async def types(self, run_id: str) -> list[str]:
        """The types of a run's events."""
        return [record.type for record in await self.events(run_id)]


def migrated(folder: Path) -> URL:
    """A SQLite database with our tables. Blocking."""
    url = database_url(None, folder)
    bring_up(url)
    return url


@asynccontextmanager
async def runs_on(
    url: URL, *, log: Log | None = None, leases: RunLeases | None = None, **options: Any
) -> AsyncIterator[Runs]:
    """A service; its tables are there."""
    clock = Clock()
    made = log if log is not None else MemoryLog(kinds=Kinds())
    kept = leases if leases is not None else MemoryRunLeases(clock=clock)
    database = Database(url, timeout=30)
    service = RunService(RunStore(database), lambda: made, lambda: kept, lease_seconds=LEASE, **options)
    try:
        yield Runs(service, made, clock, database)
    finally:
        await database.aclose()
        if log is None:
            await made.aclose()


def data_of(record: Record) -> Any:
    """What an event says."""
    return msgspec.json.decode(record.data)

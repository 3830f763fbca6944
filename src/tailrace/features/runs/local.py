"""Runs on the database and the log themselves, in the process that produces them: no gateway between.

A gateway on the same database and Redis is still needed: its workers end what was lost and seal what was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tailrace.eventlog.base import Log
from tailrace.eventlog.run_leases import RunLeases
from tailrace.features.runs.backend import Claim, LeaseState
from tailrace.features.runs.model import Run, RunStatus
from tailrace.features.runs.service import RunService
from tailrace.features.runs.store import RunStore
from tailrace.sql.database import Database
from tailrace.sql.url import database_url

__all__ = ["LocalRuns"]


class LocalRuns:
    """See `RunBackend` for what every method promises."""

    def __init__(self, service: RunService, *, owner: str | None = None, database: Database | None = None) -> None:
        """Args: what does it, who owns runs that name nobody, and a database to close at the end."""
        self.service = service
        self._owner = owner
        self._database = database

    @classmethod
    def on(
        cls,
        database: str | None,
        event_log: Log,
        leases: RunLeases,
        *,
        owner: str | None = None,
        data_dir: Path = Path(".tailrace"),
        lease_seconds: float = 15.0,
        ttl_seconds_by_kind: Mapping[str, float] | None = None,
        timeout: float = 5.0,
    ) -> LocalRuns:
        """Make runs on a database's URL and an open log; `aclose` closes the database, not the log.

        Raises:
            ConfigError: a database that cannot be used.
        """
        opened = Database(database_url(database, data_dir), timeout=timeout)
        service = RunService(
            RunStore(opened),
            lambda: event_log,
            lambda: leases,
            lease_seconds=lease_seconds,
            ttl_seconds_by_kind=ttl_seconds_by_kind,
        )
        return cls(service, owner=owner, database=opened)

    async def create(
        self,
        *,
        kind: str = "run",
        title: str = "",
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """See `RunBackend`."""
        named = owner if owner is not None else self._owner
        return await self.service.create(owner=named or "", kind=kind, title=title, metadata=metadata, run_id=run_id)

    async def begin(self, run_id: str, *, producer: str) -> Claim:
        """See `RunBackend`."""
        return await self.service.begin(run_id, producer=producer)

    async def renew(self, held: Sequence[tuple[str, int]], *, hold_seconds: float = 0.0) -> Mapping[str, LeaseState]:
        """See `RunBackend`."""
        return await self.service.renew(held, hold_seconds=hold_seconds)

    async def finish(
        self,
        run_id: str,
        epoch: int | None,
        status: RunStatus,
        *,
        error: str | None = None,
        result: Any = None,
        seal: bool = True,
        hold_seconds: float = 0.0,
    ) -> Run:
        """See `RunBackend`."""
        return await self.service.finish(
            run_id, epoch, status, error=error, result=result, seal=seal, hold_seconds=hold_seconds
        )

    async def get(self, run_id: str) -> Run:
        """See `RunBackend`."""
        return await self.service.get(run_id)

    async def aclose(self) -> None:
        """See `RunBackend`."""
        if self._database is not None:
            await self._database.aclose()

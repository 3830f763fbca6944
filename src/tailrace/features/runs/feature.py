"""How runs plug into a gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from starlette.routing import BaseRoute

from tailrace.config import Settings
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable, TailraceError
from tailrace.eventlog.base import Log
from tailrace.eventlog.run_leases import RunLeases
from tailrace.features.runs.owners import RecentRuns
from tailrace.features.runs.schemas import SCHEMAS
from tailrace.features.runs.service import RunService
from tailrace.features.runs.store import RunStore
from tailrace.features.runs.workers import Reaper, Sealer
from tailrace.sql.database import Database
from tailrace.sql.url import database_url, is_sqlite
from tailrace.sql.version import HEAD, bring_up, stored_version
from tailrace.web.feature import Feature, Worker
from tailrace.web.gateway import Gateway
from tailrace.web.principal import Action, Principal

__all__ = ["RunsFeature"]

log = logging.getLogger("tailrace.runs")


class RunsFeature(Feature):
    """Routes, workers and owners of runs. Without a database the rest of the gateway goes on."""

    name = "runs"
    schemas = SCHEMAS

    def __init__(self, settings: Settings) -> None:
        """Raises: ConfigError for a database that cannot be used."""
        url = settings.database_url
        self._own = url is None
        self.database = Database(
            database_url(url.get_secret_value() if url is not None else None, settings.data_dir),
            timeout=settings.database_timeout_seconds,
        )
        self._gateway: Gateway | None = None
        self.service = RunService(
            RunStore(self.database),
            self._log,
            self._leases,
            lease_seconds=settings.run_lease_seconds,
            ttl_seconds_by_kind=settings.run_ttl_seconds_by_kind,
        )
        self.recent = RecentRuns(self.service.get)

    def _bound(self) -> Gateway:
        if self._gateway is None:
            raise LogUnavailable("the server is starting")
        return self._gateway

    def _log(self) -> Log:
        return self._bound().log

    def _leases(self) -> RunLeases:
        return self._bound().leases.runs

    def routes(self, gateway: Gateway) -> Sequence[BaseRoute]:
        """See `Feature`."""
        from tailrace.features.runs.event_routes import event_routes
        from tailrace.features.runs.routes import run_routes

        return [*event_routes(gateway, self.recent), *run_routes(gateway, self.service, self.recent)]

    @asynccontextmanager
    async def running(self, gateway: Gateway) -> AsyncIterator[None]:
        """See `Feature`."""
        self._gateway = gateway
        if self._own and is_sqlite(self.database.url):
            try:
                await asyncio.to_thread(bring_up, self.database.url)
            except (TailraceError, OSError) as error:
                log.error("the database of runs cannot be used", extra={"reason": str(error)})
        try:
            yield
        finally:
            await self.database.aclose()

    def workers(self, gateway: Gateway) -> Mapping[str, Worker]:
        """See `Feature`."""
        del gateway
        return {"sealer": self._seal, "reaper": Reaper(self.service).run}

    async def _seal(self) -> None:
        await self._complain_when_behind()
        await Sealer(self.service).run()

    async def _complain_when_behind(self) -> None:
        try:
            version = await stored_version(self.database)
        except TailraceError as error:
            log.warning("the database of runs does not answer", extra={"reason": str(error)})
            return
        if version is None or version < HEAD:
            log.error("the database is behind: run `tailrace db upgrade`", extra={"version": version, "needed": HEAD})

    async def authorize(self, principal: Principal, action: Action, stream: StreamName) -> bool:
        """An owner reads their run, on every transport."""
        if action is not Action.READ or stream.kind != "run":
            return False
        return await self.recent.owns(stream.name, principal.sub)

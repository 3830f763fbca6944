"""What a gateway does for runs by itself: seal those that ended, end those whose producer is gone.

Rules of this file
1. Several gateways do this at once; a conditional UPDATE or a uid decides, and whoever comes second finds it done.
2. An outage of the leases' store ends no run: only after it has answered for a whole lease does a lease that is over
   mean anything, for until then producers could not renew.
3. A run that SQL says is running and that has no lease at all is given one: then its producer has a whole lease to be
   heard of, whatever the store forgot.
4. A run that ended while events were on their way is sealed when its lease and `flush_until` are over, by the reaper
   and so by rule 2. Before that only its producer does it, or whoever delivers what that left on its disk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tailrace.errors import DatabaseUnavailable, Fenced, LogError, RunEnded, RunNotFound, TailraceError
from tailrace.features.runs.model import Run, RunStatus
from tailrace.features.runs.service import RunService

__all__ = ["Reaper", "Sealer"]

log = logging.getLogger("tailrace.runs")

BATCH = 100
GRACE_MS = 2_000
"""Whoever ends a run seals it at once; the sealer looks after those that are older."""


class Sealer:
    """Seals ended runs that nobody sealed: their producer died, or the log was away."""

    def __init__(self, service: RunService, *, period: float = 1.0) -> None:
        self._service = service
        self._period = period

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.step()
            except (LogError, DatabaseUnavailable) as error:
                log.debug("runs are sealed later", extra={"code": error.code})
            await asyncio.sleep(self._period)

    async def step(self) -> int:
        """Seal what can be sealed now; answers how many.

        Raises: LogUnavailable, DatabaseUnavailable.
        """
        service = self._service
        now = _now()
        runs = await service.store.unsealed(ended_before=now - GRACE_MS, now=now, limit=BATCH)
        if not runs:
            return 0
        sealed = 0
        for run, alive in zip(runs, await service.leases.alive([run.id for run in runs]), strict=True):
            # A live producer still appends what came before the end; a lost one is fenced out anyway.
            if run.flush_until is not None and not alive:
                # Silent, or only not heard of yet: the reaper finds out.
                await service.leases.watch([(run.id, run.owner_epoch)], service.lease_seconds)
            elif not alive or run.status is RunStatus.LOST:
                sealed += await self._seal(run)
        return sealed

    async def _seal(self, run: Run) -> bool:
        try:
            await self._service.seal(run)
        except (LogError, DatabaseUnavailable):
            raise
        except TailraceError as error:
            # One run that cannot be sealed holds up no other, nor the gateway.
            log.exception("a run cannot be sealed", extra={"run": run.id, "code": error.code})
            return False
        return True


class Reaper:
    """Ends runs whose producer is gone, as lost."""

    def __init__(
        self, service: RunService, *, period: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._service = service
        self._lease = service.lease_seconds
        self._period = min(1.0, self._lease / 5) if period is None else period
        self._clock = clock
        self._heard: float | None = None
        """When the store answered last; None: it does not."""
        self._since = 0.0
        """Since when it has answered without a break."""
        self._swept = -self._lease

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.step()
            except (LogError, DatabaseUnavailable) as error:
                log.debug("lost runs are not looked for", extra={"code": error.code})
            await asyncio.sleep(self._period)

    async def step(self) -> int:
        """End what is lost now; answers how many runs.

        Raises: LogUnavailable, DatabaseUnavailable.
        """
        try:
            expired = await self._service.leases.expired(BATCH)
        except LogError:
            self._heard = None
            raise
        now = self._clock()
        if self._heard is None or now - self._heard > self._lease / 2:
            self._since = now  # it was away, or this process stood still: producers may have, too
        self._heard = now
        if now - self._swept >= self._lease:
            await self._sweep()
            self._swept = now
        if now - self._since < self._lease:
            return 0
        return sum([await self._settle(run_id, epoch) for run_id, epoch in expired])

    async def _sweep(self) -> None:
        after = ""
        while page := await self._service.store.running(after=after, limit=BATCH):
            await self._service.leases.watch(page, self._lease)
            after = page[-1][0]

    async def _settle(self, run_id: str, epoch: int) -> bool:
        """End a run whose lease is over, or its lease, whatever is true in SQL."""
        service = self._service
        try:
            run = await service.get(run_id)
            if run.status is RunStatus.RUNNING and run.owner_epoch > epoch:
                # Claimed while the store was away: the newer producer has not been heard of yet.
                await service.leases.renew([(run_id, run.owner_epoch)], self._lease)
                return False
            if run.status.ended:
                held = ((run.flush_until or 0) - _now()) / 1_000
                if held > 0 and not run.sealed:
                    await service.leases.renew([(run_id, run.owner_epoch)], held)
                    return False
                await service.seal(run)
                await service.leases.end(run_id)
                return False
            await service.lose(run_id, run.owner_epoch)
        except RunNotFound:
            await service.leases.end(run_id)
            return False
        except (Fenced, RunEnded):
            return False
        except TailraceError as error:
            if isinstance(error, (LogError, DatabaseUnavailable)):
                raise
            log.exception("a lost run cannot be ended", extra={"run": run_id, "code": error.code})
            return False
        return True


def _now() -> int:
    return time.time_ns() // 1_000_000

"""The end of runs whose producer died and left events on the disk: who delivers those also says that it was all.

Rules of this file
1. Only a run that SQL says has ended, under the epoch of the delivered events, is sealed: in the way it ended.
2. What cannot be said now is tried again; what never can is logged. The gateway then seals by itself, when the time for
   which it waits is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from tailrace.client.backend import pause_before
from tailrace.core.names import StreamName
from tailrace.errors import RunNotFound, TailraceError
from tailrace.features.runs.backend import RunBackend
from tailrace.features.runs.model import RunStatus

__all__ = ["HOLD_SECONDS", "seal_delivered"]

log = logging.getLogger("tailrace.runs")

HOLD_SECONDS = 3_600.0
"""How long a gateway waits for events that a dead producer left on its disk."""


async def seal_delivered(backend: RunBackend, places: Iterable[tuple[StreamName, int | None]]) -> None:
    """Seal the ended runs among streams all of whose events were delivered; those are given with their epochs."""
    for stream, epoch in sorted(places, key=str):
        if stream.kind == "run" and epoch is not None:
            await _seal_patiently(backend, stream.name, epoch)


async def _seal_patiently(backend: RunBackend, run_id: str, epoch: int) -> None:
    attempt = 0
    while True:
        try:
            await _seal(backend, run_id, epoch)
            return
        except RunNotFound:
            return
        except TailraceError as exc:
            if not exc.retryable:
                log.warning("a run is sealed later", extra={"run": run_id, "code": exc.code})
                return
            await asyncio.sleep(pause_before(attempt, cap=5.0))
            attempt += 1


async def _seal(backend: RunBackend, run_id: str, epoch: int) -> None:
    run = await backend.get(run_id)
    if run.status.ended and not run.sealed and run.status is not RunStatus.LOST and run.owner_epoch == epoch:
        await backend.finish(run_id, epoch, run.status, error=run.error, result=run.result)

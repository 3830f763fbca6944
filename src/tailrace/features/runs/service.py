"""Runs on a database, a log and leases. What a gateway and `LocalRuns` share.

Rules of this file
1. SQL is the truth for a run's status, the log for its events: ending is SQL first, then the terminal event, then
   `sealed`. A crash between them leaves something to do for the sealer (workers.py), never something wrong.
2. Redis away does not keep a run from ending or being claimed: leases and seals follow when it is back.
3. The terminal event has a fixed uid and closes the stream: whoever seals, it is there once, as the last one.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from tailrace.errors import (
    DatabaseUnavailable,
    Fenced,
    IdempotencyConflict,
    LogError,
    LogUnavailable,
    Malformed,
    NotFound,
    StreamClosed,
)
from tailrace.eventlog.base import Log
from tailrace.eventlog.run_leases import Renewal, RunLeases
from tailrace.features.runs.backend import Claim, LeaseState
from tailrace.features.runs.model import (
    MAX_ERROR,
    MAX_OWNER,
    MAX_TITLE,
    Run,
    RunStatus,
    check_kind,
    check_metadata,
    check_result,
    check_run_id,
    last_events,
)
from tailrace.features.runs.store import End, RunQuery, RunStore

__all__ = ["MAX_HOLD_SECONDS", "RunService"]

log = logging.getLogger("tailrace.runs")

MAX_HOLD_SECONDS = 86_400.0
"""For no longer is waited for what is on a disk somewhere."""
TRUTH_SHARE = 0.1
"""Of so many renewals one also asks SQL, in case the leases' store lost its memory."""


class RunService:
    """What can be done with runs. All calls may raise `DatabaseUnavailable`, those with an id `RunNotFound`."""

    def __init__(
        self,
        store: RunStore,
        event_log: Callable[[], Log],
        leases: Callable[[], RunLeases],
        *,
        lease_seconds: float = 15.0,
        ttl_seconds_by_kind: Mapping[str, float] | None = None,
    ) -> None:
        """Args: where rows, events and leases are; the last two are asked for when they are needed."""
        self.store = store
        self.lease_seconds = lease_seconds
        self._event_log = event_log
        self._leases = leases
        self._ttl_seconds = dict(ttl_seconds_by_kind or {})

    @property
    def leases(self) -> RunLeases:
        """The leases of producers."""
        return self._leases()

    async def create(
        self,
        *,
        owner: str,
        kind: str = "run",
        title: str = "",
        metadata: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Make a queued run. Raises: Malformed, TooLarge; Conflict: another run has this id."""
        if not 1 <= len(owner) <= MAX_OWNER or "\0" in owner:
            raise Malformed(f"an owner has 1-{MAX_OWNER} characters", field="owner")
        if len(title) > MAX_TITLE or "\0" in title:
            raise Malformed(f"a title has at most {MAX_TITLE} characters, and no NUL", field="title")
        run = Run(
            id=check_run_id(run_id) if run_id is not None else uuid.uuid4().hex,
            owner=owner,
            kind=check_kind(kind),
            title=title,
            created_at=_now(),
            metadata=check_metadata(metadata or {}),
        )
        return await self.store.create(run)

    async def get(self, run_id: str) -> Run:
        """A run as it is now."""
        return await self.store.get(run_id)

    async def find(self, query: RunQuery) -> list[Run]:
        """One page, the newest first."""
        if query.owner is not None and "\0" in query.owner:
            return []  # nobody's; some databases fail at the question
        return await self.store.find(query)

    async def begin(self, run_id: str, *, producer: str) -> Claim:
        """See `RunBackend`."""
        run = await self.store.get(run_id)
        from_epoch = None
        if run.status is RunStatus.RUNNING:
            # A store that forgot the lease says nothing about who lives: then it gets a whole one.
            await self.leases.watch([(run_id, run.owner_epoch)], self.lease_seconds)
            (alive,) = await self.leases.alive([run_id])
            from_epoch = None if alive else run.owner_epoch
        run = await self.store.claim(run_id, producer=producer, now=_now(), from_epoch=from_epoch)
        try:
            await self.leases.renew([(run.id, run.owner_epoch)], self.lease_seconds)
        except LogError:
            log.info("a run was claimed without a lease", extra={"run": run.id})  # its first renewal takes one
        return Claim(run, run.owner_epoch, self.lease_seconds)

    async def renew(self, held: Sequence[tuple[str, int]], *, hold_seconds: float = 0.0) -> Mapping[str, LeaseState]:
        """See `RunBackend`."""
        if not held:
            return {}
        unknown: LogError | None = None
        states: dict[str, LeaseState] = {}
        seconds = max(self.lease_seconds, min(hold_seconds, MAX_HOLD_SECONDS))
        try:
            states = await self._keep(held, seconds)
        except LogError as error:
            unknown = error
        if unknown is not None or random.random() < TRUTH_SHARE:
            try:
                states = await self._by_sql(held, states)
            except DatabaseUnavailable:
                if unknown is not None:
                    raise unknown from None
        return states

    async def _keep(self, held: Sequence[tuple[str, int]], seconds: float) -> dict[str, LeaseState]:
        answers = dict(zip(held, await self.leases.keep(held, seconds), strict=True))
        news = [each for each, answer in answers.items() if answer is Renewal.NEWS]
        if news:
            # Claimed while the store was away, or forgotten by it; else it is nobody's claim, and would fence one out.
            try:
                runs = await self.store.some([run_id for run_id, _ in news])
            except DatabaseUnavailable:
                pass  # without SQL nobody is lost either
            else:
                claims = [each for each in news if _is_claim(runs.get(each[0]), each[1])]
                answers |= dict.fromkeys(news, Renewal.FENCED)
                answers |= dict(zip(claims, await self.leases.renew(claims, seconds), strict=True))
        return {
            run_id: LeaseState(cancel=answer is Renewal.CANCEL, fenced=answer is Renewal.FENCED)
            for (run_id, _), answer in answers.items()
        }

    async def _by_sql(self, held: Sequence[tuple[str, int]], states: Mapping[str, LeaseState]) -> dict[str, LeaseState]:
        runs = await self.store.some([run_id for run_id, _ in held])
        merged: dict[str, LeaseState] = {}
        for run_id, epoch in held:
            run, state = runs.get(run_id), states.get(run_id, LeaseState())
            # One that ended under this epoch is still flushing, until it is sealed.
            fenced = run is None or run.sealed or run.owner_epoch != epoch
            cancel = run is not None and run.status is RunStatus.RUNNING and run.cancel_requested_at is not None
            merged[run_id] = LeaseState(cancel=state.cancel or cancel, fenced=state.fenced or fenced)
        return merged

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
        if status not in (RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED):
            raise Malformed("a run ends as completed, failed or cancelled", field="status")
        result = check_result(result)
        now = _now()
        waiting = epoch is not None and not seal
        flush_until = now + round(min(hold_seconds, MAX_HOLD_SECONDS) * 1_000) if waiting else None
        end = End(status=status, error=_text(error), result=result, flush_until=flush_until)
        run = await self.store.end(run_id, epoch, end, now=now)
        # Said by another than its producer, who may still have events on their way: that one seals it.
        return await self.seal_soon(run) if seal and run.flush_until is None else run

    async def cancel(self, run_id: str) -> Run:
        """Ask a run to end. Its producer learns it at its next renewal; a queued run is cancelled at once.

        Raises: RunEnded: it ended in another way.
        """
        run = await self.store.request_cancel(run_id, now=_now())
        if run.status.ended:
            return await self.seal_soon(run) if run.flush_until is None else run
        try:
            await self.leases.cancel(run_id)
        except LogError:
            log.info("a run's producer learns later that it has to end", extra={"run": run_id})
        return run

    async def lose(self, run_id: str, epoch: int) -> Run:
        """End a run whose producer is gone. Raises: Fenced, RunEnded: it is not lost."""
        error = f"its producer was silent for {self.lease_seconds:g} s"
        run = await self.store.end(run_id, epoch, End(status=RunStatus.LOST, error=error), now=_now())
        log.warning("a run was lost", extra={"run": run_id, "epoch": epoch})
        return await self.seal_soon(run)

    async def seal_soon(self, run: Run) -> Run:
        """Seal a run now, or leave it to the sealer where the log or the database is away."""
        try:
            return await self.seal(run)
        except (LogError, DatabaseUnavailable) as error:
            log.info("a run is sealed later", extra={"run": run.id, "code": error.code})
            return run

    async def seal(self, run: Run) -> Run:
        """Append the terminal event of an ended run and close its stream. Twice is once.

        Raises:
            LogUnavailable: the log does not answer.
        """
        if run.sealed:
            return run
        event_log = self._event_log()
        try:
            await event_log.append(run.stream, last_events(run), owner_epoch=run.owner_epoch or None, close=True)
        except StreamClosed:
            pass  # sealed before, or closed by somebody who may
        except Fenced:
            # The stream saw an epoch that SQL never gave. SQL decides who ends a run.
            await self._append_end(event_log, run)
        except IdempotencyConflict:
            await self._close(event_log, run)
        if run.kind in self._ttl_seconds:
            await event_log.expire(run.stream, self._ttl_seconds[run.kind])
        await self.store.mark_sealed(run.id)
        try:
            await self.leases.end(run.id)
        except LogError:
            log.debug("a lease ends by itself", extra={"run": run.id})
        return msgspec.structs.replace(run, sealed=True)

    async def _append_end(self, event_log: Log, run: Run) -> None:
        try:
            await event_log.append(run.stream, last_events(run), close=True)
        except StreamClosed:
            pass
        except IdempotencyConflict:
            await self._close(event_log, run)

    async def _close(self, event_log: Log, run: Run) -> None:
        """Somebody else used the uid of the end: their event stays, and the stream ends."""
        try:
            await event_log.close(run.stream)
        except NotFound:
            raise LogUnavailable("the run's stream changes all the time") from None


def _is_claim(run: Run | None, epoch: int) -> bool:
    return run is not None and not run.sealed and run.status is not RunStatus.QUEUED and run.owner_epoch == epoch


def _text(error: str | None) -> str | None:
    """An error's text as every database takes it: a run must not stay unended because of its words."""
    if error is None:
        return None
    return error.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")[:MAX_ERROR]


def _now() -> int:
    return time.time_ns() // 1_000_000

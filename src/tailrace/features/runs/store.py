"""Runs in SQL: each change is one conditional UPDATE, so that of several who try one decides.

Raises of every method: DatabaseUnavailable; with a run's id RunNotFound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tailrace.errors import Conflict, DatabaseUnavailable, RunEnded, RunNotFound
from tailrace.features.runs.model import ENDINGS, Run, RunStatus, ends_anew
from tailrace.sql.database import Database
from tailrace.sql.models import ExecutionRun

__all__ = ["End", "RunQuery", "RunStore"]

ATTEMPTS = 5
"""A row that changes under every one of so many tries is somebody's defect."""
_ENDED = [status.value for status in sorted(ENDINGS)]


class RunQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs, the newest first."""

    owner: str | None = None
    kind: str | None = None
    statuses: frozenset[RunStatus] = frozenset()
    created_from: int | None = None
    """Unix ms, inclusive."""
    created_before: int | None = None
    """Unix ms, exclusive."""
    after: tuple[int, str] | None = None
    """The last run of the page before: (created_at, id)."""
    limit: int = 50


class End(msgspec.Struct, frozen=True, kw_only=True):
    """How a run is to end."""

    status: RunStatus
    error: str | None = None
    result: Any = None
    flush_until: int | None = None
    """Unix ms, see `Run`; only whoever has the claim says so."""


class _Changed(Exception):
    """The row was changed by somebody else between reading and writing."""


class RunStore:
    """The table of runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, run: Run) -> Run:
        """Store a run. The same again is the same as once. Raises: Conflict: another run has this id."""

        async def insert(session: AsyncSession) -> None:
            fields = msgspec.structs.asdict(run)
            session.add(ExecutionRun(**(fields | {"details": fields.pop("metadata"), "status": run.status.value})))

        try:
            await self._database.run(insert)
        except IntegrityError:
            there = await self.get(run.id)
            if (there.owner, there.kind, there.title, there.metadata) == (run.owner, run.kind, run.title, run.metadata):
                return there
            raise Conflict("another run has this id") from None
        return run

    async def get(self, run_id: str) -> Run:
        """A run as it is now."""
        return _run(await self._database.run(lambda session: _row(session, run_id)))

    async def find(self, query: RunQuery) -> list[Run]:
        """One page."""
        where = _where(query)

        async def read(session: AsyncSession) -> list[Run]:
            statement = select(ExecutionRun).where(*where)
            statement = statement.order_by(ExecutionRun.created_at.desc(), ExecutionRun.id.desc()).limit(query.limit)
            return [_run(row) for row in await session.scalars(statement)]

        return await self._database.run(read)

    async def claim(self, run_id: str, *, producer: str, now: int, from_epoch: int | None) -> Run:
        """Make a run its producer's, with the next epoch. The same producer again has it already.

        Args:
            run_id: which.
            producer: whose.
            now: Unix ms.
            from_epoch: take over a running run that has this epoch; None: only one that nobody has.

        Raises:
            RunEnded: it ended. Conflict: another producer has it.
        """

        async def change(session: AsyncSession) -> Run:
            row = await _row(session, run_id)
            status = RunStatus(row.status)
            if status.ended:
                raise RunEnded(f"the run has ended: {status}", run_status=status.value)
            if status is RunStatus.RUNNING and row.producer == producer:
                return _run(row)
            if status is RunStatus.RUNNING and row.owner_epoch != from_epoch:
                raise Conflict("another producer has this run", run_status=status.value)
            return await _update(
                session,
                row,
                status=RunStatus.RUNNING,
                started_at=row.started_at if row.started_at is not None else now,
                owner_epoch=row.owner_epoch + 1,
                producer=producer,
            )

        return await self._change(change)

    async def end(self, run_id: str, epoch: int | None, end: End, *, now: int) -> Run:
        """End a run; in the same way again is the same as once.

        Raises:
            Fenced: another producer has it. RunEnded: it ended in another way.
        """

        async def change(session: AsyncSession) -> Run:
            row = await _row(session, run_id)
            run = _run(row)
            if not ends_anew(run, epoch, end.status, end.error, end.result):
                if run.sealed or epoch != run.owner_epoch or run.flush_until == end.flush_until:
                    return run
                return await _update(session, row, flush_until=end.flush_until)
            # Who ends it without the epoch of a claim, or for a dead producer, fences that out.
            fencing = 1 if run.owner_epoch and (epoch is None or end.status is RunStatus.LOST) else 0
            return await _update(
                session,
                row,
                status=end.status,
                error=end.error,
                result=end.result,
                ended_at=now,
                owner_epoch=run.owner_epoch + fencing,
                flush_until=end.flush_until,
            )

        return await self._change(change)

    async def request_cancel(self, run_id: str, *, now: int) -> Run:
        """Say that a run is wanted to end. One that nobody has is cancelled at once. Raises: RunEnded."""

        async def change(session: AsyncSession) -> Run:
            row = await _row(session, run_id)
            run = _run(row)
            if run.status is RunStatus.QUEUED:
                return await _update(session, row, status=RunStatus.CANCELLED, ended_at=now, cancel_requested_at=now)
            if run.status.ended and run.status is not RunStatus.CANCELLED:
                raise RunEnded(f"the run has ended: {run.status}", run_status=run.status.value)
            if run.status.ended or run.cancel_requested_at is not None:
                return run
            return await _update(session, row, cancel_requested_at=now)

        return await self._change(change)

    async def mark_sealed(self, run_id: str) -> None:
        """Remember that the log has the run's end."""

        async def change(session: AsyncSession) -> None:
            await session.execute(update(ExecutionRun).where(ExecutionRun.id == run_id).values(sealed=True))

        await self._database.run(change)

    async def unsealed(self, *, ended_before: int, now: int, limit: int) -> list[Run]:
        """Ended runs whose log does not have it yet and need not wait for more, the oldest first."""
        where = and_(
            ExecutionRun.status.in_(_ENDED),
            ExecutionRun.sealed.is_(False),
            ExecutionRun.ended_at <= ended_before,
            or_(ExecutionRun.flush_until.is_(None), ExecutionRun.flush_until <= now),
        )

        async def read(session: AsyncSession) -> list[Run]:
            statement = select(ExecutionRun).where(where).order_by(ExecutionRun.ended_at).limit(limit)
            return [_run(row) for row in await session.scalars(statement)]

        return await self._database.run(read)

    async def running(self, *, after: str, limit: int) -> list[tuple[str, int]]:
        """Running runs and their epochs, by id."""
        columns = (ExecutionRun.id, ExecutionRun.owner_epoch)
        where = and_(ExecutionRun.status == RunStatus.RUNNING.value, ExecutionRun.id > after)

        async def read(session: AsyncSession) -> list[tuple[str, int]]:
            found = await session.execute(select(*columns).where(where).order_by(ExecutionRun.id).limit(limit))
            return [(run_id, epoch) for run_id, epoch in found]

        return await self._database.run(read)

    async def some(self, run_ids: Sequence[str]) -> Mapping[str, Run]:
        """Several runs at once; unknown ones are left out."""

        async def read(session: AsyncSession) -> dict[str, Run]:
            found = await session.scalars(select(ExecutionRun).where(ExecutionRun.id.in_(run_ids)))
            return {row.id: _run(row) for row in found}

        return await self._database.run(read)

    async def _change(self, change: Any) -> Run:
        for _ in range(ATTEMPTS):
            try:
                run: Run = await self._database.run(change)
            except _Changed:
                continue
            return run
        raise DatabaseUnavailable("the run changes all the time")


async def _row(session: AsyncSession, run_id: str) -> ExecutionRun:
    row = await session.get(ExecutionRun, run_id)
    if row is None:
        raise RunNotFound("there is no such run")
    return row


async def _update(session: AsyncSession, row: ExecutionRun, **values: Any) -> Run:
    """Change a row if it is still as it was read."""
    if isinstance(values.get("status"), RunStatus):
        values["status"] = values["status"].value
    same = (
        ExecutionRun.id == row.id,
        ExecutionRun.status == row.status,
        ExecutionRun.owner_epoch == row.owner_epoch,
    )
    statement = update(ExecutionRun).where(*same).values(**values).execution_options(synchronize_session=False)
    done = await session.execute(statement)
    if done.rowcount != 1:  # type: ignore[attr-defined]
        raise _Changed
    await session.refresh(row)
    return _run(row)


def _where(query: RunQuery) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if query.owner is not None:
        where.append(ExecutionRun.owner == query.owner)
        # To MySQL a name and the same name with blanks behind it are equal. They are two people.
        where.append(func.char_length(ExecutionRun.owner) == len(query.owner))
    if query.kind is not None:
        where.append(ExecutionRun.kind == query.kind)
    if query.statuses:
        where.append(ExecutionRun.status.in_(sorted(status.value for status in query.statuses)))
    if query.created_from is not None:
        where.append(ExecutionRun.created_at >= query.created_from)
    if query.created_before is not None:
        where.append(ExecutionRun.created_at < query.created_before)
    if query.after is not None:
        created_at, run_id = query.after
        # Not a row comparison: not every database uses the index for one.
        where.append(ExecutionRun.created_at <= created_at)
        where.append(or_(ExecutionRun.created_at < created_at, ExecutionRun.id < run_id))
    return where


def _run(row: ExecutionRun) -> Run:
    return Run(
        id=row.id,
        owner=row.owner,
        kind=row.kind,
        title=row.title,
        status=RunStatus(row.status),
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        error=row.error,
        result=row.result,
        metadata=row.details,
        owner_epoch=row.owner_epoch,
        cancel_requested_at=row.cancel_requested_at,
        sealed=row.sealed,
        flush_until=row.flush_until,
    )

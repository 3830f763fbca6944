"""Rows of an existing SQL table of events become streams.

Rules of this file
1. A row is one event with the uid `import-<id>`. What was imported is read back from the stream itself: a run that was
   begun goes on behind its last imported row, however often and from wherever the import is started again.
2. Within a run, rows are taken by their id; rows that are added behind it later are taken by the next import.
3. Nothing is counted by what was sent: at the end of each run the stream is read and compared with the table.
4. A row that cannot be an event stops its run there, and is told: what comes behind it would be out of order.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any, Protocol

import msgspec
from sqlalchemy import ColumnClause, TableClause, bindparam, column, func, select, table
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import NullType

from tailrace.core.codec import minify
from tailrace.core.event import Event, Gap, Json, Record
from tailrace.core.names import StreamName, check_type, escape_name
from tailrace.errors import Conflict, InvalidStream, Malformed, NotFound, RequestError, TooLarge
from tailrace.sql.database import Database

__all__ = ["Importer", "RunReport", "Source", "Target"]

PREFIX = "import-"
BATCH = 200
RUNS = 500
MAX_EVENT_BYTES = 1_048_576


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Which table, and what its columns mean."""

    table: str
    id: str = "id"
    """Orders the rows of a run; unique."""
    run: str = "run_id"
    type: str = "event_type"
    data: str = "data"
    """JSON, or text."""
    kind: str = "run"
    """The kind of the streams."""


class Target(Protocol):
    """Where events go: a client."""

    async def publish_many(self, stream: str, events: Sequence[Event]) -> object:
        """Store events in their order, or raise."""

    def history(self, stream: str) -> AsyncIterable[Record | Gap]:
        """Everything that is kept of a stream."""

    async def close_stream(self, stream: str) -> object:
        """End a stream."""


class RunReport(msgspec.Struct, kw_only=True):
    """What became of one run's rows."""

    stream: str
    rows: int
    before: int = 0
    """Rows that were imported before."""
    stored: int = 0
    """Rows that were imported now; in a dry run: would be."""
    verified: bool | None = None
    """Whether the stream has all rows, or their newest where it keeps no more; None: not looked at."""
    refused: str | None = None
    """Why it stopped, and at which row."""


class _Kept(msgspec.Struct):
    """What a stream has of an import."""

    count: int = 0
    last: str | None = None
    trimmed: int = 0


class Importer:
    """Copies rows of one table to streams."""

    def __init__(self, database: Database, source: Source, target: Target, *, dry_run: bool, close: bool) -> None:
        """Args:
        database: that of the table, opened with `raw_json`: what is read is what was written.
        source, target: from where to where.
        dry_run: store nothing.
        close: end each stream, which begins its life after the end.
        """
        self._database = database
        self._source = source
        self._target = target
        self._dry_run = dry_run
        self._close = close
        schema, _, name = source.table.rpartition(".")
        self._id: ColumnClause[Any] = column(source.id)
        self._run: ColumnClause[Any] = column(source.run)
        self._table: TableClause = table(
            name, self._id, self._run, column(source.type), column(source.data), schema=schema or None
        )

    async def runs(self, *, only: Sequence[str] = ()) -> AsyncIterator[RunReport]:
        """Import run by run.

        Raises:
            DatabaseUnavailable, LogUnavailable: start it again later.
        """
        after: Any = None
        while page := await self._page(after, only):
            for run, rows in page:
                yield await self._one(run, rows)
            after = page[-1][0]

    async def _page(self, after: Any, only: Sequence[str]) -> list[tuple[Any, int]]:
        statement = select(self._run, func.count()).select_from(self._table).group_by(self._run).order_by(self._run)
        if after is not None:
            statement = statement.where(self._run > after)
        if only:
            # Without a type of its own a text is taken for what the column is: PostgreSQL compares nothing else.
            names = bindparam("only", list(only), type_=NullType(), expanding=True)
            statement = statement.where(self._run.in_(names))

        async def read(session: AsyncSession) -> list[tuple[Any, int]]:
            found = await session.execute(statement.where(self._run.is_not(None)).limit(RUNS))
            return [(run, int(rows)) for run, rows in found]

        return await self._database.run(read)

    async def _one(self, run: Any, rows: int) -> RunReport:
        try:
            stream = StreamName.parse(f"{self._source.kind}:{escape_name(str(run))}")
        except InvalidStream as exc:
            return RunReport(stream=f"{self._source.kind}:{run}", rows=rows, refused=str(exc))
        report = RunReport(stream=str(stream), rows=rows)
        kept = await self._kept(stream)
        at = await self._place(run, kept.last)
        report.before = await self._count_until(run, at)
        if self._dry_run:
            report.stored = rows - report.before
            return report
        while batch := await self._rows(run, at):
            events, report.refused = self._events(batch)
            if events and not await self._store(stream, events, report):
                return report
            if report.refused is not None:
                return report
            at = batch[-1][0]
        await self._verify(run, stream, report)
        if self._close and report.verified:
            await self._target.close_stream(stream)
        return report

    async def _store(self, stream: StreamName, events: Sequence[Event], report: RunReport) -> bool:
        """Store events; False: their stream does not take them, which holds up no other run."""
        try:
            await self._target.publish_many(stream, events)
        except (Conflict, Malformed, TooLarge) as exc:
            report.stored += exc.data.get("appended", 0)
            report.refused = f"behind {report.before + report.stored} rows: {exc}"
            return False
        report.stored += len(events)
        return True

    async def _kept(self, stream: StreamName) -> _Kept:
        kept = _Kept()
        first: Record | None = None
        try:
            async for item in self._target.history(stream):
                if not isinstance(item, Record) or item.uid is None or not item.uid.startswith(PREFIX):
                    continue
                first = first or item
                kept.count += 1
                kept.last = item.uid.removeprefix(PREFIX)
        except NotFound:
            pass
        kept.trimmed = first.id.seq - 1 if first is not None else 0
        return kept

    async def _place(self, run: Any, last: str | None) -> Any:
        """The value of the id column behind which to go on; None: from the start."""
        if last is None:
            return None
        statement = select(self._id).where(self._run == run).order_by(self._id)

        async def read(session: AsyncSession) -> Any:
            # The column's type is not known: its texts are compared, and the value itself is used.
            values = (await session.execute(statement)).scalars()
            return next((value for value in values.all() if escape_name(str(value)) == last), None)

        return await self._database.run(read)

    async def _count_until(self, run: Any, at: Any) -> int:
        if at is None:
            return 0

        async def read(session: AsyncSession) -> int:
            statement = select(func.count()).select_from(self._table).where(self._run == run, self._id <= at)
            return int((await session.execute(statement)).scalar_one())

        return await self._database.run(read)

    async def _rows(self, run: Any, at: Any) -> list[Row[Any]]:
        source = self._source
        statement = select(self._id, column(source.type), column(source.data)).select_from(self._table)
        statement = statement.where(self._run == run).order_by(self._id).limit(BATCH)
        if at is not None:
            statement = statement.where(self._id > at)

        async def read(session: AsyncSession) -> list[Row[Any]]:
            return list(await session.execute(statement))

        return await self._database.run(read)

    def _events(self, rows: Sequence[Row[Any]]) -> tuple[list[Event], str | None]:
        events: list[Event] = []
        for row in rows:
            row_id, type_, data = tuple(row)
            try:
                events.append(_event(row_id, type_, data))
            except RequestError as exc:
                return events, f"row {row_id}: {exc}"
        return events, None

    async def _verify(self, run: Any, stream: StreamName, report: RunReport) -> None:
        kept = await self._kept(stream)
        report.verified = (
            kept.count + kept.trimmed >= report.before + report.stored >= report.rows
            and kept.last is not None
            and await self._count_until(run, await self._place(run, kept.last)) >= report.rows
        )


def _event(row_id: Any, type_: Any, data: Any) -> Event:
    """Raises: Malformed, TooLarge, InvalidStream."""
    return Event(check_type(str(type_)), _json(data), uid=PREFIX + escape_name(str(row_id)))


def _json(data: Any) -> Json:
    if isinstance(data, (bytes, bytearray, memoryview)):
        data = bytes(data).decode(errors="replace")
    if isinstance(data, str):
        try:
            return minify(data, max_bytes=MAX_EVENT_BYTES)
        except RequestError as exc:
            if exc.status == 413:
                raise
            # Text that is no JSON is a JSON text.
    encoded = msgspec.json.encode(data, enc_hook=str)
    return minify(encoded, max_bytes=MAX_EVENT_BYTES)

"""Rows of an existing table become streams, once, whatever happens in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncSession

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.core.event import Event, StreamState
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.eventlog.memory import MemoryLog
from tailrace.features.runs.importing import Importer, RunReport, Source
from tailrace.sql.database import Database

SOURCE = Source(table="old_events", id="n", run="job", type="what", data="body")
CREATE = "CREATE TABLE old_events (n INTEGER PRIMARY KEY, job VARCHAR(50), what VARCHAR(50), body TEXT)"


class Old:
    """An old table, a log, and a client that may break."""

    def __init__(self, url: URL) -> None:
        self.database = Database(url, timeout=60, raw_json=True)
        self.log = MemoryLog()
        self.client = Tailrace.on(DirectLog.on(self.log))

    async def insert(self, *rows: tuple[int, str, str, str | None]) -> None:
        async def work(session: AsyncSession) -> None:
            for n, job, what, body in rows:
                values = {"n": n, "job": job, "what": what, "body": body}
                await session.execute(text("INSERT INTO old_events VALUES (:n, :job, :what, :body)"), values)

        await self.database.run(work)

    async def create(self, statement: str = CREATE) -> None:
        async def work(session: AsyncSession) -> None:
            await session.execute(text(statement))

        await self.database.run(work)

    async def execute(self, statement: str) -> None:
        async def work(session: AsyncSession) -> None:
            await (await session.connection()).exec_driver_sql(statement)

        await self.database.run(work)

    async def run(self, *only: str, dry_run: bool = False, close: bool = False, target: Any = None) -> list[RunReport]:
        importer = Importer(self.database, SOURCE, target or self.client, dry_run=dry_run, close=close)
        return [report async for report in importer.runs(only=only)]

    async def events(self, stream: str) -> list[tuple[str, Any]]:
        found = await self.log.range(StreamName.parse(stream), limit=1_000)
        return [(record.type, msgspec.json.decode(record.data)) for record in found.records]

    async def aclose(self) -> None:
        await self.client.aclose()
        await self.log.aclose()
        await self.database.aclose()


async def test_rows_of_every_database_become_events_in_their_order(any_database: URL) -> None:
    old = Old(any_database)
    await old.create()
    await old.insert((3, "a", "third", '{"n": 1.50}'), (1, "a", "first", "no json"), (2, "a", "second", None))
    await old.insert((4, "b|c", "only", "[1, 2]"))

    dry = await old.run(dry_run=True)
    assert [(each.stream, each.rows, each.stored) for each in dry] == [("run:a", 3, 3), ("run:b~7Cc", 1, 1)]
    assert await old.events("run:a") == []

    done = await old.run()
    assert [(each.stored, each.verified) for each in done] == [(3, True), (1, True)]
    assert await old.events("run:a") == [("first", "no json"), ("second", None), ("third", {"n": 1.5})]
    assert await old.events("run:b~7Cc") == [("only", [1, 2])]
    await old.aclose()


async def test_importing_again_takes_only_what_is_new(sqlite: URL) -> None:
    old = Old(sqlite)
    await old.create()
    await old.insert(*((n, "a", "e", str(n)) for n in range(1, 1_501)))
    await old.run()

    again = await old.run()
    await old.insert((2_000, "a", "e", "2000"))
    more = await old.run(close=True)

    assert [(each.before, each.stored, each.verified) for each in again] == [(1_500, 0, True)]
    assert [(each.before, each.stored, each.verified) for each in more] == [(1_500, 1, True)]
    info = await old.log.info(StreamName.parse("run:a"))
    assert (info.length, info.state) == (1_501, StreamState.CLOSED)
    await old.aclose()


async def test_an_import_that_broke_goes_on_where_it_was(sqlite: URL) -> None:
    class Breaking:
        def __init__(self, inner: Tailrace) -> None:
            self._inner = inner
            self._left = 2
            self.history = inner.history
            self.close_stream = inner.close_stream

        async def publish_many(self, stream: str, events: Sequence[Event]) -> object:
            if self._left == 0:
                raise LogUnavailable("away")
            self._left -= 1
            return await self._inner.publish_many(stream, events)

    old = Old(sqlite)
    await old.create()
    await old.insert(*((n, "a", "e", str(n)) for n in range(1, 701)))

    with pytest.raises(LogUnavailable):
        await old.run(target=Breaking(old.client))
    done = await old.run()

    assert [(each.before, each.stored, each.verified) for each in done] == [(400, 300, True)]
    assert [data for _, data in await old.events("run:a")] == list(range(1, 701))
    await old.aclose()


async def test_a_row_that_is_no_event_stops_its_run_and_is_named(sqlite: URL) -> None:
    old = Old(sqlite)
    await old.create()
    await old.insert((1, "a", "fine", "1"), (2, "a", "not fine", "2"), (3, "a", "fine", "3"), (4, "b", "fine", "4"))

    done = await old.run()

    assert [(each.stored, each.verified) for each in done] == [(1, None), (1, True)]
    assert done[0].refused is not None
    assert done[0].refused.startswith("row 2: ")
    assert await old.events("run:a") == [("fine", 1)]
    await old.aclose()


async def test_a_stream_that_takes_no_rows_holds_up_no_other_run(sqlite: URL) -> None:
    old = Old(sqlite)
    await old.create()
    await old.insert((1, "a", "e", "1"), (2, "b", "e", "2"))
    await old.run(close=True)
    await old.insert((3, "a", "e", "3"), (4, "x" * 201, "e", "4"), (5, "y", "e", "5"))

    done = {each.stream: each for each in await old.run()}

    assert done["run:a"].refused == "behind 1 rows: the stream was closed"
    assert done[f"run:{'x' * 201}"].refused is not None
    assert (done["run:y"].stored, done["run:y"].verified) == (1, True)
    assert await old.events("run:a") == [("e", 1)]
    await old.aclose()


async def test_numbers_name_runs_and_json_columns_keep_every_byte(any_database: URL) -> None:
    old = Old(any_database)
    await old.create("CREATE TABLE old_events (n INTEGER PRIMARY KEY, job INTEGER, what VARCHAR(50), body JSON)")
    await old.execute("INSERT INTO old_events VALUES (1, 7, 'e', '{\"n\": 1.50, \"m\": 0.1234567890123456789}')")
    await old.execute("INSERT INTO old_events VALUES (2, 7, 'e', '\"text\"'), (3, 7, 'e', '[1e400]'), (4, 8, 'e', '1')")

    (done,) = await old.run("7", "9")

    assert (done.stream, done.stored, done.verified) == ("run:7", 3, True)
    found = await old.log.range(StreamName.parse("run:7"), limit=10)
    assert [record.data for record in found.records] == [
        b'{"n":1.50,"m":0.1234567890123456789}',
        b'"text"',
        b'"[1e400]"',
    ]
    await old.aclose()

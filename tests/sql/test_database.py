from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from tailrace.errors import DatabaseUnavailable
from tailrace.sql.database import Database
from tailrace.sql.url import database_url
from tests.support.databases import StartDatabase
from tests.support.wait import deadline, eventually


@asynccontextmanager
async def opened(url: URL, timeout: float = 30.0) -> AsyncIterator[Database]:
    database = Database(url, timeout=timeout)
    try:
        async with deadline(60):
            yield database
    finally:
        await database.aclose()


async def execute(database: Database, statement: str) -> None:
    async def work(session: AsyncSession) -> None:
        await session.execute(text(statement))

    await database.run(work)


async def count(database: Database) -> int:
    async def work(session: AsyncSession) -> int:
        return int((await session.execute(text("SELECT count(*) FROM things"))).scalar_one())

    return await database.run(work)


async def test_work_is_committed_whole_or_not_at_all(any_database: URL) -> None:
    async with opened(any_database) as database:
        await execute(database, "CREATE TABLE things (id INTEGER PRIMARY KEY)")

        async def broken(session: AsyncSession) -> None:
            await session.execute(text("INSERT INTO things VALUES (1)"))
            await session.execute(text("INSERT INTO things VALUES (1)"))

        with pytest.raises(IntegrityError):
            await database.run(broken)
        assert await count(database) == 0
        await execute(database, "INSERT INTO things VALUES (1)")
        assert await count(database) == 1


async def test_a_cancelled_caller_does_not_cancel_the_work(any_database: URL) -> None:
    async with opened(any_database) as database:
        await execute(database, "CREATE TABLE things (id INTEGER PRIMARY KEY)")
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(session: AsyncSession) -> None:
            await session.execute(text("INSERT INTO things VALUES (1)"))
            begun.set()
            await go_on.wait()

        caller = asyncio.create_task(database.run(slow))
        await begun.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        go_on.set()

        async def stored() -> bool:
            return await count(database) == 1

        await eventually(stored, 30)


async def test_work_that_takes_too_long_may_be_stored_and_says_so(tmp_path: Path) -> None:
    async with opened(database_url(None, tmp_path), timeout=0.2) as database:
        go_on = asyncio.Event()

        async def slow(session: AsyncSession) -> None:
            await go_on.wait()

        with pytest.raises(DatabaseUnavailable) as caught:
            await database.run(slow)
        assert caught.value.data["perhaps"] is True
        go_on.set()


async def test_a_missing_table_is_told_as_an_unusable_database(any_database: URL) -> None:
    async with opened(any_database) as database:
        with pytest.raises(DatabaseUnavailable):
            await count(database)


async def test_a_server_that_comes_back_is_used_again(start_postgresql: StartDatabase) -> None:
    server = await asyncio.to_thread(start_postgresql)
    async with opened(server.url) as database:
        await execute(database, "CREATE TABLE things (id INTEGER PRIMARY KEY)")
        await asyncio.to_thread(server.stop)

        with pytest.raises(DatabaseUnavailable):
            await count(database)

        await asyncio.to_thread(server.start)
        assert await count(database) == 0


async def test_nothing_runs_after_the_end(tmp_path: Path) -> None:
    async with opened(database_url(None, tmp_path)) as database:
        await execute(database, "CREATE TABLE things (id INTEGER PRIMARY KEY)")

    with pytest.raises(DatabaseUnavailable):
        await count(database)

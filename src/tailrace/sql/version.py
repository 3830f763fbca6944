"""Which step of the migrations a database is at, without loading what makes them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncSession

from tailrace.errors import DatabaseUnavailable
from tailrace.sql.database import Database
from tailrace.sql.fresh import VERSION_TABLE, alone, make_tables
from tailrace.sql.url import sqlite_file

__all__ = ["HEAD", "VERSION_TABLE", "bring_up", "stored_version"]

HEAD = "0002"
"""The last step, which this code needs. Versions are numbers of one length: they compare as texts."""
_QUERY = f"SELECT version_num FROM {VERSION_TABLE}"  # noqa: S608 - a constant


def bring_up(url: URL) -> None:
    """Bring a SQLite file of our own up to this version. Blocking; quick where there is nothing to do.

    Raises:
        DatabaseUnavailable, OSError: it cannot be used.
    """
    file = sqlite_file(url)
    if file is not None and (_is_up(file) or _is_made(url, file)):
        return
    from tailrace.sql import migrate

    migrate.upgrade(url)


def _is_up(file: Path) -> bool:
    if not file.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5)) as connection:
            found = connection.execute(_QUERY).fetchone()
    except sqlite3.Error:
        return False
    return found is not None and str(found[0]) >= HEAD


def _is_made(url: URL, file: Path) -> bool:
    with alone(url):
        try:
            return make_tables(file, HEAD)
        except sqlite3.Error as exc:
            raise DatabaseUnavailable(f"the database does not answer: {exc}") from exc


async def stored_version(database: Database) -> str | None:
    """The version that a database has; None: none of our tables.

    Raises:
        DatabaseUnavailable: it does not answer.
    """

    async def read(session: AsyncSession) -> str | None:
        connection = await session.connection()
        if not await connection.run_sync(lambda each: inspect(each).has_table(VERSION_TABLE)):
            return None
        version = (await session.execute(text(_QUERY))).scalar_one_or_none()
        return str(version) if version is not None else None

    return await database.run(read)

"""A database behind owned tasks.

Rules of this file
1. SQL runs in tasks of the database, never in a task that a disconnect cancels: drivers break when they are cut off in
   the middle of an answer.
2. Work has a deadline for its caller. What goes on behind it has one too, and its connection is thrown away.
3. A failing driver becomes `DatabaseUnavailable`, which says whether something may have been stored. Broken constraints
   and defects are the caller's and stay what they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from tailrace.errors import DatabaseUnavailable
from tailrace.sql.url import is_sqlite, sqlite_file

__all__ = ["Database"]

log = logging.getLogger("tailrace.sql")
T = TypeVar("T")

MAX_WAITING = 1_000
"""Pieces of work at once, those that wait for a connection included."""
POOL_SIZE = 5
POOL_OVERFLOW = 10
RECYCLE_SECONDS = 1_800
"""Connections are not older than this: servers and firewalls end old ones in silence."""


class Database:
    """One database of one process. Nothing is connected before the first piece of work."""

    def __init__(self, url: URL, *, timeout: float = 5.0, raw_json: bool = False) -> None:
        """Args: the URL as `sql.url.database_url` makes it, the deadline of one piece of work in seconds, and whether
        values of JSON columns are given as the text that the database has."""
        self.url = url
        self._raw_json = raw_json
        self.timeout = timeout
        self._engine: AsyncEngine | None = None
        self._sessions: async_sessionmaker[AsyncSession] | None = None
        self._opening = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def run(self, work: Callable[[AsyncSession], Awaitable[T]], *, timeout: float | None = None) -> T:
        """Run `work(session)` in one transaction and return its result once it is committed.

        A caller that is cancelled does not cancel the work.

        Raises:
            DatabaseUnavailable: no answer in time, or none at all; `data["perhaps"]` when it may be stored.
            IntegrityError, DataError: of SQLAlchemy; nothing was stored.
        """
        seconds = self.timeout if timeout is None else timeout
        if self._closed:
            raise DatabaseUnavailable("the database was closed")
        if len(self._tasks) >= MAX_WAITING:
            raise DatabaseUnavailable("too much waits for the database")
        task = asyncio.create_task(self._work(work, seconds), name="tailrace-sql")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise DatabaseUnavailable("the database did not answer in time", perhaps=True)
        return task.result()

    async def _work(self, work: Callable[[AsyncSession], Awaitable[T]], seconds: float) -> T:
        committing = False
        try:
            # The caller is gone at `seconds`. A driver that still hangs later is cut off, with its connection.
            async with asyncio.timeout(seconds * 2):
                async with (await self._open())() as session:
                    result = await work(session)
                    committing = True
                    await session.commit()
                    return result
        except (IntegrityError, DataError):
            raise
        except (DBAPIError, PoolTimeout, OSError, TimeoutError) as exc:
            reason = _reason(exc)
            log.warning("the database failed", extra={"reason": reason})
            data = {"perhaps": True} if committing else {}
            raise DatabaseUnavailable(f"the database does not answer: {reason}", **data) from exc

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone; what failed was logged

    async def _open(self) -> async_sessionmaker[AsyncSession]:
        async with self._opening:
            if self._sessions is None:
                # In a thread: loading a driver and looking at folders would stop everybody's streams.
                self._engine = await asyncio.to_thread(_engine, self.url, self.timeout, self._raw_json)
                self._sessions = async_sessionmaker(self._engine, expire_on_commit=False)
            return self._sessions

    async def aclose(self) -> None:
        """Wait for what runs, at most the deadline, and give the connections back."""
        self._closed = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=self.timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._engine is not None:
            with contextlib.suppress(TimeoutError, DBAPIError, OSError):
                async with asyncio.timeout(self.timeout):
                    await self._engine.dispose()


def _reason(exc: BaseException) -> str:
    """What went wrong, without the statement and its values: the driver's own words may name a host, never a secret."""
    inner = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    text = str(inner).strip().splitlines()
    return f"{type(inner).__name__}: {text[0][:200]}" if text else type(inner).__name__


def _engine(url: URL, timeout: float, raw_json: bool) -> AsyncEngine:
    options: dict[str, Any] = {
        "json_serializer": lambda value: msgspec.json.encode(value).decode(),
        "json_deserializer": _as_it_is if raw_json else msgspec.json.decode,
        "pool_timeout": timeout,
        "pool_size": POOL_SIZE,
        "max_overflow": POOL_OVERFLOW,
        "pool_recycle": RECYCLE_SECONDS,
        "hide_parameters": True,
    }
    if is_sqlite(url):
        file = sqlite_file(url)
        if file is not None:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A file has one writer at a time anyway.
        options |= {"pool_size": 2, "max_overflow": 2, "connect_args": {"timeout": timeout}}
        engine = create_async_engine(url, **options)
        event.listen(engine.sync_engine, "connect", _tune_sqlite)
        return engine
    seconds = max(1, round(timeout))
    options |= {"pool_pre_ping": True, "connect_args": {"connect_timeout": seconds}}
    if url.get_backend_name() == "mysql":
        options["isolation_level"] = "READ COMMITTED"
    return create_async_engine(url, **options)


def _as_it_is(value: Any) -> Any:
    return value


def _tune_sqlite(connection: Any, record: object) -> None:
    del record
    cursor = connection.cursor()
    # Readers do not wait for a writer, and other processes' writers are waited for (`timeout`).
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()

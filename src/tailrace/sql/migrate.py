"""Bring a database's tables up to this version, or back. Blocking: for commands, and for a thread at the start.

A server's database changes only by command (`tailrace db upgrade`): several versions may run on it. A SQLite file of
our own belongs to one installation and is brought up at the start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.resources import files
from typing import Any, TypeVar

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tailrace.errors import ConfigError, DatabaseUnavailable
from tailrace.sql.fresh import VERSION_TABLE, alone
from tailrace.sql.models import Base

__all__ = ["current", "differences", "downgrade", "head", "is_behind", "upgrade"]

T = TypeVar("T")

CONNECT_SECONDS = 10


def head() -> str:
    """The version that this code needs."""
    found = _scripts().get_current_head()
    assert found is not None  # noqa: S101 - there is a first step
    return found


def current(url: URL) -> str | None:
    """The version that the database has; None: none of our tables.

    Raises:
        DatabaseUnavailable: it does not answer.
    """

    def work(connection: Connection) -> str | None:
        return _context(connection).get_current_revision()

    return _with(url, work)


def is_behind(url: URL) -> bool:
    """Whether steps are missing. A database that is ahead, of a newer tailrace, is not behind."""
    version = current(url)
    return version is None or version in {step.revision for step in _scripts().walk_revisions()} - {head()}


def upgrade(url: URL, revision: str = "head") -> None:
    """Do the missing steps. Several processes may call it for one file.

    Raises:
        DatabaseUnavailable: it does not answer. ConfigError: there is no such version.
    """
    with alone(url):
        _alembic(url, lambda config: command.upgrade(config, revision))


def downgrade(url: URL, revision: str) -> None:
    """Undo steps down to `revision`, or `base`. What they held is lost.

    Raises:
        DatabaseUnavailable: it does not answer. ConfigError: there is no such version.
    """
    with alone(url):
        _alembic(url, lambda config: command.downgrade(config, revision))


def differences(url: URL) -> list[str]:
    """What the database has otherwise than this code's tables; empty: all is well. Foreign tables do not count."""
    ours = set(Base.metadata.tables)

    def compare(connection: Connection) -> list[str]:
        found = compare_metadata(_context(connection, compare_type=True), Base.metadata)
        return [str(each) for each in found if _table_of(each) in (None, *ours)]

    return _with(url, compare)


def _table_of(difference: Any) -> str | None:
    if isinstance(difference, list):
        return str(difference[0][2])
    item = difference[1]
    table = getattr(item, "table", item)
    return getattr(table, "name", None)


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(files("tailrace.sql") / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _context(connection: Connection, **options: Any) -> MigrationContext:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, **options})


def _alembic(url: URL, step: Callable[[Config], None]) -> None:
    def work(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        step(config)
        connection.commit()

    try:
        _with(url, work)
    except CommandError as exc:
        raise ConfigError(str(exc)) from None


def _with(url: URL, work: Callable[[Connection], T]) -> T:
    """Run `work` on a connection of its own."""
    try:
        if url.get_backend_name() == "mysql":
            return asyncio.run(_with_async(url, work))  # its driver has no other way
        engine = create_engine(_blocking(url), poolclass=NullPool, connect_args=_arguments(url), hide_parameters=True)
        try:
            with engine.connect() as connection:
                return work(connection)
        finally:
            engine.dispose()
    except DBAPIError as exc:
        text = str(exc.orig).strip().splitlines() or [type(exc.orig).__name__]
        raise DatabaseUnavailable(f"the database does not answer: {text[0][:200]}") from exc


async def _with_async(url: URL, work: Callable[[Connection], T]) -> T:
    engine = create_async_engine(url, poolclass=NullPool, connect_args=_arguments(url), hide_parameters=True)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(work)
    finally:
        await engine.dispose()


def _blocking(url: URL) -> URL:
    return url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url


def _arguments(url: URL) -> dict[str, Any]:
    return {"timeout" if url.get_backend_name() == "sqlite" else "connect_timeout": CONNECT_SECONDS}

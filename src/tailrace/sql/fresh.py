"""A new SQLite file of our own, made at once: as the migrations would make it, without loading what does those.

Alembic's cookbook ("Building an Up to Date Database from Scratch") does it so; a test holds the two together. Loading
Alembic and doing all steps took 0.3 s of CPU of every first start; this takes 5 ms.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy.dialects.sqlite import dialect
from sqlalchemy.engine import URL
from sqlalchemy.schema import CreateIndex, CreateTable

from tailrace.sql.models import Base
from tailrace.sql.url import sqlite_file

__all__ = ["VERSION_TABLE", "alone", "make_tables"]

VERSION_TABLE = "tailrace_version"
BUSY_SECONDS = 10
_VERSIONS = (
    f"CREATE TABLE {VERSION_TABLE} "
    f"(version_num VARCHAR(32) NOT NULL, CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
)


@contextlib.contextmanager
def alone(url: URL) -> Iterator[None]:
    """One at a time for a file: SQLite would let two begin the same step."""
    file = sqlite_file(url)
    if file is None:
        yield
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_tables(file: Path, version: str) -> bool:
    """Make all tables in a file that has none, all or nothing. False: it has some.

    Raises:
        sqlite3.Error: it cannot be written.
    """
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return False  # closing it ends what was begun
        for statement in (_VERSIONS, *_statements()):
            connection.execute(statement)
        connection.execute(f"INSERT INTO {VERSION_TABLE} VALUES (?)", (version,))  # noqa: S608 - a constant
        connection.execute("COMMIT")
    return True


def _statements() -> Iterator[str]:
    for table in Base.metadata.sorted_tables:
        yield str(CreateTable(table).compile(dialect=dialect()))
        for index in sorted(table.indexes, key=lambda each: str(each.name)):
            yield str(CreateIndex(index).compile(dialect=dialect()))

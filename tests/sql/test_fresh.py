"""A file that is made at once is the one that the migrations make."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tailrace.errors import DatabaseUnavailable
from tailrace.sql import migrate
from tailrace.sql.fresh import make_tables
from tailrace.sql.url import database_url
from tailrace.sql.version import HEAD, bring_up


def shape(file: Path) -> dict[str, Any]:
    """Tables with their columns, indexes with theirs, and what the version table says."""
    with closing(sqlite3.connect(file)) as connection:
        names = connection.execute("SELECT type, name, tbl_name FROM sqlite_master ORDER BY name").fetchall()
        found: dict[str, Any] = {"names": names}
        for kind, name, _ in names:
            pragma = "table_xinfo" if kind == "table" else "index_xinfo"
            found[name] = connection.execute(f"PRAGMA {pragma}({name})").fetchall()
        found["version"] = connection.execute("SELECT * FROM tailrace_version").fetchall()
    return found


def test_it_has_the_tables_that_the_migrations_make(tmp_path: Path) -> None:
    made, migrated = (database_url(None, tmp_path / name) for name in ("made", "migrated"))
    bring_up(made)
    migrate.upgrade(migrated)

    assert shape(tmp_path / "made" / "tailrace.db") == shape(tmp_path / "migrated" / "tailrace.db")
    assert migrate.differences(made) == []
    assert not migrate.is_behind(made)


def test_it_goes_back_and_forth_as_a_migrated_one(tmp_path: Path) -> None:
    url = database_url(None, tmp_path)
    bring_up(url)

    migrate.downgrade(url, "base")
    assert migrate.current(url) is None

    bring_up(url)
    assert migrate.current(url) == migrate.head() == HEAD
    assert migrate.differences(url) == []


def test_a_file_that_was_begun_is_migrated(tmp_path: Path) -> None:
    url = database_url(None, tmp_path)
    migrate.upgrade(url, "0001")

    bring_up(url)

    assert migrate.current(url) == HEAD
    assert migrate.differences(url) == []


def test_a_file_with_foreign_tables_keeps_them(tmp_path: Path) -> None:
    file = tmp_path / "tailrace.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE theirs (n INTEGER)")

    bring_up(database_url(None, tmp_path))

    assert ("table", "theirs", "theirs") in shape(file)["names"]
    assert migrate.current(database_url(None, tmp_path)) == HEAD


def test_several_may_make_it_at_once(tmp_path: Path) -> None:
    url = database_url(None, tmp_path)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(bring_up, url) for _ in range(4)]:
            done.result()

    assert shape(tmp_path / "tailrace.db")["version"] == [(HEAD,)]


def test_what_fails_half_way_leaves_no_table(tmp_path: Path) -> None:
    file = tmp_path / "tailrace.db"

    with pytest.raises(sqlite3.Error):
        make_tables(file, None)  # type: ignore[arg-type]  # no version: the last statement fails

    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "tailrace.db").write_text("no database, but long enough to be read as the head of one" * 4)

    with pytest.raises(DatabaseUnavailable):
        bring_up(database_url(None, tmp_path))


def test_the_migrations_are_not_loaded_for_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tailrace.sql.url import database_url; "
        "from tailrace.sql.version import bring_up; bring_up(database_url(None, Path(sys.argv[1]))); "
        "sys.exit('alembic' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0

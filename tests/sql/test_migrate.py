from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from tailrace.errors import ConfigError, DatabaseUnavailable
from tailrace.sql import migrate
from tailrace.sql.url import database_url


def test_migrations_make_what_the_models_say(any_database: URL) -> None:
    assert migrate.is_behind(any_database)

    migrate.upgrade(any_database)

    assert migrate.current(any_database) == migrate.head()
    assert migrate.differences(any_database) == []
    assert not migrate.is_behind(any_database)


def test_upgrading_again_and_going_back_and_forth_changes_nothing(any_database: URL) -> None:
    migrate.upgrade(any_database)
    migrate.upgrade(any_database)
    migrate.downgrade(any_database, "base")

    assert migrate.current(any_database) is None
    assert migrate.differences(any_database) != []

    migrate.upgrade(any_database)
    assert migrate.differences(any_database) == []


def test_several_may_upgrade_one_file_at_once(tmp_path: Path) -> None:
    url = database_url(None, tmp_path)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrate.upgrade, url) for _ in range(4)]:
            done.result()

    assert migrate.current(url) == migrate.head()


def test_a_version_that_is_not_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        migrate.upgrade(database_url(None, tmp_path), "9999")


def test_a_server_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    url = database_url(f"postgresql://me:geheim@/x?host={tmp_path}", tmp_path)

    with pytest.raises(DatabaseUnavailable) as caught:
        migrate.current(url)

    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "driver"),
    [
        (None, "sqlite+aiosqlite"),
        ("sqlite:///x.db", "sqlite+aiosqlite"),
        ("postgres://h/d", "postgresql+psycopg"),
        ("postgresql+asyncpg://h/d", "postgresql+psycopg"),
        ("mariadb://h/d", "mysql+asyncmy"),
    ],
)
def test_a_url_is_given_the_driver_that_is_here(text: str | None, driver: str, tmp_path: Path) -> None:
    assert database_url(text, tmp_path).drivername == driver


@pytest.mark.parametrize("text", ["no url", "oracle://h/d", "sqlite://", "sqlite:///:memory:"])
def test_a_database_that_cannot_be_used_is_a_config_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        database_url(text, tmp_path)

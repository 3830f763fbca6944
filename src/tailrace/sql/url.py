"""Which database a URL means, and with which driver. SQLite, PostgreSQL and MySQL or MariaDB."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from tailrace.errors import ConfigError

__all__ = ["SQLITE_FILE", "database_url", "is_sqlite", "sqlite_file"]

SQLITE_FILE = "tailrace.db"
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+asyncmy",
    "mariadb": "mysql+asyncmy",
}


def database_url(text: str | None, data_dir: Path) -> URL:
    """The URL with the driver that tailrace uses; without one, a SQLite file of our own in `data_dir`.

    Raises:
        ConfigError: not a URL of a database that is known here. The text of it is never shown: it may hold a password.
    """
    if text is None:
        return URL.create("sqlite+aiosqlite", database=str(data_dir / SQLITE_FILE))
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigError("database_url is not a URL") from None
    driver = _DRIVERS.get(url.drivername.partition("+")[0])
    if driver is None:
        raise ConfigError("database_url begins with sqlite:///, postgresql:// or mysql://")
    url = url.set(drivername=driver)
    if driver.startswith("mysql") and "charset" not in url.query:
        url = url.update_query_dict({"charset": "utf8mb4"})
    if is_sqlite(url) and url.database in (None, "", ":memory:"):
        raise ConfigError("database_url names no file: a SQLite database in memory would be one for each connection")
    return url


def is_sqlite(url: URL) -> bool:
    """Whether it is a file."""
    return url.get_backend_name() == "sqlite"


def sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite database."""
    return Path(url.database) if is_sqlite(url) and url.database else None

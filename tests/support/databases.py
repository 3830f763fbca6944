"""Real databases for tests: private PostgreSQL and MariaDB servers on unix sockets in private folders, ended by pid.

One of each for the tests of one worker, started by the first test that needs it; every test gets a database of its own.
A test that breaks its server starts one with `start_postgresql` or `start_mariadb`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from tailrace.sql.url import database_url
from tests.support.need import need_mariadb, need_postgresql
from tests.support.redis_servers import private_folder
from tests.support.wait import eventually_sync

__all__ = ["DatabaseServer", "StartDatabase"]

READY_SECONDS = 60.0


class DatabaseServer:
    """A server process and the folder it lives in."""

    def __init__(self, folder: Path, command: list[str], url: URL, user: str | None) -> None:
        self.folder = folder
        self.url = url
        self._command = command
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, or start again, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_lifeline(), *self._command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=self._user,
                group=_group(self._user),
                extra_groups=None if self._user is None else [],
            )
        eventually_sync(self._answers, READY_SECONDS, every=0.1)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text(errors="replace")[-2_000:]
        try:
            self.execute("SELECT 1")
        except (DBAPIError, OSError):
            return False
        return True

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is None:
            return
        # SIGINT is PostgreSQL's fast shutdown.
        process.send_signal(signal.SIGTERM if self.url.get_backend_name() == "mysql" else signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)

    def execute(self, statement: str) -> None:
        """Run one statement as the administrator."""
        if self.url.get_backend_name() == "mysql":
            asyncio.run(self._execute(statement))
            return
        engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))

    async def _execute(self, statement: str) -> None:
        engine = create_async_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(text(statement))
        await engine.dispose()

    def create_database(self) -> URL:
        """Make an empty database."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url.set(database=name)


def _lifeline() -> list[str]:
    """The server dies with whoever started it, however that dies."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _group(user: str | None) -> int | None:
    return None if user is None else pwd.getpwnam(user).pw_gid


def _prepare(command: list[str], user: str | None) -> None:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        user=user,
        group=_group(user),
        extra_groups=None if user is None else [],
    )
    assert done.returncode == 0, done.stderr or done.stdout


def _postgresql(folder: Path) -> DatabaseServer:
    binaries = need_postgresql()
    # The server refuses root.
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    data = folder / "data"
    _prepare(
        [f"{binaries}/initdb", "-D", str(data), "-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
        user,
    )
    command = [f"{binaries}/postgres", "-D", str(data), "-k", str(folder), "-h", ""]
    for option in ("fsync=off", "full_page_writes=off", "shared_buffers=16MB", "max_connections=60"):
        command += ["-c", option]
    url = database_url(f"postgresql://tester@/postgres?host={folder}", folder)
    return DatabaseServer(folder, command, url, user)


def _mariadb(folder: Path) -> DatabaseServer:
    install, server = need_mariadb()
    data = folder / "data"
    as_root = ["--user=root"] if os.geteuid() == 0 else []
    # A server that starts removes every temporary table in its folder for those: another's, too.
    temporary = f"--tmpdir={folder}"
    _prepare(
        [
            *(install, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"),
            *("--skip-test-db", temporary, *as_root),
        ],
        None,
    )
    socket = folder / "s"
    command = [
        *(server, "--no-defaults", f"--datadir={data}", f"--socket={socket}", "--skip-networking", *as_root),
        *(temporary, "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0", f"--pid-file={folder}/pid"),
    ]
    url = database_url(f"mysql://root@localhost/mysql?unix_socket={socket}", folder)
    return DatabaseServer(folder, command, url, None)


@contextlib.contextmanager
def _running(make: Callable[[Path], DatabaseServer]) -> Iterator[DatabaseServer]:
    folder = private_folder()
    try:
        server = make(folder)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


StartDatabase = Callable[[], DatabaseServer]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[DatabaseServer]:
    """A PostgreSQL server for the tests of this worker."""
    with _running(_postgresql) as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[DatabaseServer]:
    """A MariaDB server for the tests of this worker."""
    with _running(_mariadb) as server:
        yield server


@pytest.fixture
def start_postgresql() -> Iterator[StartDatabase]:
    """Start a PostgreSQL server that the test may break."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(_running(_postgresql))


@pytest.fixture
def start_mariadb() -> Iterator[StartDatabase]:
    """Start a MariaDB server that the test may break."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(_running(_mariadb))


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def any_database(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """An empty database of each sort."""
    if request.param == "sqlite":
        return database_url(None, tmp_path)
    server: DatabaseServer = request.getfixturevalue(request.param)
    return server.create_database()

"""Real Redis servers for tests: on private unix sockets (or free loopback ports), in private folders, ended by pid.

Session servers (`redis62`, `redis70`, `redis50`, `any_redis`) are shared by the tests of one worker: use `key_prefix`,
and never flush, pause or kill them. A test that breaks its server starts its own with `start_redis`.

Whoever connects to them without a login has the documented minimal rights and no more (docs/redis-user.md), on keys and
channels `t*`: so everything that runs on these servers runs under them. `cli` logs in as an administrator. At its end a
server tells what it denied; whoever was denied something fails the test run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest
import pytest_asyncio

from tailrace.eventlog.acl import acl_rules, sentinel_rules
from tests.support.leaks import folder_prefix
from tests.support.need import need_redis50, need_redis62, need_redis70

__all__ = ["Config", "RedisServer", "StartRedis", "find_port", "private_folder"]

Config = Mapping[str, str | Sequence[str]]
StartRedis = Callable[..., Awaitable["RedisServer"]]

READY_SECONDS = 15.0

# The server gets SIGKILL when this process dies, however it dies. The signal is tied to the *thread* that forked, so
# `_Spawner` forks everything from one thread that lives as long as the process.
LIFELINE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def private_folder() -> Path:
    """Make an empty folder with a short path: a unix socket's path has at most 107 bytes."""
    return Path(tempfile.mkdtemp(prefix=folder_prefix(), dir="/tmp"))


_given: set[int] = set()
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def find_port(*, pair: int = 0) -> int:
    """Find a loopback port nobody has, below the range that the kernel hands out by itself.

    Each of several test processes has its own share of them. `pair`: the port that comes so much later is free, too.
    """
    for _ in range(1_000):
        port = random.randrange(15_000 + _worker, 32_000 - pair, _workers)
        wanted = {port, port + pair}
        if wanted & _given:
            continue
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for each in wanted:
                probes.enter_context(socket.socket()).bind(("127.0.0.1", each))
            _given.update(wanted)
            return port
    raise RuntimeError("no free port")


class _Spawner:
    """Starts processes from one long-lived thread."""

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(1, thread_name_prefix="test-spawner")

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-I", "-S", "-c", LIFELINE, str(os.getpid()), *argv]
        return self._pool.submit(lambda: subprocess.Popen(line, **options)).result()


_spawner = _Spawner()


class RedisServer:
    """One redis-server process. Every waiting method is `async`; its `_sync` twin is for fixtures and threads.

    Args:
        binary: path of the server program.
        config: settings over the defaults here; a sequence repeats the setting.
        port: also listen on this port of 127.0.0.1 (0: the unix socket only).
        mode: "server" or "sentinel".
        url: what `url` answers, when it is not the unix socket's.
        limited: the version whose minimal rights everybody gets who does not log in; None: all rights.
    """

    ADMIN = ("admin", "admin-of-the-tests")

    def __init__(
        self,
        binary: str,
        config: Config | None = None,
        *,
        port: int = 0,
        mode: str = "server",
        url: str | None = None,
        limited: tuple[int, int] | None = None,
    ) -> None:
        self.binary = binary
        self.port = port
        self.mode = mode
        self.folder = private_folder()
        self.socket = self.folder / "redis.sock"
        self.config: dict[str, str | Sequence[str]] = {
            "port": str(port),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "logfile": str(self.folder / "redis.log"),
            "daemonize": "no",
        }
        if mode == "server":
            self.config |= {
                "save": '""',
                "appendonly": "yes",
                "appendfsync": "everysec",
                "maxmemory-policy": "noeviction",
            }
        self.credentials: tuple[str, ...] = ()
        """Arguments of the AUTH that `cli` sends first."""
        self.environment: dict[str, str] = {}
        """What its process has in its environment besides ours."""
        self.limited = limited is not None
        if limited is not None:
            self._limit(limited)
        self.config |= config or {}
        self.url = url or f"unix://{self.socket}"
        self.admin_url = f"unix://{':'.join(self.credentials)}@{self.socket}" if self.limited else self.url
        """With all rights."""
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False
        self._conf = self.folder / "redis.conf"
        self._write_config()

    def _limit(self, version: tuple[int, int]) -> None:
        name, password = self.ADMIN
        self.credentials = self.ADMIN
        rules = sentinel_rules() if self.mode == "sentinel" else acl_rules("t", version)
        users = [f"default on nopass {' '.join(rules)}", f"{name} on >{password} ~* &* +@all"]
        # A replica of such a server, and its master, are the administrator's.
        self.config |= {"user": users, "masteruser": name, "masterauth": password, "acllog-max-len": "1000"}

    def denied_sync(self) -> list[str]:
        """What the limited user was denied since the server started."""
        entries = self.cli_sync("ACL", "LOG", 1_000) if self.limited and self.running else []
        found = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in entries]
        denied = [each for each in found if each["username"] == "default" and each["reason"] != "auth"]
        return [f"{each['reason']} {each['object']} ({each['context']})" for each in denied]

    def configure(self, config: Config) -> None:
        """Change settings; they count from the next start."""
        self.config |= config
        self._write_config()

    def _write_config(self) -> None:
        lines = []
        for name, value in self.config.items():
            lines += [f"{name} {one}" for one in ([value] if isinstance(value, str) else value)]
        self._conf.write_text("\n".join(lines) + "\n")

    @property
    def tcp_url(self) -> str:
        """Address by its port."""
        assert self.port, "it has no port"
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there (paused counts)."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """The server's own log, for messages of failed tests."""
        path = self.folder / "redis.log"
        return path.read_text(errors="replace")[-4_000:] if path.exists() else ""

    def start_sync(self, *, wait: bool = True) -> RedisServer:
        """Start on the data that is there; wait until it answers (also through LOADING)."""
        assert not self.running, "already running"
        argv = [self.binary, str(self._conf)] + (["--sentinel"] if self.mode == "sentinel" else [])
        self._process = _spawner.popen(
            argv,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if wait:
            self.wait_ready_sync()
        return self

    def wait_ready_sync(self) -> None:
        """Wait until the server answers a PING with anything but LOADING."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            assert self.running, f"{self.binary} ended at once: {self.log()}"
            with contextlib.suppress(OSError):
                reply = self.cli_sync("PING", auth=False)
                if not str(reply).startswith("LOADING"):
                    return
            assert time.monotonic() < deadline, f"{self.binary} does not answer: {self.log()}"
            time.sleep(0.01)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if self._paused:
            process.send_signal(signal.SIGCONT)
            self._paused = False
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    def stop_sync(self) -> None:
        """End the server the clean way; the data stays."""
        self._end(signal.SIGTERM)

    def kill_sync(self) -> None:
        """End the server with -9; the data stays as it is."""
        self._end(signal.SIGKILL)

    def remove_sync(self) -> None:
        """End the server and delete its folder."""
        self.kill_sync()
        shutil.rmtree(self.folder, ignore_errors=True)

    def pause(self) -> None:
        """Freeze the process: connections stay open and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let a paused process go on."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    async def start(self, *, wait: bool = True) -> RedisServer:
        """Start on the data that is there; wait until it answers, unless told not to."""
        await asyncio.to_thread(self.start_sync, wait=wait)
        return self

    async def wait_ready(self) -> None:
        """Wait until the server answers."""
        await asyncio.to_thread(self.wait_ready_sync)

    async def stop(self) -> None:
        """End the server the clean way; the data stays."""
        await asyncio.to_thread(self.stop_sync)

    async def kill(self) -> None:
        """End the server with -9; the data stays as it is."""
        await asyncio.to_thread(self.kill_sync)

    async def restart(self) -> None:
        """Kill with -9 and start again on the same data and address."""
        await self.kill()
        await self.start()

    def cli_sync(self, *args: str | bytes | int, auth: bool = True, timeout: float = 10.0) -> Any:
        """Run one command and return its reply, text decoded; an error reply is returned, not raised."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(timeout)
            client.connect(str(self.socket))
            reader = hiredis.Reader(encoding="utf-8", errors="surrogateescape")
            if auth and self.credentials:
                _exchange(client, reader, "AUTH", *self.credentials)
            return _exchange(client, reader, *args)

    async def cli(self, *args: str | bytes | int) -> Any:
        """Run one command; raises `hiredis.ReplyError` when the server answers with an error."""
        reply = await asyncio.to_thread(self.cli_sync, *args)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
        """A connection that stays, for where no new one can be made; commands as with `cli`."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.socket))
            reader = hiredis.Reader(encoding="utf-8", errors="surrogateescape")

            async def call(*args: str | bytes | int) -> Any:
                return await asyncio.to_thread(_exchange, client, reader, *args)

            if self.credentials:
                await call("AUTH", *self.credentials)
            yield call

    async def rewrite(self) -> None:
        """Write the append-only file anew, and wait until that is done."""
        await self.cli("BGREWRITEAOF")
        while True:
            facts = await self.info("persistence")
            if facts["aof_rewrite_in_progress"] == "0" and facts["aof_rewrite_scheduled"] == "0":
                return
            await asyncio.sleep(0.02)

    async def info(self, section: str = "default") -> dict[str, str]:
        """INFO as a dict."""
        lines = str(await self.cli("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)


def _exchange(client: socket.socket | ssl.SSLSocket, reader: hiredis.Reader, *args: str | bytes | int) -> Any:
    client.sendall(hiredis.pack_command(args))  # type: ignore[arg-type]  # its stub says one argument
    while (reply := reader.gets()) is False:
        data = client.recv(65_536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        reader.feed(data)
    return reply


def _session_server(binary: str, limited: tuple[int, int] | None) -> Iterator[RedisServer]:
    server = RedisServer(binary, limited=limited)
    try:
        yield server.start_sync()
        assert server.denied_sync() == [], "the minimal rights are not enough"
    finally:
        server.remove_sync()


@pytest.fixture(scope="session")
def redis50() -> Iterator[RedisServer]:
    """A shared Redis 5.0, which knows no users."""
    yield from _session_server(need_redis50(), None)


@pytest.fixture(scope="session")
def redis62() -> Iterator[RedisServer]:
    """A shared Redis 6.2: the embedded one."""
    yield from _session_server(need_redis62(), (6, 2))


@pytest.fixture(scope="session")
def redis70() -> Iterator[RedisServer]:
    """A shared Redis of the system: 7.0 on Debian 12."""
    yield from _session_server(need_redis70(), (7, 0))


@pytest.fixture(params=["6.2", "7.0"])
def any_redis(request: pytest.FixtureRequest) -> RedisServer:
    """The test runs on each of the current servers."""
    server: RedisServer = request.getfixturevalue(f"redis{request.param.replace('.', '')}")
    return server


@pytest.fixture(params=["5.0", "6.2", "7.0"])
def every_redis(request: pytest.FixtureRequest) -> RedisServer:
    """The test runs on each supported server, the oldest too."""
    server: RedisServer = request.getfixturevalue(f"redis{request.param.replace('.', '')}")
    return server


@pytest.fixture
def key_prefix() -> str:
    """A key prefix nobody else has; the tests' servers are shared."""
    return f"t{uuid.uuid4().hex[:12]}:"


@pytest.fixture
def free_port() -> int:
    """A loopback port nobody has."""
    return find_port()


@pytest_asyncio.fixture
async def start_redis() -> AsyncIterator[StartRedis]:
    """Start servers of the test's own: `server = await start_redis({"maxmemory": "2mb"}, version="6.2", port=…)`.

    `limited=False`: whoever connects may do everything, as on a Redis that nobody has set up.
    """
    binaries = {"5.0": need_redis50, "6.2": need_redis62, "7.0": need_redis70}
    versions = {"5.0": None, "6.2": (6, 2), "7.0": (7, 0)}
    servers: list[RedisServer] = []

    async def start(
        config: Config | None = None, *, version: str = "7.0", port: int = 0, limited: bool = True
    ) -> RedisServer:
        # With `everysec` Redis holds back its writes while an fsync is under way: on a busy disk a kill would lose what
        # was acknowledged. What that means is the durability table's business (tests/chaos).
        given = {"appendfsync": "no", **(config or {})}
        server = RedisServer(binaries[version](), given, port=port, limited=versions[version] if limited else None)
        servers.append(server)
        return await server.start()

    yield start
    denied: list[str] = []
    for server in servers:
        with contextlib.suppress(OSError):
            denied += await asyncio.to_thread(server.denied_sync)
        await asyncio.to_thread(server.remove_sync)
    assert denied == [], "the minimal rights are not enough"

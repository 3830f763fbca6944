"""What is measured: a Redis as `tailrace dev` has it, a gateway in a process and on a core of its own, an audience."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from bench.harness import Histogram
from bench.process import Child, Cores, build, child, private_folder
from bench.server import Server, open_redis
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log
from tailrace.eventlog.redis.log import RedisLog

__all__ = [
    "Audience",
    "Heard",
    "Stack",
    "audience",
    "metric",
    "open_log",
    "open_stack",
    "request",
    "sse_path",
    "ws_path",
]

UPGRADE = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]


@dataclass
class Stack:
    """A running Redis and gateway."""

    redis: Server
    gateway: Child
    port: int
    token: str
    env: dict[str, str]
    """The gateway's settings."""

    @property
    def redis_url(self) -> str:
        """Where its Redis is."""
        return self.redis.url


@asynccontextmanager
async def open_stack(
    *, gateway_on: Cores = None, others_on: Cores = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[Stack]:
    """Start both, with AOF everysec, and end them afterwards.

    `env` is for the gateway, beside the settings that it needs.

    Raises:
        Missing: there is no redis-server.
    """
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(on=others_on))
        secret = secrets.token_hex(32)
        settings = {
            "TAILRACE_REDIS_URL": redis.url,
            "TAILRACE_JWT_SECRET": secret,
            "TAILRACE_DATA_DIR": str(redis.folder),
            "TAILRACE_PORT": "0",
            "TAILRACE_MAX_CONNECTIONS_PER_USER": "0",
            "TAILRACE_MAX_CONNECTIONS_PER_ADDRESS": "0",
            "TAILRACE_LOG_LEVEL": "warning",
            **(env or {}),
        }
        argv = [sys.executable, "-m", "bench.gateway"]
        gateway = await stack.enter_async_context(child(argv, on=gateway_on, env=settings))
        port = int((await gateway.line(60)).rpartition(":")[2])
        grants = {"read": ["run:*"], "write": ["run:*"]}
        claims = {"sub": "bench", "exp": int(time.time()) + 7_200, "tailrace": grants}
        yield Stack(redis, gateway, port, jwt.encode(claims, secret, algorithm="HS256"), settings)


async def metric(port: int, name: str) -> float:
    """One of the gateway's own gauges."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
    async with asyncio.timeout(10):
        lines = (await reader.read()).decode().splitlines()
    writer.close()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))


class Audience:
    """Connected clients, in a process of their own. They read nothing while they are asked nothing."""

    def __init__(self, process: Child) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def since(self, events: int, seconds: float) -> None:
        """Wait for so many events on every connection, counted and timed from before the first connection."""
        self._process.tell(f"since {events} {seconds}")

    def expect(self, events: int, seconds: float) -> None:
        """From now on, wait for so many events on every connection, but no longer than `seconds`."""
        self._process.tell(f"expect {events} {seconds}")

    def slow(self, bytes_per_second: int, seconds: float) -> None:
        """For so long, read so slowly; then `rest` is to be called."""
        self._process.tell(f"slow {bytes_per_second} {seconds}")

    def rest(self, events: int, seconds: float) -> None:
        """As `expect`, counted from the beginning of the `slow` before."""
        self._process.tell(f"rest {events} {seconds}")

    async def heard(self, seconds: float) -> Heard:
        """What came."""
        said: dict[str, Any] = json.loads(await self._process.line(seconds))
        return Heard(delays=Histogram(said.pop("buckets")), **said)


@dataclass
class Heard:
    """What all connections together were given."""

    events: int
    missing: int
    duplicate: int
    closed: int
    short: int
    """Connections that were given fewer than expected."""
    reads: int
    chunks: int
    """HTTP chunks: as many writes the server made. 0 over WebSocket, where nothing shows it."""
    seconds: float
    cpu: float
    """Of the audience's process, since its start."""
    delays: Histogram


@asynccontextmanager
async def audience(
    port: int,
    connections: int,
    *,
    path: str | Sequence[str],
    token: str = "",
    chain: bool = True,
    websocket: bool = False,
    receive_buffer: int | None = None,
    on: Cores = None,
) -> AsyncIterator[Audience]:
    """Connect clients and wait until each was answered. Of several paths, connection i asks for i modulo their number.

    `receive_buffer` is what the kernel may hold for each of them (SO_RCVBUF).

    Raises:
        RuntimeError: not all of them were.
    """
    binary = build("readers")
    async with private_folder() as folder:
        requests = folder / "requests"
        paths = [path] if isinstance(path, str) else path
        requests.write_bytes(b"".join(request(one, token, websocket=websocket) for one in paths))
        argv: list[str | Path] = [binary, str(port), str(connections), "chain" if chain else "count", requests]
        if receive_buffer is not None:
            argv.append(str(receive_buffer))
        async with child(argv, on=on) as process:
            said = await process.line(200)
            if not said.startswith("ready"):
                raise RuntimeError(f"clients were not served: {said}")
            yield Audience(process)


def request(path: str, token: str = "", *, websocket: bool = False) -> bytes:
    """What a client sends."""
    lines = ["Host: 127.0.0.1", *(UPGRADE if websocket else ["Accept: text/event-stream"])]
    lines += [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


@asynccontextmanager
async def open_log(url: str, kinds: Kinds | None = None) -> AsyncIterator[Log]:
    """A log of this process's own."""
    log = RedisLog.connect(url, kinds=kinds)
    try:
        yield log
    finally:
        await log.aclose()


def sse_path(stream: StreamName, cursor: str = "$") -> str:
    """Where one stream is read over SSE, from a cursor on."""
    return f"/api/v1/streams/{stream}/events/stream?last_event_id={cursor}"


def ws_path(stream: StreamName, cursor: str = "$") -> str:
    """Where one stream is read over WebSocket, from a cursor on."""
    return f"/api/v1/streams/{stream}/ws?last_id={cursor}"

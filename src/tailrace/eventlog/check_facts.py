"""What the start-up checks ask of a server.

Nothing is changed but one key that is gone after a second: whether writes are taken can only be known by writing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

from tailrace.errors import ConfigError, LogUnavailable
from tailrace.eventlog.check_rights import Rights, find_rights
from tailrace.eventlog.redis.connection import Connection, ReplyError
from tailrace.eventlog.redis.endpoint import Endpoint, Mode
from tailrace.eventlog.redis.topology import Topology

__all__ = ["Facts", "connected", "gather", "last_words", "lines", "within"]

_CONFIG: Final = ("save", "appendfsync", "client-output-buffer-limit", "maxclients", "min-replicas-to-write")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a server said."""

    endpoint: Endpoint
    mode: Mode
    product: str
    version: tuple[int, ...]
    user: str
    rights: Rights
    info: dict[str, str] | None
    """INFO; None: the login may not read it."""
    config: dict[str, str] | None
    """Settings; None: the login may not read them."""
    has_streams: bool
    write_error: str | None
    """The server's answer to a write, when it was an error."""
    clock_seconds: float
    """The server's clock minus ours."""
    is_sentinel: bool = False
    """Whether it said so itself, which needs no rights."""
    unchecked: tuple[str, ...] = ()
    """Names of commands that would have told more."""


def within(seconds: float) -> float:
    """A deadline on the loop's clock."""
    return asyncio.get_running_loop().time() + seconds


@contextlib.asynccontextmanager
async def connected(endpoint: Endpoint, seconds: float) -> AsyncIterator[Connection]:
    """A connection for a few questions."""
    connection = await Connection.open(endpoint, deadline=within(seconds), name="tailrace-checks")
    try:
        yield connection
    finally:
        connection.abort()


async def last_words(endpoint: Endpoint) -> str:
    """What a server says by itself before it closes a new connection: too many clients, or protected mode."""
    writer = None
    try:
        async with asyncio.timeout(1.0):
            if endpoint.path is not None:
                reader, writer = await asyncio.open_unix_connection(endpoint.path)
            else:
                context = await asyncio.to_thread(endpoint.tls.context) if endpoint.tls is not None else None
                reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context)
            line = await reader.readline()
            return line.decode(errors="replace").strip()[1:] if line.startswith(b"-") else ""
    except (OSError, TimeoutError, ValueError, ConfigError):
        return ""
    finally:
        if writer is not None:
            writer.transport.abort()


async def gather(
    endpoint: Endpoint, topology: Topology, prefix: str, seconds: float, clock: Callable[[], float]
) -> Facts:
    """Ask one server for everything the checks need.

    Raises:
        LoginRefused, LogUnavailable, ConfigError: as `Connection.open` and `Connection.call`.
    """
    deadline = within(seconds)
    key = await _own_key(endpoint, topology, prefix)
    unchecked: list[str] = []
    async with connected(endpoint, seconds) as connection:

        async def ask(name: str, *words: str | int) -> Any:
            try:
                return await connection.call(*words, deadline=deadline)
            except ReplyError as exc:
                if exc.code == "LOADING":
                    raise LogUnavailable(f"{endpoint.label} is loading its data") from exc
                unchecked.append(name)
                return None

        info = await ask("INFO", "INFO")
        user = await ask("ACL|WHOAMI", "ACL", "WHOAMI") if connection.version >= (6,) else None
        config: dict[str, str] = {}
        for name in _CONFIG:
            pair = await ask("CONFIG|GET", "CONFIG", "GET", name)
            config |= {name: pair[1].decode()} if pair else {}
        before = clock()
        now = await ask("TIME", "TIME")
        middle = (before + clock()) / 2
        streams = await _error(connection, deadline, "XLEN", key)
        is_sentinel = connection.is_sentinel
        write = await _error(connection, deadline, "SET", key + ":check", "1", "PX", 1_000)
    facts = lines(info) if info is not None else None
    product, version = _version(facts, connection.version)
    async with connected(endpoint, seconds) as connection:
        rights = await find_rights(connection, key, version, topology.mode, deadline)
    return Facts(
        endpoint=endpoint,
        mode=topology.mode,
        product=product,
        version=version,
        user=user.decode() if user is not None else endpoint.username or "default",
        rights=rights,
        info=facts,
        config=config if "CONFIG|GET" not in unchecked else None,
        has_streams=streams is None or "unknown command" not in streams.lower(),
        write_error=write,
        is_sentinel=is_sentinel or (facts or {}).get("redis_mode") == "sentinel",
        clock_seconds=int(now[0]) + int(now[1]) / 1e6 - middle if now else 0.0,
        unchecked=tuple(dict.fromkeys(name for name in unchecked if name in ("INFO", "CONFIG|GET"))),
    )


async def _error(connection: Connection, deadline: float, *words: str | int) -> str | None:
    try:
        await connection.call(*words, deadline=deadline)
    except ReplyError as exc:
        return exc.message
    return None


async def _own_key(endpoint: Endpoint, topology: Topology, prefix: str) -> str:
    """A key that nobody uses; in a Cluster, one whose slot this server has."""
    key = f"{prefix}doctor:{{{random.randrange(1 << 32):08x}}}"
    for number in range(10_000 if topology.mode is Mode.CLUSTER else 0):
        key = f"{prefix}doctor:{{{number}}}"
        try:
            if await topology.endpoint_for(topology.slot(key)) == endpoint:
                break
        except LogUnavailable:
            break  # a slot that nobody has: the write will be told so
    return key


def lines(info: bytes) -> dict[str, str]:
    """INFO as a dict."""
    return dict(line.split(":", 1) for line in info.decode(errors="replace").splitlines() if ":" in line)


def _version(info: dict[str, str] | None, seen: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    if info is None:
        return "Redis", seen
    product = "Valkey" if info.get("server_name") == "valkey" or "valkey_version" in info else "Redis"
    # The commands go by this one; Valkey keeps it at the Redis it can stand in for.
    version = tuple(int(part) for part in info.get("redis_version", "").split(".") if part.isdigit()) or seen
    return product, version

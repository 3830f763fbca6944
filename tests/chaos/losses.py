"""Faults that lose records by design, on streams of their own: each loss has to be told, with its right bounds."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import hiredis
import httpx

from tailrace.hub.hub import LINGER_SECONDS
from tests.chaos.wire import http_client
from tests.chaos.writers import Writer
from tests.support.wait import eventually

if TYPE_CHECKING:
    from tests.chaos.arena import Arena
    from tests.chaos.readers import Reader

__all__ = ["LOSING", "REBORN_STREAM", "TRIMMED_STREAM", "eviction", "removal", "trimming"]

LOSING = ("trimming", "removal", "eviction")
TRIMMED_STREAM = "task:trimmed"
REBORN_STREAM = "job:reborn"
"""Deleted, expired and evicted again and again."""


async def trimming(arena: Arena, rng: random.Random) -> None:
    """Readers are away while more is written than is kept, and others read right at the edge of what is trimmed."""
    writers, readers = _people(arena, TRIMMED_STREAM)
    for writer in writers:
        writer.batch, writer.pause = 100, 0.01
    try:
        # A gateway keeps the newest records of a stream in memory while it has readers, and for LINGER_SECONDS after,
        # and gives them to those who come back: what is trimmed is missed by who comes later.
        for share, away in ((0.5, 0.0), (1.0, LINGER_SECONDS + rng.uniform(1.5, 3))):
            for reader in readers:
                if rng.random() < share:
                    reader.leave()
            await asyncio.sleep(away)
            await _written(writers, rng.randint(2, 4) * arena.load.lengths["task"])
            for reader in readers:
                reader.heal()
            await _moved(readers, TRIMMED_STREAM)
            await _written(writers, arena.load.lengths["task"])
    finally:
        for writer in writers:
            writer.calm()


async def removal(arena: Arena, rng: random.Random) -> None:
    """A stream is deleted, deleted behind our back, expires, or loses all of its keys, while it is read and written."""
    writers, readers = _people(arena, REBORN_STREAM)
    key = arena.key(REBORN_STREAM)
    for _ in range(4):
        for reader in readers:
            if rng.random() < 0.5:
                reader.leave()
        await _written(writers, rng.randint(5, 30))
        match rng.choice(("delete", "DEL", "expire", "all")):
            case "delete":
                async with http_client(arena.bearer) as client:
                    with contextlib.suppress(httpx.HTTPError):
                        await client.delete(f"{arena.url()}/api/v1/streams/{REBORN_STREAM}")
            case "DEL":
                await arena.redis.cli("DEL", f"{key}:events")
            case "expire":
                await arena.redis.cli("PEXPIRE", f"{key}:events", rng.randint(1, 50))
            case _:
                await arena.redis.cli("DEL", *(f"{key}:{part}" for part in ("events", "meta", "uids")))
        arena.board.count("effect", "removals")
        await asyncio.sleep(rng.uniform(0, 0.2))
        for reader in readers:
            reader.heal()
        await _written(writers, rng.randint(1, 10))
    await _moved(readers, REBORN_STREAM)


async def eviction(arena: Arena, rng: random.Random) -> None:
    """The server may evict keys that have a life, and its memory is full: whole streams go."""
    key = arena.key(REBORN_STREAM)
    writers, _ = _people(arena, REBORN_STREAM)
    await _written(writers, 20)
    used = int((await arena.redis.info("memory"))["used_memory"])
    evicted = await _evicted(arena)
    await arena.redis.cli("CONFIG", "SET", "maxmemory-policy", rng.choice(("volatile-ttl", "volatile-random")))
    await arena.redis.cli("CONFIG", "SET", "maxmemory", used // 2)
    try:

        async def gone() -> bool:
            with contextlib.suppress(OSError, hiredis.ReplyError):
                return await _evicted(arena) > evicted and not await arena.redis.cli("EXISTS", f"{key}:events")
            return False

        with contextlib.suppress(AssertionError):
            await eventually(gone, 60, every=0.05)
            arena.board.count("effect", "evictions")
    finally:
        with contextlib.suppress(OSError, hiredis.ReplyError):
            await arena.redis.cli("CONFIG", "SET", "maxmemory", 0)
            await arena.redis.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def _evicted(arena: Arena) -> int:
    return int((await arena.redis.info("stats"))["evicted_keys"])


def _people(arena: Arena, stream: str) -> tuple[list[Writer], list[Reader]]:
    """Who writes only this stream, and who reads it."""
    writers = [writer for writer in arena.writers if writer.streams == [stream]]
    return writers, [reader for reader in arena.readers if stream in reader.walk.positions]


async def _written(writers: Sequence[Writer], more: int) -> None:
    """Wait until so much more was acknowledged."""
    until = sum(writer.acked for writer in writers) + more
    with contextlib.suppress(AssertionError):
        await eventually(lambda: sum(writer.acked for writer in writers) >= until, 60)


async def _moved(readers: Sequence[Reader], stream: str) -> None:
    """Wait until each was given or told more of the stream: what it is told later would count for another fault."""
    before = {reader: reader.walk.positions[stream] for reader in readers}
    with contextlib.suppress(AssertionError):
        await eventually(lambda: all(reader.walk.positions[stream] != at for reader, at in before.items()), 60)

"""What idempotency costs Redis: the append script as it is, without the producer's number, with a caller's own uid.

All three are called with the same words through the same pipeline; the script without the number is made here, out of
the real one. What is compared is the CPU of the Redis process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

from redis.asyncio import Redis

from bench.harness import Sample
from bench.process import cpu_seconds
from bench.server import Server, redis_time
from tailrace.core.codec import prepare
from tailrace.core.event import Event
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.fields import pack
from tailrace.eventlog.redis.keys import Keys
from tailrace.eventlog.redis.lane import Batch, Call, Lane, Policy, append_words
from tailrace.eventlog.redis.scripts import load

__all__ = ["Numbered", "open_numbered", "without_number"]

STREAMS = 20
PIPELINED = 200
VERSION = (7, 0, 0)
MAX_BYTES = 2**20
Word: TypeAlias = "bytes | str | int"

_NUMBER = (
    ("'renew', producer)", "'renew')"),
    ("local last, own = m[1], m[6]", "local last = m[1]"),
    (" or n <= tonumber(string.match(own, '^%d+'))", ""),
    ("  own = ARGV[2] .. ' ' .. first_id .. ' ' .. prev .. ' ' .. now_text\n", ""),
    ("prev, producer, own, 'big', largest)", "prev, 'big', largest)"),
    ("prev, producer, own)", "prev)"),
    ("and m[6] and m[2]", "and m[2]"),
)
"""What the number adds to the script's short way, and what stands there without it."""


def without_number(text: str) -> str:
    """The append script as it would be without idempotency.

    Raises:
        ValueError: the script has changed, and this has to be changed with it.
    """
    for number, nothing in _NUMBER:
        if text.count(number) != 1:
            raise ValueError(f"not once in append.lua: {number}")
        text = text.replace(number, nothing)
    return text


class Numbered:
    """The three ways to append one event."""

    def __init__(self, redis: Redis, server: Server, shas: dict[str, str], events: int) -> None:
        self._redis = redis
        self._server = server
        self._shas = shas
        self._events = events
        self._uids = 0
        kinds = Kinds()
        keys = Keys(kinds)
        self._lanes = {
            way: [
                Lane(stream, keys.of(stream), None, Policy.of(kinds.of(stream)), None)
                for stream in (StreamName.parse(f"run:{way}-{n}") for n in range(STREAMS))
            ]
            for way in ("numbered", "bare", "uid")
        }

    async def numbered(self) -> Sample:
        """As every append is."""
        return await self._measured("numbered", lambda: None)

    async def bare(self) -> Sample:
        """Without idempotency."""
        return await self._measured("bare", lambda: None)

    async def with_uid(self) -> Sample:
        """With a uid of the caller's own beside the number."""
        return await self._measured("uid", self._uid)

    def _uid(self) -> str:
        self._uids += 1
        return f"order-{self._uids:09d}"

    async def _measured(self, way: str, uid: Callable[[], str | None]) -> Sample:
        calls = [self._words(self._lanes[way][n % STREAMS], uid()) for n in range(self._events)]
        counted, cpu, began = await redis_time(self._server.url), cpu_seconds(self._server.pid), time.perf_counter()
        for first in range(0, len(calls), PIPELINED):
            pipeline = self._redis.pipeline(transaction=False)
            for words in calls[first : first + PIPELINED]:
                pipeline.execute_command("EVALSHA", self._shas[way], *words)
            for reply in await pipeline.execute():
                if reply[0] != b"ok":
                    raise RuntimeError(f"not appended: {reply}")
        elapsed, used = time.perf_counter() - began, cpu_seconds(self._server.pid) - cpu
        script = (await redis_time(self._server.url))["evalsha"]
        before = counted.get("evalsha", (0, 0))
        return {
            "us": used / self._events * 1e6,
            "script_us": (script[1] - before[1]) / max(1, script[0] - before[0]),
            "per_second": self._events / elapsed,
        }

    def _words(self, lane: Lane, uid: str | None) -> list[Word]:
        event = prepare(Event("bench.tick", {"node": "summarise", "text": "x" * 160}, uid), max_bytes=MAX_BYTES)
        lane.n += 1
        call = Call([event], 0, 0.0, asyncio.get_running_loop().create_future())
        batch = Batch(lane.pid, lane.n, [call])
        batch.labels = pack([event], batch.args)
        return append_words(lane, batch, VERSION)


@asynccontextmanager
async def open_numbered(server: Server, events: int) -> AsyncIterator[Numbered]:
    """Load the scripts."""
    text = load("append").text.decode()
    async with Redis.from_url(server.url) as redis:
        real, bare = await redis.script_load(text), await redis.script_load(without_number(text))
        yield Numbered(redis, server, {"numbered": real, "bare": bare, "uid": real}, events)

"""What the tests of tails share: a listener that remembers, a tail that runs, and a lost message."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from tailrace.core.event import Event, Record
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import Head
from tailrace.errors import LogUnavailable
from tailrace.eventlog.base import Log, Tail
from tailrace.eventlog.redis.keys import Keys
from tests.support.redis_servers import RedisServer

__all__ = ["Recorder", "append", "running", "store_silently"]


class Recorder:
    """A listener that remembers everything it was told, and when."""

    def __init__(self) -> None:
        self.records: dict[StreamName, list[Record]] = defaultdict(list)
        self.heads: dict[StreamName, list[tuple[float, Head]]] = defaultdict(list)
        self.doubts: dict[StreamName | None, list[float]] = defaultdict(list)
        self.degraded: list[tuple[float, bool]] = []

    def on_records(self, stream: StreamName, records: Sequence[Record]) -> None:
        self.records[stream] += records

    def on_head(self, stream: StreamName, head: Head) -> None:
        self.heads[stream].append((time.monotonic(), head))

    def on_doubt(self, streams: Sequence[StreamName] | None) -> None:
        for stream in [None] if streams is None else streams:
            self.doubts[stream].append(time.monotonic())

    def on_degraded(self, degraded: bool) -> None:
        self.degraded.append((time.monotonic(), degraded))

    def ids(self, stream: StreamName) -> list[EntryId]:
        """Ids of the records that were pushed."""
        return [record.id for record in self.records[stream]]

    def told(self, stream: StreamName, entry: EntryId, since: float) -> bool:
        """Whether a record that was stored after `since` is known of: it was pushed, or one behind it was (the chain
        shows the hole), or a head or a doubt leads to it."""
        return (
            any(record.id >= entry for record in self.records[stream])
            or any(head.id >= entry for _, head in self.heads[stream])
            or any(at >= since for key in (stream, None) for at in self.doubts[key])
        )


async def append(log: Log, stream: StreamName, *numbers: int) -> list[EntryId]:
    """Append one event per number, in one call; waits up to 5 s for a log that is not available."""
    events = [Event("test.event", {"n": number}) for number in numbers]
    end = time.monotonic() + 5
    while True:
        try:
            return [answer.id for answer in await log.append(stream, events)]
        except LogUnavailable:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.01)


_SILENT = """
local last = redis.call('HGET', KEYS[2], 'last')
local ms, seq = string.match(last, '^(%d+)-(%d+)$')
local id = ms .. '-' .. (tonumber(seq) + 1)
redis.call('XADD', KEYS[1], id, 'v', '1', 'type', 'test.silent', 'data', '1', 'time', ms, 'prev', last)
redis.call('HSET', KEYS[2], 'last', id)
return id
"""


async def store_silently(server: RedisServer, keys: Keys, stream: StreamName) -> EntryId:
    """Store one more record as the append script does, without its push: a lost message."""
    names = keys.of(stream)
    return EntryId.parse(await server.cli("EVAL", _SILENT, 2, names.events, names.meta))


@contextlib.asynccontextmanager
async def running(tail: Tail) -> AsyncIterator[Tail]:
    """Run a tail; a defect in it fails the test."""
    task = asyncio.create_task(tail.run())
    try:
        yield tail
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

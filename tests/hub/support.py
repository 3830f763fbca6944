"""A hub over the in-memory log, a sink that remembers, and a tail that can lose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tailrace.codes import CloseCode
from tailrace.core.cursor import Resume
from tailrace.core.event import Degraded, Ended, Event, Gap, Item, Record
from tailrace.core.ids import EntryId
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.core.page import Head, Page
from tailrace.errors import LogUnavailable
from tailrace.eventlog.base import Tail, TailListener
from tailrace.eventlog.memory import MemoryLog
from tailrace.hub.block import Block, SinkClosed
from tailrace.hub.hub import Hub
from tailrace.hub.subscription import Subscription
from tests.support.wait import deadline, eventually

__all__ = ["RUN", "Collector", "FaultyLog", "Reader", "events", "history", "hub_over"]

RUN = StreamName.parse("run:42")


def events(*numbers: int) -> list[Event]:
    """Events that carry a number."""
    return [Event("test.step", {"n": number}) for number in numbers]


async def history(log: MemoryLog, stream: StreamName = RUN) -> list[EntryId]:
    """The ids that the stream holds."""
    ids: list[EntryId] = []
    more = True
    while more:
        start = ids[-1]._replace(seq=ids[-1].seq + 1) if ids else None
        page = await log.range(stream, start=start, limit=1_000)
        ids += [record.id for record in page.records]
        more = page.more
    return ids


class Collector:
    """A sink that keeps every item. `room` blocks are taken, then it is full until more room is made."""

    def __init__(self, room: int | None = None) -> None:
        self.items: list[Item] = []
        self.blocks: list[Block] = []
        self.room = room
        self.closed = False
        self._changed = asyncio.Event()

    def write(self, block: Block) -> bool:
        if self.room == 0 or self.closed:
            return False
        if self.room is not None:
            self.room -= 1
        self.blocks.append(block)
        self.items += block.items
        return True

    async def wait_writable(self) -> None:
        while self.room == 0 and not self.closed:
            self._changed.clear()
            await self._changed.wait()
        if self.closed:
            raise SinkClosed

    def make_room(self, blocks: int | None) -> None:
        self.room = blocks
        self._changed.set()

    def close(self) -> None:
        self.closed = True
        self._changed.set()

    @property
    def records(self) -> list[Record]:
        return [item for item in self.items if isinstance(item, Record)]

    @property
    def gaps(self) -> list[Gap]:
        return [item for item in self.items if isinstance(item, Gap)]

    @property
    def ends(self) -> list[Ended]:
        return [item for item in self.items if isinstance(item, Ended)]

    @property
    def notices(self) -> list[Degraded]:
        return [item for item in self.items if isinstance(item, Degraded)]

    async def wait_records(self, count: int, seconds: float = 5.0) -> None:
        await eventually(lambda: len(self.records) >= count, seconds)


class Reader:
    """A subscription that runs."""

    def __init__(self, subscription: Subscription, sink: Collector, task: asyncio.Task[CloseCode]) -> None:
        self.subscription = subscription
        self.sink = sink
        self.task = task

    async def wait_live(self) -> None:
        await eventually(lambda: self.subscription.live)

    async def wait_ended(self) -> CloseCode:
        async with deadline():
            return await self.task


class FaultyTail:
    """Stands between a log's tail and the hub, and loses what it is told to lose."""

    def __init__(self, log: FaultyLog, listener: TailListener) -> None:
        self._log = log
        self._listener = listener
        self.tail: Tail = log.inner.open_tail(self)

    async def run(self) -> None:
        await self.tail.run()

    async def watch(self, stream: StreamName) -> Head:
        if self._log.down:
            raise LogUnavailable("down")
        return await self.tail.watch(stream)

    def unwatch(self, stream: StreamName) -> None:
        self.tail.unwatch(stream)

    @property
    def watching(self) -> int:
        return self.tail.watching

    def on_records(self, stream: StreamName, records: Sequence[Record]) -> None:
        kept = [record for record in records if not self._log.loses(record)]
        if kept:
            self._listener.on_records(stream, kept)

    def on_head(self, stream: StreamName, head: Head) -> None:
        self._listener.on_head(stream, head)

    def on_doubt(self, streams: Sequence[StreamName] | None) -> None:
        self._listener.on_doubt(streams)

    def on_degraded(self, degraded: bool) -> None:
        self._listener.on_degraded(degraded)


class FaultyLog:
    """The in-memory log behind faults: lost pushes, reads that fail, reads that are counted."""

    def __init__(self, inner: MemoryLog) -> None:
        self.inner = inner
        self.down = False
        self.reads = 0
        self.lost: set[int] = set()
        """Sequence numbers whose pushes are lost once."""

    def loses(self, record: Record) -> bool:
        if record.id.seq in self.lost:
            self.lost.discard(record.id.seq)
            return True
        return False

    def open_tail(self, listener: TailListener) -> FaultyTail:
        return FaultyTail(self, listener)

    async def read(self, stream: StreamName, at: EntryId, *, limit: int = 1_000) -> Page:
        self.reads += 1
        await asyncio.sleep(0)
        if self.down:
            raise LogUnavailable("down")
        return await self.inner.read(stream, at, limit=limit)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Hubbed:
    """A running hub and ways to read from it."""

    def __init__(self, hub: Hub, log: FaultyLog) -> None:
        self.hub = hub
        self.log = log
        self._readers: list[Reader] = []

    async def read(
        self, resume: Mapping[StreamName, Resume], *, room: int | None = None, stays_open: bool = False
    ) -> Reader:
        sink = Collector(room)
        async with deadline():
            subscription = await self.hub.open(resume, sink, stays_open=stays_open)
        reader = Reader(subscription, sink, asyncio.create_task(subscription.run()))
        self._readers.append(reader)
        return reader

    async def append(self, *numbers: int, stream: StreamName = RUN) -> None:
        await self.log.inner.append(stream, events(*numbers))

    async def stop(self, readers: Iterable[Reader]) -> None:
        for reader in readers:
            reader.task.cancel()
        await asyncio.gather(*(reader.task for reader in readers), return_exceptions=True)

    async def end(self) -> None:
        await self.stop(self._readers)


@asynccontextmanager
async def hub_over(log: MemoryLog, kinds: Kinds) -> AsyncIterator[Hubbed]:
    """Run a hub over a log."""
    faulty = FaultyLog(log)
    hub = Hub(faulty, kinds)
    running = asyncio.create_task(hub.run())
    await hub.wait_running()
    hubbed = Hubbed(hub, faulty)
    try:
        yield hubbed
        assert not running.done(), running.exception()
    finally:
        await hubbed.end()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

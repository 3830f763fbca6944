"""The log on Redis Streams."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tailrace.core.event import Event, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.core.page import Head, Page
from tailrace.errors import AlreadyClosed, ConfigError, LogUnavailable, NotFound, OutcomeUnknown, UsageError
from tailrace.eventlog.base import Appended, StreamInfo, Tail, TailListener
from tailrace.eventlog.limits import PAGE_BYTES, prepare_call
from tailrace.eventlog.receipt import Receipt
from tailrace.eventlog.redis.endpoint import Mode
from tailrace.eventlog.redis.fields import read_entries
from tailrace.eventlog.redis.keys import Keys
from tailrace.eventlog.redis.publisher import Publisher
from tailrace.eventlog.redis.reads import Reader
from tailrace.eventlog.redis.routes import Routes
from tailrace.eventlog.redis.scripts import TOMBSTONE_MS, load, read_head, read_id
from tailrace.eventlog.redis.topology import Topology, open_topology

if TYPE_CHECKING:
    from tailrace.eventlog.redis.connection import Arg

__all__ = ["RedisLog"]

DRAIN_SECONDS = 2.0
PLAIN_RECORDS = 100
"""A page that may hold so many of the largest records is read without a script."""


class _Session:
    """What belongs to one event loop of one process."""

    def __init__(self, topology: Topology, keys: Keys, kinds: Kinds) -> None:
        self.loop = asyncio.get_running_loop()
        self.process = os.getpid()
        self.writes = Routes(topology, name="tailrace-write")
        self.questions = Routes(topology, name="tailrace-read")
        self.publisher = Publisher(self.writes, keys, kinds)
        self.reader = Reader(self.questions)

    async def aclose(self) -> None:
        self.reader.close()
        await self.publisher.drain(DRAIN_SECONDS)
        await self.writes.aclose()
        await self.questions.aclose()


class RedisLog:
    """See `Log` (base.py) for what every method promises.

    It connects on first use. It belongs to the event loop that uses it first; after a fork, or when that loop was
    closed, it starts anew with new connections and new producer names.

    Args:
        topology: which server has which stream.
        kinds: the policies of the stream kinds.
        prefix: before every key; may be empty.
        deadline: seconds that any call may take.
        delivery: `push` (Pub/Sub) or `xread` (blocking reads; standalone and Sentinel only): how tails are fed.

    Raises:
        ConfigError: prefix or URL cannot work.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        kinds: Kinds | None = None,
        prefix: str = "tailrace:",
        deadline: float = 5.0,
        delivery: str = "push",
    ) -> None:
        if delivery not in ("push", "xread"):
            raise ConfigError("delivery is push or xread")
        self._topology = topology
        self._kinds = kinds if kinds is not None else Kinds()
        self._keys = Keys(self._kinds, prefix=prefix, cluster=topology.mode is Mode.CLUSTER)
        self._deadline = deadline
        self._delivery = delivery
        self._session: _Session | None = None
        self._closed = False

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        kinds: Kinds | None = None,
        prefix: str = "tailrace:",
        deadline: float = 5.0,
        delivery: str = "push",
    ) -> RedisLog:
        """Make a log for a URL (see endpoint.py). Nothing is connected before the first use.

        Raises:
            ConfigError: the URL or the prefix cannot be used.
        """
        return cls(open_topology(url), kinds=kinds, prefix=prefix, deadline=deadline, delivery=delivery)

    @property
    def topology(self) -> Topology:
        """Which server has which stream."""
        return self._topology

    @property
    def keys(self) -> Keys:
        """The names of the keys."""
        return self._keys

    @property
    def kinds(self) -> Kinds:
        """The policies."""
        return self._kinds

    # -- writing ----------------------------------------------------------------------------------------------------

    async def append(
        self,
        stream: StreamName,
        events: Sequence[Event],
        *,
        expected_seq: int | None = None,
        owner_epoch: int | None = None,
        close: bool = False,
    ) -> list[Appended]:
        """Append events."""
        session = self._open()
        prepared = prepare_call(events, self._kinds.of(stream), close=close)
        size = 0
        for event in prepared:
            size += len(event.data)
        return await session.publisher.submit(
            stream,
            prepared,
            size,
            deadline=session.loop.time() + self._deadline,
            expected_seq=expected_seq,
            owner_epoch=owner_epoch,
            close=close,
        )

    async def retry(self, receipt: object) -> list[Appended]:
        """Send a numbered call again.

        Raises:
            OutcomeUnknown: still nobody knows; the receipt stays good.
        """
        if not isinstance(receipt, Receipt):
            raise UsageError("not a receipt of a log")
        session = self._open()
        try:
            answer = await session.publisher.settle(receipt, deadline=session.loop.time() + self._deadline)
        except (LogUnavailable, OutcomeUnknown) as exc:
            if isinstance(exc, LogUnavailable) and not receipt.attempted:
                raise
            raise OutcomeUnknown(exc.detail, receipt=receipt, retry_after=exc.retry_after) from exc
        return answer[receipt.offset : receipt.offset + receipt.count]

    # -- reading ----------------------------------------------------------------------------------------------------

    async def read(self, stream: StreamName, at: EntryId, *, limit: int = 1_000) -> Page:
        """Read from `at` on."""
        return await self._page(stream, str(at), "+", limit, reverse=0, ranged=0)

    async def range(
        self,
        stream: StreamName,
        *,
        start: EntryId | None = None,
        end: EntryId | None = None,
        limit: int = 100,
        reverse: bool = False,
    ) -> Page:
        """Read a range."""
        low, high = "-" if start is None else str(start), "+" if end is None else str(end)
        if reverse:
            low, high = high, low
        return await self._page(stream, low, high, limit, reverse=int(reverse), ranged=1)

    async def _page(self, stream: StreamName, at: str, to: str, limit: int, *, reverse: int, ranged: int) -> Page:
        """Where records are small a plain XRANGE is bounded by a count; it costs Redis a fifth of the script.

        The script bounds pages of records of any size, and tells what else has to be known when there is no record to
        begin with. Entries of others are not part of `largest`.
        """
        limit, deadline = max(1, limit), self._open().loop.time() + self._deadline
        head = read_head((await self._run("describe", stream, 0, deadline=deadline))[0])
        if head.largest and PAGE_BYTES // head.largest >= min(limit, PLAIN_RECORDS):
            most = min(limit, PAGE_BYTES // head.largest)
            page = await self._plain_page(stream, head, at, to, most, reverse, ranged, deadline)
            if page is not None:
                return page
        reply = await self._run("read", stream, at, to, limit, PAGE_BYTES, reverse, ranged, deadline=deadline)
        parts, more, first, entries = reply
        records = read_entries(stream, entries)
        return Page(tuple(records), more == 1, read_head(parts), None if first is None else read_id(first))

    async def _plain_page(
        self, stream: StreamName, head: Head, at: str, to: str, most: int, reverse: int, ranged: int, deadline: float
    ) -> Page | None:
        command = "XREVRANGE" if reverse else "XRANGE"
        # One more for the reader's own entry, and one to see whether more follows.
        asked = self._command(stream, command, at, to, "COUNT", most + 2, deadline=deadline)
        from_start = not reverse and at in ("-", "0-0")
        if ranged and not from_start:
            first_asked = self._command(stream, "XRANGE", "-", "+", "COUNT", 1, deadline=deadline)
            entries, firsts = await asyncio.gather(asked, first_asked)
            first = firsts[0] if firsts else None
        else:
            entries, first = await asked, None
        if not entries or not (ranged or from_start or entries[0][0] == at.encode()):
            return None
        if not ranged and not from_start:
            most += 1
        records = read_entries(stream, entries[:most])
        first_id = records[0].id if from_start else None if first is None else read_id(first[0])
        return Page(tuple(records), len(entries) > most, head, first_id)

    async def heads(self, streams: Sequence[StreamName]) -> Mapping[StreamName, Head]:
        """Where the streams end."""
        replies = await asyncio.gather(*[self._run("describe", stream, 0) for stream in streams])
        return {stream: read_head(reply[0]) for stream, reply in zip(streams, replies, strict=True)}

    async def info(self, stream: StreamName) -> StreamInfo:
        """Describe a stream."""
        parts, length, first, ttl, memory = await self._run("describe", stream, 1)
        head = read_head(parts)
        return StreamInfo(
            stream,
            head.state,
            length,
            None if first is None else read_id(first),
            head.id if head.id != ZERO else None,
            head.incarnation,
            ttl / 1000 if ttl >= 0 else None,
            memory,
        )

    # -- managing ---------------------------------------------------------------------------------------------------

    async def close(self, stream: StreamName) -> Head:
        """End a stream."""
        ttl = self._kinds.of(stream).closed_ttl_seconds
        life = "" if ttl is None else max(1, round(ttl * 1000))
        head = read_head((await self._manage("close", stream, life, TOMBSTONE_MS))[0])
        if head.state is not StreamState.CLOSED:
            raise NotFound("there is no such stream", stream=stream)
        return head

    async def delete(self, stream: StreamName) -> bool:
        """Delete a stream."""
        return bool(await self._manage("delete", stream, TOMBSTONE_MS))

    async def expire(self, stream: StreamName, seconds: float | None, *, sliding: bool = False) -> bool:
        """Let a stream expire."""
        life = "" if seconds is None else round(seconds * 1000)
        return bool(await self._manage("expire", stream, life, TOMBSTONE_MS, int(sliding)))

    async def trim(self, stream: StreamName, *, max_length: int) -> int:
        """Keep the newest records."""
        return int(await self._run("trim", stream, max(0, max_length)))

    # -- the rest ---------------------------------------------------------------------------------------------------

    def open_tail(self, listener: TailListener) -> Tail:
        """Make a live end."""
        if self._delivery == "xread":
            from tailrace.eventlog.redis.xread import XreadTail

            return XreadTail(listener, topology=self._topology, keys=self._keys, heads=self.heads)
        from tailrace.eventlog.redis.push import PushTail

        return PushTail(listener, topology=self._topology, keys=self._keys, heads=self.heads)

    async def ping(self) -> float:
        """Round trip of a real command."""
        session = self._open()
        started = session.loop.time()
        probe = StreamName("system:ping")
        await self._run("describe", probe, 0)
        return session.loop.time() - started

    async def aclose(self) -> None:
        """Give back everything."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None and session.process == os.getpid() and not session.loop.is_closed():
            await session.aclose()

    def _open(self) -> _Session:
        session = self._session
        if session is not None and session.loop is asyncio.get_running_loop() and session.process == os.getpid():
            return session
        if self._closed:
            raise AlreadyClosed("the log was closed")
        if session is not None and session.process == os.getpid() and not session.loop.is_closed():
            raise UsageError("this log belongs to another event loop; make one for each")
        # After a fork the old connections are the parent's: they are dropped here without a word on the wire.
        self._session = session = _Session(self._topology, self._keys, self._kinds)
        return session

    async def _run(self, name: str, stream: StreamName, *args: Arg, deadline: float | None = None) -> Any:
        session = self._open()
        keys = self._keys.of(stream)
        deadline = deadline or session.loop.time() + self._deadline
        return await session.reader.run(load(name), (keys.events, keys.meta), *args, deadline=deadline)

    async def _command(self, stream: StreamName, word: str, *args: Arg, deadline: float) -> Any:
        session = self._open()
        key = self._keys.of(stream).events
        return await session.reader.command(key, word, key, *args, deadline=deadline)

    async def _manage(self, name: str, stream: StreamName, *args: Arg) -> Any:
        session = self._open()
        keys = self._keys.of(stream)
        deadline = session.loop.time() + self._deadline
        return await session.reader.run(load(name), keys[:3], *args, deadline=deadline, publishes=name != "expire")

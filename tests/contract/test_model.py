"""The log in memory is the model of the log on Redis: whatever is done to a stream, both say the same of it.

Rules of this file
1. What happens: events with and without uids, calls sent again because their answer was lost, ends, deletion, expiry,
   trimming, entries of others, ids from a clock that is ahead, and, on a server of its own, kill -9 and a restart.
2. What is said: heads, infos, pages, ranges, and what readers are given, who begin anywhere, read a little, and come
   back with nothing but their cursor.
3. Beside being the same, what a reader is given is a chain: each record follows the one before, or a gap says why not.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailrace.core.chain import Position, advance, at_head, start
from tailrace.core.event import Event, Gap, Item, Record
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.errors import TailraceError
from tailrace.eventlog.limits import prepare_call
from tailrace.eventlog.memory import MemoryLog
from tailrace.eventlog.receipt import Receipt
from tailrace.eventlog.redis.log import RedisLog
from tests.contract.conftest import KINDS, Bench
from tests.support.need import need_redis70
from tests.support.redis_servers import RedisServer

UIDS = st.sampled_from([None, None, None, "a", "b"])
BATCH = st.lists(st.tuples(st.sampled_from(["x", "y"]), st.integers(0, 1), UIDS), min_size=1, max_size=4)
READER = st.integers(0, 1)
EPOCH = st.sampled_from([None, None, None, 1, 2])
STEP = st.one_of(
    st.tuples(st.just("append"), BATCH, EPOCH),
    st.tuples(st.just("append"), BATCH, EPOCH),
    st.tuples(st.just("append"), BATCH, EPOCH),
    st.tuples(st.just("expect"), st.integers(0, 4)),
    st.tuples(st.just("finish"), st.booleans()),
    st.tuples(st.just("close")),
    st.tuples(st.just("delete")),
    st.tuples(st.just("expire"), st.sampled_from([None, 0.0, 100.0]), st.booleans()),
    st.tuples(st.just("foreign")),
    st.tuples(st.just("leap")),
    st.tuples(st.just("retry"), st.sampled_from(["p", "q"]), st.booleans(), BATCH),
    st.tuples(st.just("drop"), st.integers(0, 3)),
    st.tuples(st.just("trim"), st.integers(1, 3)),
    st.tuples(st.just("begin"), READER, st.sampled_from(["first", "now", "later", "between"])),
    st.tuples(st.just("begin"), READER, st.integers(1, 6)),
    st.tuples(st.just("follow"), READER, st.integers(1, 4)),
    st.tuples(st.just("follow"), READER, st.integers(1, 4)),
    st.tuples(st.just("resume"), READER, st.integers(1, 4)),
    st.tuples(st.just("read"), st.integers(0, 6), st.integers(1, 4)),
    st.tuples(st.just("range"), st.integers(0, 6), st.integers(0, 6), st.integers(1, 4), st.booleans()),
)


class Told:
    """What one log said, with its ids replaced by the order in which they were first seen."""

    def __init__(self, bench: Bench, stream: StreamName) -> None:
        self.bench = bench
        self.stream = stream
        self.ids: list[EntryId] = []
        self.readers = [start(ZERO), start(ZERO)]
        self.calls: dict[str, list[Any]] = {"p": [], "q": []}
        """What each producer's calls append, from its number 1 on."""

    def known(self, entry: EntryId | None) -> Any:
        if entry is None or entry == ZERO:
            return entry and 0
        if entry not in self.ids:
            self.ids.append(entry)
        return self.ids.index(entry) + 1

    def at(self, index: int) -> EntryId:
        return self.ids[index - 1] if 0 < index <= len(self.ids) else ZERO

    def page(self, page: Any) -> Any:
        records = [
            (self.known(one.id), one.prev and one.id.seq, self.known(one.prev), one.type, bytes(one.data), one.uid)
            for one in page.records
        ]
        return records, page.more, None if page.first is None else self.known(page.first)

    async def head(self) -> Any:
        head = (await self.bench.log.heads([self.stream]))[self.stream]
        info = await self.bench.log.info(self.stream)
        told = self.known(head.id), head.state, head.incarnation, self.known(head.base), head.base_reason, head.largest
        return *told, info.length, info.ttl_seconds is None

    async def do(self, step: Any) -> Any:
        try:
            return await self._do(*step)
        except TailraceError as exc:
            return type(exc), exc.data.get("seq"), exc.data.get("index")

    async def begin(self, where: str | int) -> Position:
        """A reader with a cursor of any kind."""
        if where == "now":
            return at_head((await self.bench.log.heads([self.stream]))[self.stream])
        newest = max([ZERO, *self.ids])
        if where == "later":
            return start(EntryId(newest.ms + 7_200_000, newest.seq + 5))
        if where == "between":
            return start(EntryId(newest.ms, newest.seq + 1) if self.ids else EntryId(5, 1))
        return start(self.at(where) if isinstance(where, int) else ZERO)

    async def follow(self, reader: int, limit: int) -> Any:
        """What a reader is given by one page."""
        position = self.readers[reader]
        page = await self.bench.log.read(self.stream, position.cursor, limit=limit)
        items, moved = advance(self.stream, position, page)
        self.readers[reader] = moved
        assert chained(position, items), items
        return [self.item(item) for item in items]

    def item(self, item: Item) -> Any:
        """Without the ids themselves."""
        if isinstance(item, Record):
            return self.known(item.id), self.known(item.prev), bytes(item.data)
        if isinstance(item, Gap):
            return item.reason, item.missed, self.known(item.before), item.cursor == ZERO
        return type(item)

    async def _do(self, what: str, *args: Any) -> Any:
        log, stream = self.bench.log, self.stream
        match what, args:
            case "append", (events, epoch):
                made = [Event(type_, n, uid=uid) for type_, n, uid in events]
                answers = await log.append(stream, made, owner_epoch=epoch)
                return [(self.known(one.id), one.id.seq, one.duplicate) for one in answers]
            case "expect", (seq,):
                return [self.known(one.id) for one in await log.append(stream, [Event("e")], expected_seq=seq)]
            case "finish", (event,):
                answers = await log.append(stream, [Event("last")] if event else [], close=True)
                return [self.known(one.id) for one in answers]
            case "close", ():
                return self.known((await log.close(stream)).id)
            case "delete", ():
                return await log.delete(stream)
            case "expire", (seconds, sliding):
                return await log.expire(stream, seconds, sliding=sliding)
            case "foreign", ():
                # After a deletion the same id could come again within a millisecond, on one of the two.
                await asyncio.sleep(0.0015)
                return self.known(await self.bench.add_foreign(stream, {"type": "f", "n": "1"}))
            case "read", (index, limit):
                records, more, first = self.page(await log.read(stream, self.at(index), limit=limit))
                # `first` need not be told where the cursor itself is there.
                return records, more, first if not records or records[0][0] != self.known(self.at(index)) else None
            case "range", (low, high, limit, reverse):
                ends = {"start": self.at(low) if low else None, "end": self.at(high) if high else None}
                return self.page(await log.range(stream, **ends, limit=limit, reverse=reverse))
        return await self._do_more(what, *args)

    async def _do_more(self, what: str, *args: Any) -> Any:
        log, stream = self.bench.log, self.stream
        match what, args:
            case "restart", ():
                if self.bench.server is not None:
                    await self.bench.server.restart()
                return None
            case "leap", ():
                # Of a writer whose clock is ahead: every id after it has to be larger.
                newest = max([ZERO, *self.ids])
                ahead = EntryId(max(newest.ms, int(time.time() * 1_000)) + 3_600_000, 0)
                return self.known(await self.bench.add_foreign(stream, {"type": "f", "n": "2"}, ahead))
            case "retry", (pid, new, events):
                # A number stands for one call, and a producer has one call under way: what is sent again is its last.
                calls = self.calls[pid]
                if new or not calls:
                    calls.append(events)
                n, call = len(calls), [Event(type_, data, uid=uid) for type_, data, uid in calls[-1]]
                prepared = tuple(prepare_call(call, KINDS.of(stream), close=False))
                receipt = Receipt(stream=stream, pid=pid, n=n, events=prepared, count=len(prepared))
                # Its outcome depends on no other call, so that a retry, lost or not, is stored once.
                first = [one.id for one in await log.retry(receipt)]
                again = await log.retry(receipt)
                assert [one.id for one in again] == first
                return [self.known(one) for one in first]
            case "trim", (length,):
                return await self.bench.trim(stream, length)
            case "begin", (reader, where):
                self.readers[reader] = await self.begin(where)
                return None
            case "follow", (reader, limit):
                return await self.follow(reader, limit)
            case "resume", (reader, limit):
                self.readers[reader] = start(self.readers[reader].cursor)
                return await self.follow(reader, limit)
            case "drop", (index,):
                await self.bench.drop(stream, self.at(index))
                return None
        raise AssertionError(what)


def chained(position: Position, items: Sequence[Item]) -> bool:
    """Whether each record follows what the reader has, or a gap stands before it; records that are not ours aside."""
    have: EntryId | None = position.chained
    for item in items:
        if isinstance(item, Gap):
            have = None
        elif isinstance(item, Record) and not item.foreign:
            if have is not None and item.prev != have:
                return False
            have = item.id
    return True


def check_on(server: RedisServer, step: st.SearchStrategy[Any], examples: int) -> None:
    """Do the same to both, and compare what they say after each step."""
    prefix = f"t{uuid.uuid4().hex[:8]}:"

    with asyncio.Runner() as runner:
        log = RedisLog.connect(server.url, kinds=KINDS, prefix=prefix, deadline=20.0)

        async def compare(steps: list[Any]) -> None:
            stream = StreamName.parse(f"run:{uuid.uuid4().hex}")
            model, real = (
                Told(Bench(MemoryLog(kinds=KINDS), None, ""), stream),
                Told(Bench(log, server, prefix), stream),
            )
            for number, step in enumerate(steps):
                wanted, got = await model.do(step), await real.do(step)
                assert got == wanted, f"step {number}: {step}"
                wanted, got = await model.head(), await real.head()
                assert got == wanted, f"after step {number}: {step}"

        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(step, max_size=14))
        def check(steps: list[Any]) -> None:
            runner.run(compare(steps))

        try:
            check()
        finally:
            runner.run(log.aclose())


@pytest.mark.timeout(240)
@pytest.mark.parametrize("version", ["5.0", "6.2", "7.0"])
def test_memory_and_redis_say_the_same(version: str, request: pytest.FixtureRequest) -> None:
    check_on(request.getfixturevalue(f"redis{version.replace('.', '')}"), STEP, 120)


@pytest.mark.timeout(240)
def test_a_redis_that_is_killed_and_started_says_the_same() -> None:
    server = RedisServer(need_redis70(), {"appendfsync": "always"})
    try:
        check_on(server.start_sync(), st.one_of(STEP, STEP, STEP, st.just(("restart",))), 15)
    finally:
        server.remove_sync()

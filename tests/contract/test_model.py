"""The log in memory is the model of the log on Redis: whatever is done to a stream, both say the same of it."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailrace.core.event import Event
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.errors import TailraceError
from tailrace.eventlog.memory import MemoryLog
from tailrace.eventlog.redis.log import RedisLog
from tests.contract.conftest import KINDS, Bench
from tests.support.redis_servers import RedisServer

UIDS = st.sampled_from([None, None, None, "a", "b"])
BATCH = st.lists(st.tuples(st.sampled_from(["x", "y"]), st.integers(0, 1), UIDS), min_size=1, max_size=4)
EPOCH = st.sampled_from([None, None, None, 1, 2])
STEP = st.one_of(
    st.tuples(st.just("append"), BATCH, EPOCH),
    st.tuples(st.just("append"), BATCH, EPOCH),
    st.tuples(st.just("append"), BATCH, EPOCH),
    st.tuples(st.just("expect"), st.integers(0, 4)),
    st.tuples(st.just("finish"), st.booleans()),
    st.tuples(st.just("close")),
    st.tuples(st.just("delete")),
    st.tuples(st.just("expire"), st.sampled_from([None, 0.0, 100.0])),
    st.tuples(st.just("foreign")),
    st.tuples(st.just("drop"), st.integers(0, 3)),
    st.tuples(st.just("read"), st.integers(0, 6), st.integers(1, 4)),
    st.tuples(st.just("range"), st.integers(0, 6), st.integers(0, 6), st.integers(1, 4), st.booleans()),
)


class Told:
    """What one log said, with its ids replaced by the order in which they were first seen."""

    def __init__(self, bench: Bench, stream: StreamName) -> None:
        self.bench = bench
        self.stream = stream
        self.ids: list[EntryId] = []

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
            case "expire", (seconds,):
                return await log.expire(stream, seconds)
            case "foreign", ():
                # After a deletion the same id could come again within a millisecond, on one of the two.
                await asyncio.sleep(0.0015)
                return self.known(await self.bench.add_foreign(stream, {"type": "f", "n": "1"}))
            case "drop", (index,):
                await self.bench.drop(stream, self.at(index))
                return None
            case "read", (index, limit):
                records, more, first = self.page(await log.read(stream, self.at(index), limit=limit))
                # `first` need not be told where the cursor itself is there.
                return records, more, first if not records or records[0][0] != self.known(self.at(index)) else None
            case "range", (low, high, limit, reverse):
                start = self.at(low) if low else None
                end = self.at(high) if high else None
                return self.page(await log.range(stream, start=start, end=end, limit=limit, reverse=reverse))
        raise AssertionError(what)


@pytest.mark.parametrize("version", ["5.0", "6.2", "7.0"])
def test_memory_and_redis_say_the_same(version: str, request: pytest.FixtureRequest) -> None:
    server: RedisServer = request.getfixturevalue(f"redis{version.replace('.', '')}")
    prefix = f"t{uuid.uuid4().hex[:8]}:"

    with asyncio.Runner() as runner:
        log = RedisLog.connect(server.url, kinds=KINDS, prefix=prefix)

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

        @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(STEP, max_size=14))
        def check(steps: list[Any]) -> None:
            runner.run(compare(steps))

        try:
            check()
        finally:
            runner.run(log.aclose())

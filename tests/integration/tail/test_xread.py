"""What only the xread tail does: foreign streams, and the blocking read that is woken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.support.redis_servers import RedisServer
from tests.support.tails import Recorder, append, running
from tests.support.wait import eventually

from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.xread import BLOCK_SECONDS

STREAM = StreamName("run:1")


@pytest_asyncio.fixture
async def log(every_redis: RedisServer, key_prefix: str) -> AsyncIterator[RedisLog]:
    made = RedisLog.connect(every_redis.url, prefix=key_prefix, delivery="xread", deadline=20)
    yield made
    await made.aclose()


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


async def add(server: RedisServer, log: RedisLog, *fields: str, entry: str = "*") -> EntryId:
    """What a program that knows nothing of us does."""
    return EntryId.parse(await server.cli("XADD", log.keys.of(STREAM).events, entry, *fields))


async def test_entries_of_others_are_pushed_outside_the_chain(
    log: RedisLog, every_redis: RedisServer, heard: Recorder
) -> None:
    before = await add(every_redis, log, "type", "old", "n", "0")

    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        ids = [await add(every_redis, log, "type", "node_output", "n", str(number)) for number in range(3)]
        await eventually(lambda: heard.ids(STREAM) == ids)

    assert before not in heard.ids(STREAM)
    first = heard.records[STREAM][0]
    assert first.foreign
    assert (first.type, first.data) == ("node_output", b'{"type":"node_output","n":"0"}')


async def test_entries_of_others_between_ours_do_not_hide_them(
    log: RedisLog, every_redis: RedisServer, heard: Recorder
) -> None:
    async with running(log.open_tail(heard)) as tail:
        ours = await append(log, STREAM, 1)
        await tail.watch(STREAM)
        await add(every_redis, log, "a", "b")
        ours += await append(log, STREAM, 2)
        await eventually(lambda: len(heard.ids(STREAM)) == 2)

    foreign, own = heard.records[STREAM]
    assert foreign.foreign
    assert (own.id, own.prev) == (ours[1], ours[0])
    assert heard.doubts == {}


async def test_a_foreign_stream_that_begins_anew_with_smaller_ids_is_followed(
    log: RedisLog, every_redis: RedisServer, heard: Recorder
) -> None:
    async with running(log.open_tail(heard)) as tail:
        await add(every_redis, log, "a", "b", entry="5000000000000-7")
        await tail.watch(STREAM)
        await every_redis.cli("DEL", log.keys.of(STREAM).events)
        await add(every_redis, log, "a", "b", entry="1000-1")
        await eventually(lambda: heard.doubts[STREAM], 1.5)
        entry = await add(every_redis, log, "a", "b", entry="1000-2")
        await eventually(lambda: heard.ids(STREAM)[-1:] == [entry], 1.5)


async def test_a_stream_watched_later_does_not_wait_for_the_block_to_end(log: RedisLog, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(StreamName("run:first"))
        await asyncio.sleep(0.2)  # the first read is under way now, and blocks
        delays = []
        for number in range(10):
            stream = StreamName(f"run:later-{number}")
            await tail.watch(stream)
            began = time.monotonic()
            ids = await append(log, stream, 1)
            await eventually(lambda: heard.ids(stream) == ids, every=0.001)  # noqa: B023
            delays.append(time.monotonic() - began)

    # Each would have waited for the rest of a block; the median keeps one slow moment of the machine out of it.
    assert sorted(delays)[5] < BLOCK_SECONDS / 2


async def test_one_read_serves_a_thousand_streams(log: RedisLog, every_redis: RedisServer, heard: Recorder) -> None:
    async def readers() -> int:
        return str(await every_redis.cli("CLIENT", "LIST")).count("name=tailrace-xread")

    async def two_more() -> bool:
        return await readers() == before + 2

    streams = [StreamName(f"run:many-{index}") for index in range(1_500)]
    before = await readers()

    async with running(log.open_tail(heard)) as tail:
        await asyncio.gather(*map(tail.watch, streams))
        await eventually(two_more)


async def test_the_control_streams_expire_by_themselves(
    log: RedisLog, every_redis: RedisServer, heard: Recorder, key_prefix: str
) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(StreamName("run:1"))
        await tail.watch(StreamName("run:2"))
        keys = await eventually(lambda: every_redis.cli("KEYS", f"{key_prefix}wake:*"))

        assert all([await every_redis.cli("PTTL", key) > 0 for key in keys])
        assert all([await every_redis.cli("XLEN", key) == 1 for key in keys])


async def test_a_key_that_holds_something_else_is_refused(
    log: RedisLog, every_redis: RedisServer, heard: Recorder
) -> None:
    await every_redis.cli("SET", log.keys.of(STREAM).events, "text")
    other = StreamName("run:2")

    async with running(log.open_tail(heard)) as tail:
        with pytest.raises(LogUnavailable):
            await tail.watch(STREAM)
        assert tail.watching == 0
        await tail.watch(other)
        ids = await append(log, other, 1)
        await eventually(lambda: heard.ids(other) == ids)


async def test_a_key_that_becomes_something_else_does_not_stop_the_others(
    log: RedisLog, every_redis: RedisServer, heard: Recorder
) -> None:
    other = StreamName("run:2")

    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 1)
        await asyncio.gather(tail.watch(STREAM), tail.watch(other))
        await append(log, other, 1)
        await every_redis.cli("SET", log.keys.of(STREAM).events, "text")
        since = time.monotonic()
        for number in range(3):
            entry = (await append(log, other, number))[0]
            await eventually(lambda: heard.told(other, entry, since), 3)  # noqa: B023
        later = (await append(log, other, 9))[0]
        await eventually(lambda: later in heard.ids(other), 3)

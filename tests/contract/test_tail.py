"""What every tail promises (`eventlog.base.Tail`): push and xread on each server, and the log in memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tailrace.core.event import Event, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import Head
from tailrace.eventlog.base import Log
from tailrace.eventlog.memory import MemoryLog
from tailrace.eventlog.redis.log import RedisLog
from tests.support.redis_servers import RedisServer
from tests.support.tails import Recorder, append, running
from tests.support.wait import eventually

STREAM = StreamName("run:1")


REDIS = [f"{delivery} {version}" for delivery in ("push", "xread") for version in ("5.0", "6.2", "7.0")]


@pytest_asyncio.fixture(params=["memory", *REDIS])
async def log(request: pytest.FixtureRequest, key_prefix: str) -> AsyncIterator[Log]:
    made: Log
    if request.param == "memory":
        made = MemoryLog()
    else:
        delivery, version = request.param.split()
        server: RedisServer = request.getfixturevalue(f"redis{version.replace('.', '')}")
        made = RedisLog.connect(server.url, prefix=key_prefix, delivery=delivery)
    try:
        yield made
    finally:
        await made.aclose()


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


async def test_watch_answers_the_head(log: Log, heard: Recorder) -> None:
    ids = await append(log, STREAM, 1, 2, 3)

    async with running(log.open_tail(heard)) as tail:
        head = await tail.watch(STREAM)

    assert (head.id, head.state) == (ids[-1], StreamState.OPEN)


async def test_a_stream_that_was_never_written_can_be_watched(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        head = await tail.watch(STREAM)
        ids = await append(log, STREAM, 1)
        await eventually(lambda: heard.ids(STREAM) == ids)

    assert (head.id, head.state) == (ZERO, StreamState.MISSING)


async def test_records_are_pushed_in_order_and_each_names_the_one_before(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        head = await tail.watch(STREAM)
        ids = [(await append(log, STREAM, number))[0] for number in range(20)]
        await eventually(lambda: len(heard.ids(STREAM)) >= 20)

    records = heard.records[STREAM]
    assert [record.id for record in records] == ids
    assert [record.prev for record in records] == [head.id, *ids[:-1]]
    assert [record.data for record in records] == [b'{"n":%d}' % number for number in range(20)]


async def test_events_of_one_call_arrive_together_and_whole(log: Log, heard: Recorder) -> None:
    event = Event(
        "test.event", {"text": "é\u2028"}, uid="u1", key="k", actor="somebody", trace=f"00-{'1' * 32}-{'2' * 16}-01"
    )

    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        first, last = await log.append(STREAM, [event, Event("test.other", None)])
        await eventually(lambda: len(heard.ids(STREAM)) == 2)

    one, other = heard.records[STREAM]
    assert (one.id, one.type, one.uid, one.key, one.actor, one.trace) == (
        first.id,
        "test.event",
        *("u1", "k", "somebody", event.trace),
    )
    assert one.data == '{"text":"é\u2028"}'.encode()
    assert (other.id, other.prev, other.type, other.data, other.uid) == (last.id, first.id, "test.other", b"null", None)
    assert abs(one.time - time.time() * 1_000) < 10_000


async def test_a_record_too_large_to_push_is_told(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        since = time.monotonic()
        large = (await log.append(STREAM, [Event("test.event", "x" * 200_000)]))[0].id
        small = (await append(log, STREAM, 2))[0]
        await eventually(lambda: heard.told(STREAM, large, since) and heard.told(STREAM, small, since))


async def test_everything_appended_while_watch_is_under_way_is_told(log: Log, heard: Recorder) -> None:
    streams = [StreamName(f"run:race-{index}") for index in range(20)]
    stop = asyncio.Event()
    stored: dict[StreamName, list[EntryId]] = {stream: [] for stream in streams}
    since = time.monotonic()

    async def write(stream: StreamName) -> None:
        while not stop.is_set():
            stored[stream] += await append(log, stream, 1, 2)
            await asyncio.sleep(0)  # the log in memory never waits

    async with running(log.open_tail(heard)) as tail, asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(write(stream))
        await eventually(lambda: all(stored.values()))
        heads = dict(zip(streams, await asyncio.gather(*map(tail.watch, streams)), strict=True))
        await eventually(lambda: all(len(heard.ids(stream)) > 20 for stream in streams), 20)
        stop.set()
        await asyncio.sleep(0)
        for stream in streams:
            after = [entry for entry in stored[stream] if entry > heads[stream].id]
            await eventually(lambda: all(heard.told(stream, entry, since) for entry in after))  # noqa: B023


async def test_everything_appended_while_watch_is_under_way_is_pushed_by_a_healthy_log(
    log: Log, heard: Recorder
) -> None:
    streams = [StreamName(f"run:race-{index}") for index in range(50)]
    heads: dict[StreamName, Head] = {}

    async def watch(stream: StreamName) -> None:
        heads[stream] = await tail.watch(stream)

    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        for stream in streams:
            async with asyncio.TaskGroup() as group:
                group.create_task(watch(stream))
                stored = [entry for number in range(8) for entry in await append(log, stream, number)]
            after = [entry for entry in stored if entry > heads[stream].id]
            await eventually(lambda: heard.ids(stream)[-len(after) :] == after)  # noqa: B023

    assert heard.doubts == {}


async def test_two_watches_of_one_stream_are_one(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        heads = await asyncio.gather(tail.watch(STREAM), tail.watch(STREAM))
        ids = await append(log, STREAM, 1)
        await eventually(lambda: heard.ids(STREAM) == ids)

        assert heads[0] == heads[1]
        assert tail.watching == 1


async def test_closing_is_told(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 1)
        await tail.watch(STREAM)
        last = (await append(log, STREAM, 2))[0]
        await log.close(STREAM)
        head = await eventually(lambda: [head for _, head in heard.heads[STREAM] if head.ended])

    assert (head[0].id, head[0].state) == (last, StreamState.CLOSED)


async def test_closing_with_the_last_events_is_told(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        last = (await log.append(STREAM, [Event("test.event", 1), Event("test.event", 2)], close=True))[-1].id
        await eventually(
            lambda: any(head.id == last and head.state is StreamState.CLOSED for _, head in heard.heads[STREAM])
        )
        await eventually(lambda: heard.told(STREAM, last, 0))


async def test_deletion_is_told(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 1)
        await tail.watch(STREAM)
        await log.delete(STREAM)
        await eventually(lambda: any(head.state is StreamState.DELETED for _, head in heard.heads[STREAM]))


async def test_expiry_is_told(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 1)
        await tail.watch(STREAM)
        await log.expire(STREAM, 0.3)
        await eventually(lambda: any(head.state is StreamState.EXPIRED for _, head in heard.heads[STREAM]))


async def test_a_stream_written_again_after_its_deletion_is_pushed(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 1, 2)
        await tail.watch(STREAM)
        await log.delete(STREAM)
        await eventually(lambda: heard.heads[STREAM])
        since = time.monotonic()
        again = (await append(log, STREAM, 3))[0]
        await eventually(lambda: heard.told(STREAM, again, since))

    assert again.seq == 1


async def test_an_unwatched_stream_is_pushed_no_more(log: Log, heard: Recorder) -> None:
    other = StreamName("run:2")

    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        await tail.watch(other)
        tail.unwatch(STREAM)
        tail.unwatch(StreamName("run:never-watched"))
        await append(log, STREAM, 1)
        ids = await append(log, other, 1)
        await eventually(lambda: heard.ids(other) == ids)

        assert heard.ids(STREAM) == []
        assert tail.watching == 1


async def test_a_stream_can_be_watched_again(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        tail.unwatch(STREAM)
        missed = await append(log, STREAM, 1)
        head = await tail.watch(STREAM)
        ids = await append(log, STREAM, 2)
        await eventually(lambda: heard.ids(STREAM)[-1:] == ids)

        assert head.id == missed[-1]
        assert tail.watching == 1


async def test_two_thousand_streams_are_watched(log: Log, heard: Recorder) -> None:
    streams = [StreamName(f"run:many-{index}") for index in range(2_000)]

    async with running(log.open_tail(heard)) as tail:
        # Some at a time: each has a deadline.
        for at in range(0, 2_000, 200):
            await asyncio.gather(*map(tail.watch, streams[at : at + 200]))
        since = time.monotonic()
        ids: list[list[EntryId]] = []
        for at in range(0, 2_000, 200):
            ids += await asyncio.gather(*(append(log, stream, 1) for stream in streams[at : at + 200]))
        await eventually(
            lambda: all(heard.told(stream, entry, since) for stream, (entry,) in zip(streams, ids, strict=True)), 30
        )

        assert tail.watching == 2_000
    assert sum(map(len, heard.records.values())) >= 1_900, "nearly all of them were pushed, not only doubted"


async def test_a_cancelled_watch_watches_nothing(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(StreamName("run:first"))
        task = asyncio.create_task(tail.watch(STREAM))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

        # The log in memory answers before it can be cancelled.
        assert tail.watching == (1 if task.cancelled() else 2)


async def test_a_watch_waits_until_the_tail_runs(log: Log, heard: Recorder) -> None:
    tail = log.open_tail(heard)
    early = asyncio.create_task(tail.watch(STREAM))
    await asyncio.sleep(0)

    async with running(tail):
        assert (await early).id == ZERO


async def test_a_cancelled_tail_leaves_no_task(log: Log, heard: Recorder) -> None:
    await append(log, STREAM, 1)
    before = asyncio.all_tasks()

    async with running(log.open_tail(heard)) as tail:
        await asyncio.gather(*(tail.watch(StreamName(f"run:{index}")) for index in range(50)))

    await eventually(lambda: asyncio.all_tasks() <= before)


async def test_a_healthy_log_is_never_doubted(log: Log, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        for number in range(15):
            await append(log, STREAM, number)
            await asyncio.sleep(0.1)

    assert heard.degraded == []
    assert heard.doubts == {}

"""Each subscription is given each stream's records in order, each once, or a gap."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from tailrace.codes import CloseCode
from tailrace.core.cursor import Since, Special
from tailrace.core.event import Event, GapReason, StreamState
from tailrace.core.ids import ZERO
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.eventlog.memory import MemoryLog
from tailrace.hub.block import Block, SinkClosed
from tailrace.hub.topic import FIRST_PAGE_RECORDS
from tests.hub.support import RUN, Collector, Hubbed, events, history, hub_over
from tests.support.checker import assert_exactly_once, faults, ids_of
from tests.support.wait import deadline, eventually

USER = StreamName.parse("user:u7")
SHORT = StreamName.parse("short:s")


@pytest.fixture
async def hubbed() -> AsyncIterator[Hubbed]:
    kinds = Kinds([StreamKind(name="short", max_length=5)])
    async with hub_over(MemoryLog(kinds=kinds), kinds) as made:
        yield made


async def test_a_reader_without_a_cursor_is_given_a_run_from_its_first_record(hubbed: Hubbed) -> None:
    await hubbed.append(1, 2, 3)
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    await hubbed.append(4)
    await reader.sink.wait_records(4)

    assert_exactly_once(reader.sink.items, await history(hubbed.log.inner))


async def test_a_reader_without_a_cursor_is_given_a_user_stream_from_now(hubbed: Hubbed) -> None:
    await hubbed.append(1, stream=USER)
    reader = await hubbed.read({USER: Special.DEFAULT})
    await reader.wait_live()
    await hubbed.append(2, stream=USER)
    await reader.sink.wait_records(1)

    assert [record.id.seq for record in reader.sink.records] == [2]


async def test_a_reader_resumes_after_its_cursor(hubbed: Hubbed) -> None:
    await hubbed.append(1, 2, 3, 4)
    ids = await history(hubbed.log.inner)
    reader = await hubbed.read({RUN: ids[1]})
    await reader.wait_live()

    assert ids_of(reader.sink.items) == ids[2:]


async def test_a_reader_at_the_head_is_live_without_a_read(hubbed: Hubbed) -> None:
    await hubbed.append(1, 2)
    ids = await history(hubbed.log.inner)
    reader = await hubbed.read({RUN: ids[-1]})
    await reader.wait_live()

    assert reader.sink.items == []
    assert hubbed.log.reads == 0


async def test_a_reader_by_time_begins_at_the_first_record_of_that_time(hubbed: Hubbed) -> None:
    await hubbed.append(1)
    ids = await history(hubbed.log.inner)
    reader = await hubbed.read({RUN: Since(ids[0].ms)})
    await reader.sink.wait_records(1)
    late = await hubbed.read({RUN: Since(ids[0].ms + 1_000_000)})
    await late.wait_live()

    assert ids_of(reader.sink.items) == ids
    assert late.sink.items == []


async def test_records_of_one_turn_are_one_block_shared_by_all_readers(hubbed: Hubbed) -> None:
    readers = [await hubbed.read({RUN: Special.DEFAULT}) for _ in range(3)]
    for reader in readers:
        await reader.wait_live()
    await hubbed.append(1, 2, 3)
    for reader in readers:
        await reader.sink.wait_records(3)

    blocks = {id(block) for reader in readers for block in reader.sink.blocks}
    assert len(blocks) == 1


async def test_a_slow_reader_leaves_the_live_set_and_replays_from_its_cursor(hubbed: Hubbed) -> None:
    slow = await hubbed.read({RUN: Special.DEFAULT}, room=1)
    quick = await hubbed.read({RUN: Special.DEFAULT})
    await slow.wait_live()
    await quick.wait_live()
    for number in range(1, 21):
        await hubbed.append(number)
        await quick.sink.wait_records(number)

    assert len(slow.sink.records) < 20
    assert not slow.subscription.live

    slow.sink.make_room(None)
    await slow.wait_live()
    ids = await history(hubbed.log.inner)
    assert_exactly_once(slow.sink.items, ids)
    assert_exactly_once(quick.sink.items, ids)


async def test_a_slow_reader_beyond_the_tail_is_brought_back_by_pages(hubbed: Hubbed) -> None:
    slow = await hubbed.read({RUN: Special.DEFAULT}, room=0)
    for first in range(0, 5_000, 500):
        await hubbed.append(*range(first, first + 500))
    slow.sink.make_room(None)
    await slow.sink.wait_records(5_000)

    assert [record.id.seq for record in slow.sink.records] == list(range(1, 5_001))


async def test_a_lost_push_is_read_from_the_log_when_the_next_one_comes(hubbed: Hubbed) -> None:
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    hubbed.log.lost = {2, 3}
    for number in range(1, 6):
        await hubbed.append(number)
    await reader.sink.wait_records(5)

    assert_exactly_once(reader.sink.items, await history(hubbed.log.inner))


async def test_a_lost_last_push_is_read_when_the_head_is_told(hubbed: Hubbed) -> None:
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    hubbed.log.lost = {1}
    await hubbed.append(1)
    hubbed.hub.on_head(RUN, (await hubbed.log.inner.heads([RUN]))[RUN])
    await reader.sink.wait_records(1)

    assert_exactly_once(reader.sink.items, await history(hubbed.log.inner))


async def test_a_record_that_is_pushed_twice_is_given_once(hubbed: Hubbed) -> None:
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    await hubbed.append(1, 2)
    await reader.sink.wait_records(2)
    hubbed.hub.on_records(RUN, reader.sink.records)
    await hubbed.append(3)
    await reader.sink.wait_records(3)

    assert_exactly_once(reader.sink.items, await history(hubbed.log.inner))


async def test_readers_at_one_place_share_one_read(hubbed: Hubbed) -> None:
    await hubbed.append(*range(50))
    readers = await asyncio.gather(*(hubbed.read({RUN: ZERO}) for _ in range(100)))
    for reader in readers:
        await reader.sink.wait_records(50)

    assert hubbed.log.reads <= 3


async def test_who_comes_back_is_given_a_small_page_first(hubbed: Hubbed) -> None:
    await hubbed.append(*range(500))
    reader = await hubbed.read({RUN: ZERO})
    await reader.sink.wait_records(500)

    assert [len(block.cells) for block in reader.sink.blocks] == [FIRST_PAGE_RECORDS, 500 - FIRST_PAGE_RECORDS]
    assert_exactly_once(reader.sink.items, await history(hubbed.log.inner))


async def test_a_closed_stream_ends_its_readers_after_the_last_record(hubbed: Hubbed) -> None:
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    await hubbed.append(1)
    await hubbed.log.inner.close(RUN)

    assert await reader.wait_ended() is CloseCode.ENDED
    assert [end.state for end in reader.sink.ends] == [StreamState.CLOSED]
    assert_exactly_once(reader.sink.items, await history(hubbed.log.inner))


async def test_a_reader_of_a_finished_stream_is_given_all_of_it_and_its_end(hubbed: Hubbed) -> None:
    await hubbed.append(1, 2)
    await hubbed.log.inner.close(RUN)
    first = await hubbed.read({RUN: Special.DEFAULT})
    assert await first.wait_ended() is CloseCode.ENDED
    ids = await history(hubbed.log.inner)
    second = await hubbed.read({RUN: ids[-1]})
    assert second.subscription.finished
    assert await second.wait_ended() is CloseCode.ENDED

    assert len(first.sink.records) == 2
    assert [len(reader.sink.ends) for reader in (first, second)] == [1, 1]


async def test_a_deleted_run_ends_its_readers(hubbed: Hubbed) -> None:
    await hubbed.append(1)
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.sink.wait_records(1)
    await hubbed.log.inner.delete(RUN)

    assert await reader.wait_ended() is CloseCode.ENDED
    assert [end.state for end in reader.sink.ends] == [StreamState.DELETED]


async def test_a_deleted_user_stream_goes_on_with_a_gap(hubbed: Hubbed) -> None:
    reader = await hubbed.read({USER: Special.DEFAULT})
    await hubbed.append(1, stream=USER)
    await reader.sink.wait_records(1)
    await hubbed.log.inner.delete(USER)
    await eventually(lambda: reader.sink.ends)
    await hubbed.append(2, stream=USER)
    await reader.sink.wait_records(2)

    assert [gap.reason for gap in reader.sink.gaps] == [GapReason.DELETED]


async def test_a_cursor_that_was_trimmed_is_told_a_gap_with_the_number_missed(hubbed: Hubbed) -> None:
    await hubbed.append(1, stream=SHORT)
    old = (await history(hubbed.log.inner, SHORT))[0]
    await hubbed.append(*range(300), stream=SHORT)
    reader = await hubbed.read({SHORT: old})
    await reader.wait_live()

    retained = await history(hubbed.log.inner, SHORT)
    gap = reader.sink.gaps[0]
    assert (gap.reason, gap.after, gap.before) == (GapReason.TRIMMED, old, retained[0])
    assert gap.missed == retained[0].seq - old.seq - 1
    assert faults(reader.sink.items, retained, start=old) == []


async def test_a_cursor_beyond_the_head_is_told_so_and_given_what_exists(hubbed: Hubbed) -> None:
    await hubbed.append(1, 2)
    head = (await history(hubbed.log.inner))[-1]
    reader = await hubbed.read({RUN: head._replace(ms=head.ms + 5_000, seq=99)})
    await reader.sink.wait_records(2)

    assert [gap.reason for gap in reader.sink.gaps] == [GapReason.AHEAD]


async def test_a_broken_sink_does_not_stop_the_others(hubbed: Hubbed) -> None:
    class Broken:
        def write(self, block: Block) -> bool:
            raise RuntimeError("broken")

        async def wait_writable(self) -> None:
            raise SinkClosed

    broken = await hubbed.hub.open({RUN: Special.DEFAULT}, Broken())
    task = asyncio.create_task(broken.run())
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    await eventually(lambda: broken.live)
    await hubbed.append(1)
    await reader.sink.wait_records(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_one_subscription_reads_several_streams(hubbed: Hubbed) -> None:
    streams = [StreamName.parse(f"run:{number}") for number in range(10)]
    for stream in streams:
        await hubbed.append(1, 2, stream=stream)
    reader = await hubbed.read(dict.fromkeys(streams, Special.DEFAULT))
    await reader.wait_live()
    for stream in streams:
        await hubbed.append(3, stream=stream)
    await reader.sink.wait_records(30)

    for stream in streams:
        mine = [record for record in reader.sink.records if record.stream == stream]
        assert_exactly_once(mine, await history(hubbed.log.inner, stream))
    assert reader.subscription.cursors == reader.subscription.heads


async def test_streams_come_and_go_while_a_subscription_runs(hubbed: Hubbed) -> None:
    reader = await hubbed.read({}, stays_open=True)
    await reader.subscription.add(RUN, Special.DEFAULT)
    await hubbed.append(1)
    await reader.sink.wait_records(1)
    assert reader.subscription.remove(RUN)
    await hubbed.append(2)
    await reader.subscription.add(USER, Special.DEFAULT)
    await reader.wait_live()
    await hubbed.append(1, stream=USER)
    await reader.sink.wait_records(2)

    assert [record.stream for record in reader.sink.records] == [RUN, USER]


async def test_a_closed_subscription_ends_while_its_sink_is_full(hubbed: Hubbed) -> None:
    await hubbed.append(1)
    reader = await hubbed.read({RUN: Special.DEFAULT}, room=0)
    reader.subscription.close(CloseCode.FORBIDDEN)

    assert await reader.wait_ended() is CloseCode.FORBIDDEN


async def test_an_abandoned_subscription_raises_that_its_sink_is_closed(hubbed: Hubbed) -> None:
    reader = await hubbed.read({RUN: Special.DEFAULT})
    reader.subscription.abandon()

    with pytest.raises(SinkClosed):
        await reader.wait_ended()


async def test_draining_sends_every_reader_away(hubbed: Hubbed) -> None:
    readers = [await hubbed.read({RUN: Special.DEFAULT}) for _ in range(50)]
    async with deadline():
        await hubbed.hub.drain(0.2)

    assert {await reader.wait_ended() for reader in readers} == {CloseCode.GOING_AWAY}
    assert hubbed.hub.statistics().subscriptions == 0
    assert hubbed.hub.statistics().lanes == 0


async def test_opening_fails_when_the_log_is_away_and_leaves_nothing_behind(hubbed: Hubbed) -> None:
    hubbed.log.down = True
    with pytest.raises(LogUnavailable):
        await hubbed.read({RUN: Special.DEFAULT, USER: Special.DEFAULT})

    assert hubbed.hub.statistics().subscriptions == 0
    assert hubbed.hub.statistics().lanes == 0


async def test_a_reader_survives_a_log_that_is_away_and_loses_nothing(hubbed: Hubbed) -> None:
    await hubbed.append(*range(5))
    reader = await hubbed.read({RUN: Special.DEFAULT}, room=0)
    hubbed.log.down = True
    hubbed.hub.on_degraded(True)
    reader.sink.make_room(None)
    await hubbed.append(*range(5))
    hubbed.log.down = False
    hubbed.hub.on_degraded(False)
    await reader.sink.wait_records(10)

    assert_exactly_once(reader.sink.records, await history(hubbed.log.inner))


async def test_live_readers_are_told_when_the_log_stops_and_starts_to_answer(hubbed: Hubbed) -> None:
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    hubbed.hub.on_degraded(True)
    hubbed.hub.on_degraded(True)
    hubbed.hub.on_degraded(False)

    assert [notice.active for notice in reader.sink.notices] == [True, False]


@pytest.mark.parametrize("seed", range(12))
async def test_any_interleaving_of_appends_losses_and_slow_readers_gives_each_record_once(
    hubbed: Hubbed, seed: int
) -> None:
    choice = random.Random(seed)
    readers = [await hubbed.read({RUN: Special.DEFAULT}, room=choice.choice((None, 1, 3))) for _ in range(6)]
    for number in range(1, 200):
        if choice.random() < 0.2:
            hubbed.log.lost.add(number + choice.randrange(3))
        await hubbed.append(number)
        if choice.random() < 0.3:
            await asyncio.sleep(0)
        if choice.random() < 0.1:
            choice.choice(readers).sink.make_room(choice.choice((0, 1, 5)))
        if choice.random() < 0.05:
            hubbed.hub.on_doubt(None)
        if choice.random() < 0.05:
            hubbed.log.down = not hubbed.log.down
            hubbed.hub.on_degraded(hubbed.log.down)
    hubbed.log.down = False
    hubbed.hub.on_degraded(False)
    hubbed.hub.on_doubt(None)
    for reader in readers:
        reader.sink.make_room(None)
    ids = await history(hubbed.log.inner)
    for reader in readers:
        await reader.sink.wait_records(len(ids))
        assert_exactly_once(reader.sink.items, ids)


async def test_a_topic_without_readers_is_unwatched_after_a_while() -> None:
    now = [0.0]
    kinds = Kinds()
    async with hub_over(MemoryLog(kinds=kinds), kinds) as hubbed:
        hubbed.hub._clock = lambda: now[0]
        reader = await hubbed.read({RUN: Special.DEFAULT})
        await reader.wait_live()
        await hubbed.stop([reader])
        assert hubbed.hub.statistics().topics == 1
        now[0] = 60.0
        await eventually(lambda: hubbed.hub.statistics().topics == 0)


async def test_events_published_between_opening_and_running_are_not_lost(hubbed: Hubbed) -> None:
    sink = Collector()
    subscription = await hubbed.hub.open({USER: Special.NOW}, sink)
    await hubbed.log.inner.append(USER, events(1, 2))
    task = asyncio.create_task(subscription.run())
    await sink.wait_records(2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_lagging_reader_that_asked_for_it_is_given_the_latest_record_per_key(hubbed: Hubbed) -> None:
    for percent in range(50):
        await hubbed.log.inner.append(RUN, [Event("task.progress", percent, key="progress")])
    await hubbed.append(1)
    sink = Collector()
    subscription = await hubbed.hub.open({RUN: Special.DEFAULT}, sink, conflate=True)
    task = asyncio.create_task(subscription.run())
    await eventually(lambda: subscription.live)
    await hubbed.log.inner.append(RUN, [Event("task.progress", percent, key="progress") for percent in (98, 99)])
    await sink.wait_records(4)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert [record.id.seq for record in sink.records] == [50, 51, 52, 53]


async def test_a_burst_is_delivered_in_bounded_blocks_over_several_turns(hubbed: Hubbed) -> None:
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    for _ in range(4):
        await hubbed.log.inner.append(RUN, [Event("test.step", "x" * 1_000) for _ in range(200)])
    await reader.sink.wait_records(800)

    assert max(len(block.cells) for block in reader.sink.blocks) < 100
    assert_exactly_once(reader.sink.items, await history(hubbed.log.inner))

"""Nobody waits for ever: who can be given nothing more is told, what a full or broken sink missed is told later."""

from __future__ import annotations

import asyncio

from tailrace.codes import CloseCode
from tailrace.core.cursor import Since, Special
from tailrace.core.event import StreamState
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.hub.block import Block
from tests.hub.support import RUN, Collector, Hubbed, history
from tests.support.checker import ids_of
from tests.support.wait import deadline, eventually

OTHER = StreamName.parse("run:7")


class Breaking(Collector):
    """A sink that fails once."""

    broken = True

    def write(self, block: Block) -> bool:
        if self.broken:
            self.broken = False
            raise RuntimeError("broken")
        return super().write(block)


async def test_a_live_reader_whose_sink_failed_once_is_given_all(hubbed: Hubbed) -> None:
    sink = Breaking()
    subscription = await hubbed.hub.open({RUN: Special.DEFAULT}, sink)
    running = asyncio.create_task(subscription.run())
    await eventually(lambda: subscription.live)

    await hubbed.append(1)
    await hubbed.append(2)

    await sink.wait_records(2, 30)
    assert ids_of(sink.items) == await history(hubbed.log.inner)
    subscription.close(CloseCode.GOING_AWAY)
    async with deadline():
        await running


async def test_a_sink_that_fails_at_a_notice_ends_no_hub(hubbed: Hubbed) -> None:
    sink = Breaking()
    subscription = await hubbed.hub.open({RUN: Special.DEFAULT}, sink)
    other = await hubbed.read({OTHER: Special.DEFAULT})

    hubbed.hub.on_degraded(True)

    assert [notice.active for notice in other.sink.notices] == [True]
    subscription.detach()


async def test_a_notice_that_found_the_sink_full_is_told_when_it_has_room(hubbed: Hubbed) -> None:
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    hubbed.hub.on_degraded(True)
    reader.sink.make_room(0)
    hubbed.hub.on_degraded(False)

    reader.sink.make_room(None)

    await eventually(lambda: len(reader.sink.notices) == 2, 30)
    assert [notice.active for notice in reader.sink.notices] == [True, False]


async def test_who_comes_behind_the_foreign_entries_of_a_closed_stream_is_told_its_end(hubbed: Hubbed) -> None:
    first = await hubbed.read({RUN: Special.DEFAULT})
    await hubbed.append(1)
    tip = hubbed.log.inner.add_foreign(RUN, {"a": "b"})
    await first.sink.wait_records(2)
    await hubbed.log.inner.close(RUN)
    assert await first.wait_ended() is CloseCode.ENDED

    for place in (Special.NOW, tip):
        late = await hubbed.read({RUN: place})
        assert await late.wait_ended() is CloseCode.ENDED
        assert [(end.at, end.state) for end in late.sink.ends] == [(tip, StreamState.CLOSED)]
        assert late.sink.records == []


async def test_a_reader_by_time_is_given_ours_behind_a_foreign_entry(hubbed: Hubbed) -> None:
    await hubbed.append(1)
    [last] = await history(hubbed.log.inner)
    begin = EntryId(last.ms + 1_000, 0)
    hubbed.log.inner.add_foreign(RUN, {"a": "b"}, at=begin)
    await hubbed.append(2)

    reader = await hubbed.read({RUN: Since(begin.ms)})

    await reader.sink.wait_records(2, 30)
    assert ids_of(reader.sink.items) == (await history(hubbed.log.inner))[1:]


async def test_a_reader_behind_a_foreign_entry_that_was_deleted_asks_no_more(hubbed: Hubbed) -> None:
    first = await hubbed.read({RUN: Special.DEFAULT})
    await hubbed.append(1)
    [place] = await history(hubbed.log.inner)
    foreign = hubbed.log.inner.add_foreign(RUN, {"a": "b"})
    await first.sink.wait_records(2)
    hubbed.log.inner.drop(RUN, foreign)

    late = await hubbed.read({RUN: place})

    await eventually(lambda: late.subscription.live, 10)


async def test_who_comes_while_a_hub_drains_is_sent_away_too(hubbed: Hubbed) -> None:
    early = [await hubbed.read({RUN: Special.DEFAULT}) for _ in range(4)]
    draining = asyncio.create_task(hubbed.hub.drain(2.0))
    await eventually(lambda: any(reader.task.done() for reader in early))
    late = await hubbed.read({RUN: Special.DEFAULT})

    async with deadline(30):
        await draining

    assert await late.wait_ended() is CloseCode.GOING_AWAY


async def test_pages_that_nobody_waits_for_any_more_are_not_kept(hubbed: Hubbed) -> None:
    await hubbed.append(*range(50))
    first = await hubbed.read({RUN: Special.DEFAULT})
    await first.wait_live()
    read = hubbed.log.reads

    async def is_read_again() -> bool:
        late = await hubbed.read({RUN: Special.DEFAULT})
        await late.wait_live()
        assert ids_of(late.sink.items) == await history(hubbed.log.inner)
        return hubbed.log.reads > read

    await eventually(is_read_again, 30)

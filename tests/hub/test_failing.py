"""Reads that fail while the tail goes on: who waits for them is told, and only who does."""

from __future__ import annotations

from tailrace.core.cursor import Special
from tailrace.core.names import StreamName
from tests.hub.support import RUN, Hubbed, history
from tests.support.checker import assert_exactly_once
from tests.support.wait import eventually

OTHER = StreamName.parse("run:7")


async def test_who_waits_for_a_page_that_does_not_come_is_told_and_then_given_all(hubbed: Hubbed) -> None:
    await hubbed.append(1, 2, 3)
    live = await hubbed.read({OTHER: Special.NOW})
    await live.wait_live()
    reader = await hubbed.read({RUN: Special.DEFAULT})
    hubbed.log.down = True

    await eventually(lambda: reader.sink.notices, 30)
    assert reader.subscription.failing
    hubbed.log.down = False

    await reader.sink.wait_records(3, 30)
    await eventually(lambda: len(reader.sink.notices) == 2, 30)
    assert [notice.active for notice in reader.sink.notices] == [True, False]
    assert_exactly_once(reader.sink.records, await history(hubbed.log.inner))
    assert live.sink.notices == []
    assert not hubbed.hub.degraded


async def test_live_readers_whose_stream_cannot_be_healed_are_told(hubbed: Hubbed) -> None:
    reader = await hubbed.read({RUN: Special.DEFAULT})
    await reader.wait_live()
    hubbed.log.down = True
    hubbed.log.lost.add(1)
    await hubbed.append(1, 2)
    await hubbed.append(3)

    await eventually(lambda: reader.sink.notices, 30)
    hubbed.log.down = False

    await reader.sink.wait_records(3, 30)
    assert_exactly_once(reader.sink.records, await history(hubbed.log.inner))


async def test_a_failure_that_nobody_waits_for_any_more_is_forgotten(hubbed: Hubbed) -> None:
    await hubbed.append(1)
    live = await hubbed.read({RUN: Special.NOW})
    await live.wait_live()
    late = await hubbed.read({RUN: Special.DEFAULT})
    hubbed.log.down = True
    await eventually(lambda: RUN in hubbed.hub.failing, 30)

    await hubbed.stop([late])

    await eventually(lambda: RUN not in hubbed.hub.failing, 30)
    assert live.sink.notices == []

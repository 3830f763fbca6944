"""A log that lost its end: what this process remembers of it is given to nobody any more."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tailrace.core.event import GapReason
from tailrace.core.ids import ZERO
from tailrace.core.kinds import Kinds
from tailrace.eventlog.memory import MemoryLog
from tests.hub.support import RUN, Hubbed, history, hub_over
from tests.support.checker import ids_of
from tests.support.wait import eventually


class Losing:
    """A hub over a log that can forget everything."""

    def __init__(self, hubbed: Hubbed, log: MemoryLog, clock: list[float]) -> None:
        self.hubbed = hubbed
        self.log = log
        self._clock = clock

    async def lose(self, *numbers: int) -> None:
        """Forget what there is, and begin again with these."""
        self.log._streams.clear()
        self._clock[0] += 10
        await self.hubbed.append(*numbers)


@pytest.fixture
async def losing() -> AsyncIterator[Losing]:
    clock = [1_000.0]
    log = MemoryLog(kinds=Kinds(), clock=lambda: clock[0])
    async with hub_over(log, Kinds()) as hubbed:
        yield Losing(hubbed, log, clock)


async def test_a_reader_that_comes_after_a_loss_is_given_only_what_exists(losing: Losing) -> None:
    await losing.hubbed.append(1, 2, 3)
    first = await losing.hubbed.read({RUN: ZERO})
    await first.sink.wait_records(3)

    await losing.lose(7)
    await eventually(lambda: first.sink.gaps)
    second = await losing.hubbed.read({RUN: ZERO})
    await second.wait_live()

    assert ids_of(second.sink.items) == await history(losing.log)
    assert second.sink.gaps == []


async def test_readers_that_come_back_after_each_of_several_losses_are_told_once(losing: Losing) -> None:
    await losing.hubbed.append(1, 2, 3)
    watching = await losing.hubbed.read({RUN: ZERO})
    await watching.sink.wait_records(3)
    for number in range(1, 4):
        cursor = (await history(losing.log))[-1]
        await losing.lose(7, 8)
        await eventually(lambda: len(watching.sink.gaps) == number)  # noqa: B023
        back = await losing.hubbed.read({RUN: cursor})
        await back.wait_live()

        assert [(gap.reason, gap.after) for gap in back.sink.gaps] == [(GapReason.RESET, cursor)]
        assert back.sink.gaps[0].before == (await history(losing.log))[0]
        assert ids_of(back.sink.items) == await history(losing.log)

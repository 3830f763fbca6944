"""Opening several streams at once: one error, nothing left running, and its caller is no more cancelled than it was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from tailrace.core.cursor import Special
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.hub.together import together
from tests.hub.support import RUN, Collector, Hubbed
from tests.support.wait import deadline

OTHER = StreamName.parse("run:7")


async def test_a_caller_whose_streams_could_not_be_opened_is_not_cancelled(hubbed: Hubbed) -> None:
    hubbed.log.down = True
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            await hubbed.hub.open({RUN: Special.DEFAULT, OTHER: Special.DEFAULT}, Collector())

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


class Steps:
    """Two works: one fails when told, the other takes its time to end when it is cancelled."""

    def __init__(self) -> None:
        self.fail, self.leave, self.leaving = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.left = False

    async def fails(self) -> None:
        await self.fail.wait()
        raise ValueError("one")

    async def lingers(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.leaving.set()
            await self.leave.wait()
            self.left = True


async def ended(task: Awaitable[object]) -> object:
    async with deadline():
        return (await asyncio.gather(task, return_exceptions=True))[0]


async def test_the_first_error_is_raised_when_the_others_have_ended() -> None:
    steps = Steps()
    task = asyncio.create_task(together((steps.lingers(), steps.fails())))
    steps.fail.set()
    await steps.leaving.wait()
    assert not task.done()
    steps.leave.set()

    error = await ended(task)

    assert isinstance(error, ValueError)
    assert steps.left


async def test_a_cancellation_while_the_others_end_is_not_lost() -> None:
    steps = Steps()
    task = asyncio.create_task(together((steps.lingers(), steps.fails())))
    steps.fail.set()
    await steps.leaving.wait()
    task.cancel()
    steps.leave.set()

    assert isinstance(await ended(task), asyncio.CancelledError)


async def test_who_is_cancelled_cancels_all() -> None:
    steps = Steps()
    task = asyncio.create_task(together((steps.lingers(), steps.fails())))
    await asyncio.sleep(0)
    steps.leave.set()
    task.cancel()

    assert isinstance(await ended(task), asyncio.CancelledError)
    assert steps.left


async def test_nothing_together_is_nothing() -> None:
    await together(())

"""A hub that ends while the log tells it things."""

from __future__ import annotations

import asyncio

from tailrace.core.ids import ZERO
from tailrace.core.kinds import Kinds
from tailrace.eventlog.memory import MemoryLog
from tailrace.hub.hub import Hub
from tests.hub.support import RUN, Collector, events


async def test_a_doubt_that_comes_while_the_hub_ends_is_no_error() -> None:
    log = MemoryLog(kinds=Kinds())
    await log.append(RUN, events(1))
    hub = Hub(log, Kinds())
    running = asyncio.create_task(hub.run())
    await hub.wait_running()
    subscription = await hub.open({RUN: ZERO}, Collector())

    running.cancel()
    await asyncio.sleep(0)
    hub.on_doubt(None)
    hub.on_doubt([RUN])

    await asyncio.gather(running, return_exceptions=True)
    assert running.cancelled()
    subscription.detach()

"""A viewer that leaves in the middle of a switch leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from tailrace.client.backend import FollowOptions
from tailrace.client.direct import DirectLog
from tailrace.core.frames import WsForm
from tailrace.core.names import StreamName
from tailrace.eventlog.memory import MemoryLog
from tailrace.features.workflow.reader import Reader, State
from tailrace.features.workflow.switchboard import Switchboard

STREAM = StreamName.parse("workflow:1")


class Board(Switchboard):
    """A switchboard whose streams are on or off."""

    on = True

    def reads_stream(self, stream: StreamName) -> bool:
        return self.on


@pytest.mark.parametrize("on", [True, False])
async def test_a_viewer_that_leaves_while_it_is_switched_is_heard_of_no_more(on: bool) -> None:
    backend = DirectLog.on(MemoryLog())
    hub = await backend.hub()
    board = Board(hub, None, prefix="", reads_stream=lambda _: True, fallback_seconds=5)
    board.on = on
    source = backend.follow({}, FollowOptions(), None)
    subscription = await hub.open({}, source, stays_open=True)
    reader = Reader(board, STREAM, "workflow:1:events", subscription, WsForm())
    assert reader.state is (State.STREAMS if on else State.CHANNEL)

    switching = asyncio.create_task(reader.switch())
    await asyncio.sleep(0)
    board.remove(reader)
    subscription.detach()
    await switching

    assert subscription.cursors == {}
    assert board._listening == {}
    await backend.aclose()

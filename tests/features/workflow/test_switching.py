"""A viewer that leaves in the middle of a switch leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, cast

import pytest

from tailrace.client.backend import FollowOptions
from tailrace.client.direct import DirectLog
from tailrace.core.frames import WsForm
from tailrace.core.names import StreamName
from tailrace.eventlog.memory import MemoryLog
from tailrace.features.workflow.reader import Reader, State
from tailrace.features.workflow.switchboard import Switchboard
from tailrace.hub.block import Block, SinkClosed

if TYPE_CHECKING:
    from tailrace.transports.ws_sink import WsSink

STREAM = StreamName.parse("workflow:1")


class Board(Switchboard):
    """A switchboard whose streams are on or off."""

    on = True
    heard = False
    since: float | None = None

    def reads_stream(self, stream: StreamName) -> bool:
        return self.on

    @property
    def hears(self) -> bool:
        return self.heard

    def away_since(self) -> float | None:
        return self.since


class Shown:
    """A connection that keeps what it is told of outages."""

    def __init__(self) -> None:
        self.outages: list[bool] = []

    def say(self, payload: bytes) -> None:
        self.outages.append(json.loads(payload)["active"])

    def write(self, block: Block) -> bool:
        return True

    async def wait_writable(self) -> None:
        raise SinkClosed


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


@pytest.mark.parametrize("heard", [True, False])
async def test_who_is_rolled_back_while_the_log_is_away_is_told_whether_the_channel_is_heard(heard: bool) -> None:
    backend = DirectLog.on(MemoryLog())
    hub = await backend.hub()
    board = Board(hub, None, prefix="", reads_stream=lambda _: True, fallback_seconds=5)
    board.since, board.heard = asyncio.get_running_loop().time() - 60, heard
    subscription = await hub.open({}, backend.follow({}, FollowOptions(), None), stays_open=True)
    reader = Reader(board, STREAM, "workflow:1", subscription, WsForm())
    shown = Shown()
    reader.begin(cast("WsSink", shown))
    reader.tick()
    assert (reader.state, shown.outages) == (State.AWAY, [True])

    board.on = False
    reader.tick()

    assert (reader.state, shown.outages) == (State.CHANNEL, [True, False] if heard else [True])
    reader.link(up=True)
    assert shown.outages == [True, False]
    subscription.detach()
    await backend.aclose()

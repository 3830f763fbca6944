"""A topic's tail holds what its share allows, and the newest records of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from tailrace.core.chain import Position
from tailrace.core.event import Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import Head, Page
from tailrace.hub.topic import Stretch, Topic

RUN = StreamName.parse("run:topic")


async def no_read(stream: StreamName, position: Position, limit: int) -> Page:
    raise AssertionError("nothing has to be read")


def no_task(coro: Coroutine[Any, Any, Stretch]) -> asyncio.Future[Stretch]:
    raise AssertionError("nothing has to be started")


def deliver(topic: Topic, first: int, last: int) -> None:
    for seq in range(first, last + 1):
        prev = EntryId(1, seq - 1) if seq > 1 else ZERO
        assert topic.push([Record(RUN, EntryId(1, seq), prev, "tick", b"x" * 840, 1)])  # type: ignore[arg-type]
        topic.flush()


def after(topic: Topic, seq: int) -> int:
    """How many records the tail has after one; 0: it does not reach back that far."""
    stretch = topic.recent(Position(EntryId(1, seq), EntryId(1, seq), proven=True))
    return len(stretch.block.cells) if stretch is not None else 0


def test_a_tail_holds_the_newest_of_what_its_share_allows() -> None:
    share = 10_000
    topic = Topic(RUN, no_read, no_task, lambda: share)
    topic.attach(Head(state=StreamState.OPEN, incarnation=1))

    deliver(topic, 1, 50)
    assert after(topic, 40) == 10
    assert after(topic, 39) == 0

    share = 5_000  # other topics came
    deliver(topic, 51, 51)
    assert after(topic, 46) == 5
    assert after(topic, 45) == 0


def test_a_tail_without_room_for_one_record_is_empty() -> None:
    topic = Topic(RUN, no_read, no_task, lambda: 100)
    topic.attach(Head(state=StreamState.OPEN, incarnation=1))

    deliver(topic, 1, 3)

    assert after(topic, 2) == 0
    assert topic.position.cursor == EntryId(1, 3)

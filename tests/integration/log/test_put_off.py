"""A call that is put off, because its node is away, is answered by its deadline whatever else happens to the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.wait import eventually

from tailrace.core.codec import Prepared
from tailrace.core.event import Json
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.eventlog.receipt import Receipt
from tailrace.eventlog.redis import publisher as module
from tailrace.eventlog.redis.connection import ConnectionLost
from tailrace.eventlog.redis.keys import Keys
from tailrace.eventlog.redis.publisher import Publisher

RUN = StreamName.parse("run:1")


class Wire:
    """A connection whose answers the test gives."""

    version = (7, 0, 0)

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Any]] = []

    def send(self, *words: object, asking: bool = False) -> asyncio.Future[Any]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]


class Away:
    """A node that is down, until the test says otherwise; and the only way to it."""

    fails_over = True
    on_up: Callable[[Any], None]
    on_down: Callable[[Any], None]

    def __init__(self) -> None:
        self.connection: Wire | None = None
        self.down: LogUnavailable | None = LogUnavailable("it was stopped")

    def unavailable(self) -> LogUnavailable:
        return LogUnavailable("it was stopped")

    def want(self) -> None:
        pass

    def sent(self) -> None:
        pass

    def slot(self, key: bytes) -> int:
        return 7

    def known(self, slot: int | None) -> Away:
        return self

    def find(self, slot: int | None, found: Callable[[Any], None]) -> None:
        asyncio.get_running_loop().call_soon(found, self)


async def test_a_call_that_was_put_off_twice_goes_again_when_its_connection_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.02)
    loop = asyncio.get_running_loop()
    node, wire = Away(), Wire()
    routes: Any = node
    publisher = Publisher(routes, Keys(Kinds()), Kinds())
    receipt = Receipt(stream=RUN, pid="p", n=1, events=(Prepared("note", Json(b"1")),), offset=0, count=1)
    answer = publisher.settle(receipt, deadline=loop.time() + 30)
    await asyncio.sleep(0)
    node.on_down(node)
    node.down, node.connection = None, wire
    await eventually(lambda: len(wire.asked) == 1, 10)
    both = loop.time() + 0.05
    await eventually(lambda: loop.time() > both, 10)

    node.connection = None
    wire.asked[0].set_exception(ConnectionLost("cut", written=True))
    await asyncio.sleep(0)
    node.connection = wire
    node.on_up(node)
    await eventually(lambda: len(wire.asked) == 2, 10)

    wire.asked[1].set_result([b"dup", b"5", b"1", b"5"])
    assert [each.id.ms for each in await answer] == [5]

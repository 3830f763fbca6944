"""The client on a log object, and straight on Redis: the same promises without a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.core.event import Ended, Event, Gap, Record
from tailrace.core.kinds import StreamKind
from tailrace.errors import LogUnavailable, NotFound
from tailrace.eventlog.memory import MemoryLog
from tailrace.testing import memory_log, memory_tailrace, take
from tests.support.proxy import StartProxy
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually


@pytest.fixture(params=["memory", "redis"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Tailrace]:
    if request.param == "memory":
        made = memory_tailrace()
    else:
        server: RedisServer = request.getfixturevalue("redis70")
        made = Tailrace(server.url, key_prefix=request.getfixturevalue("key_prefix"))
    async with made:
        yield made


async def test_records_come_in_order_live_and_from_history(client: Tailrace) -> None:
    await client.publish_many("run:1", [Event("note", n) for n in range(3)])
    subscription = client.subscribe("run:1")
    first = await take(subscription, 3)
    waiting = asyncio.ensure_future(take(subscription, 3))
    await client.publish_many("run:1", [Event("note", n) for n in range(3, 5)])
    await client.close_stream("run:1")

    items = first + await waiting

    assert [int(item.data) for item in items if isinstance(item, Record)] == [0, 1, 2, 3, 4]
    assert isinstance(items[-1], Ended)
    assert await anext(subscription, None) is None
    assert len(await client.history("run:1", reverse=True, limit=2).records()) == 2


async def test_a_reader_that_takes_its_time_gets_everything(client: Tailrace) -> None:
    subscription = client.subscribe("run:1")
    begun = asyncio.ensure_future(take(subscription, 1))
    for n in range(30):
        await client.publish("run:1", "note", {"n": n, "fill": "x" * 50_000})
    await client.close_stream("run:1")

    items = await begun + [item async for item in subscription]

    assert len([item for item in items if isinstance(item, Record)]) == 30
    assert not [item for item in items if isinstance(item, Gap)]


async def test_emit_and_uid_and_info(client: Tailrace) -> None:
    client.emit("run:1", "note", 1)
    assert await client.flush(5)
    first = await client.publish("run:1", "note", 2, uid="u")
    again = await client.publish("run:1", "note", 2, uid="u")

    assert (again.id, again.duplicate) == (first.id, True)
    assert (await client.info("run:1")).length == 2
    assert await client.delete("run:1")
    with pytest.raises(NotFound):
        await client.info("run:none")


async def test_clients_of_one_log_in_memory_see_each_other() -> None:
    log = memory_log([StreamKind(name="job")])
    async with memory_tailrace(log) as writer, memory_tailrace(log) as reader:
        await writer.publish("job:1", "note", 1)
        assert len(await take(reader.subscribe("job:1"), 1)) == 1
    await log.aclose()


async def test_take_says_what_came_when_too_little_came() -> None:
    async with memory_tailrace() as client:
        await client.publish("run:1", "note", 1)
        with pytest.raises(AssertionError, match="1 of 2 items"):
            await take(client.subscribe("run:1"), 2, timeout_seconds=0.1)


async def test_a_reply_of_redis_that_is_lost_does_not_make_a_second_event(
    redis70: RedisServer, key_prefix: str, start_proxy: StartProxy
) -> None:
    proxy = await start_proxy(str(redis70.socket))
    async with Tailrace(proxy.url, key_prefix=key_prefix, timeout_seconds=20) as client:
        await client.publish("run:1", "note", 0)
        for n in range(1, 4):
            proxy.drop_replies = True
            publishing = asyncio.ensure_future(client.publish("run:1", "note", n))
            await eventually(lambda: proxy.dropped > 0)
            proxy.restore()
            proxy.reset_all()
            proxy.dropped = 0
            await publishing

        records = await client.history("run:1").records()

    assert [int(record.data) for record in records] == list(range(4))


async def test_a_subscription_waits_for_a_redis_that_is_away(
    redis70: RedisServer, key_prefix: str, start_proxy: StartProxy
) -> None:
    proxy = await start_proxy(str(redis70.socket))
    proxy.refuse = True
    links: list[bool] = []
    async with Tailrace(proxy.url, key_prefix=key_prefix) as client:
        reading = asyncio.ensure_future(
            take(client.subscribe("run:1", on_link=lambda link: links.append(link.up)), 2, timeout_seconds=20)
        )
        with pytest.raises(LogUnavailable):
            await client.publish("run:1", "note", 0, timeout_seconds=0.5)
        proxy.restore()
        for n in range(2):
            await client.publish("run:1", "note", n)

        items = await reading

    assert [int(item.data) for item in items if isinstance(item, Record)] == [0, 1]
    assert links[-1] is True


async def test_a_client_whose_closing_is_cancelled_gives_back_everything(
    start_redis: StartRedis,
) -> None:
    server = await start_redis()
    before = len(asyncio.all_tasks())
    client = Tailrace(server.url, key_prefix="t:")
    await client.publish("run:1", "note", 1)
    subscription = client.subscribe("run:1")
    await take(subscription, 1)
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0)

    closing.cancel()
    await asyncio.wait([closing])

    async def nothing_is_left() -> bool:
        connected = int((await server.info("clients"))["connected_clients"])
        return connected == 1 and len(asyncio.all_tasks()) == before

    await eventually(nothing_is_left, 30)


async def test_closing_a_client_ends_a_reader_that_waits_and_cancels_nobody() -> None:
    client = Tailrace.on(DirectLog.on(MemoryLog()))
    subscription = client.subscribe("run:1", since="0")

    async def read() -> list[object]:
        return [item async for item in subscription]

    await client.publish("run:1", "note", 1)
    await anext(subscription)
    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    await client.aclose()

    async with asyncio.timeout(60):
        assert await reader == []

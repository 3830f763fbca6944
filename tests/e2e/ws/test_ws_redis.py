"""WebSocket and long-poll on a real Redis: whatever is cut or killed, every reader ends with every record once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.log import RedisLog
from tests.support.checker import assert_exactly_once
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.tokens import token
from tests.support.wait import deadline, eventually
from tests.support.ws import Gate, gate, publish
from tests.support.ws_readers import PollReader, SocketReader, SocketWriter

RUN = StreamName.parse("run:1")
JWT = token(read=["run:*"], write=["run:*"])
LIMITS: dict[str, Any] = {"max_connections_per_user": 0, "commands_per_minute": 100_000, "recheck_seconds": 0.5}


@asynccontextmanager
async def on_redis(server: RedisServer, prefix: str, **settings: Any) -> AsyncIterator[Gate]:
    """A gateway on a real log."""
    log = RedisLog.connect(server.url, prefix=prefix, deadline=20.0)
    try:
        async with gate(log, **LIMITS, **settings) as running:
            await eventually(lambda: running.gateway.probe.healthy, 10.0)
            yield running
    finally:
        await log.aclose()


def readers_of(running: Gate) -> list[SocketReader | PollReader]:
    """One of each way to read."""
    return [
        SocketReader(running.address, RUN, JWT),
        SocketReader(running.address, RUN, JWT, commands=True),
        PollReader(lambda: running.server.url, RUN, JWT),
        PollReader(lambda: running.server.url, RUN, JWT, limit=7),
    ]


@asynccontextmanager
async def reading(readers: Sequence[SocketReader | PollReader]) -> AsyncIterator[None]:
    """Run readers; those that have not ended afterwards are ended."""
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    try:
        yield
        async with deadline(30.0):
            await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def history(running: Gate) -> list[EntryId]:
    """What the log holds."""
    found: list[EntryId] = []
    start = EntryId(0, 0)
    while True:
        page = await running.log.range(RUN, start=start, limit=1_000)
        found += [record.id for record in page.records]
        if not page.more:
            return found
        start = EntryId(found[-1].ms, found[-1].seq + 1)


async def test_readers_that_are_cut_again_and_again_get_each_record_once(redis70: RedisServer, key_prefix: str) -> None:
    async with on_redis(redis70, key_prefix) as running:
        readers = readers_of(running)
        async with reading(readers):
            for first in range(1, 3_001, 30):
                await publish(running.log, 30, first=first)
                random.choice(readers).cut()
            await running.log.close(RUN)

        ids = await history(running)
        assert len(ids) == 3_000
        for reader in readers:
            assert_exactly_once(reader.items, ids)
            assert reader.connects > 5


async def test_redis_killed_and_restarted_loses_nothing_for_anybody(start_redis: StartRedis, key_prefix: str) -> None:
    server = await start_redis({"appendfsync": "always"})
    async with on_redis(server, key_prefix) as running:
        readers = readers_of(running)
        writer = SocketWriter(running.address, RUN, JWT)
        async with reading(readers):
            writing = asyncio.create_task(writer.run(200))
            await eventually(lambda: len(writer.acked) > 200, 20.0)
            await server.kill()
            await eventually(lambda: running.gateway.hub.degraded, 10.0)
            await server.start()
            async with deadline(30.0):
                await writing

            async def closed() -> bool:
                # Another connection than the writer's: it may still be on its way back.
                with suppress(LogUnavailable):
                    await running.log.close(RUN)
                    return True
                return False

            await eventually(closed, 30.0)

        ids = await history(running)
        assert sorted(writer.acked) == ids
        for reader in readers:
            assert_exactly_once(reader.items, ids)
        lasting = readers[0]
        assert lasting.degraded >= 1, "the reader that stayed connected was told"
        assert lasting.connects == 1


async def test_two_gateways_share_a_stream(redis70: RedisServer, key_prefix: str) -> None:
    async with (
        on_redis(redis70, key_prefix) as one,
        on_redis(redis70, key_prefix) as other,
        one.wire() as writer,
        other.wire() as reader,
    ):
        await reader.ask("subscribe", stream=RUN)

        reply = await writer.ask("publish", stream=RUN, events=[{"type": "a"}, {"type": "b"}])

        assert [record["id"] for record in await reader.records(2)] == [each["id"] for each in reply["events"]]


async def test_five_hundred_streams_on_one_connection(redis70: RedisServer, key_prefix: str) -> None:
    names = [f"run:{n}" for n in range(500)]
    async with on_redis(redis70, key_prefix) as running, running.wire() as wire:
        await wire.say("subscribe", streams=dict.fromkeys(names, "0"))
        reply = await wire.get(30.0)
        while "reply" not in reply:  # a process that has much to do may be told that the log does not answer
            reply = await wire.get(30.0)

        await asyncio.gather(*(publish(running.log, 2, name) for name in names))

        assert len(reply["streams"]) == 500
        seen: dict[str, list[int]] = {}
        for record in await wire.records(1_000, 20.0):
            seen.setdefault(record["stream"], []).append(record["data"]["n"])
        assert seen == {name: [1, 2] for name in names}


@pytest.mark.parametrize("size", [100, 40_000, 1_000_000])
async def test_records_of_every_size_come_live_and_by_replay(redis70: RedisServer, key_prefix: str, size: int) -> None:
    async with on_redis(redis70, key_prefix) as running, running.wire(max_size=None) as wire:
        await publish(running.log, 3, size=size)
        await wire.ask("subscribe", stream=RUN)
        await publish(running.log, 3, size=size, first=4)

        assert [record["data"]["n"] for record in await wire.records(6)] == [1, 2, 3, 4, 5, 6]


async def test_a_publish_while_redis_is_away_is_refused_as_not_stored(start_redis: StartRedis, key_prefix: str) -> None:
    server = await start_redis()
    async with on_redis(server, key_prefix) as running, running.wire() as wire:
        await server.kill()
        await wire.say("publish", stream=RUN, events={"type": "a"})

        reply = await wire.get(10.0)
        while "reply" not in reply:
            reply = await wire.get(10.0)

        assert reply["error"]["status"] == 503
        assert reply["error"]["retry_after"] > 0
        assert (await wire.ask("ping"))["reply"]


async def test_a_subscribe_while_redis_is_away_is_refused_and_may_be_repeated(
    start_redis: StartRedis, key_prefix: str
) -> None:
    server = await start_redis()
    async with on_redis(server, key_prefix) as running, running.wire() as wire:
        await server.kill()
        await eventually(lambda: running.gateway.hub.degraded, 10.0)
        assert (await wire.get())["control"] == "degraded"

        await wire.say("subscribe", stream=RUN)
        refused = await wire.get(15.0)
        await server.start()
        assert (await wire.get(10.0)) == {"control": "degraded", "active": False}

        async def taken() -> bool:
            id_ = await wire.say("subscribe", stream=RUN)
            while (answer := await wire.get(10.0)).get("reply") != id_:
                pass
            return "streams" in answer

        assert refused["error"]["code"].startswith("LOG_")

        async def published() -> bool:
            # The publisher's breaker may still be open: then nothing was stored, and it says so.
            with suppress(LogUnavailable):
                return bool(await publish(running.log, 1))
            return False

        await eventually(taken, 20.0, every=0.2)
        await eventually(published, 20.0, every=0.1)
        assert len(await wire.records(1)) == 1

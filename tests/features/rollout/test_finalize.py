"""The end of the old channels, seen by MONITOR; and a server that has no Streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tailrace.core.names import StreamName
from tailrace.core.rollout import Mode
from tailrace.errors import ConfigError
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.features.rollout.changing import finalize, roll_back, set_percent
from tailrace.features.rollout.view import RolloutView
from tailrace.features.workflow.publisher import WorkflowPublisher
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually

STREAM = StreamName.parse("workflow:42")


@asynccontextmanager
async def monitored(server: RedisServer) -> AsyncIterator[list[str]]:
    """The commands that the server is given, as it says."""
    reader, writer = await asyncio.open_unix_connection(str(server.socket))
    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"
    lines: list[str] = []

    async def read() -> None:
        while line := await reader.readline():
            lines.append(line.decode("utf-8", "replace"))

    reading = asyncio.create_task(read())
    yield lines
    await server.cli("ECHO", "the end")
    await eventually(lambda: any("the end" in line for line in lines), 20)
    writer.close()
    await asyncio.gather(reading, return_exceptions=True)


def on_the_old_channel(lines: list[str]) -> int:
    return sum('"PUBLISH" "workflow:42"' in line for line in lines)


@pytest.mark.timeout(90)
async def test_after_finalize_nothing_is_published_on_old_channels_until_a_roll_back(start_redis: StartRedis) -> None:
    server = await start_redis(limited=False)
    store = RedisRollout(server.url)
    view = RolloutView(store, look_seconds=0.1)
    async with view.running(), WorkflowPublisher(server.url, mode=view.mode_of) as publisher:

        async def reached(mode: Mode) -> None:
            await eventually(lambda: view.mode_of(STREAM) is mode, 30)
            await eventually(lambda: view.rollout_of("workflow").is_settled(view.now()), 30)

        await set_percent(store, "workflow", 100, by="ann", settle_seconds=0.2)
        await reached(Mode.DUAL)
        async with monitored(server) as dual:
            published = await publisher.publish_node_output("42", "a")
        await finalize(store, "workflow", by="ann")
        await reached(Mode.STREAMS)
        async with monitored(server) as final:
            only_stored = await publisher.publish_node_output("42", "b")
        await roll_back(store, "workflow", by="ann")
        await reached(Mode.PUBSUB)
        async with monitored(server) as back:
            await publisher.publish_node_output("42", "c")
    await store.aclose()

    assert (published.mode, only_stored.mode) == (Mode.DUAL, Mode.STREAMS)
    assert only_stored.id is not None
    assert [on_the_old_channel(lines) for lines in (dual, final, back)] == [1, 0, 1]


async def test_a_server_without_streams_stays_on_pubsub_whatever_is_stored(start_redis: StartRedis) -> None:
    server = await start_redis({"rename-command": "XLEN none-of-your-business"}, limited=False)
    store = RedisRollout(server.url)

    with pytest.raises(ConfigError, match="no Streams"):
        await set_percent(store, "workflow", 10, by="ann")
    # Stored by a newer server that was replaced by this one:
    await server.cli("HSET", "tailrace:rollout:{rollout}:state", "k:workflow", '{"percent":100}')

    async with RolloutView(store).running() as view:
        assert view.rollout_of("workflow").percent == 100
        assert (view.mode_of(STREAM), view.reads_stream(STREAM)) == (Mode.PUBSUB, False)
    await store.aclose()

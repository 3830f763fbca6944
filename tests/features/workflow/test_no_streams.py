"""A server without Streams: Pub/Sub only, said so, and nothing pretends otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tailrace.core.rollout import Mode
from tailrace.eventlog.redis.log import RedisLog
from tailrace.features.workflow.feature import WorkflowFeature
from tests.features.workflow.conftest import MakePublisher, OldSubscriber
from tests.support.need import need_redis32
from tests.support.redis_servers import RedisServer
from tests.support.wait import eventually
from tests.support.ws import gate


@pytest_asyncio.fixture
async def redis32() -> AsyncIterator[RedisServer]:
    server = RedisServer(need_redis32())
    try:
        yield await server.start()
    finally:
        await asyncio.to_thread(server.remove_sync)


async def test_every_mode_is_pubsub_there(make: MakePublisher, redis32: RedisServer) -> None:
    for mode in Mode:
        publisher = make(redis32.url, mode=mode)
        async with OldSubscriber.of(redis32, publisher.channel("w1")) as old:
            published = await publisher.publish_workflow_complete("w1", "done")

            assert (published.mode, published.id, published.receivers) == (Mode.PUBSUB, None, 1)
            assert json.loads(await old.get())["result"] == "done"
    features = await publisher.features()
    assert (features.version[:4], features.has_streams) == ("3.2.", False)


@pytest.mark.parametrize("enabled", [True, False])
async def test_viewers_are_given_the_channel(
    make: MakePublisher, redis32: RedisServer, key_prefix: str, channel: str, enabled: bool
) -> None:
    publisher = make(redis32.url, mode=Mode.STREAMS)
    log = RedisLog.connect(redis32.url, prefix=key_prefix)
    feature = WorkflowFeature()
    given = {"key_prefix": key_prefix, "workflow_channel": channel, "redis_stream_enabled": enabled}
    async with gate(log, features=[feature], **given) as running:  # type: ignore[arg-type]
        await eventually(lambda: not feature.has_streams, 60)
        async with running.wire("/streams/workflow:w1/ws", read=["workflow:*"], opened=False) as wire:
            opened = await wire.get(60)
            assert (opened["mode"], opened["resumable"]) == ("pubsub", False)

            await publisher.publish_node_output("w1", "ask", "yes")

            while "type" not in (message := await wire.get(60)):
                assert message["control"] in ("degraded", "mode")
            assert message["output"] == "yes"
    await log.aclose()

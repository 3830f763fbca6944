"""A server without Streams: Pub/Sub only, said so, and nothing pretends otherwise."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
import websockets

from tailrace.core.rollout import Mode
from tailrace.eventlog.redis.log import RedisLog
from tailrace.features.workflow.feature import WorkflowFeature
from tests.e2e.harness import gateway, token
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


@pytest.mark.timeout(180)
async def test_a_gateway_that_is_set_to_pubsub_is_ready_there_while_channels_are_heard(
    make: MakePublisher, redis32: RedisServer, key_prefix: str, channel: str, tmp_path: Path
) -> None:
    publisher = make(redis32.url)
    settings = {"redis_stream_enabled": "false", "workflow_channel": channel}
    async with (
        gateway(redis32, key_prefix, tmp_path, **settings) as served,  # it waits for /readyz
        httpx.AsyncClient(base_url=served.url) as client,
    ):
        body = (await client.get("/readyz")).json()
        facts = {"mode": "pubsub", "resumable": False, "why": "the server has no Streams"}
        assert (body["status"], body["without_log"]) == ("degraded", {"workflow": facts})
        url = f"{served.url.replace('http', 'ws')}/streams/workflow:w1/ws"
        bearer = {"Authorization": f"Bearer {token(read=['workflow:*'])}"}
        async with websockets.connect(url, additional_headers=bearer) as socket, asyncio.timeout(60):
            assert json.loads(await socket.recv())["mode"] == "pubsub"
            await publisher.publish_node_output("w1", "ask", "yes")
            while "type" not in (message := json.loads(await socket.recv())):
                pass
            assert message["output"] == "yes"

        await redis32.kill()
        await served.wait_status("/readyz", 503, 60)
        await redis32.start()
        await served.wait_ready()


async def test_a_gateway_that_is_set_to_streams_is_not_ready_there(redis32: RedisServer, key_prefix: str) -> None:
    log = RedisLog.connect(redis32.url, prefix=key_prefix)
    feature = WorkflowFeature()
    async with gate(log, features=[feature], key_prefix=key_prefix) as running, httpx.AsyncClient() as client:
        await eventually(lambda: not feature.has_streams and feature.board.hears, 60)

        answer = await client.get(f"http://127.0.0.1:{running.port}/readyz")

        assert (answer.status_code, "without_log" in answer.json()) == (503, False)
    await log.aclose()


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

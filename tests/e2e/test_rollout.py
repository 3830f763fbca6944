"""An application's publisher and a gateway, both where `tailrace rollout` says; the front end is an old one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tailrace.app import open_workflow_publisher
from tailrace.eventlog.redis.rollout import RedisRollout
from tailrace.features.rollout.changing import roll_back, set_percent
from tests.e2e.harness import gateway, token
from tests.support.gateway import settings_of
from tests.support.redis_servers import StartRedis
from tests.support.wait import eventually

PREFIX = "tailrace:"
SETTLE_SECONDS = 3.0


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_publisher_and_viewer_move_to_the_stream_and_back_and_nothing_is_lost_or_doubled(
    start_redis: StartRedis, tmp_path: Path
) -> None:
    server = await start_redis(limited=False)
    store = RedisRollout(server.url, prefix=PREFIX)
    settings = settings_of(redis_url=server.url, key_prefix=PREFIX, workflow_mode="rollout")
    numbers: list[int] = []
    ways: list[str] = []
    sent: list[int] = []

    def hear(message: Any) -> None:
        if message.get("control") in ("open", "mode"):
            ways.append(message["mode"])
        elif "control" not in message:
            numbers.append(message["output"])

    async def listen(socket: websockets.ClientConnection) -> None:
        async for text in socket:
            hear(json.loads(text))

    async with (
        gateway(server, PREFIX, tmp_path, workflow_mode="rollout") as served,
        open_workflow_publisher(settings) as publisher,
        websockets.connect(
            served.url.replace("http", "ws") + "/streams/workflow:w1/ws",
            additional_headers={"Authorization": f"Bearer {token(read=['workflow:*'])}"},
        ) as socket,
        asyncio.TaskGroup() as group,
    ):
        listening = group.create_task(listen(socket))

        async def until(way: str) -> None:
            """Publish until the viewer is told of a way, and some more."""
            more = 20
            while more:
                await publisher.publish_node_output("w1", "count", len(sent))
                sent.append(len(sent))
                await eventually(lambda: len(numbers) >= len(sent), 60)
                more -= way == ways[-1]

        await eventually(lambda: ways, 60)
        await until("pubsub")
        await set_percent(store, "workflow", 100, by="ann", settle_seconds=SETTLE_SECONDS)
        await until("streams")
        await roll_back(store, "workflow", by="ann")
        await until("pubsub")

        async with httpx.AsyncClient() as client:

            async def reported() -> bool:
                text = (await client.get(f"{served.url}/metrics")).text
                return 'tailrace_rollout_published_total{kind="workflow"}' in text

            await eventually(reported, 60)
        listening.cancel()
    await store.aclose()

    assert ways == ["pubsub", "streams", "pubsub"]
    assert numbers == sent
    assert 20 <= publisher.counts.appended < len(sent)
    assert publisher.counts.announced == len(sent)

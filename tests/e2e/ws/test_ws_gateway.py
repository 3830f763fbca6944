"""WebSocket and long-poll through `tailrace serve` in a process of its own, which is killed and drained."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.log import RedisLog
from tests.e2e.harness import Gateway, admin_token, gateway, stored_ids
from tests.support.checker import assert_exactly_once
from tests.support.redis_servers import RedisServer
from tests.support.wait import deadline, eventually
from tests.support.ws_readers import PollReader, SocketReader, SocketWriter

RUN = StreamName.parse("run:1")


def readers_of(served: Gateway) -> list[SocketReader | PollReader]:
    """One of each way to read."""

    def address(path: str) -> str:
        return f"ws://127.0.0.1:{served.port}/api/v1{path}"

    return [
        SocketReader(address, RUN, admin_token()),
        SocketReader(address, RUN, admin_token(), commands=True),
        PollReader(lambda: served.url, RUN, admin_token()),
    ]


@pytest.mark.slow
async def test_a_killed_and_a_drained_gateway_lose_nothing(
    redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    log = RedisLog.connect(redis70.url, prefix=key_prefix)
    async with gateway(redis70, key_prefix, tmp_path, commands_per_minute="100000") as served:
        readers = readers_of(served)
        writer = SocketWriter(lambda path: f"ws://127.0.0.1:{served.port}/api/v1{path}", RUN, admin_token())
        tasks = [asyncio.create_task(reader.run()) for reader in readers]
        writing = asyncio.create_task(writer.run(300))
        try:
            await eventually(lambda: len(writer.acked) > 200, 20.0)
            await served.kill()
            await served.start()
            await eventually(lambda: len(writer.acked) > 600, 20.0)
            await served.stop()
            await served.start()
            async with deadline(30.0):
                await writing
                await log.close(RUN)
                await asyncio.gather(*tasks)
        finally:
            for task in (*tasks, writing):
                task.cancel()
            await asyncio.gather(*tasks, writing, return_exceptions=True)
            await log.aclose()

    ids: list[EntryId] = [id_ for id_, _ in await stored_ids(redis70, f"{key_prefix}run:{{1}}:events")]
    assert len(ids) == 1_500
    assert sorted(writer.acked) == ids
    for reader in readers:
        assert_exactly_once(reader.items, ids)
    assert 4000 in readers[0].codes, "the drain said come back"

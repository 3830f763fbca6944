"""Small scripts beside the log, on every server that we support."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.redis_servers import StartRedis
from tests.support.wait import eventually

from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.calls import Calls, load_script
from tailrace.eventlog.redis.topology import open_topology

HOLD = load_script("leases", "hold")  # reads a file, once


@pytest.mark.parametrize("version", ["5.0", "6.2", "7.0"])
async def test_a_script_that_finds_a_replica_is_sent_until_its_time_is_over(
    start_redis: StartRedis, version: str, key_prefix: str
) -> None:
    server = await start_redis(version=version)
    await server.cli("REPLICAOF", "127.0.0.1", 1)
    calls = Calls(open_topology(server.url), name="test", what="the store")

    with pytest.raises(LogUnavailable, match="is moving: READONLY"):
        await calls.script(HOLD, [f"{key_prefix}token"], ["me", 1_000, "x"])

    await calls.aclose()


async def test_what_the_server_said_stands_when_the_time_ends_before_its_next_answer(
    start_redis: StartRedis, key_prefix: str
) -> None:
    server = await start_redis()
    await server.cli("REPLICAOF", "127.0.0.1", 1)
    calls = Calls(open_topology(server.url), name="test", what="the store")

    async def refused() -> bool:
        return "cmdstat_eval" in await server.info("commandstats")

    call = asyncio.create_task(calls.script(HOLD, [f"{key_prefix}token"], ["me", 1_000, "x"]))
    await eventually(refused)
    server.pause()
    try:
        with pytest.raises(LogUnavailable, match="is moving: READONLY"):
            await call
    finally:
        server.resume()

    await calls.aclose()

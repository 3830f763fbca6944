"""Whatever dies under load, every watcher ends with every acknowledged event exactly once, in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import EventSource, Gateway, Publisher, admin_token, gateway, stored_ids
from tests.support.checker import assert_exactly_once
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually

RUN = "run:load"
READERS = 12
PUBLISHERS = 3


class Load:
    """Publishers and readers on one run, and what they are owed at the end."""

    def __init__(self, redis: RedisServer, served: Gateway, prefix: str) -> None:
        self.redis = redis
        self.gateway = served
        self.key = f"{prefix}run:{{load}}:events"
        self.publishers = [Publisher(served.url, RUN, token=admin_token()) for _ in range(PUBLISHERS)]
        self.readers = [EventSource(served.url, RUN, token=admin_token()) for _ in range(READERS)]

    @property
    def acked(self) -> int:
        return sum(len(publisher.acked) for publisher in self.publishers)

    async def wait_acked(self, more: int, seconds: float = 30.0) -> None:
        """Wait until this many more events were acknowledged."""
        target = self.acked + more
        await eventually(lambda: self.acked >= target, seconds)

    async def judge(self) -> None:
        """Hold every reader against what Redis holds, and Redis against what was acknowledged."""
        stored = await stored_ids(self.redis, self.key)
        ids = [id_ for id_, _ in stored]
        uids = [uid for _, uid in stored]
        assert len(uids) == len(set(uids)), "an event is stored twice"
        where = {uid: id_ for id_, uid in stored}
        for publisher in self.publishers:
            for uid, id_ in publisher.acked.items():
                assert where.get(uid) == id_, f"{uid} was acknowledged as {id_} and is at {where.get(uid)}"
        await eventually(lambda: all(len(reader.records) >= len(ids) for reader in self.readers), 20)
        for reader in self.readers:
            assert_exactly_once(reader.items, ids)


@asynccontextmanager
async def load(redis: RedisServer, served: Gateway, prefix: str) -> AsyncIterator[Load]:
    """Run the load; judge it when the faults are over."""
    made = Load(redis, served, prefix)
    reading = [asyncio.create_task(reader.run()) for reader in made.readers]
    publishing = [asyncio.create_task(publisher.run(f"p{index}")) for index, publisher in enumerate(made.publishers)]
    try:
        await made.wait_acked(50)
        yield made
        await made.wait_acked(50)
        for publisher in made.publishers:
            publisher.stop()
        async with asyncio.timeout(20):
            await asyncio.gather(*publishing)
        await made.judge()
    finally:
        for task in (*reading, *publishing):
            task.cancel()
        await asyncio.gather(*reading, *publishing, return_exceptions=True)


async def kill_redis(run: Load) -> None:
    await run.redis.kill()
    await asyncio.sleep(0.3)  # the time it takes a supervisor to notice
    await run.redis.restart()


async def stop_redis_for_a_while(run: Load) -> None:
    run.redis.pause()
    await asyncio.sleep(10.0)  # the fault itself: a server that hangs this long
    run.redis.resume()


async def flush_scripts(run: Load) -> None:
    for _ in range(10):
        await run.redis.cli("SCRIPT", "FLUSH")
        await run.wait_acked(10)


async def cut_pushes(run: Load) -> None:
    for _ in range(5):
        await run.redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
        await run.wait_acked(10)


async def cut_everything(run: Load) -> None:
    for _ in range(5):
        await run.redis.cli("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await run.redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
        await run.wait_acked(10)


async def kill_gateway(run: Load) -> None:
    for _ in range(3):
        await run.gateway.kill()
        await run.gateway.start()
        await run.wait_acked(20)


async def restart_gateway(run: Load) -> None:
    for _ in range(2):
        assert await run.gateway.stop() == 0
        await run.gateway.start()
        await run.wait_acked(20)


FAULTS = [kill_redis, stop_redis_for_a_while, flush_scripts, cut_pushes, cut_everything, kill_gateway, restart_gateway]


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_every_watcher_ends_with_every_event_once(
    fault: Callable[[Load], Awaitable[None]], start_redis: StartRedis, key_prefix: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        # With `everysec` Redis holds back writes while an fsync is under way, and a kill on a busy disk loses them.
        redis = await start_redis({"appendfsync": "no"})
        served = await stack.enter_async_context(gateway(redis, key_prefix, tmp_path))
        run = await stack.enter_async_context(load(redis, served, key_prefix))
        await fault(run)

"""Tails on Sentinel, Cluster, and a server with TLS and a minimal ACL user."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.support.redis_topologies import RedisCluster, RedisSentinel, TlsServer
from tests.support.tails import Recorder, append, running
from tests.support.wait import eventually

from tailrace.core.names import StreamName
from tailrace.errors import ConfigError
from tailrace.eventlog.redis.log import RedisLog

STREAM = StreamName("run:1")
STREAMS = [StreamName(f"run:{index}") for index in range(30)]


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest_asyncio.fixture
async def cluster_log(redis_cluster: RedisCluster, key_prefix: str) -> AsyncIterator[RedisLog]:
    log = RedisLog.connect(redis_cluster.url, prefix=key_prefix)
    yield log
    await log.aclose()


@pytest_asyncio.fixture(params=["push", "xread"])
async def sentinel_log(
    request: pytest.FixtureRequest, redis_sentinel: RedisSentinel, key_prefix: str
) -> AsyncIterator[RedisLog]:
    log = RedisLog.connect(redis_sentinel.url, prefix=key_prefix, delivery=request.param)
    yield log
    await log.aclose()


async def _pushed(log: RedisLog, heard: Recorder) -> bool:
    """Append one more; whether it comes. The old master may still acknowledge one that the new one never gets."""
    entry = (await append(log, STREAM, 1))[0]
    with contextlib.suppress(AssertionError):
        await eventually(lambda: entry in heard.ids(STREAM), 1)
        return True
    return False


@pytest.mark.parametrize("delivery", ["push", "xread"])
async def test_a_minimal_user_over_tls_is_pushed_to(
    redis_tls_acl: TlsServer, key_prefix: str, heard: Recorder, delivery: str
) -> None:
    log = RedisLog.connect(redis_tls_acl.url, prefix=key_prefix, delivery=delivery)

    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        ids = await append(log, STREAM, 1, 2)
        await eventually(lambda: heard.ids(STREAM) == ids)
        await log.close(STREAM)
        await eventually(lambda: heard.heads[STREAM])
    await log.aclose()

    assert heard.degraded == []


async def test_an_ordered_fail_over_is_followed(
    sentinel_log: RedisLog, redis_sentinel: RedisSentinel, heard: Recorder
) -> None:
    async with running(sentinel_log.open_tail(heard)) as tail:
        await append(sentinel_log, STREAM, 0)
        await tail.watch(STREAM)
        await redis_sentinel.failover()
        await eventually(lambda: _pushed(sentinel_log, heard), 8)
        await eventually(lambda: not heard.degraded or heard.degraded[-1][1] is False)


async def test_a_killed_master_is_followed_to_the_new_one(
    sentinel_log: RedisLog, redis_sentinel: RedisSentinel, heard: Recorder
) -> None:
    async with running(sentinel_log.open_tail(heard)) as tail:
        await append(sentinel_log, STREAM, 0)
        await tail.watch(STREAM)
        await redis_sentinel.kill_master()
        since = time.monotonic()
        entry = (await append(sentinel_log, STREAM, 1))[0]
        await eventually(lambda: heard.told(STREAM, entry, since), 5)
        await eventually(lambda: _pushed(sentinel_log, heard), 5)
        await eventually(lambda: heard.degraded[-1][1] is False)

    assert heard.degraded[0][1] is True


async def test_sharded_pushes_come_from_every_node(
    cluster_log: RedisLog, redis_cluster: RedisCluster, heard: Recorder
) -> None:
    async with running(cluster_log.open_tail(heard)) as tail:
        await asyncio.gather(*map(tail.watch, STREAMS))
        ids = {stream: await append(cluster_log, stream, 1, 2) for stream in STREAMS}
        await eventually(lambda: all(heard.ids(stream) == ids[stream] for stream in STREAMS))
        channels = [len(await node.cli("PUBSUB", "SHARDCHANNELS")) for node in redis_cluster.nodes]

    assert all(channels), "each node has subscriptions of its own slots"
    assert sum(channels) == len(STREAMS)


async def test_states_are_noticed_on_every_node(cluster_log: RedisLog, heard: Recorder) -> None:
    async with running(cluster_log.open_tail(heard)) as tail:
        for stream in STREAMS:
            await append(cluster_log, stream, 1)
        await asyncio.gather(*map(tail.watch, STREAMS))
        await asyncio.gather(*(cluster_log.expire(stream, 0.2) for stream in STREAMS))
        await eventually(lambda: all(heard.heads[stream] for stream in STREAMS))


async def test_a_moved_slot_is_followed_under_load(
    cluster_log: RedisLog, redis_cluster: RedisCluster, heard: Recorder
) -> None:
    slot = cluster_log.topology.slot(cluster_log.keys.of(STREAM).push)
    assert slot is not None
    stop = asyncio.Event()
    stored = []

    async def write() -> None:
        while not stop.is_set():
            stored.extend(await append(cluster_log, STREAM, 1))
            await asyncio.sleep(0.005)

    async with running(cluster_log.open_tail(heard)) as tail:
        await append(cluster_log, STREAM, 0)
        await tail.watch(STREAM)
        since = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            await eventually(lambda: len(heard.ids(STREAM)) > 10)
            await redis_cluster.move_slot(slot, await redis_cluster.other(slot))
            moved = len(stored)
            await eventually(lambda: len(stored) > moved + 20)
            stop.set()
        await eventually(lambda: heard.told(STREAM, stored[-1], since))
        later = (await append(cluster_log, STREAM, 2))[0]
        await eventually(lambda: later in heard.ids(STREAM))


async def test_a_killed_node_degrades_and_comes_back(
    cluster_log: RedisLog, redis_cluster: RedisCluster, heard: Recorder
) -> None:
    slot = cluster_log.topology.slot(cluster_log.keys.of(STREAM).push)
    assert slot is not None

    async with running(cluster_log.open_tail(heard)) as tail:
        await append(cluster_log, STREAM, 0)
        await tail.watch(STREAM)
        node = await redis_cluster.node_of(slot)
        await node.kill()
        await eventually(lambda: heard.degraded)
        await node.start()
        since = time.monotonic()
        await eventually(lambda: heard.degraded[-1][1] is False, 8)
        entry = (await append(cluster_log, STREAM, 1))[0]
        await eventually(lambda: heard.told(STREAM, entry, since))


async def test_xread_says_that_it_cannot_serve_a_cluster(redis_cluster: RedisCluster, key_prefix: str) -> None:
    log = RedisLog.connect(redis_cluster.url, prefix=key_prefix, delivery="xread")

    with pytest.raises(ConfigError, match="push"):
        log.open_tail(Recorder())

"""The harness sees loss and duplicates where they are to be expected: in set-ups that promise nothing else."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from tailrace.core.event import GapReason
from tests.chaos.arena import Arena, arena
from tests.chaos.nemesis import FAULTS, Step, redis_kill
from tests.support.need import need_redis70
from tests.support.redis_servers import RedisServer, find_port
from tests.support.wait import eventually

ANNOUNCED = {"lost", "vanished"}
"""What a log that forgets does to a run, if everybody is told."""
Fault = Callable[[Arena, random.Random], Coroutine[Any, Any, None]]


async def these(*names: str) -> AsyncIterator[Step]:
    for number, name in enumerate(names):
        yield Step((name,), f"unsafe-{number}", 0.5)


async def power_loss(arena: Arena, rng: random.Random) -> None:
    """What Redis acknowledged was not on the disk yet: the end of the file is gone with the power.

    Who starts such a Redis has to rewrite its file (docs/faults.md); what happens else is shown by the log's own tests.
    """
    await arena.redis.kill()
    (path,) = (arena.redis.folder / "appendonlydir").glob("*.incr.aof")
    size = path.stat().st_size
    os.truncate(path, size - min(size // 2, rng.randint(5_000, 20_000)))
    await arena.redis.start()
    await arena.redis.rewrite()


async def failover(arena: Arena, rng: random.Random) -> None:
    """The master dies before its replica has everything, and the replica takes its place."""
    old = arena.redis
    replica = RedisServer(need_redis70(), {"replicaof": f"127.0.0.1 {old.port}"}, port=find_port())
    await replica.start()
    arena.others.append(replica)

    async def in_step() -> bool:
        return (await replica.info("replication")).get("master_link_status") == "up"

    await eventually(in_step, 60, every=0.1)
    await replica.cli("REPLICAOF", "127.0.0.1", "1")
    acked = sum(writer.acked for writer in arena.writers)
    await eventually(lambda: sum(writer.acked for writer in arena.writers) > acked + 20, 60)
    await old.kill()
    await replica.cli("REPLICAOF", "NO", "ONE")
    arena.redis = replica
    arena.others.append(old)
    for link in arena.proxies:
        link.target = str(replica.socket)


WRITTEN = {"appendonly": "yes", "save": '""'}
UNSAFE: dict[str, tuple[dict[str, str], Fault]] = {
    "nothing is kept": ({"appendonly": "no", "save": '""'}, redis_kill),
    "snapshots": ({"appendonly": "no", "save": "1 1"}, redis_kill),
    "power loss between two fsyncs": (WRITTEN, power_loss),
    "asynchronous fail-over": (WRITTEN, failover),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", UNSAFE)
async def test_a_log_that_forgets_is_seen_to_lose_and_every_reader_is_told(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, fault = UNSAFE[name]
    monkeypatch.setitem(FAULTS, "loss", ("alone", fault))
    async with arena(redis=config, port=find_port()) as made:
        result = await made.run(1, these("loss", "loss"))

    assert "lost" in result.kinds()
    assert result.kinds() <= ANNOUNCED, "\n".join(map(str, result.violations[:20]))
    gaps = [gap for walk in result.walks for gap in walk.gaps]
    assert gaps
    assert {gap.reason for gap in gaps} <= {GapReason.RESET, GapReason.AHEAD}


async def flush_all(arena: Arena, rng: random.Random) -> None:
    """Everything is deleted at once: streams, what is remembered of them, leases, revocations."""
    await arena.redis.cli("FLUSHALL")


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_every_reader_is_told_that_everything_was_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAULTS, "loss", ("alone", flush_all))
    async with arena() as made:
        result = await made.run(1, these("loss", "loss"))

    assert "lost" in result.kinds()
    assert result.kinds() <= ANNOUNCED, "\n".join(map(str, result.violations[:20]))
    for reader in made.readers:
        told = {stream for stream in reader.walk.positions for gap in reader.walk.gaps if gap.stream == stream}
        assert not reader.stays or told == set(reader.walk.positions), reader.walk.name
        # Who comes back while there is nothing yet is ahead of it.
        assert {gap.reason for gap in reader.walk.gaps} <= {GapReason.RESET, GapReason.AHEAD}, reader.walk.gaps


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_redis_that_syncs_every_second_loses_nothing_or_every_reader_is_told() -> None:
    """It holds back its writes while an fsync is under way: on a slow disk, up to two seconds of them."""
    async with arena(redis={"appendfsync": "everysec"}) as made:
        result = await made.run(1, these("redis_kill", "redis_kill", "redis_kill"))

    assert result.kinds() <= ANNOUNCED, "\n".join(map(str, result.violations[:20]))


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_retries_without_a_uid_are_seen_to_double() -> None:
    async with arena(named=False) as made:
        result = await made.run(1, these("lost_answers", "lost_answers"))

    assert result.kinds() == {"doubled"}, "\n".join(map(str, result.violations[:20]))

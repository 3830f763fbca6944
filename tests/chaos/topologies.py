"""Arenas on a real Sentinel set and on a real Cluster, and what goes wrong there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.chaos.arena import Arena, Result, opened
from tests.chaos.judge import Board, Outcome, Truth
from tests.chaos.load import STREAMS, Load, key_of
from tests.chaos.nemesis import FAULTS
from tests.chaos.truth import read_truth
from tests.support.need import need_redis70
from tests.support.redis_servers import RedisServer
from tests.support.redis_topologies import RedisCluster, RedisSentinel
from tests.support.wait import eventually

__all__ = [
    "ANNOUNCED",
    "CLUSTER_FAULTS",
    "SENTINEL_FAULTS",
    "TWO_MASTERS",
    "ClusterArena",
    "SentinelArena",
    "acked",
    "cluster_arena",
    "lost_of",
    "replicated",
    "sentinel_arena",
]

ANNOUNCED = {"lost", "vanished"}
"""What an asynchronous fail-over does to a run in which everybody is told."""
TWO_MASTERS = ANNOUNCED | {"false gap"}
"""An ordered fail-over of Sentinel leaves the old master writable for a moment, and sentinels that still name it: who
reads at one gateway and then at another may be told of a change of history there and back."""
LOAD = Load(lossy=(), sets=1, pause=0.15, cuts=(0.3, 1.0), workers=(1, 1))
"""Less than elsewhere: there are more servers."""
UNSYNCED = {"appendfsync": "no"}
"""A kill of a process loses nothing that was written; a slow disk holds nothing back."""


def lost_of(result: Result) -> list[int]:
    """The numbers of the attempts that were acknowledged and are not in the log."""
    values = {(stream, entry.value) for stream, entries in result.truth.items() for entry in entries}
    return [
        number
        for number, attempt in enumerate(result.board.attempts)
        if attempt.outcome is Outcome.ACKED and (attempt.stream, attempt.value) not in values
    ]


def acked(board: Board) -> set[int]:
    """The numbers of the attempts that were acknowledged until now."""
    return {number for number, attempt in enumerate(board.attempts) if attempt.outcome is Outcome.ACKED}


async def replicated(servers: Sequence[RedisServer]) -> None:
    """Wait until every replica has what its master has now."""

    async def role(server: RedisServer) -> dict[str, str]:
        return await server.info("replication")

    wanted = {server.port: int((await role(server))["master_repl_offset"]) for server in servers}

    async def have_it() -> bool:
        replicas = [info for server in servers if (info := await role(server))["role"] == "slave"]
        return all(
            info["master_link_status"] == "up" and int(info["slave_repl_offset"]) >= wanted[int(info["master_port"])]
            for info in replicas
        )

    await eventually(have_it, 60)


async def acknowledged(arena: Arena, more: int, *, or_failed: int = 1_000_000) -> None:
    """Wait until so many more events were acknowledged, or so many publishes failed."""
    acked, failed = sum(writer.acked for writer in arena.writers), sum(writer.failures for writer in arena.writers)
    await eventually(
        lambda: (
            sum(writer.acked for writer in arena.writers) >= acked + more
            or sum(writer.failures for writer in arena.writers) >= failed + or_failed
        ),
        60,
    )


# -- Sentinel ----------------------------------------------------------------------------------------------


async def master_kill(arena: SentinelArena, rng: random.Random) -> None:
    """kill -9 of the master; the sentinels make the replica the new one; the old one comes back as its replica."""
    old = await arena.set.kill_master()
    await asyncio.sleep(rng.uniform(0, 1))
    await old.start()


async def ordered_failover(arena: SentinelArena, rng: random.Random) -> None:
    """SENTINEL FAILOVER: the old master lives on and is made a replica a moment later."""
    await arena.set.failover()


async def lagging_failover(arena: SentinelArena, rng: random.Random) -> None:
    """The master dies while its replica stands still and lacks what was acknowledged since; then it takes over."""
    master, replica = await asyncio.to_thread(lambda: (arena.set.master, arena.set.replica))
    replica.pause()
    try:
        # What was sent is in the replica's buffers and would count; what comes now is not sent.
        await master.cli("CLIENT", "KILL", "TYPE", "replica")
        await acknowledged(arena, 20, or_failed=20)
        await master.kill()
    finally:
        replica.resume()
    # Earlier a sentinel that has not heard of it yet would still send people to the old one.
    await arena.set.wait_promoted(master)
    await master.start()


def _leads(server: Any) -> bool:
    try:
        return bool(server.cli_sync("ROLE")[0] == "master")
    except OSError:
        return False


# -- Cluster -----------------------------------------------------------------------------------------------


async def slot_move(arena: ClusterArena, rng: random.Random) -> None:
    """A stream's slot goes to another node while it is written and read, and is between the two for a while."""
    slot = await arena.slot_of(rng.choice(STREAMS))
    there = await arena.cluster.other(slot)
    await arena.cluster.begin_move(slot, there)
    await acknowledged(arena, 10)
    await arena.cluster.move_slot(slot, there)


async def node_failover(arena: ClusterArena, rng: random.Random) -> None:
    """CLUSTER FAILOVER: the replica takes over when it has everything."""
    await arena.cluster.failover(await arena.slot_of(rng.choice(STREAMS)))


async def node_kill(arena: ClusterArena, rng: random.Random) -> None:
    """kill -9 of a node; its replica is elected; the old one comes back as a replica."""
    old = await arena.cluster.kill_node(await arena.slot_of(rng.choice(STREAMS)))
    await old.start()


async def node_lags(arena: ClusterArena, rng: random.Random) -> None:
    """A node dies while its replica stands still, which then takes over without what it lacks."""
    cluster = arena.cluster
    master = await cluster.node_of(await arena.slot_of(rng.choice(STREAMS)))
    replica = await asyncio.to_thread(cluster.replica_of_sync, master)
    replica.pause()
    try:
        await master.cli("CLIENT", "KILL", "TYPE", "replica")
        await acknowledged(arena, 60)
        await master.kill()
    finally:
        replica.resume()
    await eventually(lambda: asyncio.to_thread(_leads, replica), 60, every=0.1)
    await master.start()


_COMMON = {name: fault for name, fault in FAULTS.items() if fault[0] in ("gateway", "clients")}
SENTINEL_FAULTS = {each.__name__: ("redis", each) for each in (master_kill, ordered_failover, lagging_failover)}
CLUSTER_FAULTS = {each.__name__: ("redis", each) for each in (slot_move, node_failover, node_kill, node_lags)}
"""What can happen to the servers; to gateways and clients, the same as elsewhere."""


class Servers(Arena):
    """More than one server."""

    async def expect_nothing_left(self, before: dict[str, int]) -> None:
        """See `Arena`. Here connections follow the masters: what is left over is looked for on a single server."""


class SentinelArena(Servers):
    """A master, a replica, three sentinels; the gateways and everybody else ask the sentinels."""

    faults = _COMMON | SENTINEL_FAULTS

    def __init__(self, folder: Path, config: dict[str, str], load: Load) -> None:
        self.set = RedisSentinel(need_redis70(), UNSYNCED | config)
        super().__init__(folder, load=load, server=self.set.servers[0])

    async def open_servers(self) -> list[str]:
        """See `Arena`."""
        await asyncio.to_thread(self.set.start_sync)
        return [self.set.url] * 3

    async def wait_servers(self) -> None:
        """See `Arena`: the present master is `redis`."""
        await asyncio.to_thread(self.set.heal_sync)
        self.redis = await asyncio.to_thread(lambda: self.set.master)

    async def remove_servers(self) -> None:
        """See `Arena`."""
        await asyncio.to_thread(self.set.remove_sync)


class ClusterArena(Servers):
    """Three masters with a replica each. The streams lie in different slots."""

    faults = _COMMON | CLUSTER_FAULTS

    def __init__(self, folder: Path, config: dict[str, str], load: Load) -> None:
        self.cluster = RedisCluster(need_redis70(), UNSYNCED | config, replicas=True)
        super().__init__(folder, load=load, server=self.cluster.nodes[0])

    async def open_servers(self) -> list[str]:
        """See `Arena`."""
        await asyncio.to_thread(self.cluster.start_sync)
        return [self.cluster.url] * 3

    async def wait_servers(self) -> None:
        """See `Arena`."""
        await asyncio.to_thread(self.cluster.heal_sync)

    async def remove_servers(self) -> None:
        """See `Arena`."""
        await asyncio.to_thread(self.cluster.remove_sync)

    async def slot_of(self, stream: str) -> int:
        """The slot of a stream."""
        return await self.cluster.slot(key_of(stream))

    async def truth(self) -> Truth:
        """See `Arena`."""
        found: dict[str, Any] = {}
        for stream in self.streams:
            node = await self.cluster.node_of(await self.slot_of(stream))
            found |= await read_truth(node, [stream])
        return found


@asynccontextmanager
async def sentinel_arena(
    *, redis: dict[str, str] | None = None, load: Load | None = None
) -> AsyncIterator[SentinelArena]:
    """An arena on Sentinel that is up; ended afterwards."""
    async with opened(lambda folder: SentinelArena(folder, redis or {}, load or LOAD)) as made:
        yield made


@asynccontextmanager
async def cluster_arena(
    *, redis: dict[str, str] | None = None, load: Load | None = None
) -> AsyncIterator[ClusterArena]:
    """An arena on Cluster that is up; ended afterwards."""
    async with opened(lambda folder: ClusterArena(folder, redis or {}, load or LOAD)) as made:
        yield made

"""The leases of producers: the same promises in memory, on every Redis, and on a Cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tailrace.eventlog.leases import LeaseStore, MemoryLeases
from tailrace.eventlog.redis.leases import RedisLeases
from tailrace.eventlog.run_leases import Renewal, RunLeases
from tests.support.redis_servers import RedisServer
from tests.support.redis_topologies import RedisCluster
from tests.support.wait import eventually


@pytest.fixture(params=["memory", "redis50", "redis62", "redis70", "redis_cluster"])
async def leases(request: pytest.FixtureRequest, key_prefix: str) -> AsyncIterator[RunLeases]:
    store: LeaseStore = MemoryLeases()
    if request.param != "memory":
        server: RedisServer | RedisCluster = request.getfixturevalue(request.param)
        store = RedisLeases(server.url, prefix=key_prefix)
    yield store.runs
    await store.aclose()


async def test_the_larger_epoch_owns_a_run_and_an_ended_one_is_nobodys(leases: RunLeases) -> None:
    assert await leases.renew([("1", 1), ("2", 10)], 30) == [Renewal.KEPT, Renewal.KEPT]
    assert await leases.renew([("2", 9), ("1", 2)], 30) == [Renewal.FENCED, Renewal.KEPT]
    assert await leases.alive(["1", "2", "3"]) == [True, True, False]

    await leases.cancel("1")
    assert await leases.renew([("1", 2), ("2", 10)], 30) == [Renewal.CANCEL, Renewal.KEPT]
    await leases.end("1")

    assert await leases.renew([("1", 2)], 30) == [Renewal.FENCED]
    assert await leases.alive(["1"]) == [False]


async def test_only_a_lease_that_was_taken_is_kept(leases: RunLeases) -> None:
    await leases.renew([("1", 2), ("ended", 1)], 30)
    await leases.end("ended")

    held = [("1", 1), ("1", 2), ("1", 10), ("none", 1), ("ended", 1)]
    assert await leases.keep(held, 30) == [
        Renewal.FENCED,
        Renewal.KEPT,
        Renewal.NEWS,
        Renewal.NEWS,
        Renewal.FENCED,
    ]

    assert await leases.alive(["1", "none"]) == [True, False]
    assert await leases.renew([("1", 2)], 30) == [Renewal.KEPT]


async def test_a_lease_that_is_over_is_known_until_it_was_dealt_with(leases: RunLeases) -> None:
    await leases.renew([("short", 3), ("long", 1)], 0.05)
    await leases.renew([("long", 1)], 60)

    async def over() -> bool:
        return await leases.expired(10) == [("short", 3)]

    await eventually(over, 30)
    await leases.watch([("short", 3), ("new", 2)], 60)
    assert await leases.expired(10) == [("short", 3)]
    assert await leases.alive(["short", "new"]) == [False, True]
    await leases.end("short")
    assert await leases.expired(10) == []


async def test_many_runs_are_kept_in_one_call(leases: RunLeases) -> None:
    held = [(f"{n}", n) for n in range(1_200)]

    assert await leases.renew(held, 60) == [Renewal.KEPT] * 1_200
    await leases.cancel("1199")

    assert await leases.renew(held, 60) == [*([Renewal.KEPT] * 1_199), Renewal.CANCEL]
    assert await leases.alive([run_id for run_id, _ in held]) == [True] * 1_200

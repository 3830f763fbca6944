"""Leases follow the keys: Cluster with a slot on the move, Sentinel with a fail-over, TLS with a minimal user."""

from __future__ import annotations

from tailrace.errors import LogUnavailable
from tailrace.eventlog.leases import Seat, TokenHold, Verdict
from tailrace.eventlog.redis.leases import RedisLeases
from tests.support.redis_topologies import RedisCluster, RedisSentinel, TlsServer
from tests.support.wait import eventually


async def use(leases: RedisLeases) -> None:
    """Every kind of call."""
    for number in range(20):
        group = f"u:user{number}"
        assert (await leases.admit(Seat(group, "a", "1"), limit=1, evict=True)).verdict is Verdict.ADMITTED
        assert (await leases.admit(Seat(group, "b", "2"), limit=1, evict=True)).evicted == ("1",)
        assert await leases.refresh([Seat(group, "a", "1"), Seat(group, "b", "2")]) == [False, True]
        await leases.release([Seat(group, "b", "2")])
        await leases.put_token(f"k{number}", b"x", 60)
        assert await leases.claim_token(f"k{number}", "h", 300) is not None
        assert await leases.refresh_tokens([TokenHold(f"k{number}", "h", b"x")], 300) == [True]
        await leases.drop_tokens([f"k{number}"])
    await leases.revoke("sub:alice")
    assert [name for name, _ in (await leases.revocations(0)).names] == ["sub:alice"]


async def test_every_call_works_on_a_cluster(redis_cluster: RedisCluster, key_prefix: str) -> None:
    leases = RedisLeases(redis_cluster.url, prefix=key_prefix)
    await use(leases)
    await leases.aclose()


async def test_seat_is_kept_while_its_slot_moves(redis_cluster: RedisCluster, key_prefix: str) -> None:
    leases = RedisLeases(redis_cluster.url, prefix=key_prefix)
    seat = Seat("u:alice", "m", "n")
    await leases.admit(seat, limit=1, evict=False)
    slot = await redis_cluster.slot(f"{key_prefix}seats:{{u:alice}}")

    await redis_cluster.move_slot(slot, await redis_cluster.other(slot))

    assert await leases.refresh([seat]) == [True]
    assert (await leases.admit(Seat("u:alice", "m2", "n2"), limit=1, evict=False)).verdict is Verdict.REFUSED
    await leases.aclose()


async def test_seat_is_taken_again_after_a_failover(redis_sentinel: RedisSentinel, key_prefix: str) -> None:
    leases = RedisLeases(redis_sentinel.url, prefix=key_prefix)
    await use(leases)
    seat = Seat("u:alice", "m", "n")
    await leases.admit(seat, limit=1, evict=False)

    await redis_sentinel.failover()

    assert await eventually(lambda: _kept(leases, seat), timeout=15)
    await leases.aclose()


async def _kept(leases: RedisLeases, seat: Seat) -> bool:
    try:
        return await leases.refresh([seat]) == [True]
    except LogUnavailable:
        return False


async def test_every_call_works_for_a_user_with_no_more_rights_than_needed(redis_tls_acl: TlsServer) -> None:
    leases = RedisLeases(redis_tls_acl.url)
    await use(leases)
    await leases.aclose()

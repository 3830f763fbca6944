"""One suite for the leases in memory and on Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tailrace.errors import LogUnavailable
from tailrace.eventlog.leases import LeaseStore, MemoryLeases, Seat, TokenHold, Verdict
from tailrace.eventlog.redis.leases import RedisLeases
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually


@pytest_asyncio.fixture(params=["memory", "5.0", "6.2", "7.0"])
async def store(request: pytest.FixtureRequest, key_prefix: str) -> AsyncIterator[LeaseStore]:
    if request.param == "memory":
        yield MemoryLeases()
        return
    server: RedisServer = request.getfixturevalue(f"redis{request.param.replace('.', '')}")
    leases = RedisLeases(server.url, prefix=key_prefix)
    yield leases
    await leases.aclose()


def seat(number: int, *, group: str = "u:alice") -> Seat:
    return Seat(group, f"member{number}", f"nonce{number}")


async def test_group_takes_as_many_as_its_limit_and_refuses_the_next(store: LeaseStore) -> None:
    for number in (1, 2):
        assert (await store.admit(seat(number), limit=2, evict=False)).verdict is Verdict.ADMITTED
    assert (await store.admit(seat(3), limit=2, evict=False)).verdict is Verdict.REFUSED
    assert (await store.admit(seat(3, group="u:bob"), limit=2, evict=False)).verdict is Verdict.ADMITTED

    await store.release([seat(1)])

    assert (await store.admit(seat(3), limit=2, evict=False)).verdict is Verdict.ADMITTED


async def test_oldest_goes_and_is_barred_from_coming_back(store: LeaseStore) -> None:
    for number in (1, 2):
        await store.admit(seat(number), limit=2, evict=True)

    third = await store.admit(seat(3), limit=2, evict=True)

    assert (third.verdict, third.evicted) == (Verdict.ADMITTED, ("nonce1",))
    assert await store.refresh([seat(1), seat(2), seat(3)]) == [False, True, True]
    assert (await store.admit(seat(1), limit=2, evict=True)).verdict is Verdict.BARRED
    assert (await store.admit(Seat("u:alice", "member1", "other"), limit=2, evict=True)).verdict is Verdict.BARRED


async def test_member_that_comes_again_takes_its_own_seat(store: LeaseStore) -> None:
    await store.admit(seat(1), limit=1, evict=False)

    again = await store.admit(Seat("u:alice", "member1", "later"), limit=1, evict=False)

    assert (again.verdict, again.evicted) == (Verdict.ADMITTED, ("nonce1",))
    assert await store.refresh([seat(1), Seat("u:alice", "member1", "later")]) == [False, True]
    await store.release([seat(1)])
    assert (await store.admit(seat(2), limit=1, evict=False)).verdict is Verdict.REFUSED


async def test_same_request_twice_is_the_same_as_once(store: LeaseStore) -> None:
    await store.admit(seat(1), limit=2, evict=True)

    again = await store.admit(seat(1), limit=2, evict=True)

    assert (again.verdict, again.evicted) == (Verdict.ADMITTED, ())
    assert await store.refresh([seat(1)]) == [True]


async def test_no_limit_admits_all(store: LeaseStore) -> None:
    for number in range(20):
        assert (await store.admit(seat(number), limit=0, evict=False)).verdict is Verdict.ADMITTED


async def test_parallel_requests_never_pass_the_limit(store: LeaseStore) -> None:
    answers = await asyncio.gather(*(store.admit(seat(number), limit=5, evict=False) for number in range(100)))

    assert sum(answer.verdict is Verdict.ADMITTED for answer in answers) == 5


async def test_forgotten_seat_is_taken_again_by_its_refresh(store: LeaseStore) -> None:
    assert await store.refresh([seat(1)]) == [True]
    assert (await store.admit(seat(2), limit=1, evict=False)).verdict is Verdict.REFUSED


async def test_token_is_good_once_minted_and_tells_who_had_it(store: LeaseStore) -> None:
    await store.put_token("k", b"pay\nload\x00", 60)

    first = await store.claim_token("k", "one", 300)
    second = await store.claim_token("k", "two", 300)

    assert first is not None
    assert second is not None
    assert (first.payload, first.previous) == (b"pay\nload\x00", None)
    assert (second.payload, second.previous) == (b"pay\nload\x00", "one")
    holds = [TokenHold("k", "one", b"pay\nload\x00"), TokenHold("k", "two", b"pay\nload\x00")]
    assert await store.refresh_tokens(holds, 300) == [False, True]
    assert await store.claim_token("unknown", "x", 300) is None


async def test_token_that_is_claimed_a_hundred_times_at_once_has_one_holder(store: LeaseStore) -> None:
    await store.put_token("k", b"x", 60)
    names = [f"h{number}" for number in range(100)]

    await asyncio.gather(*(store.claim_token("k", name, 300) for name in names))

    assert sum(await store.refresh_tokens([TokenHold("k", name, b"x") for name in names], 300)) == 1


async def test_token_ends_when_it_is_not_used_in_time(store: LeaseStore) -> None:
    await store.put_token("k", b"x", 0.001)

    # A claim that still finds it keeps it no longer than it had.
    assert await eventually(lambda: _is_gone(store))


async def test_used_token_ends_after_its_last_refresh(store: LeaseStore) -> None:
    await store.put_token("k", b"x", 60)
    await store.claim_token("k", "one", 0.001)

    assert await eventually(lambda: _is_gone(store))


async def test_forgotten_token_is_restored_for_its_holder_and_dropped_one_is_gone(store: LeaseStore) -> None:
    assert await store.refresh_tokens([TokenHold("k", "one", b"x")], 300) == [True]
    claim = await store.claim_token("k", "two", 300)
    assert claim is not None
    assert (claim.payload, claim.previous) == (b"x", "one")

    await store.drop_tokens(["k", "unknown"])

    assert await store.claim_token("k", "three", 300) is None


async def test_revocations_are_told_with_their_time(store: LeaseStore) -> None:
    await store.revoke("sub:alice")
    await store.revoke("jti:7")

    found = await store.revocations(0)
    (first, first_at), (second, second_at) = found.names

    assert (first, second) == ("sub:alice", "jti:7")
    assert first_at <= second_at <= found.now
    assert (await store.revocations(second_at + 1)).names == []


async def test_revocation_is_not_made_older_by_a_clock_that_went_back(redis70: RedisServer, key_prefix: str) -> None:
    later = time.time() + 3_600
    leases = RedisLeases(redis70.url, prefix=key_prefix)
    await redis70.cli("ZADD", f"{key_prefix}revoked", str(later), "sub:alice")

    await leases.revoke("sub:alice")

    [(_, at)] = (await leases.revocations(0)).names
    await leases.aclose()
    assert at == pytest.approx(later, abs=1e-5)


async def test_nothing_is_left_on_the_server_when_the_time_is_over(redis70: RedisServer, key_prefix: str) -> None:
    leases = RedisLeases(redis70.url, prefix=key_prefix)
    await leases.admit(seat(1), limit=1, evict=True)
    await leases.admit(seat(2), limit=1, evict=True)
    await leases.put_token("k", b"x", 60)
    await leases.claim_token("k", "one", 300)
    await leases.revoke("sub:alice")
    await leases.aclose()

    keys = await redis70.cli("KEYS", f"{key_prefix}*")

    assert len(keys) == 4
    for key in keys:
        assert 0 < int(await redis70.cli("PTTL", key)) <= 30 * 86_400_000, key


async def test_scripts_that_were_flushed_are_sent_again(start_redis: StartRedis) -> None:
    server = await start_redis()
    leases = RedisLeases(server.url)
    await leases.admit(seat(1), limit=1, evict=False)

    await server.cli("SCRIPT", "FLUSH")

    assert await leases.refresh([seat(1)]) == [True]
    await leases.aclose()


async def test_server_that_is_killed_is_an_error_in_time_and_used_again_when_it_is_back(
    start_redis: StartRedis,
) -> None:
    server = await start_redis()
    leases = RedisLeases(server.url)
    await leases.admit(seat(1), limit=1, evict=False)

    await server.kill()
    async with asyncio.timeout(3):
        with pytest.raises(LogUnavailable):
            await leases.admit(seat(2), limit=1, evict=False)
    await server.start()

    assert await eventually(lambda: _kept(leases))
    await leases.aclose()


async def _is_gone(store: LeaseStore) -> bool:
    return await store.claim_token("k", "two", 0.001) is None


async def _kept(leases: RedisLeases) -> bool:
    try:
        return await leases.refresh([seat(1)]) == [True]
    except LogUnavailable:
        return False

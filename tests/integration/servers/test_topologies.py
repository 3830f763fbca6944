"""TLS with ACL, Sentinel and Cluster do what other tests rely on."""

from __future__ import annotations

from pathlib import Path

import hiredis
import pytest
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from tests.support.redis_topologies import RedisCluster, RedisSentinel, TlsServer, make_certificates
from tests.support.wait import eventually


async def test_acl_user_reaches_its_keys_over_tls_only_by_its_password(
    redis_tls_acl: TlsServer, key_prefix: str
) -> None:
    async with Redis.from_url(redis_tls_acl.url) as client:
        await client.xadd(key_prefix + "s", {"a": "1"})
        assert await client.acl_whoami() == "tailrace"

    async with Redis.from_url(redis_tls_acl.url.replace("word", "sword")) as client:
        with pytest.raises(redis_errors.AuthenticationError):
            await client.ping()


async def test_acl_user_may_not_touch_other_keys_channels_or_commands(redis_tls_acl: TlsServer) -> None:
    async with Redis.from_url(redis_tls_acl.url) as client:
        for refused in (client.xadd("o", {"a": "1"}), client.publish("o", "x"), client.flushall(), client.keys("*")):
            with pytest.raises(redis_errors.NoPermissionError):
                await refused


async def test_tls_client_without_the_authority_is_not_fooled(redis_tls_acl: TlsServer, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    url = f"rediss://127.0.0.1:{redis_tls_acl.tls_port}/0?ssl_ca_certs={other.ca}"

    async with Redis.from_url(url) as client:
        with pytest.raises(redis_errors.ConnectionError, match="certificate verify failed"):
            await client.ping()


async def test_plain_unix_socket_of_the_tls_server_needs_the_password(redis_tls_acl: TlsServer) -> None:
    assert isinstance(redis_tls_acl.cli_sync("PING", auth=False), hiredis.ReplyError)
    assert await redis_tls_acl.cli("PING") == "PONG"


async def test_failover_makes_the_replica_the_master(redis_sentinel: RedisSentinel) -> None:
    before = redis_sentinel.master
    await before.cli("SET", "k", "v")
    assert await before.cli("WAIT", 1, 5_000) == 1

    await redis_sentinel.failover()

    assert redis_sentinel.master is not before
    assert await redis_sentinel.master.cli("GET", "k") == "v"


async def test_killed_master_is_replaced_and_returns_as_replica(redis_sentinel: RedisSentinel) -> None:
    killed = await redis_sentinel.kill_master()
    assert redis_sentinel.master is not killed

    redis_sentinel.heal_sync()

    assert redis_sentinel.replica is killed


async def test_slot_moves_with_its_keys(redis_cluster: RedisCluster, key_prefix: str) -> None:
    key = key_prefix + "{a}"
    slot = await redis_cluster.slot(key)
    source, target = await redis_cluster.node_of(slot), await redis_cluster.other(slot)
    await source.cli("SET", key, "v")

    await redis_cluster.move_slot(slot, target)

    assert await target.cli("GET", key) == "v"
    with pytest.raises(hiredis.ReplyError, match=f"^MOVED {slot} "):
        await source.cli("GET", key)


async def test_slot_on_its_way_answers_ask(redis_cluster: RedisCluster, key_prefix: str) -> None:
    key = key_prefix + "{b}"
    slot = await redis_cluster.slot(key)
    target = await redis_cluster.other(slot)

    source = await redis_cluster.begin_move(slot, target)

    with pytest.raises(hiredis.ReplyError, match=f"^ASK {slot} "):
        await source.cli("GET", key)
    await redis_cluster.move_slot(slot, target)
    assert await redis_cluster.node_of(slot) is target


async def test_killed_node_comes_back_with_its_slots(redis_cluster: RedisCluster) -> None:
    await redis_cluster.nodes[2].kill()

    redis_cluster.heal_sync()

    assert await eventually(lambda: redis_cluster.nodes[2].running)

"""The servers that other tests stand on do what they say."""

from __future__ import annotations

import hiredis
import pytest
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import deadline


async def test_each_version_is_the_one_it_is_called_after(
    redis50: RedisServer, redis62: RedisServer, redis70: RedisServer
) -> None:
    versions = [(await server.info("server"))["redis_version"] for server in (redis50, redis62, redis70)]

    assert versions[0].startswith("5.0.")
    assert versions[1].startswith("6.2.")
    assert int(versions[2].split(".")[0]) >= 7


async def test_any_redis_appends_and_reads_a_stream(any_redis: RedisServer, key_prefix: str) -> None:
    entry = await any_redis.cli("XADD", key_prefix + "s", "*", "a", "1")

    assert await any_redis.cli("XRANGE", key_prefix + "s", "-", "+") == [[entry, ["a", "1"]]]


async def test_every_redis_has_streams(every_redis: RedisServer, key_prefix: str) -> None:
    await every_redis.cli("XADD", key_prefix + "s", "1-1", "a", "1")

    assert await every_redis.cli("XLEN", key_prefix + "s") == 1


@pytest.mark.parametrize("version", ["5.0", "6.2", "7.0"])
async def test_restart_after_kill_keeps_address_and_data(start_redis: StartRedis, version: str) -> None:
    server = await start_redis({"appendfsync": "always"}, version=version)
    await server.cli("SET", "k", "v")
    address, before = server.url, server.pid

    await server.restart()

    assert (server.url, await server.cli("GET", "k")) == (address, "v")
    assert server.pid != before


async def test_paused_server_answers_nothing_until_it_is_resumed(start_redis: StartRedis) -> None:
    server = await start_redis()
    server.pause()
    with pytest.raises(OSError, match="timed out"):
        server.cli_sync("PING", timeout=0.2)

    server.resume()

    assert await server.cli("PING") == "PONG"


async def test_paused_server_can_be_stopped(start_redis: StartRedis) -> None:
    server = await start_redis()
    server.pause()

    async with deadline(5):
        await server.stop()

    assert not server.running


async def test_an_error_reply_is_raised(redis70: RedisServer) -> None:
    with pytest.raises(hiredis.ReplyError, match="unknown command"):
        await redis70.cli("NOSUCH")


async def test_server_on_a_port_answers_there(start_redis: StartRedis, free_port: int) -> None:
    server = await start_redis(port=free_port)

    assert server.tcp_url == f"redis://127.0.0.1:{free_port}"
    assert int((await server.info("server"))["tcp_port"]) == free_port

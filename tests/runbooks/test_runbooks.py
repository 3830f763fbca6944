"""Every runbook of docs/runbooks.md, typed as it stands, with readers before, during and after, and the judge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.chaos.judge import Attempt
from tests.runbooks.site import BOOKS, Machine, machine
from tests.support.need import need_redis62, need_redis70
from tests.support.redis_servers import RedisServer, find_port
from tests.support.wait import eventually

pytestmark = pytest.mark.timeout(240)


async def nothing_lost(here: Machine, *, redis: RedisServer | None = None) -> None:
    """All of it is there, once, for everybody, and nobody was told of a loss."""
    server = redis or here.redis
    await here.run.caught_up(server)
    found = await here.run.judged(server)
    assert not found, "\n".join(map(str, found[:9]))
    assert here.run.told("stay") == here.run.told("away") == set()


async def lost(here: Machine, gone: Sequence[Attempt], *, away: bool) -> None:
    """Exactly these are gone, and everybody who had one was told; `away`: also those who had left before.

    Others may be told too: a gateway that has not noticed yet may give them what is lost, and then takes it back.
    """
    await here.run.caught_up(here.redis)
    found = await here.run.judged(here.redis)
    assert {one.kind for one in found} == {"lost", "vanished"}, "\n".join(map(str, found[:9]))
    assert sum(one.kind == "lost" for one in found) == len(gone)
    assert here.run.told("stay") == here.run.everybody("stay")
    assert here.run.told("away") == here.run.everybody("away") or not away


async def test_a_copy_is_made_and_restored() -> None:
    async with machine(need_redis70()) as here:
        await here.serve_here()
        await here.attend()
        await here.type("Copy the append-only file")
        gone = await here.run.publish(here.url, 5)
        await here.run.caught_up(here.redis, "stay")

        await here.perform("Restore a copy")

        await lost(here, gone, away=False)


def flip_byte(data: Path) -> None:
    """Damage the call of the sixth event: the length of an argument is none any more."""
    (path,) = (data / "appendonlydir").glob("*.incr.aof")
    content = bytearray(path.read_bytes())
    call = content.rindex(b"\r\nXADD\r\n", 0, content.index(b'"stage/6"'))
    content[call - 1] ^= 0x40
    path.write_bytes(content)


async def test_a_damaged_file_is_cut() -> None:
    async with machine(need_redis70(), {"appendfsync": "always"}) as here:
        await here.serve_here()
        await here.attend()
        gone = await here.run.publish(here.url, 1)
        await here.run.caught_up(here.redis, "stay")
        await here.redis.kill()
        flip_byte(here.data)

        await here.perform("Redis does not start: bad file format")

        await lost(here, gone, away=False)


async def test_an_empty_redis_takes_the_place_of_a_lost_one() -> None:
    async with machine(need_redis70()) as here:
        await here.serve_here()
        await here.attend()
        gone = list(here.run.board.attempts)
        await here.redis.kill()
        await asyncio.to_thread(here.data.rename, here.redis.folder / "lost")

        await here.perform("Redis is lost")

        await lost(here, gone, away=True)


@pytest.mark.slow
async def test_a_lost_gateway_is_started_again() -> None:
    async with machine(need_redis70()) as here:
        served = await here.add_gateway()
        await here.attend()
        await served.kill()

        await here.perform("A gateway is lost")

        await nothing_lost(here)


async def test_a_full_redis_is_given_room() -> None:
    async with machine(need_redis70()) as here:
        await here.serve_here()
        await here.attend()
        await here.redis.cli("CONFIG", "SET", "maxmemory", "1")
        await here.run.publish(here.url, 2)
        assert here.run.codes == ["LOG_REFUSED"] * 2

        await here.perform("Redis is full")

        await nothing_lost(here)


async def test_a_redis_that_hangs_is_ended_and_started() -> None:
    async with machine(need_redis70(), {"appendfsync": "always"}) as here:
        await here.serve_here()
        await here.attend()
        here.redis.pause()

        await here.perform("Redis does not answer")

        await nothing_lost(here)


async def test_a_redis_that_evicts_is_set_right() -> None:
    async with machine(need_redis70(), {"maxmemory-policy": "allkeys-lru"}) as here:
        await here.serve_here()
        await here.attend()
        gone = list(here.run.board.attempts)
        await here.redis.cli("CONFIG", "SET", "maxmemory", "1")
        await eventually(lambda: here.redis.cli_sync("DBSIZE") == 0, 60)
        await here.redis.cli("CONFIG", "SET", "maxmemory", "0")

        await here.perform("Redis evicts streams")

        await lost(here, gone, away=True)
        assert await here.redis.cli("CONFIG", "GET", "maxmemory-policy") == ["maxmemory-policy", "noeviction"]


@pytest.mark.slow
async def test_another_redis_takes_over_without_loss() -> None:
    quick = {"repl-diskless-sync-delay": "0"}
    new = RedisServer(need_redis70(), quick, port=find_port())
    try:
        async with machine(need_redis70(), quick) as here:
            await new.start()
            settings = here.folder / "tailrace.toml"
            settings.write_text(f'redis_url = "{here.redis.tcp_url}"\n')
            await here.add_gateway(config=str(settings))
            here.environment = {
                "NEW_PORT": str(new.port),
                "NEW_URL": new.tcp_url,
                "TAILRACE_CONFIG": str(settings),
            }
            await here.attend()

            await here.perform("Move to another Redis")

            assert not here.redis.running
            await nothing_lost(here, redis=new)
    finally:
        await asyncio.to_thread(new.remove_sync)


@pytest.mark.slow
async def test_gateways_are_restarted_one_after_the_other() -> None:
    async with machine(need_redis70()) as here:
        await here.add_gateway("tailrace@1")
        second = await here.add_gateway("tailrace@2")
        here.environment = {"TAILRACE_URL_2": second.url}
        await here.attend()

        await here.perform("Restart the gateways one after the other")

        await nothing_lost(here)


async def test_redis_is_upgraded_on_its_files() -> None:
    async with machine(need_redis62()) as here:
        await here.serve_here()
        await here.attend()
        assert (await here.redis.info("server"))["redis_version"].startswith("6.2")
        here.redis.binary = need_redis70()  # what `systemctl start` starts once the new version is installed

        await here.perform("Upgrade Redis")

        assert (await here.redis.info("server"))["redis_version"].startswith("7.")
        await nothing_lost(here)


def test_every_runbook_is_run_here() -> None:
    text = Path(__file__).read_text()

    assert [title for title, blocks in BOOKS.items() if not blocks or f'"{title}"' not in text] == []

"""A Redis that wakes, loads, or has no connection left: no storm of commands, 503 and never 500, nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import hiredis
import pytest

from tests.chaos.stage import PATIENCE, Stage, serve, stage
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.wait import eventually

pytestmark = pytest.mark.timeout(240)
WINDOW_SECONDS = 2.0


@asynccontextmanager
async def crowd(server: RedisServer, gateways: int = 1) -> AsyncIterator[tuple[Stage, list[str]]]:
    """Gateways with a reader of every transport each; five events are stored."""
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(serve(server.url, deadline=2)) for _ in range(gateways)]
        run = await stack.enter_async_context(stage())
        for number, url in enumerate(urls):
            run.attend(f"readers{number}", url)
        for _ in range(5):
            await run.works(urls[0])
        await run.caught_up(server)
        yield run, urls


async def all_is_well(run: Stage, server: RedisServer) -> None:
    await run.caught_up(server)
    found = await run.judged(server)
    assert not found, "\n".join(map(str, found[:9]))
    assert not [group for group in run.readers if run.told(group)]


async def rate(server: RedisServer) -> float:
    """Commands a second, over a while of the server's own time; the two questions are not counted."""

    async def seen() -> tuple[float, int]:
        seconds, micros = await server.cli("TIME")
        return int(seconds) + int(micros) / 1e6, int((await server.info("stats"))["total_commands_processed"])

    began, before = await seen()

    async def over() -> bool:
        return (await seen())[0] >= began + WINDOW_SECONDS

    asked = 0

    async def counted() -> bool:
        nonlocal asked
        asked += 1
        return await over()

    await eventually(counted, PATIENCE, every=0.2)
    ended, after = await seen()
    return (after - before - 2 * asked - 2) / (ended - began)


async def keep_publishing(run: Stage, url: str) -> None:
    """One after the other, at a steady pace, whatever is answered."""
    while True:
        await run.publish(url)
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_server_that_wakes_is_not_stormed(start_redis: StartRedis) -> None:
    server = await start_redis(limited=False)
    async with crowd(server, gateways=2) as (run, urls):
        tasks = [asyncio.create_task(keep_publishing(run, url)) for url in urls]
        steady = await rate(server)
        server.pause()
        await eventually(lambda: len(run.codes) >= 20, PATIENCE)
        server.resume()
        woken = await rate(server)
        for task in tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await run.works(urls[0])
        await all_is_well(run, server)

    assert woken <= 2 * steady
    assert set(run.codes) <= {"LOG_UNAVAILABLE", "LOG_TIMEOUT", "OUTCOME_UNKNOWN"}


async def test_a_server_without_a_free_connection_is_a_503_and_readers_stay(start_redis: StartRedis) -> None:
    server = await start_redis(limited=False)
    async with crowd(server) as (run, (url,)), AsyncExitStack() as stack:
        reader, writer = await asyncio.open_unix_connection(str(server.socket))
        stack.callback(writer.close)

        async def say(*words: str) -> bytes:
            writer.write(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub says one argument
            return await reader.readline()

        # This connection is the only one that may be: all others end, and none can be made.
        await say("CONFIG", "SET", "maxclients", "1")
        await say("CLIENT", "KILL", "TYPE", "pubsub")
        await say("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await run.publish(url, 3)
        codes = list(run.codes)
        await say("CONFIG", "SET", "maxclients", "1000")
        await run.works(url)
        await all_is_well(run, server)

    assert len(codes) == 3
    assert set(codes) <= {"LOG_UNAVAILABLE", "LOG_TIMEOUT"}


async def test_a_server_that_loads_its_data_is_waited_for(start_redis: StartRedis) -> None:
    server = await start_redis({"appendfsync": "always"}, limited=False)
    for number in range(100):
        await server.cli("SET", f"filler{number}", "v" * 2_000)
    async with crowd(server) as (run, (url,)):
        await server.cli("BGREWRITEAOF")

        async def rewritten() -> bool:
            told = await server.info("persistence")
            return (told["aof_rewrite_in_progress"], told["aof_rewrite_scheduled"]) == ("0", "0")

        await eventually(rewritten, PATIENCE)
        await server.kill()
        server.configure({"key-load-delay": "50000", "loading-process-events-interval-bytes": "1024"})
        await server.start(wait=False)
        await eventually(lambda: _is_loading(server), PATIENCE)
        await run.publish(url, 2)
        codes = list(run.codes)
        await server.wait_ready()
        await run.works(url)
        await all_is_well(run, server)

    assert set(codes) <= {"LOG_UNAVAILABLE", "LOG_TIMEOUT"}
    assert codes


def _is_loading(server: RedisServer) -> bool:
    with contextlib.suppress(OSError):
        return "LOADING" in str(server.cli_sync("PING"))
    return False

"""Several processes on one port: what is published through one is read on the other; one may die, all drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.harness import EventSource, Gateway, Publisher, admin_token, gateway, stored_ids
from tests.support.checker import assert_exactly_once
from tests.support.redis_servers import RedisServer
from tests.support.wait import eventually

pytestmark = pytest.mark.slow


def workers_of(served: Gateway) -> list[psutil.Process]:
    """The serving processes of a supervisor."""

    def serves(child: psutil.Process) -> bool:
        with suppress(psutil.NoSuchProcess):  # It may end while it is looked at.
            return "tailrace.server" in " ".join(child.cmdline())
        return False

    return [child for child in psutil.Process(served.pid).children() if serves(child)]


async def wait_all_listen(served: Gateway, count: int) -> list[psutil.Process]:
    """Wait until every worker accepts connections: the first one alone makes the port answer."""

    def listening(worker: psutil.Process) -> bool:
        with suppress(psutil.Error):
            sockets = worker.net_connections("tcp")
            return any(each.status == psutil.CONN_LISTEN and each.laddr.port == served.port for each in sockets)
        return False

    await eventually(lambda: len(workers_of(served)) == count and all(map(listening, workers_of(served))), 20)
    return workers_of(served)


def readers_on(worker: psutil.Process, port: int) -> int:
    """How many connections a worker has."""
    connections = worker.net_connections("tcp")
    return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in connections)


@asynccontextmanager
async def reading(served: Gateway, count: int) -> AsyncIterator[list[EventSource]]:
    sources = [EventSource(served.url, "run:load", token=admin_token()) for _ in range(count)]
    tasks = [asyncio.create_task(source.run()) for source in sources]
    try:
        await eventually(lambda: all(source.connects for source in sources))
        yield sources
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def publishing(served: Gateway) -> AsyncIterator[Publisher]:
    publisher = Publisher(served.url, "run:load", token=admin_token())
    task = asyncio.create_task(publisher.run("p"))
    try:
        yield publisher
        publisher.stop()
        async with asyncio.timeout(10):
            await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def judge(redis: RedisServer, prefix: str, sources: list[EventSource]) -> None:
    ids = [id_ for id_, _ in await stored_ids(redis, f"{prefix}run:{{load}}:events")]
    await eventually(lambda: all(len(source.records) >= len(ids) for source in sources), 10)
    for source in sources:
        assert_exactly_once(source.items, ids)


async def test_readers_on_both_workers_get_what_one_of_them_published(
    redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    async with gateway(redis70, key_prefix, tmp_path, workers="2") as served:
        workers = await wait_all_listen(served, 2)
        async with reading(served, 24) as sources:
            spread = [readers_on(worker, served.port) for worker in workers]
            assert min(spread) > 0, spread
            async with publishing(served) as publisher:
                await eventually(lambda: len(publisher.acked) >= 50, 20)
            await judge(redis70, key_prefix, sources)


async def test_a_killed_worker_is_started_again_and_its_readers_lose_nothing(
    redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(gateway(redis70, key_prefix, tmp_path, workers="2"))
        await wait_all_listen(served, 2)
        sources = await stack.enter_async_context(reading(served, 16))
        async with publishing(served) as publisher:
            await eventually(lambda: len(publisher.acked) >= 20, 20)
            victim = workers_of(served)[0]
            victim.kill()
            await eventually(
                lambda: {w.pid for w in workers_of(served)} - {victim.pid} and len(workers_of(served)) == 2
            )
            acked = len(publisher.acked)
            await eventually(lambda: len(publisher.acked) >= acked + 50, 20)
        await judge(redis70, key_prefix, sources)


async def test_a_supervisor_that_can_start_no_worker_now_starts_one_when_it_can(
    redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    async with gateway(redis70, key_prefix, tmp_path, workers="2") as served:
        await wait_all_listen(served, 2)
        supervisor = psutil.Process(served.pid)
        limits = supervisor.rlimit(psutil.RLIMIT_NOFILE)
        # It may open nothing more: no pipe, no process.
        supervisor.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        workers_of(served)[0].kill()

        async def said() -> bool:
            return "a worker cannot be started now" in await asyncio.to_thread(served.log.read_text)

        await eventually(said, 60, every=0.1)
        assert supervisor.is_running()

        supervisor.rlimit(psutil.RLIMIT_NOFILE, limits)

        await eventually(lambda: len(workers_of(served)) == 2, 60)


async def test_both_workers_drain_and_the_supervisor_ends_with_0(
    redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    async with gateway(redis70, key_prefix, tmp_path, workers="2") as served:
        workers = await wait_all_listen(served, 2)
        async with reading(served, 10) as sources:
            assert await served.stop() == 0
            assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
            assert all("stream.closed" in source.controls for source in sources)


async def test_workers_end_when_their_supervisor_is_killed(
    redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    async with gateway(redis70, key_prefix, tmp_path, workers="2") as served:
        workers = workers_of(served)
        await served.kill()

        def gone() -> bool:
            with suppress(psutil.NoSuchProcess):
                return all(not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE for worker in workers)
            return True

        await eventually(gone, 10)

"""Tails behind a network that keeps connections open and passes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.support.proxy import Proxy, StartProxy
from tests.support.redis_servers import RedisServer
from tests.support.tails import Recorder, append, running
from tests.support.wait import eventually

from tailrace.core.names import StreamName
from tailrace.eventlog.redis.log import RedisLog

STREAM = StreamName("run:1")


class MutingProxy:
    """Passes everything, except that `mute` ends what the server says on the subscribed connections of that moment."""

    def __init__(self, server: RedisServer, path: str) -> None:
        self._target = str(server.socket)
        self._path = path
        self._subscribed: list[asyncio.Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> MutingProxy:
        self._server = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def mute(self) -> int:
        """Silence the subscribed connections; answers how many."""
        for muted in self._subscribed:
            muted.set()
        return len(self._subscribed)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_unix_connection(self._target)
        muted = asyncio.Event()

        async def requests() -> None:
            while data := await reader.read(65_536):
                if b"SUBSCRIBE" in data.upper() and muted not in self._subscribed:
                    self._subscribed.append(muted)
                far_writer.write(data)
            far_writer.transport.abort()

        async def answers() -> None:
            while data := await far_reader.read(65_536):
                if not muted.is_set():
                    writer.write(data)

        try:
            await asyncio.gather(requests(), answers())
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            far_writer.transport.abort()


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest_asyncio.fixture(params=["push", "xread"])
async def proxied(
    request: pytest.FixtureRequest, redis70: RedisServer, key_prefix: str, start_proxy: StartProxy
) -> AsyncIterator[tuple[RedisLog, Proxy]]:
    proxy = await start_proxy(str(redis70.socket))
    log = RedisLog.connect(proxy.url, prefix=key_prefix, delivery=request.param)
    yield log, proxy
    await log.aclose()


async def test_a_push_connection_that_went_silent_is_found_by_its_probe(
    redis70: RedisServer, key_prefix: str, heard: Recorder
) -> None:
    path = f"{redis70.folder}/{key_prefix[:-1]}.sock"

    async with MutingProxy(redis70, path) as proxy:
        log = RedisLog.connect(f"unix://{path}", prefix=key_prefix)
        async with running(log.open_tail(heard)) as tail:
            await append(log, STREAM, 0)
            await tail.watch(STREAM)
            assert proxy.mute() == 1
            since = time.monotonic()
            lost = (await append(log, STREAM, 1))[0]
            await eventually(lambda: heard.told(STREAM, lost, since))

            async def pushed() -> bool:
                later = (await append(log, STREAM, 2))[0]
                await eventually(lambda: heard.told(STREAM, later, since))
                return later in heard.ids(STREAM)

            await eventually(pushed)
        await log.aclose()

    assert heard.degraded == [], "the log itself answered all the time"


async def test_a_black_hole_is_called_degraded_and_survived(proxied: tuple[RedisLog, Proxy], heard: Recorder) -> None:
    log, proxy = proxied

    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 0)
        await tail.watch(STREAM)
        proxy.black_hole = True
        began = time.monotonic()
        await eventually(lambda: heard.degraded)
        await asyncio.sleep(3 - (time.monotonic() - began))
        proxy.restore()
        ended = time.monotonic()
        await eventually(lambda: heard.degraded[-1][1] is False)
        entry = (await append(log, STREAM, 1))[0]
        await eventually(lambda: heard.told(STREAM, entry, began))
        later = (await append(log, STREAM, 2))[0]
        await eventually(lambda: later in heard.ids(STREAM))

    assert heard.degraded[0][0] - began < 1.5
    assert heard.degraded[-1][0] - ended < 1.5


async def test_latency_is_not_taken_for_a_fault(proxied: tuple[RedisLog, Proxy], heard: Recorder) -> None:
    log, proxy = proxied

    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 0)
        await tail.watch(STREAM)
        first = await append(log, STREAM, 0)
        await eventually(lambda: heard.ids(STREAM)[-1:] == first)
        proxy.latency = 0.1
        opened = proxy.opened
        ids = [(await append(log, STREAM, number))[0] for number in range(10)]
        await eventually(lambda: heard.ids(STREAM)[-10:] == ids)

        assert proxy.opened == opened, "no connection was made anew"
    assert heard.degraded == []


async def test_cut_connections_are_made_again_and_nothing_is_lost(
    proxied: tuple[RedisLog, Proxy], heard: Recorder
) -> None:
    log, proxy = proxied

    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 0)
        await tail.watch(STREAM)
        for number in range(5):
            proxy.reset_all()
            since = time.monotonic()
            entry = (await append(log, STREAM, number))[0]
            await eventually(lambda: heard.told(STREAM, entry, since))  # noqa: B023

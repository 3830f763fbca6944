"""The push tail when messages, connections and servers are lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.support.redis_servers import RedisServer, StartRedis
from tests.support.tails import Recorder, append, running, store_silently
from tests.support.wait import eventually

from tailrace.core.names import StreamName
from tailrace.errors import LogUnavailable
from tailrace.eventlog.redis.log import RedisLog

STREAM = StreamName("run:1")
NOTICED_SECONDS = 15.0
"""The promise is one second; the rest is for a machine that does other things too."""


@pytest_asyncio.fixture
async def server(start_redis: StartRedis) -> RedisServer:
    return await start_redis()


@pytest_asyncio.fixture(params=["push", "xread"])
async def log(request: pytest.FixtureRequest, server: RedisServer, key_prefix: str) -> AsyncIterator[RedisLog]:
    made = RedisLog.connect(server.url, prefix=key_prefix, delivery=request.param)
    try:
        yield made
    finally:
        await made.aclose()


only_push = pytest.mark.parametrize("log", ["push"], indirect=True)


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


async def client_ids(server: RedisServer, name: str) -> set[str]:
    clients = str(await server.cli("CLIENT", "LIST")).splitlines()
    return {line.split()[0] for line in clients if f"name={name} " in line}


@only_push
async def test_a_lost_last_message_is_noticed_within_a_second(
    log: RedisLog, server: RedisServer, heard: Recorder
) -> None:
    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 1)
        await tail.watch(STREAM)
        lost = await store_silently(server, log.keys, STREAM)
        await eventually(lambda: heard.heads[STREAM])

    assert [head.id for _, head in heard.heads[STREAM]] == [lost], "told once"
    assert heard.degraded == []


@only_push
async def test_a_lost_message_does_not_hide_behind_the_streams_that_are_well(
    log: RedisLog, server: RedisServer, heard: Recorder
) -> None:
    busy = [StreamName(f"run:busy-{index}") for index in range(200)]

    async with running(log.open_tail(heard)) as tail:
        await asyncio.gather(*(append(log, stream, 1) for stream in (STREAM, *busy)))
        await asyncio.gather(*map(tail.watch, (STREAM, *busy)))
        stop = asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                await asyncio.gather(*(append(log, stream, 1) for stream in busy))

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            await eventually(lambda: len(heard.ids(busy[0])) > 3)
            lost = await store_silently(server, log.keys, STREAM)
            await eventually(lambda: heard.heads[STREAM])
            stop.set()

    assert [head.id for _, head in heard.heads[STREAM]] == [lost]
    assert not any(heard.heads[stream] for stream in busy), "a stream whose pushes come is not behind"


@only_push
async def test_a_killed_push_connection_is_replaced_and_what_it_lost_is_told(
    log: RedisLog, server: RedisServer, heard: Recorder
) -> None:
    streams = [StreamName(f"run:{index}") for index in range(700)]

    async with running(log.open_tail(heard)) as tail:
        await asyncio.gather(*(append(log, stream, 0) for stream in streams))
        await asyncio.gather(*map(tail.watch, streams))
        since = time.monotonic()
        await server.cli("CLIENT", "KILL", "TYPE", "pubsub")
        lost = {stream: await store_silently(server, log.keys, stream) for stream in streams[::100]}
        await eventually(
            lambda: all(heard.told(stream, entry, since) for stream, entry in lost.items()), NOTICED_SECONDS
        )
        later = (await append(log, streams[1], 1))[0]
        await eventually(lambda: later in heard.ids(streams[1]))

    assert heard.degraded == []


@only_push
async def test_an_overflow_of_the_push_buffer_is_survived(log: RedisLog, server: RedisServer, heard: Recorder) -> None:
    await server.cli("CONFIG", "SET", "client-output-buffer-limit", "pubsub 32kb 0 0")

    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        before = await client_ids(server, "tailrace-push")
        since = time.monotonic()
        # One message of a thousand events is more than the server may buffer, whatever the socket takes.
        ids = await append(log, STREAM, *range(1_000))
        await eventually(lambda: heard.told(STREAM, ids[-1], since))
        await server.cli("CONFIG", "SET", "client-output-buffer-limit", "pubsub 32mb 8mb 60")
        later = await append(log, STREAM, 1)
        await eventually(lambda: heard.told(STREAM, later[0], since))
        after = await client_ids(server, "tailrace-push")

    assert before
    assert after
    assert before != after, "the server ended the connection"


@pytest.mark.parametrize(
    "message", [b"", b"t1\n", b"t1\n5\nhello", b"t2\n", b"t1\n-1\nx", b"t1\n9\nr\n1-1\n1-2", b"\xff"]
)
@only_push
async def test_a_message_that_cannot_be_read_is_a_doubt_or_nothing(
    log: RedisLog, server: RedisServer, heard: Recorder, message: bytes
) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        await server.cli("PUBLISH", log.keys.of(STREAM).push, message)
        entry = (await append(log, STREAM, 1))[0]
        await eventually(lambda: entry in heard.ids(STREAM))

    assert heard.doubts[STREAM] or message == b"t1\n"


@pytest.mark.parametrize("message", [b"", b"hello", b"9" * 5_000, b"1_0"])
@only_push
async def test_what_others_say_on_the_probes_channel_ends_no_tail(
    log: RedisLog, server: RedisServer, heard: Recorder, message: bytes
) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        [probe] = await server.cli("PUBSUB", "CHANNELS", f"{log.keys.prefix}probe:*")
        await server.cli("PUBLISH", probe, message)
        entry = (await append(log, STREAM, 1))[0]
        await eventually(lambda: entry in heard.ids(STREAM) or heard.told(STREAM, entry, 0))
        later = (await append(log, STREAM, 1))[0]
        await eventually(lambda: later in heard.ids(STREAM) or heard.told(STREAM, later, 0))


async def test_a_server_killed_and_started_again_is_followed(
    log: RedisLog, server: RedisServer, heard: Recorder
) -> None:
    streams = [StreamName(f"run:{index}") for index in range(50)]

    async with running(log.open_tail(heard)) as tail:
        await asyncio.gather(*(append(log, stream, 0) for stream in streams))
        await asyncio.gather(*map(tail.watch, streams))
        await server.kill()
        down = time.monotonic()
        await eventually(lambda: heard.degraded)
        await server.start()
        up = time.monotonic()
        await eventually(lambda: heard.degraded[-1][1] is False)
        ids = [(await append(log, stream, 1))[0] for stream in streams]
        await eventually(
            lambda: all(heard.told(stream, entry, up) for stream, entry in zip(streams, ids, strict=True)), 3
        )

    assert [degraded for _, degraded in heard.degraded] == [True, False]
    assert heard.degraded[0][0] - down < NOTICED_SECONDS
    assert heard.degraded[1][0] - up < NOTICED_SECONDS


async def test_a_server_that_lost_its_data_is_told(log: RedisLog, server: RedisServer, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, *range(5))
        await tail.watch(STREAM)
        since = time.monotonic()
        await server.cli("FLUSHALL")
        await eventually(lambda: heard.heads[STREAM] or heard.doubts[STREAM])
        entry = (await append(log, STREAM, 1))[0]
        await eventually(lambda: heard.told(STREAM, entry, since))

    assert entry.seq == 1


async def test_a_frozen_server_is_called_degraded_and_nothing_is_lost(
    log: RedisLog, server: RedisServer, heard: Recorder
) -> None:
    async with running(log.open_tail(heard)) as tail:
        await append(log, STREAM, 0)
        await tail.watch(STREAM)
        frozen = time.monotonic()
        server.pause()
        await eventually(lambda: heard.degraded)
        await asyncio.sleep(2.5 - (time.monotonic() - frozen))
        server.resume()
        thawed = time.monotonic()
        await eventually(lambda: heard.degraded[-1][1] is False)
        entry = (await append(log, STREAM, 1))[0]
        await eventually(lambda: heard.told(STREAM, entry, frozen))

    assert [degraded for _, degraded in heard.degraded] == [True, False]
    assert heard.degraded[0][0] - frozen < NOTICED_SECONDS
    assert heard.degraded[1][0] - thawed < NOTICED_SECONDS


async def test_records_stored_during_a_storm_of_kills_are_all_told(
    log: RedisLog, server: RedisServer, heard: Recorder
) -> None:
    stop = asyncio.Event()
    stored = []
    since = time.monotonic()

    async def kill() -> None:
        for _ in range(10):
            for name in ("tailrace-push", "tailrace-ask", "tailrace-xread"):
                for client in await client_ids(server, name):
                    with contextlib.suppress(Exception):
                        await server.cli("CLIENT", "KILL", "ID", client.removeprefix("id="))
            await asyncio.sleep(0.05)
        stop.set()

    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        async with asyncio.TaskGroup() as group:
            group.create_task(kill())
            while not stop.is_set():
                stored += await append(log, STREAM, 1, 2)
        ended = time.monotonic()
        await eventually(
            lambda: (
                heard.ids(STREAM)[-1:] == stored[-1:]
                or any(head.id >= stored[-1] for _, head in heard.heads[STREAM])
                or any(at >= ended for at in heard.doubts[STREAM])
            ),
            NOTICED_SECONDS,
        )
        assert all(heard.told(STREAM, entry, since) for entry in stored)


async def test_a_tail_started_while_the_server_is_down_begins_when_it_comes(
    log: RedisLog, server: RedisServer, heard: Recorder
) -> None:
    await server.kill()

    async with running(log.open_tail(heard)) as tail:
        watching = asyncio.create_task(tail.watch(STREAM))
        await eventually(lambda: heard.degraded)
        await server.start()
        try:
            await watching
        except LogUnavailable:
            await tail.watch(STREAM)
        entry = (await append(log, STREAM, 1))[0]
        await eventually(lambda: entry in heard.ids(STREAM))
        await eventually(lambda: [degraded for _, degraded in heard.degraded] == [True, False])


async def test_a_cancelled_tail_leaves_no_connection(log: RedisLog, server: RedisServer, heard: Recorder) -> None:
    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        assert await client_ids(server, "tailrace-ask")

    async def gone() -> bool:
        names = ("tailrace-push", "tailrace-ask", "tailrace-xread")
        return not any([await client_ids(server, name) for name in names])

    await eventually(gone)


async def test_an_unwatched_stream_is_unsubscribed_after_a_grace(
    log: RedisLog, server: RedisServer, heard: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.eventlog.redis.push.GRACE_SECONDS", 0.3)

    async with running(log.open_tail(heard)) as tail:
        await tail.watch(STREAM)
        await tail.watch(StreamName("run:2"))
        tail.unwatch(STREAM)

        async def channels() -> bool:
            return str(log.keys.of(STREAM).push, "ascii") not in await server.cli("PUBSUB", "CHANNELS")

        await eventually(channels)
        await tail.watch(STREAM)
        entry = (await append(log, STREAM, 1))[0]
        await eventually(lambda: entry in heard.ids(STREAM))

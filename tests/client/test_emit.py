"""Fire and forget: in order, once, whatever happens to the server in between."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tailrace.client.client import Tailrace
from tailrace.client.direct import DirectLog
from tailrace.client.emitting import Emitting
from tailrace.client.spool import SpoolFile
from tailrace.core.codec import encode
from tailrace.core.event import Event, Record
from tailrace.core.names import StreamName
from tailrace.errors import UsageError
from tailrace.eventlog.memory import MemoryLog
from tests.support.faulty import FaultyProxy, faulty_proxy
from tests.support.gateways import gateway_on, mint
from tests.support.wait import eventually


@pytest.fixture
async def log() -> AsyncIterator[MemoryLog]:
    made = MemoryLog()
    yield made
    await made.aclose()


@pytest.fixture
async def proxy(log: MemoryLog) -> AsyncIterator[FaultyProxy]:
    async with gateway_on(log) as (server, _), faulty_proxy(server.port) as made:
        yield made


@asynccontextmanager
async def default_backend(answer: bytes) -> AsyncIterator[int]:
    """What a proxy answers while it knows no gateway; the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", asked.lower())
        await reader.readexactly(int(found[1]) if found else 0)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def stored(log: MemoryLog, stream: str = "run:1") -> list[int]:
    client = Tailrace.on(DirectLog.on(log))
    records = [item async for item in client.history(stream) if isinstance(item, Record)]
    await client.aclose()
    return [int(record.data) for record in records]


@pytest.mark.parametrize("on_disk", [False, True])
async def test_emitted_events_come_in_order_and_once_over_an_outage(
    log: MemoryLog, proxy: FaultyProxy, tmp_path: Path, on_disk: bool
) -> None:
    async with Tailrace(proxy.url, token=mint(), spool=tmp_path if on_disk else None) as client:
        client.emit("run:1", "note", 0)
        assert await client.flush(5)
        proxy.refusing = True
        proxy.cut()
        for n in range(1, 300):
            client.emit("run:1", "note", n)
        assert not await client.flush(0.2)
        proxy.lose_replies = 1
        proxy.refusing = False
        assert await client.flush(20)

        assert await stored(log) == list(range(300))
    assert list(tmp_path.iterdir()) == []


async def test_what_a_client_left_in_its_folder_is_delivered_by_the_next_one(
    log: MemoryLog, proxy: FaultyProxy, tmp_path: Path
) -> None:
    proxy.refusing = True
    client = Tailrace(proxy.url, token=mint(), spool=tmp_path)
    for n in range(10):
        client.emit("run:1", "note", n)
    assert not await client.flush(0.3)
    await client.aclose(flush_seconds=0)
    assert len(list(tmp_path.iterdir())) == 1

    proxy.refusing = False
    async with Tailrace(proxy.url, token=mint(), spool=tmp_path) as following:
        following.emit("run:1", "note", 10)

        async def all_there() -> bool:
            return sorted(await stored(log)) == list(range(11))

        await eventually(all_there, 10)
    assert list(tmp_path.iterdir()) == []


async def test_a_client_that_is_closed_at_once_leaves_all_it_took_in_its_folder(
    log: MemoryLog, proxy: FaultyProxy, tmp_path: Path
) -> None:
    for begin, turns in ((0, 0), (300, 1), (600, 3)):
        client = Tailrace(proxy.url, token=mint(), spool=tmp_path)
        for n in range(begin, begin + 300):
            assert client.emit("run:1", "note", n)
        for _ in range(turns):
            await asyncio.sleep(0)
        await client.aclose(flush_seconds=0)

    async with Tailrace(proxy.url, token=mint(), spool=tmp_path) as following:
        following.emit("run:1", "note", 900)
        assert await following.flush(60)
    assert sorted(await stored(log)) == list(range(901))
    assert list(tmp_path.iterdir()) == []


async def test_an_event_that_is_refused_does_not_hold_up_the_others(
    log: MemoryLog, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    async with Tailrace(proxy.url, token=mint()) as client:
        for n in range(5):
            client.emit("run:1", "note", n)
        client.emit("run:1", "note", "x" * 1_100_000)
        for n in range(5, 10):
            client.emit("run:1", "note", n)
        assert await client.flush(10)

        assert await stored(log) == list(range(10))
    assert "refused" in caplog.text


@pytest.mark.parametrize("on_disk", [False, True])
async def test_what_does_not_fit_is_counted_and_told_at_its_place(
    log: MemoryLog, proxy: FaultyProxy, tmp_path: Path, on_disk: bool
) -> None:
    async with Tailrace(proxy.url, token=mint(), spool=tmp_path if on_disk else None) as client:
        client.emit("run:1", "note", -1)
        assert await client.flush(5)
        proxy.refusing = True
        proxy.cut()
        taken = [client.emit("run:1", "note", [n, "x" * 900_000]) for n in range(40)]
        assert not client.emit("run:2", "note", ["x" * 900_000])
        proxy.refusing = False
        assert await client.flush(30)
        assert client.emit("run:1", "note", 40)
        assert await client.flush(10)

    fitted = sum(taken)
    assert taken == [True] * fitted + [False] * (40 - fitted)
    assert 0 < fitted < 40
    async with Tailrace.on(DirectLog.on(log)) as reader:
        records = await reader.history("run:1").records()
        others = await reader.history("run:2").records()
    assert [record.type for record in records] == ["note"] * (1 + fitted) + ["events.skipped", "note"]
    assert json.loads(records[-2].data)["count"] == 40 - fitted
    assert [record.type for record in others] == ["events.skipped"]


async def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path, proxy: FaultyProxy) -> None:
    (tmp_path / "file").write_text("")
    async with Tailrace(proxy.url, token=mint(), spool=tmp_path / "file") as client:
        client.emit("run:1", "note")

        def told() -> bool:
            try:
                client.emit("run:1", "note")
            except UsageError:
                return True
            return False

        await eventually(told)
        assert not await client.flush(1)


async def test_streams_keep_their_order_beside_each_other(log: MemoryLog, proxy: FaultyProxy) -> None:
    async with Tailrace(proxy.url, token=mint()) as client:
        for n in range(100):
            client.emit(f"run:{n % 3}", "note", n)
        assert await client.flush(10)

    for which in range(3):
        assert await stored(log, f"run:{which}") == list(range(which, 100, 3))


async def test_events_for_a_stream_that_has_ended_are_dropped_alone(log: MemoryLog, proxy: FaultyProxy) -> None:
    async with Tailrace(proxy.url, token=mint()) as client:
        await client.publish("run:1", "note", 0)
        await client.close_stream("run:1")
        for n in range(3):
            client.emit("run:1", "note", n)
            client.emit("run:2", "note", n)
        assert await client.flush(10)

    assert await stored(log) == [0]
    assert await stored(log, "run:2") == [0, 1, 2]


async def test_a_refused_token_is_waited_out(
    log: MemoryLog, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.client.delivery.REFUSED_TOKEN_SECONDS", 0.05)
    asked = 0

    def token() -> str:
        nonlocal asked
        asked += 1
        return mint() if asked > 4 else "no"

    async with Tailrace(proxy.url, token=token) as client:
        client.emit("run:1", "note", 1)
        assert await client.flush(10)

    assert asked == 5
    assert await stored(log) == [1]


ANSWERS = [
    ("404 Not Found", "<p>"),
    ("302 Found", "<p>"),
    ("405 Method Not Allowed", "<p>"),
    ("410 Gone", "<p>"),
    ("501 No", "<p>"),
    ("500 No Connections Left", "<p>"),
    ("521 Web Server Is Down", "<p>"),
    ("200 OK", "<p>back soon"),
    ("503 Service Unavailable", '{"code": "DATABASE_UNAVAILABLE", "status": 503}'),
]


async def test_an_answer_of_who_cannot_reach_gateway_or_database_costs_no_event(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less than the pause that is asked for: the call gives up, and its event is the delivery's.
    monkeypatch.setattr("tailrace.client.delivery.ATTEMPT_SECONDS", 1.0)

    async def kept(gateway: int, status: str, body: str) -> bool:
        head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n"
        stream = f"run:{status[:3]}"
        async with (
            default_backend((head + body).encode()) as elsewhere,
            faulty_proxy(elsewhere) as proxy,
            Tailrace(proxy.url, token=mint()) as client,
        ):
            client.emit(stream, "note", 1)
            early = await client.flush(1)
            proxy.target_port = gateway
            proxy.cut()
            return not early and await client.flush(60) and await stored(log, stream) == [1]

    async with gateway_on(log) as (server, _):
        found = await asyncio.gather(*[kept(server.port, *answer) for answer in ANSWERS])

    assert [answer for answer, good in zip(ANSWERS, found, strict=True) if not good] == []


async def test_what_a_closed_client_took_and_its_folder_has_no_room_for_is_told_behind_the_rest(
    log: MemoryLog, proxy: FaultyProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream, data = StreamName.parse("run:1"), encode(["x" * 100], max_bytes=1_000)
    proxy.refusing = True
    client = Tailrace(proxy.url, token=mint())
    emitting = Emitting(client.backend, tmp_path, "here", max_bytes=20_000)
    taken: list[bool] = []

    def full() -> bool:
        taken.append(emitting.emit(stream, Event("note", data)))
        return emitting.refused > 5

    await eventually(full, 60)
    said = len(taken)
    await emitting.aclose(0)
    proxy.refusing = False

    following = Emitting(client.backend, tmp_path, "here")
    recovered: list[SpoolFile] = []

    async def then(file: SpoolFile) -> None:
        recovered.append(file)

    await following.wait_recovered(then)
    assert len(recovered) == 1
    await following.aclose(0)
    await client.aclose()

    async with Tailrace.on(DirectLog.on(log)) as reader:
        records = await reader.history("run:1").records()
    assert [record.type for record in records] == ["note"] * (len(records) - 1) + ["events.skipped"]
    assert len(records) - 1 + json.loads(records[-1].data)["count"] == said
    uids = [int((r.uid or "").partition("-")[2] or 0) for r in records[:-1]]
    assert uids == list(range(1, len(uids) + 1))
    assert caplog.text.count("events are lost: they cannot be kept") == 1
    assert list(tmp_path.iterdir()) == []


async def test_an_event_that_never_fits_is_told_though_nothing_follows(log: MemoryLog) -> None:
    stream = StreamName.parse("run:1")
    emitting = Emitting(DirectLog.on(log), None, "here", max_bytes=2_000)

    assert not emitting.emit(stream, Event("note", encode("x" * 1_500, max_bytes=2_000)))
    async with asyncio.timeout(60):
        assert await emitting.wait_settled(stream)

    assert [record.type for record in (await log.range(stream, limit=10)).records] == ["events.skipped"]
    await emitting.aclose(0)


@pytest.mark.parametrize("answer", [OSError("away"), ""])
async def test_a_token_function_that_fails_for_a_while_costs_no_event(
    log: MemoryLog, monkeypatch: pytest.MonkeyPatch, answer: OSError | str
) -> None:
    monkeypatch.setattr("tailrace.client.delivery.REFUSED_TOKEN_SECONDS", 0.05)
    asked = 0

    def token() -> str:
        nonlocal asked
        asked += 1
        if asked > 2:
            return mint()
        if isinstance(answer, OSError):
            raise answer
        return answer

    async with gateway_on(log) as (server, _), Tailrace(server.url, token=token) as client:
        client.emit("run:1", "note", 0)
        await eventually(lambda: asked > 0)
        client.emit("run:1", "note", 1)
        assert await client.flush(60)

        assert await stored(log) == [0, 1]

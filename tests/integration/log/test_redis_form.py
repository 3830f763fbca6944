"""What is in Redis (PROTOCOL.md §9), as redis-cli shows it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import hiredis
import pytest
import pytest_asyncio
from tests.integration.log.conftest import MakeLog
from tests.support.redis_servers import RedisServer
from tests.support.wait import deadline, eventually

from tailrace.core.codec import prepare
from tailrace.core.event import Event, GapReason, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.core.names import StreamName
from tailrace.errors import LogRefused, OutcomeUnknown
from tailrace.eventlog.receipt import Receipt, new_producer
from tailrace.eventlog.redis.keys import LEGACY_TEMPLATES
from tailrace.eventlog.redis.log import RedisLog
from tailrace.eventlog.redis.wire import Place, decode

RUN = StreamName.parse("run:1")
KINDS = Kinds([StreamKind(name="run", max_length=100), StreamKind(name="short", idle_ttl_seconds=60)])


@pytest.fixture
def log(make_log: MakeLog, every_redis: RedisServer) -> RedisLog:
    """On each server."""
    return make_log(every_redis.url, kinds=KINDS)


async def meta_of(server: RedisServer, prefix: str, stream: StreamName = RUN) -> dict[str, str]:
    flat = await server.cli("HGETALL", f"{prefix}{stream.kind}:{{{stream.name}}}:meta")
    return dict(zip(flat[::2], flat[1::2], strict=True))


@pytest_asyncio.fixture
async def pushes(every_redis: RedisServer, key_prefix: str) -> AsyncIterator[asyncio.Queue[bytes]]:
    """What is published for run:1."""
    reader, writer = await asyncio.open_unix_connection(str(every_redis.socket))
    writer.write(hiredis.pack_command(("SUBSCRIBE", f"{key_prefix}run:{{1}}:push")))  # type: ignore[arg-type]
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    ready = asyncio.Event()

    async def listen() -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65_536):
            parser.feed(data)
            while (reply := parser.gets()) is not False:
                if reply[0] == b"message":
                    queue.put_nowait(reply[2])
                else:
                    ready.set()

    task = asyncio.ensure_future(listen())
    async with deadline():
        await ready.wait()
    yield queue
    task.cancel()
    writer.close()


async def test_entries_have_the_documented_fields(log: RedisLog, every_redis: RedisServer, key_prefix: str) -> None:
    await log.append(RUN, [Event("a", {"n": 1}), Event("b", 2, key="k", actor="me")])

    first, second = (fields for _, fields in await every_redis.cli("XRANGE", f"{key_prefix}run:{{1}}:events", "-", "+"))

    assert first[::2] == ["v", "type", "data", "time", "prev"]
    assert first[1:6:2] == ["1", "a", '{"n":1}']
    assert second[::2] == ["v", "type", "data", "time", "prev", "key", "actor"]
    assert first[9] == "0-0"


async def test_pushed_records_are_the_stored_ones(log: RedisLog, pushes: asyncio.Queue[bytes]) -> None:
    await log.append(RUN, [Event("a", {"n": 1}), Event("b", 2, uid="u", key="k", actor="me")])
    await log.append(RUN, [Event("c")], close=True)

    async with deadline():
        messages = [await pushes.get(), await pushes.get()]

    place = Place(RUN)
    records = [record for message in messages for record in decode(place, message)]
    assert tuple(records) == (await log.read(RUN, ZERO)).records
    assert place.state


async def test_a_large_record_is_pushed_by_its_id(log: RedisLog, pushes: asyncio.Queue[bytes]) -> None:
    (answer,) = await log.append(RUN, [Event("a", "x" * 40_000)])

    async with deadline():
        message = await pushes.get()

    place = Place(RUN)
    assert decode(place, message) == []
    assert place.skipped
    assert place.last == answer.id
    assert len(message) < 100


async def test_a_pushed_message_is_bounded(log: RedisLog, pushes: asyncio.Queue[bytes]) -> None:
    await log.append(RUN, [Event("a", "x" * 30_000)] * 100)

    async with deadline():
        message = await pushes.get()

    assert len(message) < 1_200_000
    assert len(decode(Place(RUN), message)) < 40


async def test_at_most_64_producers_are_remembered_and_those_forgotten_are_counted(
    log: RedisLog, every_redis: RedisServer, key_prefix: str
) -> None:
    await log.append(RUN, [Event("n", 0)])
    event = prepare(Event("n", 1), max_bytes=100)
    receipts = [Receipt(stream=RUN, pid=new_producer(), n=1, events=(event,), count=1) for _ in range(64)]
    for receipt in receipts:
        await log.retry(receipt)

    meta = await meta_of(every_redis, key_prefix)
    assert sum(name.startswith("p:") for name in meta) == 64
    assert meta["pev"] == "1"

    # The log's own producer is the one that was forgotten: its next call goes on under a new name, stored once.
    await log.append(RUN, [Event("n", 2)])
    assert (await log.info(RUN)).length == 66
    # A retry of a forgotten producer can no longer be told from a new call.
    with pytest.raises(OutcomeUnknown):
        await log.retry(receipts[0])
    (again,) = await log.retry(receipts[-1])
    assert again.duplicate
    assert (await log.info(RUN)).length == 66


async def test_meta_outlives_a_deleted_stream_by_seven_days(
    log: RedisLog, every_redis: RedisServer, key_prefix: str
) -> None:
    await log.append(RUN, [Event("a")])
    await log.delete(RUN)
    key = f"{key_prefix}run:{{1}}:meta"
    tombstone = await every_redis.cli("PTTL", key)
    await log.append(RUN, [Event("b")])

    assert 6.9 * 86_400_000 < tombstone <= 7 * 86_400_000
    assert await every_redis.cli("PTTL", key) == -1


async def test_meta_outlives_an_expiring_stream_by_seven_days(
    log: RedisLog, every_redis: RedisServer, key_prefix: str
) -> None:
    short = StreamName.parse("short:1")
    await log.append(short, [Event("a", uid="u")])

    events, meta, uids = [
        await every_redis.cli("PTTL", f"{key_prefix}short:{{1}}:{name}") for name in ("events", "meta", "uids")
    ]

    assert 59_000 < events <= 61_000
    assert abs(events - uids) < 1_000
    assert abs(meta - events - 7 * 86_400_000) < 1_000


async def test_records_that_a_group_still_needs_are_not_trimmed_up_to_a_hard_cap(
    log: RedisLog, every_redis: RedisServer, key_prefix: str
) -> None:
    answers = await log.append(RUN, [Event("n", n) for n in range(10)])
    await every_redis.cli("HSET", f"{key_prefix}run:{{1}}:meta", "hold", str(answers[-1].id))
    for _ in range(5):
        await log.append(RUN, [Event("n", 1)] * 150)
    kept = (await log.info(RUN)).length
    for _ in range(3):
        await log.append(RUN, [Event("n", 1)] * 500)
    capped = (await log.info(RUN)).length

    assert kept >= 750
    assert 1_000 <= capped <= 1_200
    assert (await meta_of(every_redis, key_prefix))["hole"] == str(answers[-1].id)


async def test_an_id_that_is_no_time_is_refused_and_never_computed_with(
    log: RedisLog, every_redis: RedisServer, key_prefix: str
) -> None:
    await log.append(RUN, [Event("a")])
    await every_redis.cli("XADD", f"{key_prefix}run:{{1}}:events", f"{2**64 - 2}-1", "k", "v")

    with pytest.raises(LogRefused) as caught:
        await log.append(RUN, [Event("b")])

    assert caught.value.data["reason"] == "IDSPACE"
    assert (await log.heads([RUN]))[RUN].id.seq == 1
    assert (await log.read(RUN, ZERO)).records[-1].id == EntryId(2**64 - 2, 1)


async def test_ids_ahead_of_the_clock_raise_an_alarm(
    log: RedisLog, every_redis: RedisServer, key_prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    (answer,) = await log.append(RUN, [Event("a")])
    await every_redis.cli("XADD", f"{key_prefix}run:{{1}}:events", f"{answer.id.ms + 120_000}-1", "k", "v")

    await log.append(RUN, [Event("b")])
    await log.append(RUN, [Event("c")])

    assert [entry.message for entry in caplog.records].count("ids are ahead of the server's clock") == 2
    records = (await log.read(RUN, ZERO)).records
    assert all(record.time - answer.id.ms < 60_000 for record in records if not record.foreign)


async def test_lost_meta_begins_a_new_incarnation_behind_what_is_there(
    log: RedisLog, every_redis: RedisServer, key_prefix: str
) -> None:
    answers = await log.append(RUN, [Event("a"), Event("b")])
    await every_redis.cli("DEL", f"{key_prefix}run:{{1}}:meta")

    (new,) = await log.append(RUN, [Event("c")])

    head = (await log.heads([RUN]))[RUN]
    assert new.id.seq == 1
    assert new.id > answers[-1].id
    assert (head.base, head.base_reason) == (answers[-1].id, GapReason.RESET)


async def test_a_stream_deleted_by_hand_is_deleted(log: RedisLog, every_redis: RedisServer, key_prefix: str) -> None:
    (old,) = await log.append(RUN, [Event("a")])
    await every_redis.cli("DEL", f"{key_prefix}run:{{1}}:events")
    head = (await log.heads([RUN]))[RUN]

    (new,) = await log.append(RUN, [Event("b")])

    assert (head.state, head.id) == (StreamState.DELETED, old.id)
    assert new.id > old.id
    assert new.id.seq == 1


async def test_an_unreadable_record_is_given_as_a_foreign_one(
    log: RedisLog, every_redis: RedisServer, key_prefix: str
) -> None:
    key = f"{key_prefix}run:{{1}}:events"
    bad = [
        ("v", "1", "type", "a", "data", "1\n2", "time", "1", "prev", "0-0"),
        ("v", "1", "type", "a b", "data", "1", "time", "1", "prev", "0-0"),
        ("v", "1", "type", "a", "data", "1", "time", "soon", "prev", "0-0"),
        ("v", "1", "type", "a", "data", "1", "time", "1", "prev", "first"),
        ("v", "9", "type", "a", "data", "1", "time", "1", "prev", "0-0"),
        ("v", "1", "type", "a", "data", "1", "time", "1", "prev", "0-0", "uid", "x\ny"),
    ]
    for fields in bad:
        await every_redis.cli("XADD", key, "*", *fields)

    page = await log.read(RUN, ZERO)

    assert len(page.records) == len(bad)
    assert all(record.foreign for record in page.records)
    assert not any(b"\n" in bytes(record.data) for record in page.records)


async def test_keys_of_existing_systems_can_be_kept(make_log: MakeLog, redis70: RedisServer, key_prefix: str) -> None:
    name = key_prefix[:-1]
    kinds = Kinds([StreamKind(name=kind, key_template=template) for kind, template in LEGACY_TEMPLATES.items()])
    log = make_log(redis70.admin_url, kinds=kinds, prefix="")
    streams = {
        f"run:{name}:events": StreamName.parse(f"run:{name}"),
        f"stream:conversation:{name}": StreamName.parse(f"conversation:{name}"),
    }
    for key, stream in streams.items():
        await redis70.cli("XADD", key, "*", "event", "old")
        await log.append(stream, [Event("new")])

        assert [record.foreign for record in (await log.read(stream, ZERO)).records] == [True, False]
        assert await redis70.cli("XLEN", key) == 2
        await log.delete(stream)


FORKING = """
import asyncio, os, sys
from tailrace.core.event import Event
from tailrace.core.names import StreamName
from tailrace.eventlog.redis.log import RedisLog

log = RedisLog.connect(sys.argv[1], prefix=sys.argv[2])
run = StreamName.parse("run:1")

async def publish(text):
    await log.append(run, [Event("n", text)])
    await log.append(run, [Event("n", text)])

with asyncio.Runner() as runner:
    runner.run(publish("before"))
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(publish("child"))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    runner.run(publish("parent"))
    runner.run(log.aclose())
"""


async def test_a_forked_child_gets_connections_and_a_producer_of_its_own(
    make_log: MakeLog, redis70: RedisServer, key_prefix: str, tmp_path: Path
) -> None:
    script = tmp_path / "forking.py"
    script.write_text(FORKING)

    await asyncio.to_thread(subprocess.run, [sys.executable, str(script), redis70.url, key_prefix], check=True)

    page = await make_log(redis70.url).read(RUN, ZERO)
    assert [record.data for record in page.records] == [
        b'"before"', b'"before"', b'"child"', b'"child"', b'"parent"', b'"parent"',
    ]  # fmt: skip
    assert sum(name.startswith("p:") for name in await meta_of(redis70, key_prefix)) == 2


async def test_nothing_is_left_connected_when_a_log_is_closed(redis70: RedisServer, key_prefix: str) -> None:
    log = RedisLog.connect(redis70.url + "?client_name=x", prefix=key_prefix)
    await log.append(RUN, [Event("a")])
    await log.read(RUN, ZERO)
    before = (await redis70.cli("CLIENT", "LIST")).count("name=tailrace-")

    await log.aclose()

    async def gone() -> bool:
        return bool((await redis70.cli("CLIENT", "LIST")).count("name=tailrace-") < before)

    await eventually(gone)

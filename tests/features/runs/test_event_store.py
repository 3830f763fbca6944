"""The event store of those who know only runs and events, async and in threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tailrace.core.names import StreamName
from tailrace.core.sse import ServerEvent, SseComment, SseParser
from tailrace.errors import InvalidCursor, Malformed, StreamClosed, TooLarge, Unsupported
from tailrace.eventlog.memory import MemoryLog
from tailrace.features.runs.events import OLD_KEYS, EventStore, StreamEvent, SyncEventStore
from tests.support.gateways import gateway_on, mint
from tests.support.redis_servers import RedisServer, StartRedis


@pytest.fixture
async def store(redis70: RedisServer, key_prefix: str) -> AsyncIterator[EventStore]:
    async with EventStore(redis70.url, key_prefix=key_prefix) as made:
        yield made


@pytest.fixture
def threads(redis70: RedisServer, key_prefix: str) -> Iterator[SyncEventStore]:
    with SyncEventStore(redis70.url, key_prefix=key_prefix, max_viewers=1) as made:
        yield made


async def test_events_are_read_by_range_and_after_an_id(store: EventStore) -> None:
    ids = [await store.add("1", StreamEvent("note", {"n": n})) for n in range(5)]

    everything = await store.get_events("1")
    assert [(each.id, each.type, each.data) for each in everything] == [
        (id_, "note", {"n": n}) for n, id_ in enumerate(ids)
    ]
    assert all(each.time for each in everything)
    assert [each.id for each in await store.get_events("1", ids[1], ids[3])] == ids[1:4]
    assert [each.id for each in await store.get_events("1", "-", "+", limit=2)] == ids[:2]
    assert [each.id for each in await store.get_events_after("1", ids[2])] == ids[3:]
    assert await store.get_events("1", ids[3], ids[1]) == []
    assert await store.get_events("never") == []


async def test_an_id_of_another_run_is_answered_with_a_gap(store: EventStore) -> None:
    await store.add("1", {"type": "note"})
    foreign = await store.add("2", {"type": "note"})
    foreign = await store.add("2", {"type": "note"})

    told = await store.get_events_after("1", foreign)

    assert told[0].type == "stream.gap"
    assert told[0].data["reason"] in ("ahead", "reset")


async def test_what_is_no_event_is_refused(store: EventStore) -> None:
    with pytest.raises(Malformed):
        await store.add("1", {"data": 1})
    with pytest.raises(Malformed):
        await store.add("no such/name", StreamEvent("note"))
    with pytest.raises(TooLarge):
        await store.add("1", StreamEvent("note", "x" * 1_048_576))
    with pytest.raises(InvalidCursor):
        await store.get_events("1", "yesterday")


async def test_the_same_uid_is_stored_once_and_nothing_after_the_end(store: EventStore) -> None:
    first = await store.add("1", StreamEvent("note", 1, uid="u"))
    assert await store.add("1", StreamEvent("note", 1, uid="u")) == first

    await store.client.close_stream("run:1")

    with pytest.raises(StreamClosed):
        await store.add("1", StreamEvent("note", 2))


async def test_events_expire_when_told_and_can_be_deleted(store: EventStore) -> None:
    await store.add("1", StreamEvent("note"))

    assert await store.set_expire("1", 60)
    ttl = (await store.client.info("run:1")).ttl_seconds
    assert ttl is not None
    assert 0 < ttl <= 60
    assert await store.set_expire("1", None)
    assert (await store.client.info("run:1")).ttl_seconds is None
    assert await store.delete("1")
    assert not await store.delete("1")
    assert not await store.set_expire("1", 60)


async def test_emitted_events_are_there_after_a_flush(store: EventStore) -> None:
    assert all(store.emit("1", StreamEvent("note", n)) for n in range(100))

    assert await store.flush(30)

    assert [each.data for each in await store.get_events("1")] == list(range(100))


async def test_the_keys_of_an_existing_store_are_used_as_they_are(start_redis: StartRedis) -> None:
    server = await start_redis(limited=False)
    async with EventStore(server.url, kinds=[OLD_KEYS]) as store:
        await store.add("1", StreamEvent("note"))

    assert await server.cli("XLEN", "run:1:events") == 1


async def test_an_open_log_stays_its_owners() -> None:
    log = MemoryLog()
    async with EventStore(log) as store:
        await store.add("1", StreamEvent("note"))

    assert (await log.info(StreamName.parse("run:1"))).length == 1
    await log.aclose()


async def test_over_http_it_is_the_same_but_for_the_expiry() -> None:
    async with gateway_on() as (server, _), EventStore(server.url, token=mint(admin=True)) as store:
        first = await store.add("1", StreamEvent("note", {"n": 1}))

        assert [each.id for each in await store.get_events("1")] == [first]
        with pytest.raises(Unsupported):
            await store.set_expire("1", 60)
        assert await store.delete("1")


# -- threads -----------------------------------------------------------------------------------------------


def events_in(parts: list[bytes]) -> list[ServerEvent | SseComment]:
    parser = SseParser(comments=True)
    return [event for part in parts for event in parser.feed(part)]


def test_threads_have_the_same_store(threads: SyncEventStore) -> None:
    ids = [threads.add("1", {"type": "note", "data": n}) for n in range(3)]
    assert threads.emit("1", StreamEvent("note", 3))
    assert threads.flush(30)

    assert [each.data for each in threads.get_events("1")] == [0, 1, 2, 3]
    assert [each.data for each in threads.get_events_after("1", ids[1])] == [2, 3]
    assert threads.set_expire("1", 60)
    assert threads.delete("1")


def test_generated_events_are_sse_and_end_with_the_run(
    threads: SyncEventStore, redis70: RedisServer, key_prefix: str
) -> None:
    ids = [threads.add("1", {"type": "note", "data": {"n": n}}) for n in range(3)]
    iterator = threads.generate_events("1", ids[0], heartbeat_seconds=0.05)

    parts = [next(iterator) for _ in range(3)]
    while parts[-1] != b":\n" or not parts[-2].startswith(b"id: "):
        parts.append(next(iterator))
    engine = threads._engines.running()
    engine.call(engine.client.client.close_stream("run:1"))
    parts += list(iterator)

    told = [event for event in events_in(parts) if isinstance(event, ServerEvent)]
    assert [event.event for event in told] == ["stream.open", "note", "note", "stream.closed", "stream.closed"]
    assert [event.id for event in told[:3]] == ids
    assert told[1].data == f'{{"id":"{ids[1]}","n":1}}'


def test_one_viewer_too_many_is_told_to_come_back_and_a_seat_is_given_back(threads: SyncEventStore) -> None:
    threads.add("1", {"type": "note"})
    never_started = threads.generate_events("1")
    first = threads.generate_events("1")
    next(first)

    (refused,) = list(threads.generate_events("1"))
    assert b"stream.refused" in refused
    assert b"LIMITED" in refused

    first.close()
    again = threads.generate_events("1")
    assert b"stream.open" in next(again)
    again.close()
    never_started.close()


def test_generated_events_tell_what_is_missing(threads: SyncEventStore) -> None:
    threads.add("1", {"type": "note"})

    iterator = threads.generate_events("1", "9999999999999-7")
    parts = [next(iterator) for _ in range(2)]
    iterator.close()

    assert [event.event for event in events_in(parts) if isinstance(event, ServerEvent)] == [
        "stream.open",
        "stream.gap",
    ]

"""Closing, deleting, expiring and what readers are told of it, on every log."""

from __future__ import annotations

import time

import pytest

from tailrace.core.chain import advance, start
from tailrace.core.event import Event, Gap, GapReason, StreamState
from tailrace.core.ids import ZERO
from tailrace.core.names import StreamName
from tailrace.core.page import MISSING, Head
from tailrace.errors import NotFound, StreamClosed
from tailrace.eventlog.base import Log
from tests.contract.conftest import Bench
from tests.support.wait import eventually

RUN = StreamName.parse("run:1")
SHORT = StreamName.parse("short:1")
LASTING = StreamName.parse("lasting:1")
BRIEF = StreamName.parse("brief:1")


async def head_of(log: Log, stream: StreamName) -> Head:
    return (await log.heads([stream]))[stream]


async def eventually_expired(log: Log, stream: StreamName) -> None:
    async def expired() -> bool:
        return (await head_of(log, stream)).state is StreamState.EXPIRED

    await eventually(expired)


async def until_below(log: Log, stream: StreamName, seconds: float) -> None:
    """Wait until a stream has less than this to live."""

    async def below() -> bool:
        left = (await log.info(stream)).ttl_seconds
        return left is not None and left < seconds

    await eventually(below)


async def life_after(log: Log, stream: StreamName, *events: Event) -> float:
    """Append, and return at least what life the stream had at that moment, seconds."""
    begun = time.monotonic()
    await log.append(stream, events)
    left = (await log.info(stream)).ttl_seconds
    assert left is not None
    return left + time.monotonic() - begun + 0.01  # Redis counts milliseconds


async def test_closing_twice_is_the_same_as_once(log: Log) -> None:
    await log.append(RUN, [Event("a")])

    first = await log.close(RUN)
    second = await log.close(RUN)

    assert first == second
    assert first.state is StreamState.CLOSED


async def test_a_stream_that_never_was_cannot_be_closed(log: Log) -> None:
    with pytest.raises(NotFound):
        await log.close(RUN)


async def test_a_closed_stream_stays_readable_for_the_time_its_kind_says(log: Log) -> None:
    await log.append(LASTING, [Event("a")])
    await log.close(LASTING)
    with pytest.raises(StreamClosed):
        await log.append(LASTING, [Event("b")])

    info = await log.info(LASTING)
    assert (info.state, info.length) == (StreamState.CLOSED, 1)
    assert info.ttl_seconds is not None
    assert 0 < info.ttl_seconds <= 100


async def test_a_closed_stream_is_gone_after_the_time_its_kind_says(log: Log) -> None:
    await log.append(BRIEF, [Event("a")])
    await log.close(BRIEF)

    await eventually_expired(log, BRIEF)
    assert (await log.read(BRIEF, ZERO)).first is None


async def test_a_deleted_stream_leaves_a_tombstone(log: Log) -> None:
    answers = await log.append(RUN, [Event("a"), Event("b")])

    assert await log.delete(RUN)
    assert not await log.delete(RUN)

    head = await head_of(log, RUN)
    assert (head.id, head.state, head.incarnation) == (answers[1].id, StreamState.DELETED, 1)
    assert (await log.info(RUN)).length == 0
    with pytest.raises(NotFound):
        await log.close(RUN)


async def test_what_is_written_after_a_deletion_is_a_new_incarnation(log: Log) -> None:
    (old,) = await log.append(RUN, [Event("a", uid="u")])
    await log.delete(RUN)

    (new,) = await log.append(RUN, [Event("a", uid="u")], expected_seq=0)

    head = await head_of(log, RUN)
    assert new.id.seq == 1
    assert new.id.ms > old.id.ms
    assert not new.duplicate
    assert (head.incarnation, head.base, head.base_reason) == (2, old.id, GapReason.DELETED)
    page = await log.read(RUN, old.id)
    items, _ = advance(RUN, start(old.id), page)
    assert isinstance(items[0], Gap)
    assert (items[0].reason, items[0].missed) == (GapReason.DELETED, 0)
    assert page.records[0].prev == ZERO


async def test_a_closed_stream_that_was_deleted_can_be_written_again(log: Log) -> None:
    await log.append(RUN, [Event("a")], close=True)
    await log.delete(RUN)

    await log.append(RUN, [Event("b")])

    assert (await head_of(log, RUN)).state is StreamState.OPEN


async def test_a_stream_expires_when_it_is_told_to(log: Log) -> None:
    (old,) = await log.append(RUN, [Event("a")])

    assert await log.expire(RUN, 0.05)

    await eventually_expired(log, RUN)
    (new,) = await log.append(RUN, [Event("b")])
    head = await head_of(log, RUN)
    assert (head.incarnation, head.base, head.base_reason, head.state) == (
        2,
        old.id,
        GapReason.EXPIRED,
        StreamState.OPEN,
    )
    assert new.id.seq == 1
    assert (await log.info(RUN)).ttl_seconds is None


async def test_an_expiry_can_be_taken_back(log: Log) -> None:
    await log.append(RUN, [Event("a")])
    await log.expire(RUN, 100)
    before = (await log.info(RUN)).ttl_seconds

    await log.expire(RUN, None)

    assert before is not None
    assert 90 < before <= 100
    assert (await log.info(RUN)).ttl_seconds is None


async def test_what_is_not_there_cannot_expire(log: Log) -> None:
    assert not await log.expire(RUN, 1)
    assert not await log.delete(RUN)


async def test_a_stream_lives_as_long_as_it_is_written_to(log: Log) -> None:
    await log.append(SHORT, [Event("a")])
    await eventually_expired(log, SHORT)

    await log.append(LASTING, [Event("a")])
    await log.expire(LASTING, 10)  # so old that most of its life is over
    assert await life_after(log, LASTING, Event("b")) >= 1_000


async def test_a_sliding_life_begins_anew_with_each_append(log: Log) -> None:
    await log.append(RUN, [Event("a")])
    await log.expire(RUN, 10, sliding=True)

    for n in range(3):
        await until_below(log, RUN, 9.95)
        assert await life_after(log, RUN, Event("b", n), Event("c", n)) >= 10


@pytest.mark.parametrize("seconds", [50.0, None])
async def test_a_life_that_is_said_again_slides_no_more(log: Log, seconds: float | None) -> None:
    await log.append(RUN, [Event("a")])
    await log.expire(RUN, 100, sliding=True)
    await log.expire(RUN, seconds)

    await log.append(RUN, [Event("b")])

    life = (await log.info(RUN)).ttl_seconds
    assert life is None if seconds is None else life is not None and life <= seconds


async def test_what_is_written_after_a_sliding_life_has_none(log: Log) -> None:
    await log.append(RUN, [Event("a")])
    await log.expire(RUN, 0.05, sliding=True)
    await eventually_expired(log, RUN)

    await log.append(RUN, [Event("b")])
    await log.append(RUN, [Event("c")])

    assert (await log.info(RUN)).ttl_seconds is None


async def test_info_describes_a_stream(log: Log) -> None:
    answers = await log.append(RUN, [Event("a"), Event("b"), Event("c")])

    info = await log.info(RUN)

    assert (info.stream, info.state, info.length) == (RUN, StreamState.OPEN, 3)
    assert (info.first_id, info.last_id, info.incarnation) == (answers[0].id, answers[2].id, 1)
    assert info.memory_bytes is None or info.memory_bytes > 0


async def test_heads_of_many_streams_are_asked_together(log: Log) -> None:
    streams = [StreamName.parse(f"run:{n}") for n in range(50)]
    for stream in streams[:25]:
        await log.append(stream, [Event("a")])

    heads = await log.heads(streams)

    assert set(heads) == set(streams)
    assert all(heads[stream].id.seq == 1 for stream in streams[:25])
    assert all(heads[stream] == MISSING for stream in streams[25:])


async def test_a_foreign_stream_that_is_deleted_leaves_a_tombstone(bench: Bench) -> None:
    foreign = await bench.add_foreign(RUN, {"k": "v"})

    assert await bench.log.delete(RUN)

    (answer,) = await bench.log.append(RUN, [Event("ours")])
    assert answer.id > foreign


async def test_ping_answers(log: Log) -> None:
    assert 0 <= await log.ping() < 5


async def test_trimming_keeps_the_newest_records_and_a_reader_is_told_what_it_missed(log: Log) -> None:
    answers = await log.append(RUN, [Event("a", n) for n in range(10)])
    await log.append(RUN, [Event("a", 10)])

    assert await log.trim(RUN, max_length=3) == 8
    assert await log.trim(RUN, max_length=3) == 0

    page = await log.read(RUN, answers[1].id)
    (gap, *_), _ = advance(RUN, start(answers[1].id), page)
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.missed) == (GapReason.TRIMMED, 6)
    assert [record.data for record in page.records] == [b"8", b"9", b"10"]


async def test_trimming_what_never_was_removes_nothing(log: Log) -> None:
    assert await log.trim(RUN, max_length=3) == 0
    assert await head_of(log, RUN) == MISSING

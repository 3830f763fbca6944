"""What an append promises, on every log."""

from __future__ import annotations

import asyncio
import time

import pytest

from tailrace.core.codec import minify
from tailrace.core.event import Event, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.errors import (
    AlreadyClosed,
    Fenced,
    IdempotencyConflict,
    Malformed,
    NotFound,
    SequenceMismatch,
    StreamClosed,
    TooLarge,
    UsageError,
)
from tailrace.eventlog.base import Log
from tailrace.eventlog.receipt import Receipt, new_producer
from tests.contract.conftest import Bench

RUN = StreamName.parse("run:1")


async def ids(log: Log, stream: StreamName = RUN) -> list[EntryId]:
    page = await log.read(stream, ZERO)
    return [record.id for record in page.records]


async def test_ids_count_from_one_and_each_record_names_the_one_before(log: Log) -> None:
    answers = await log.append(RUN, [Event("a", {"n": 1}), Event("b")])
    answers += await log.append(RUN, [Event("c")])

    page = await log.read(RUN, ZERO)

    assert [answer.id.seq for answer in answers] == [1, 2, 3]
    assert [record.id for record in page.records] == [answer.id for answer in answers]
    assert [record.prev for record in page.records] == [ZERO, answers[0].id, answers[1].id]
    assert [record.type for record in page.records] == ["a", "b", "c"]
    assert page.records[0].data == b'{"n":1}'
    assert page.head.id == answers[2].id
    assert page.head.state is StreamState.OPEN
    assert page.head.incarnation == 1
    assert not any(answer.duplicate for answer in answers)


async def test_time_is_the_clock_at_the_append(log: Log) -> None:
    before = int(time.time() * 1000)

    await log.append(RUN, [Event("a")])

    record = (await log.read(RUN, ZERO)).records[0]
    assert before - 1 <= record.time <= int(time.time() * 1000) + 1


async def test_a_record_keeps_all_that_its_event_said(log: Log) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    event = Event("task.progress", {"text": "Zoë ☃ \u0000"}, uid="u-1", key="k", actor="user:7", trace=trace)

    await log.append(RUN, [event, Event("b", key="only"), Event("c", trace=trace), Event("d", actor="me")])

    first, second, third, fourth = (await log.read(RUN, ZERO)).records
    assert (first.uid, first.key, first.actor, first.trace) == ("u-1", "k", "user:7", trace)
    assert first.data == '{"text":"Zoë ☃ \\u0000"}'.encode()
    assert (second.uid, second.key, second.actor, second.trace) == (None, "only", None, None)
    assert (third.key, third.trace) == (None, trace)
    assert (fourth.actor, fourth.trace) == ("me", None)


async def test_data_is_stored_as_it_was_written(log: Log) -> None:
    data = minify(b'{"b":1.0, "a":1e2, "b":"\\u00e9"}', max_bytes=1_000)

    await log.append(RUN, [Event("a", data)])

    assert (await log.read(RUN, ZERO)).records[0].data == b'{"b":1.0,"a":1e2,"b":"\\u00e9"}'


async def test_concurrent_appends_of_one_stream_keep_the_order_of_the_calls(log: Log) -> None:
    answers = await asyncio.gather(*[log.append(RUN, [Event("n", n), Event("n", n)]) for n in range(60)])

    page = await log.read(RUN, ZERO)

    assert [int(record.data) for record in page.records] == [n for n in range(60) for _ in "ab"]
    assert [answer.id for answer_list in answers for answer in answer_list] == [record.id for record in page.records]
    assert [record.id.seq for record in page.records] == list(range(1, 121))


async def test_streams_do_not_mix(log: Log) -> None:
    streams = [StreamName.parse(f"run:{n}") for n in range(20)]

    await asyncio.gather(*[log.append(stream, [Event("of", str(stream))]) for stream in streams])

    for stream in streams:
        page = await log.read(stream, ZERO)
        assert [record.data for record in page.records] == [f'"{stream}"'.encode()]
        assert page.records[0].stream == stream


@pytest.mark.parametrize("count", [1, 999, 1_000])
async def test_up_to_a_thousand_events_are_one_call(log: Log, count: int) -> None:
    answers = await log.append(StreamName.parse("user:many"), [Event("a", n, key="k") for n in range(count)])

    assert [answer.id.seq for answer in answers] == list(range(1, count + 1))


async def test_too_many_or_too_large_or_no_events_are_refused_and_nothing_is_stored(log: Log) -> None:
    with pytest.raises(TooLarge):
        await log.append(RUN, [Event("a")] * 1_001)
    with pytest.raises(TooLarge):
        await log.append(RUN, [Event("a", "x" * 1_048_570)] * 9)
    with pytest.raises(TooLarge):
        await log.append(StreamName.parse("small:1"), [Event("ok", 1), Event("a", "x" * 99)])
    with pytest.raises(Malformed):
        await log.append(RUN, [])
    with pytest.raises(Malformed):
        await log.append(RUN, [Event("ok", 1), Event("stream.gap", 1)])

    assert await ids(log) == []
    assert (await log.heads([RUN]))[RUN].state is StreamState.MISSING


async def test_an_event_of_a_megabyte_is_stored_whole(log: Log) -> None:
    text = "y" * (1_048_576 - 2)

    await log.append(RUN, [Event("a", text), Event("b", 1)])

    page = await log.read(RUN, ZERO)
    assert len(page.records[0].data) == 1_048_576
    assert page.head.largest >= 1_048_576


async def test_expected_seq_appends_only_behind_that_head(log: Log) -> None:
    await log.append(RUN, [Event("a")], expected_seq=0)
    with pytest.raises(SequenceMismatch) as caught:
        await log.append(RUN, [Event("b")], expected_seq=0)
    await log.append(RUN, [Event("c")], expected_seq=1)

    assert caught.value.data["seq"] == 1
    assert [record.type for record in (await log.read(RUN, ZERO)).records] == ["a", "c"]


async def test_of_many_that_expect_the_same_head_one_wins(log: Log) -> None:
    outcomes = await asyncio.gather(
        *[log.append(RUN, [Event("n", n)], expected_seq=0) for n in range(10)], return_exceptions=True
    )

    assert sum(isinstance(outcome, list) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, SequenceMismatch) for outcome in outcomes) == 9
    assert len(await ids(log)) == 1


async def test_a_producer_that_lost_its_lease_is_fenced(log: Log) -> None:
    await log.append(RUN, [Event("a")], owner_epoch=3)
    await log.append(RUN, [Event("b")], owner_epoch=4)
    with pytest.raises(Fenced):
        await log.append(RUN, [Event("c")], owner_epoch=3)
    await log.append(RUN, [Event("d")])

    assert [record.type for record in (await log.read(RUN, ZERO)).records] == ["a", "b", "d"]


async def test_epochs_compare_as_numbers(log: Log) -> None:
    await log.append(RUN, [Event("a")], owner_epoch=9)
    await log.append(RUN, [Event("b")], owner_epoch=10)

    with pytest.raises(Fenced):
        await log.append(RUN, [Event("c")], owner_epoch=9)


async def test_the_same_uid_is_stored_once(log: Log) -> None:
    (first,) = await log.append(RUN, [Event("a", 1, uid="u")])
    (again,) = await log.append(RUN, [Event("a", 1, uid="u")])
    mixed = await log.append(RUN, [Event("b", 2), Event("a", 1, uid="u"), Event("c", 3, uid="v")])

    assert again.id == first.id
    assert (first.duplicate, again.duplicate) == (False, True)
    assert [(one.id.seq, one.duplicate) for one in mixed] == [(2, False), (1, True), (3, False)]
    assert [id_.seq for id_ in await ids(log)] == [1, 2, 3]


async def test_a_uid_twice_in_one_call_is_one_record(log: Log) -> None:
    answers = await log.append(RUN, [Event("a", 1, uid="u"), Event("b"), Event("a", 1, uid="u")])

    assert [(one.id.seq, one.duplicate) for one in answers] == [(1, False), (2, False), (1, True)]


async def test_the_same_uid_with_another_body_is_a_conflict_and_nothing_of_the_call_is_stored(log: Log) -> None:
    await log.append(RUN, [Event("a", 1, uid="u")])

    with pytest.raises(IdempotencyConflict):
        await log.append(RUN, [Event("z", 9), Event("a", 2, uid="u")])

    assert [record.type for record in (await log.read(RUN, ZERO)).records] == ["a"]


async def test_one_callers_conflict_does_not_fail_the_others_of_the_turn(log: Log) -> None:
    await log.append(RUN, [Event("a", 1, uid="u")])

    outcomes = await asyncio.gather(
        log.append(RUN, [Event("b", 1)]),
        log.append(RUN, [Event("a", "other", uid="u")]),
        log.append(RUN, [Event("c", 1, uid="w")]),
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in outcomes] == [list, IdempotencyConflict, list]
    assert [record.type for record in (await log.read(RUN, ZERO)).records] == ["a", "b", "c"]


async def test_a_uid_is_remembered_in_a_stream_that_a_foreign_entry_brought_back_from_its_end(bench: Bench) -> None:
    await bench.log.append(RUN, [Event("a")])
    await bench.log.expire(RUN, 0.0)
    await bench.add_foreign(RUN, {"k": "v"})
    first = await bench.log.append(RUN, [Event("b", uid="u")])

    again = await bench.log.append(RUN, [Event("b", uid="u")])

    assert (again[0].id, again[0].duplicate) == (first[0].id, True)


async def test_the_trace_is_no_part_of_what_a_uid_names(log: Log) -> None:
    traces = [f"00-{n:032x}-{n:016x}-01" for n in (1, 2)]
    await log.append(RUN, [Event("a", 1, uid="u", trace=traces[0])])

    (again,) = await log.append(RUN, [Event("a", 1, uid="u", trace=traces[1])])

    assert again.duplicate


async def test_the_last_1024_uids_are_remembered(log: Log) -> None:
    stream = StreamName.parse("user:u")
    await log.append(stream, [Event("a", n, uid=f"u{n}") for n in range(1_000)])
    await log.append(stream, [Event("a", n, uid=f"u{n}") for n in range(1_000, 1_025)])

    oldest, second, newest = await log.append(
        stream, [Event("a", 0, uid="u0"), Event("a", 1, uid="u1"), Event("a", 1_024, uid="u1024")]
    )

    assert not oldest.duplicate
    assert second.duplicate
    assert newest.duplicate


async def test_a_closed_stream_takes_nothing_more(log: Log) -> None:
    await log.append(RUN, [Event("a")])
    (last,) = await log.append(RUN, [Event("b")], close=True)

    with pytest.raises(StreamClosed):
        await log.append(RUN, [Event("c")])
    with pytest.raises(StreamClosed):
        await log.append(RUN, [], close=True)

    head = (await log.heads([RUN]))[RUN]
    assert (head.id, head.state) == (last.id, StreamState.CLOSED)


async def test_a_stream_can_be_closed_without_an_event(log: Log) -> None:
    await log.append(RUN, [Event("a")])

    assert await log.append(RUN, [], close=True) == []

    assert (await log.heads([RUN]))[RUN].state is StreamState.CLOSED


async def test_a_stream_that_never_was_cannot_be_closed_without_an_event(log: Log) -> None:
    with pytest.raises(NotFound):
        await log.append(RUN, [], close=True)


async def test_a_numbered_call_is_stored_once_however_often_it_is_sent(log: Log) -> None:
    from tailrace.core.codec import prepare

    events = tuple(prepare(Event("a", n, uid="u" if n == 1 else None), max_bytes=100) for n in range(3))
    receipt = Receipt(stream=RUN, pid=new_producer(), n=1, events=events, offset=1, count=2)

    first = await log.retry(receipt)
    again = await log.retry(receipt)

    assert [one.id for one in first] == [one.id for one in again]
    assert [one.id.seq for one in first] == [2, 3]
    assert len(await ids(log)) == 3


async def test_something_else_is_no_receipt(log: Log) -> None:
    with pytest.raises(UsageError):
        await log.retry("receipt")


async def test_a_cancelled_caller_harms_nobody(log: Log) -> None:
    tasks = [asyncio.ensure_future(log.append(RUN, [Event("n", n)])) for n in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()

    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await log.append(RUN, [Event("n", 99)])

    stored = [int(record.data) for record in (await log.read(RUN, ZERO)).records]
    acknowledged = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, list)]
    assert set(acknowledged) <= set(stored)
    assert stored == sorted(set(stored))
    assert stored[-1] == 99


async def test_a_closed_log_says_so(bench: Bench) -> None:
    await bench.log.append(RUN, [Event("a")])
    await bench.log.aclose()

    with pytest.raises(AlreadyClosed):
        await bench.log.append(RUN, [Event("b")])
    with pytest.raises(AlreadyClosed):
        await bench.log.read(RUN, ZERO)

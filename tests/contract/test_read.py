"""What pages promise, on every log."""

from __future__ import annotations

import pytest

from tailrace.core.chain import Position, advance, start
from tailrace.core.event import Ended, Event, Gap, GapReason, Item, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log
from tests.contract.conftest import Bench

RUN = StreamName.parse("run:1")
USER = StreamName.parse("user:u")


async def fill(log: Log, stream: StreamName, count: int) -> list[EntryId]:
    made: list[EntryId] = []
    for at in range(0, count, 500):
        batch = [Event("n", n) for n in range(at, min(count, at + 500))]
        made += [answer.id for answer in await log.append(stream, batch)]
    return made


async def follow(log: Log, stream: StreamName, cursor: EntryId, *, limit: int = 1_000) -> list[Item]:
    """Everything that a reader at `cursor` is given until it stands at the head."""
    position, items = start(cursor), []
    for _ in range(100):
        page = await log.read(stream, position.cursor, limit=limit)
        more, moved = advance(stream, position, page)
        items += more
        if (not more and not page.more) or moved == position:
            return items
        position = moved
    raise AssertionError("the reader never arrives")


def ids_of(items: list[Item]) -> list[EntryId]:
    return [item.id for item in items if isinstance(item, Record)]


async def test_a_reader_resumes_behind_its_cursor_without_a_gap(log: Log) -> None:
    made = await fill(log, RUN, 10)

    assert ids_of(await follow(log, RUN, made[3])) == made[4:]
    assert await follow(log, RUN, made[-1]) == []


@pytest.mark.parametrize("limit", [1, 2, 7, 1_000])
async def test_pages_of_any_size_lead_to_the_head(log: Log, limit: int) -> None:
    made = await fill(log, RUN, 30)

    items = await follow(log, RUN, ZERO, limit=limit)

    assert ids_of(items) == made
    assert len(items) == 30


async def test_a_page_says_whether_more_follows(log: Log) -> None:
    made = await fill(log, RUN, 5)

    exact = await log.range(RUN, limit=5)
    less = await log.range(RUN, limit=4)
    behind = await log.read(RUN, made[0], limit=4)

    assert (len(exact.records), exact.more) == (5, False)
    assert (len(less.records), less.more) == (4, True)
    assert ([record.id for record in behind.records], behind.more) == (made, False)


async def test_pages_are_bounded_in_bytes_and_still_go_on(log: Log) -> None:
    for n in range(12):
        await log.append(RUN, [Event("n", "x" * 100_000), Event("n", n)])

    first = await log.read(RUN, ZERO)
    items = await follow(log, RUN, ZERO)

    assert first.more
    assert sum(len(record.data) for record in first.records) < 500_000
    assert [item.id.seq for item in items if isinstance(item, Record)] == list(range(1, 25))


async def test_small_records_fill_a_page_even_after_a_large_one(log: Log) -> None:
    await log.append(RUN, [Event("large", "x" * 1_000_000)])
    made = await fill(log, RUN, 150)

    page = await log.read(RUN, made[0], limit=1_000)

    assert [record.id for record in page.records] == made


async def test_ranges_are_inclusive_and_can_be_reversed(log: Log) -> None:
    made = await fill(log, RUN, 10)

    forward = await log.range(RUN, start=made[2], end=made[5])
    backward = await log.range(RUN, start=made[2], end=made[5], reverse=True)
    last_two = await log.range(RUN, limit=2, reverse=True)

    assert [record.id for record in forward.records] == made[2:6]
    assert [record.id for record in backward.records] == made[2:6][::-1]
    assert [record.id for record in last_two.records] == [made[9], made[8]]
    assert last_two.more
    assert forward.first == backward.first == last_two.first == made[0]


async def test_an_empty_range_still_names_the_first_entry(log: Log) -> None:
    made = await fill(log, RUN, 3)

    page = await log.range(RUN, start=EntryId(made[-1].ms, made[-1].seq + 1))

    assert (page.records, page.more, page.first) == ((), False, made[0])


async def test_a_stream_that_never_was_is_missing(log: Log) -> None:
    page = await log.read(RUN, ZERO)

    assert (page.records, page.more, page.first, page.head.state) == ((), False, None, StreamState.MISSING)


async def test_a_trimmed_reader_is_told_how_much_it_missed(log: Log) -> None:
    made: list[EntryId] = []
    for _ in range(6):
        made += await fill(log, RUN, 100)

    items = await follow(log, RUN, made[0])

    gap, *records = items
    assert isinstance(gap, Gap)
    assert gap.reason is GapReason.TRIMMED
    assert ids_of(records)[-1] == made[-1]
    assert 200 <= len(records) <= 400
    assert gap.missed == 599 - len(records)


async def test_old_records_are_trimmed_by_age(log: Log) -> None:
    import asyncio

    aged = StreamName.parse("aged:1")
    await fill(log, aged, 300)
    await asyncio.sleep(0.08)  # what is tested is age itself

    await fill(log, aged, 1)

    assert (await log.info(aged)).length <= 201


async def test_a_deleted_entry_is_a_gap(bench: Bench) -> None:
    made = await fill(bench.log, RUN, 5)
    await bench.drop(RUN, made[2])

    items = await follow(bench.log, RUN, made[0])

    assert [type(item) for item in items] == [Record, Gap, Record, Record]
    gap = items[1]
    assert isinstance(gap, Gap)
    assert (gap.reason, gap.missed) == (GapReason.DELETED, 1)


async def test_a_deleted_last_entry_does_not_give_its_number_again(bench: Bench) -> None:
    made = await fill(bench.log, RUN, 3)
    await bench.drop(RUN, made[2])

    (answer,) = await bench.log.append(RUN, [Event("next")])

    assert answer.id.seq == 4
    assert (await bench.log.read(RUN, answer.id)).records[0].prev == made[2]


async def test_foreign_entries_are_given_outside_the_chain(bench: Bench) -> None:
    made = await fill(bench.log, RUN, 2)
    foreign = await bench.add_foreign(RUN, {"type": "theirs", "body": "x\ny"})
    (after,) = await bench.log.append(RUN, [Event("ours")])

    items = await follow(bench.log, RUN, made[0])

    second, theirs, ours = items
    assert isinstance(second, Record)
    assert isinstance(theirs, Record)
    assert isinstance(ours, Record)
    assert (theirs.id, theirs.prev, theirs.type, theirs.foreign) == (foreign, None, "theirs", True)
    assert theirs.data == b'{"type":"theirs","body":"x\\ny"}'
    assert theirs.time == foreign.ms
    assert (ours.id, ours.prev) == (after.id, made[1])
    assert after.id.seq == 3


async def test_a_foreign_type_that_may_not_be_one_is_called_foreign(bench: Bench) -> None:
    await bench.add_foreign(RUN, {"type": "stream.gap"})
    await bench.add_foreign(RUN, {"k": "v"})

    assert [record.type for record in (await bench.log.read(RUN, ZERO)).records] == ["foreign", "foreign"]


async def test_a_stream_of_others_can_be_written_to(bench: Bench) -> None:
    foreign = await bench.add_foreign(RUN, {"k": "v"})

    (answer,) = await bench.log.append(RUN, [Event("ours")])

    head = (await bench.log.heads([RUN]))[RUN]
    assert answer.id > foreign
    assert answer.id.seq == 1
    assert (head.base, head.base_reason) == (foreign, GapReason.RESET)
    assert ids_of(await follow(bench.log, RUN, ZERO))[-1] == answer.id


async def test_a_foreign_entry_from_the_future_does_not_break_the_chain(bench: Bench) -> None:
    made = await fill(bench.log, RUN, 2)
    future = EntryId(made[-1].ms + 3_600_000, 0)
    await bench.add_foreign(RUN, {"k": "v"}, at=future)

    (answer,) = await bench.log.append(RUN, [Event("ours")])

    assert answer.id > future
    assert answer.id.seq == 3
    assert not [item for item in await follow(bench.log, RUN, made[0]) if isinstance(item, Gap)]


async def test_a_finished_stream_ends_after_its_last_record(log: Log) -> None:
    made = await fill(log, RUN, 3)
    await log.close(RUN)

    items = await follow(log, RUN, made[0])

    assert ids_of(items) == made[1:]
    assert isinstance(items[-1], Ended)


async def test_a_page_at_any_position_of_a_long_stream_begins_there(log: Log) -> None:
    made = await fill(log, USER, 3_000)

    page = await log.read(USER, made[1_500], limit=10)
    position: Position = start(made[1_500])

    assert [record.id for record in page.records] == made[1_500:1_511]
    assert ids_of(advance(USER, position, page)[0]) == made[1_501:1_511]

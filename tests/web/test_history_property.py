"""Pages of any size, over any history, hold every retained record once, in order, or announce what is missing."""

from __future__ import annotations

import asyncio

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tailrace.core.compact import DELTA, SNAPSHOT
from tailrace.core.event import Event, Gap, Record
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.kinds import Kinds, StreamKind
from tailrace.core.names import StreamName
from tailrace.eventlog.memory import MemoryLog
from tailrace.web.history import HistoryQuery, read_history, read_merged

STREAMS = [StreamName.parse(f"short:{name}") for name in "abc"]
KINDS = Kinds([StreamKind(name="short", max_length=20)])

appends = st.tuples(st.sampled_from(STREAMS), st.integers(1, 150))
deletes = st.tuples(st.sampled_from(STREAMS), st.just(0))
# Negative: the entry so far from the end is deleted by hand.
holes = st.tuples(st.sampled_from(STREAMS), st.integers(-60, -1))
stories = st.lists(st.one_of(appends, appends, appends, holes, holes, deletes), max_size=16)


def made(number: int, *, text: bool) -> Event:
    if text and number % 7:
        return Event(DELTA, {"step": "s", "text": str(number)})
    return Event("n" if number % 3 else "m", number)


async def told(story: list[tuple[StreamName, int]], *, text: bool = False) -> MemoryLog:
    log = MemoryLog(kinds=KINDS)
    for stream, count in story:
        if count > 0:
            await log.append(stream, [made(number, text=text) for number in range(count)])
        elif count < 0 and len(whole := await retained(log, stream)) >= -count:
            log.drop(stream, whole[count])
        else:
            await log.delete(stream)
    return log


async def retained(log: MemoryLog, stream: StreamName) -> list[EntryId]:
    page = await log.range(stream, limit=100_000)
    assert not page.more
    return [record.id for record in page.records]


def check_chain(begin: EntryId, records: list[Record], gaps: list[Gap]) -> None:
    """Every record follows the one before it, or a gap stands before it, once."""
    before = [gap.before for gap in gaps]
    announced = set(before)
    assert len(announced) == len(before), gaps
    last = begin
    for record in records:
        assert record.prev == last or record.id in announced or begins_behind_gap(record, announced), (last, record)
        last = record.id


def begins_behind_gap(record: Record, announced: set[EntryId | None]) -> bool:
    """A compacted record has the id of its last one; the gap stands before its first one, whose number it tells."""
    if record.type != SNAPSHOT:
        return False
    first = record.id.seq - msgspec.json.decode(record.data)["records"] + 1
    return first in {before.seq for before in announced if before is not None}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(stories, st.integers(1, 60), st.booleans())
def test_pages_by_start_hold_everything(story: list[tuple[StreamName, int]], limit: int, filtered: bool) -> None:
    async def run() -> None:
        log = await told(story)
        types = frozenset({"m"}) if filtered else None
        for stream in STREAMS:
            records: list[Record] = []
            gaps: list[Gap] = []
            page = await read_history(log, stream, HistoryQuery(limit=limit, types=types))
            while True:
                assert len(page.records) <= limit
                records += page.records
                gaps += page.gaps
                if page.next_id is None:
                    break
                page = await read_history(log, stream, HistoryQuery(start=page.next_id, limit=limit, types=types))
            expected = await retained(log, stream)
            if filtered:
                found = (await log.range(stream, limit=100_000)).records
                expected = [record.id for record in found if record.type == "m"]
            else:
                check_chain(ZERO, records, gaps)
            assert [record.id for record in records] == expected

    asyncio.run(run())


@settings(max_examples=120, deadline=None, derandomize=True)
@given(stories, st.integers(1, 60), st.integers(0, 200))
def test_pages_by_since_follow_the_chain_from_anywhere(
    story: list[tuple[StreamName, int]], limit: int, seq: int
) -> None:
    async def run() -> None:
        log = await told(story)
        for stream in STREAMS:
            whole = await retained(log, stream)
            begin = whole[min(seq, len(whole) - 1)] if whole and seq else ZERO
            records: list[Record] = []
            gaps: list[Gap] = []
            cursor = begin
            while True:
                page = await read_history(log, stream, HistoryQuery(since=cursor, limit=limit))
                records += page.records
                gaps += page.gaps
                if page.next_id is None:
                    break
                # The gap before the next page's first record was told on this one.
                cursor = max([page.records[-1].id, *(gap.cursor for gap in page.gaps)])
            assert [record.id for record in records] == [entry for entry in whole if entry > begin]
            check_chain(begin, records, gaps)

    asyncio.run(run())


@settings(max_examples=80, deadline=None, derandomize=True)
@given(stories, st.integers(1, 60))
def test_compact_pages_hold_everything(story: list[tuple[StreamName, int]], limit: int) -> None:
    async def run() -> None:
        log = await told(story, text=True)
        for stream in STREAMS:
            records: list[Record] = []
            gaps: list[Gap] = []
            start: EntryId | None = None
            while True:
                page = await read_history(log, stream, HistoryQuery(start=start, limit=limit, compact=True))
                assert len(page.records) <= limit
                records += page.records
                gaps += page.gaps
                start = page.next_id
                if start is None:
                    break
            counts = [msgspec.json.decode(each.data)["records"] if each.type == SNAPSHOT else 1 for each in records]
            assert sum(counts) == len(await retained(log, stream))
            check_chain(ZERO, records, gaps)

    asyncio.run(run())


@settings(max_examples=120, deadline=None, derandomize=True)
@given(stories, st.integers(1, 60))
def test_pages_backward_hold_everything(story: list[tuple[StreamName, int]], limit: int) -> None:
    async def run() -> None:
        log = await told(story)
        for stream in STREAMS:
            records: list[Record] = []
            end: EntryId | None = None
            while True:
                page = await read_history(log, stream, HistoryQuery(end=end, limit=limit, newest_first=True))
                records += page.records
                end = page.next_id
                if end is None:
                    break
            assert [record.id for record in reversed(records)] == await retained(log, stream)

    asyncio.run(run())


@settings(max_examples=120, deadline=None, derandomize=True)
@given(stories, st.integers(1, 60))
def test_merged_pages_hold_everything_by_time(story: list[tuple[StreamName, int]], limit: int) -> None:
    from tailrace.core.cursor import parse_cursor

    async def run() -> None:
        log = await told(story)
        records: list[Record] = []
        gaps: list[Gap] = []
        resume = parse_cursor("0", STREAMS)
        while True:
            page = await read_merged(log, resume, limit=limit)
            assert len(page.records) <= limit
            assert [(record.id.ms, record.stream) for record in page.records] == sorted(
                (record.id.ms, record.stream) for record in page.records
            )
            records += page.records
            gaps += page.gaps
            resume = parse_cursor(page.cursor, STREAMS)
            if not page.has_more:
                break
        for stream in STREAMS:
            own = [record for record in records if record.stream == stream]
            assert [record.id for record in own] == await retained(log, stream)
            check_chain(ZERO, own, [gap for gap in gaps if gap.stream == stream])

    asyncio.run(run())

"""A hole in a stream is told by some page, wherever the pages are cut."""

from __future__ import annotations

import pytest

from tailrace.core.cursor import Since, parse_cursor
from tailrace.core.event import Event, Gap, Record
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.eventlog.memory import MemoryLog
from tailrace.web.history import HistoryQuery, read_history, read_merged

RUN = StreamName.parse("run:1")
OTHER = StreamName.parse("run:2")


async def holed(*missing: int, count: int = 12) -> tuple[MemoryLog, list[EntryId]]:
    log = MemoryLog()
    stored = await log.append(RUN, [Event("token.delta", {"step": "s", "text": "x"}) for _ in range(count)])
    ids = [each.id for each in stored]
    log.drop(RUN, *(ids[number - 1] for number in missing))
    return log, ids


def announced(gaps: list[Gap]) -> list[tuple[EntryId, EntryId | None, int | None]]:
    return [(gap.after, gap.before, gap.missed) for gap in gaps]


async def merged_gaps(log: MemoryLog, limit: int) -> list[Gap]:
    """What merged pages from the beginning tell, until there are no more."""
    gaps: list[Gap] = []
    resume = parse_cursor("0", [RUN, OTHER])
    while True:
        page = await read_merged(log, resume, limit=limit)
        gaps += page.gaps
        resume = parse_cursor(page.cursor, [RUN, OTHER])
        if not page.has_more:
            return gaps


@pytest.mark.parametrize("limit", range(1, 9))
@pytest.mark.parametrize("compact", [False, True])
async def test_pages_by_start_tell_a_hole_once(limit: int, compact: bool) -> None:
    log, ids = await holed(6)
    gaps: list[Gap] = []
    query = HistoryQuery(limit=limit, compact=compact)
    while True:
        page = await read_history(log, RUN, query)
        gaps += page.gaps
        if page.next_id is None:
            break
        query = HistoryQuery(limit=limit, compact=compact, start=page.next_id)

    assert announced(gaps) == [(ids[4], ids[6], 1)]


@pytest.mark.parametrize("limit", range(1, 9))
async def test_pages_by_since_tell_a_hole_once_to_who_goes_on_from_the_gap(limit: int) -> None:
    log, ids = await holed(6)
    gaps: list[Gap] = []
    records: list[Record] = []
    since = ZERO
    while True:
        page = await read_history(log, RUN, HistoryQuery(limit=limit, since=since))
        gaps += page.gaps
        records += page.records
        if page.next_id is None:
            break
        since = max([page.records[-1].id, *(gap.cursor for gap in page.gaps)])

    assert announced(gaps) == [(ids[4], ids[6], 1)]
    assert [record.id for record in records] == ids[:5] + ids[6:]


@pytest.mark.parametrize("limit", range(1, 9))
async def test_pages_from_the_newest_down_tell_a_hole_once(limit: int) -> None:
    log, ids = await holed(6)
    gaps: list[Gap] = []
    end: EntryId | None = None
    while True:
        page = await read_history(log, RUN, HistoryQuery(limit=limit, newest_first=True, end=end))
        gaps += page.gaps
        end = page.next_id
        if end is None:
            break

    assert announced(gaps) == [(ids[4], ids[6], 1)]


@pytest.mark.parametrize("limit", [1, 7, 100])
async def test_merged_pages_tell_every_hole_once(limit: int) -> None:
    log, ids = await holed(51, 101, count=120)

    gaps = await merged_gaps(log, limit)

    assert announced(gaps) == [(ids[49], ids[51], 1), (ids[99], ids[101], 1)]


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_merged_pages_tell_a_missing_end_once(limit: int) -> None:
    log, ids = await holed(4, count=4)
    await log.append(OTHER, [Event("note", number) for number in range(3)])

    gaps = await merged_gaps(log, limit)

    assert announced(gaps) == [(ids[2], None, 1)]


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_merged_pages_from_a_time_give_nothing_older(limit: int) -> None:
    now = 1_000.0
    log = MemoryLog(clock=lambda: now)
    streams = [StreamName.parse(f"run:{name}") for name in "abc"]
    for stream in streams:
        await log.append(stream, [Event("old", number) for number in range(3)])
    now = 2_000.0
    for stream in streams[:2]:
        await log.append(stream, [Event("new", number) for number in range(3)])

    records: list[Record] = []
    page = await read_merged(log, dict.fromkeys(streams, Since(1_500_000)), limit=limit)
    while True:
        records += page.records
        if not page.has_more:
            break
        page = await read_merged(log, parse_cursor(page.cursor, streams), limit=limit)
    rest = await read_merged(log, parse_cursor(page.cursor, streams), limit=100)

    assert [record.type for record in records] == ["new"] * 6
    assert (rest.records, rest.gaps) == ([], [])

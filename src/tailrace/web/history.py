"""History by page: what the log holds, in order, each record once, or a gap (PROTOCOL.md §5, §7.6).

Rules of this file
1. `start_id` and `end_id` are inclusive, `since_id` is what the reader has and exclusive. `next_id` is the first id
   not returned: the next page's `start_id`, with `order=desc` its `end_id`.
2. A page ends at its limit or at its bytes, whichever comes first, but holds at least one record if there is one.
3. What is missing between the asked position and the first record, or between two records, is said; just before
   `next_id` too, since a page that begins there cannot know it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from tailrace.core.chain import advance, start
from tailrace.core.compact import Compactor
from tailrace.core.cursor import Resume, Since, Special, format_cursor
from tailrace.core.event import Gap, GapReason, Item, Record, StreamState
from tailrace.core.frames import envelope, gap_payload, raw
from tailrace.core.ids import ZERO, EntryId, id_after, id_before
from tailrace.core.names import StreamName
from tailrace.core.page import Head
from tailrace.eventlog.base import Log
from tailrace.hub.place import place_of_time

__all__ = ["HistoryPage", "HistoryQuery", "MergedPage", "read_history", "read_merged"]

CHUNK = 256
"""Entries asked of the log at once: a page of large records must not be read to the end to be cut."""
SCAN = 1_000
"""A page with a filter looks at no more records than this."""
_MAX = 2**64 - 1


class HistoryQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader of one stream's history asks for."""

    start: EntryId | None = None
    end: EntryId | None = None
    since: Resume | None = None
    limit: int = 100
    newest_first: bool = False
    types: frozenset[str] | None = None
    max_bytes: int = 4_194_304
    compact: bool = False
    """Give pieces of text that follow each other as one record (PROTOCOL.md §5.8). Not from the newest down."""


class HistoryPage(msgspec.Struct):
    """One page of one stream."""

    records: list[Record] = []
    gaps: list[Gap] = []
    next_id: EntryId | None = None
    state: StreamState = StreamState.MISSING

    def encode(self, format: str = "envelope") -> bytes:  # noqa: A002 - the parameter's name
        """The JSON answer, records byte for byte as stored, or `raw`: as the application said them."""
        next_id = str(self.next_id) if self.next_id is not None else None
        records = map(raw if format == "raw" else envelope, self.records)
        return _encode(records, self.gaps, self.next_id is not None, next_id, {"state": self.state.value})


class MergedPage(msgspec.Struct):
    """One page of several streams, by (ms, name)."""

    records: list[Record]
    gaps: list[Gap]
    has_more: bool
    cursor: str
    """Where the reader is after this page, for the next page or for going live."""

    def encode(self) -> bytes:
        """The JSON answer."""
        next_id = self.cursor if self.has_more else None
        return _encode(map(envelope, self.records), self.gaps, self.has_more, next_id, {"cursor": self.cursor})


def _encode(
    records: Iterable[bytes], gaps: Sequence[Gap], has_more: bool, next_id: str | None, extra: Mapping[str, str]
) -> bytes:
    return b'{"events":[%b],"has_more":%b,"next_id":%b,"gap":%b,"gaps":[%b],%b' % (
        b",".join(records),
        b"true" if has_more else b"false",
        msgspec.json.encode(next_id),
        gap_payload(gaps[0]) if gaps else b"null",
        b",".join(map(gap_payload, gaps)),
        msgspec.json.encode(extra)[1:],
    )


class _Budget:
    """Counts what a page takes."""

    def __init__(self, query: HistoryQuery) -> None:
        self._left = query.limit
        self._bytes = query.max_bytes
        self._scan = max(SCAN, query.limit) if query.types is not None else _MAX
        self._types = query.types
        self.taken: list[Record] = []

    def take(self, record: Record) -> bool:
        """Take a record, or pass over one that was not asked for. False: the page is full before it."""
        if self._left == 0 or self._scan == 0 or (self.taken and self._bytes < len(record.data)):
            return False
        self._scan -= 1
        if self._types is None or record.type in self._types:
            self._left -= 1
            self._bytes -= len(record.data)
            self.taken.append(record)
        return True


async def read_history(event_log: Log, stream: StreamName, query: HistoryQuery) -> HistoryPage:
    """Read one page.

    Raises:
        LogUnavailable: the log did not answer.
    """
    if query.newest_first:
        return await _read_back(event_log, stream, query)
    if query.compact:
        return await _read_compact(event_log, stream, query)
    if query.start is not None:
        return await _read_range(event_log, stream, query, query.start)
    if isinstance(query.since, Since):
        return await _read_range(event_log, stream, query, EntryId(query.since.ms, 0))
    return await _read_since(event_log, stream, query)


async def _read_compact(event_log: Log, stream: StreamName, query: HistoryQuery) -> HistoryPage:
    """The same records, counted after compaction: a page of 100 may stand for many thousands."""
    page, compactor, size = HistoryPage(), Compactor(), 0
    ask = replace(query, compact=False, limit=SCAN)
    while True:
        read = await read_history(event_log, stream, ask)
        page.state = read.state
        for record in read.records:
            size += len(record.data)
            taken = len(page.records) + compactor.pending
            if taken and (taken >= query.limit or size > query.max_bytes) and not compactor.joins(record):
                page.next_id = record.id
                break
            page.records += _only_records(compactor.feed(record))
        page.gaps += [
            gap for gap in read.gaps if page.next_id is None or gap.before is None or gap.before <= page.next_id
        ]
        if page.next_id is None and not read.records:
            page.next_id = read.next_id
        if page.next_id is not None or read.next_id is None:
            break
        ask = replace(ask, start=read.next_id, since=None)
    page.records += _only_records(compactor.flush())
    return page


def _only_records(items: Sequence[Item]) -> list[Record]:
    return [item for item in items if isinstance(item, Record)]


async def _read_since(event_log: Log, stream: StreamName, query: HistoryQuery) -> HistoryPage:
    """Along the chain from what the reader has, exactly as a live subscription would."""
    position = start(query.since if isinstance(query.since, EntryId) else ZERO)
    page, budget = HistoryPage(), _Budget(query)
    while True:
        read = await event_log.read(stream, position.cursor, limit=min(CHUNK, query.limit + 2))
        items, moved = advance(stream, position, read)
        page.state = read.head.state
        if not _take_items(items, query, page, budget):
            break
        # Done when nothing is left to read. A reset sends the cursor back to ZERO: then there is a new history.
        if not read.more and not (moved.cursor == ZERO != position.cursor):
            break
        position = moved
    page.records = budget.taken
    return page


def _take_items(items: Iterable[Item], query: HistoryQuery, page: HistoryPage, budget: _Budget) -> bool:
    for item in items:
        if isinstance(item, Gap):
            page.gaps.append(item)
        elif isinstance(item, Record):
            if query.end is not None and item.id > query.end:
                _drop_late_gaps(page, item)
                return False
            if not budget.take(item):
                page.next_id = item.id
                return False
    return True


def _drop_late_gaps(page: HistoryPage, record: Record) -> None:
    """A gap just before a record beyond the end that was asked for is nobody's who asked."""
    if page.gaps and page.gaps[-1].before == record.id and page.gaps[-1].reason is GapReason.DELETED:
        page.gaps.pop()


async def _read_range(event_log: Log, stream: StreamName, query: HistoryQuery, begin: EntryId) -> HistoryPage:
    """By ids, whatever the chain says about who had what; holes are told from the records themselves."""
    page, budget, at = HistoryPage(), _Budget(query), begin
    before: Record | None = None
    while True:
        read = await event_log.range(stream, start=at, end=query.end, limit=min(CHUNK, query.limit + 1))
        page.state = read.head.state
        for record in read.records:
            gap = _hole(stream, before, record, begin, read.head, timed=isinstance(query.since, Since))
            if gap is not None:
                page.gaps.append(gap)
            if not budget.take(record):
                page.next_id = record.id
                break
            if not record.foreign:
                before = record
        if page.next_id is not None or not read.more or not read.records:
            break
        at = id_after(read.records[-1].id)
    page.records = budget.taken
    return page


def _hole(
    stream: StreamName, before: Record | None, record: Record, begin: EntryId, head: Head, *, timed: bool
) -> Gap | None:
    """What is missing just before a record of a range."""
    prev = record.prev
    if prev is None:
        return None
    if before is not None:
        if prev == before.id:
            return None
        if prev > before.id:
            return Gap(stream, before.id, record.id, record.id.seq - before.id.seq - 1, GapReason.DELETED, prev)
        return Gap(stream, before.id, record.id, None, GapReason.RESET, prev)
    if timed or record.id == begin:
        return None
    if prev != ZERO and prev >= begin:
        # Records that were asked for existed: from `begin` up to `prev`.
        missed = record.id.seq - begin.seq if 0 < begin.seq < record.id.seq else None
        return Gap(stream, id_before(begin), record.id, missed, GapReason.TRIMMED, prev)
    if begin != ZERO and begin <= head.base:
        return Gap(stream, id_before(begin), record.id, None, head.base_reason, prev)
    return None


async def _read_back(event_log: Log, stream: StreamName, query: HistoryQuery) -> HistoryPage:
    """From the newest down."""
    page, budget = HistoryPage(), _Budget(query)
    lowest, exclusive = _lower_bound(query)
    at, after = query.end, None
    while True:
        read = await event_log.range(stream, start=lowest, end=at, limit=min(CHUNK, query.limit + 2), reverse=True)
        page.state = read.head.state
        for record in read.records:
            if record.id == exclusive:
                continue
            if not record.foreign:
                if after is not None and after.prev != record.id:
                    gap = _hole(stream, record, after, ZERO, read.head, timed=False)
                    page.gaps.extend([gap] if gap is not None else [])
                after = record
            if not budget.take(record):
                page.next_id = record.id
                break
        if page.next_id is not None or not read.more or not read.records:
            break
        at = id_before(read.records[-1].id)
    page.records = budget.taken
    return page


def _lower_bound(query: HistoryQuery) -> tuple[EntryId | None, EntryId | None]:
    if query.start is not None:
        return query.start, None
    if isinstance(query.since, Since):
        return EntryId(query.since.ms, 0), None
    return (query.since, query.since) if isinstance(query.since, EntryId) else (None, None)


class _Source:
    """One stream of a merged page, read a little at a time."""

    def __init__(self, event_log: Log, stream: StreamName, resume: Resume, max_bytes: int) -> None:
        self.stream = stream
        self.cursor = resume if isinstance(resume, EntryId) else ZERO
        self._since: Resume = self.cursor if resume is Special.DEFAULT else resume
        self._log = event_log
        self._max_bytes = max_bytes
        self._page = HistoryPage()
        self._next = 0
        self._begun = False

    async def peek(self) -> Record | None:
        """The next record, read when it is wanted."""
        if self._next < len(self._page.records):
            return self._page.records[self._next]
        if self._begun and self._page.next_id is None:
            return None
        if not self._begun and isinstance(self._since, Since):
            # Until it was given a record, its place is where that time is.
            self.cursor = (await place_of_time(self._log, self.stream, self._since)).cursor
        # Few at a time: the streams of one page may be 32 with records of a megabyte.
        query = HistoryQuery(
            since=None if self._begun else self._since,
            start=self._page.next_id if self._begun else None,
            limit=50,
            max_bytes=self._max_bytes // 16,
        )
        late = self._page.gaps  # before the next page's first record
        self._page = await read_history(self._log, self.stream, query)
        self._page.gaps = late + self._page.gaps
        self._begun, self._next = True, 0
        return await self.peek() if self._page.records else None

    def take(self) -> tuple[Record, list[Gap]]:
        """Use the record that `peek` showed, and what was missing before it."""
        record = self._page.records[self._next]
        self._next += 1
        self.cursor = record.id
        # One with nothing behind it is told by `rest`: earlier, the next page would tell it again.
        gaps = [gap for gap in self._page.gaps if gap.before is not None and gap.before <= record.id]
        self._page.gaps = [gap for gap in self._page.gaps if gap not in gaps]
        return record, gaps

    def rest(self) -> list[Gap]:
        """Losses with no record behind them, when nothing is left."""
        gaps, self._page.gaps = self._page.gaps, []
        for gap in gaps:
            self.cursor = gap.cursor
        return gaps


async def read_merged(
    event_log: Log, resume: Mapping[StreamName, Resume], *, limit: int, max_bytes: int = 4_194_304
) -> MergedPage:
    """Read one page of several streams, merged by (ms, name); within a stream always by id.

    Raises:
        LogUnavailable: the log did not answer.
    """
    sources = {stream: _Source(event_log, stream, where, max_bytes) for stream, where in resume.items()}
    waiting: list[tuple[int, str]] = []
    gaps: list[Gap] = []
    for stream, source in sources.items():
        await _queue(source, stream, waiting, gaps)
    records: list[Record] = []
    left = max_bytes
    while waiting and len(records) < limit:
        source = sources[StreamName.parse(waiting[0][1])]
        upcoming = await source.peek()
        if upcoming is None or (records and len(upcoming.data) > left):
            break
        heapq.heappop(waiting)
        record, before = source.take()
        left -= len(record.data)
        records.append(record)
        gaps.extend(before)
        await _queue(source, source.stream, waiting, gaps)
    cursors = {stream: source.cursor for stream, source in sources.items()}
    return MergedPage(records, gaps, bool(waiting), format_cursor(cursors))


async def _queue(source: _Source, stream: StreamName, waiting: list[tuple[int, str]], gaps: list[Gap]) -> None:
    record = await source.peek()
    if record is not None:
        heapq.heappush(waiting, (record.id.ms, stream))
    else:
        gaps.extend(source.rest())

"""The chain: what a reader at a cursor is given next, and how it knows that nothing is missing.

Rules of this file (DESIGN invariants 1 and 2, PROTOCOL.md §5)
1. A reader at cursor c missed nothing exactly when the next record's `prev` is c. Nothing else is proof:
   numbers are reused after a lost suffix, so cursors and heads are compared for equality.
2. A discontinuity is a `Gap`, before the record that follows it; never silence.
3. After gap(reset) and gap(ahead) the history that exists now is replayed from its first retained record.
4. Foreign entries are passed on, outside the chain: they neither prove nor break it.
5. Pure: values in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tailrace.core.event import Ended, Gap, GapReason, Item, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import Head, Page

__all__ = ["Position", "advance", "follows", "start"]


class Position(msgspec.Struct, frozen=True, gc=False):
    """How far a reader got in one stream."""

    cursor: EntryId
    """The last entry it was given, foreign ones included; what it resumes from."""
    chained: EntryId | None
    """The last record of the chain it was given; None: unknown, so the next record is taken as it comes
    (after an announced gap, or when the cursor is a foreign entry)."""
    proven: bool
    """Whether the cursor was seen to be part of the history that exists now."""


def start(cursor: EntryId) -> Position:
    """A reader that says it has everything up to `cursor` (ZERO: nothing)."""
    return Position(cursor, cursor, proven=False)


def at_head(head: Head) -> Position:
    """A reader that wants only what comes from now on."""
    return Position(head.id, head.id, proven=True)


def follows(position: Position, record: Record) -> bool:
    """Whether `record` is exactly the next one for a reader at `position`."""
    return record.prev is not None and record.prev == position.chained


def advance(stream: StreamName, position: Position, page: Page) -> tuple[list[Item], Position]:
    """Turn a page read at `position.cursor` into what the reader is given, and its new position.

    When the answer ends in a reset (`cursor` is ZERO again) the caller reads on from there.
    """
    records = page.records
    if records and records[0].id == position.cursor:
        # The cursor itself is there: proof that it is part of this history.
        position = Position(position.cursor, records[0].id if not records[0].foreign else None, proven=True)
        records = records[1:]
    elif not _proves(position, records):
        return _discontinuity(stream, position, page)
    items, position = _walk(stream, position, records)
    if not page.more and page.head.ended and page.head.id in (position.chained, position.cursor):
        items.append(Ended(stream, position.cursor, page.head.state))
    return items, position


def _proves(position: Position, records: tuple[Record, ...]) -> bool:
    """Whether the first chained record follows the position, or nothing has to be proven."""
    if position.chained is None:
        return bool(records)
    chained = next((record for record in records if not record.foreign), None)
    return chained is not None and chained.prev == position.chained


def _walk(stream: StreamName, position: Position, records: Iterable[Record]) -> tuple[list[Item], Position]:
    """Follow the chain through records that come after `position`; holes in the middle become gaps."""
    items: list[Item] = []
    cursor, chained = position.cursor, position.chained
    for record in records:
        if not record.foreign:
            if chained is not None and record.prev != chained:
                items.append(_hole(stream, chained, record))
            chained = record.id
        items.append(record)
        cursor = record.id
    return items, Position(cursor, chained, proven=True)


def _hole(stream: StreamName, after: EntryId, record: Record) -> Gap:
    """Two neighbours in the stream that are not neighbours in the chain: entries between them were deleted."""
    prev = record.prev
    if prev is not None and prev > after:
        return Gap(stream, after, record.id, record.id.seq - after.seq - 1, GapReason.DELETED)
    return Gap(stream, after, record.id, None, GapReason.RESET)


def _discontinuity(stream: StreamName, position: Position, page: Page) -> tuple[list[Item], Position]:
    """The page does not prove the cursor: say at once what is known, and go on from there."""
    head, cursor = page.head, position.chained if position.chained is not None else position.cursor
    first = page.records[0] if page.records else None
    if first is None:
        return _nothing_after(stream, position, cursor, page)
    if not any(not record.foreign for record in page.records):
        # Only foreign entries so far: they prove nothing, and the chain goes on behind them.
        return _walk(stream, position, page.records)
    before = first.id
    if cursor == ZERO:
        chained = next(record for record in page.records if not record.foreign)
        missed = chained.id.seq - 1
        gap = Gap(stream, ZERO, before, missed, GapReason.TRIMMED)
    elif cursor <= head.base:
        missed_before = head.base.seq - cursor.seq if head.base.seq >= cursor.seq else None
        gap = Gap(stream, cursor, before, missed_before, head.base_reason)
    else:
        chained = next(record for record in page.records if not record.foreign)
        if chained.prev is not None and chained.prev > cursor:
            reason = GapReason.TRIMMED if page.first == first.id else GapReason.DELETED
            gap = Gap(stream, cursor, before, chained.id.seq - cursor.seq - 1, reason)
        else:
            return _restart(stream, cursor, page.first, GapReason.RESET)
    items, moved = _walk(stream, Position(position.cursor, None, proven=True), page.records)
    if not page.more and head.ended and head.id == moved.chained:
        items.append(Ended(stream, moved.cursor, head.state))
    return [gap, *items], moved


def _nothing_after(stream: StreamName, position: Position, cursor: EntryId, page: Page) -> tuple[list[Item], Position]:
    """No entry at or after the cursor."""
    head = page.head
    if cursor == head.id:
        settled = Position(position.cursor, cursor, proven=True)
        return ([Ended(stream, position.cursor, head.state)] if head.ended else []), settled
    gone = head.state in (StreamState.EXPIRED, StreamState.DELETED)
    if cursor < head.id and page.first is None and gone:
        reason = GapReason.EXPIRED if head.state is StreamState.EXPIRED else GapReason.DELETED
        gap = Gap(stream, cursor, None, head.id.seq - cursor.seq, reason)
        return [gap, Ended(stream, head.id, head.state)], Position(head.id, head.id, proven=True)
    if cursor < head.id and page.first is None:
        # Closed and gone, or every entry was deleted while the stream lives.
        reason = GapReason.EXPIRED if head.ended else GapReason.DELETED
        gap = Gap(stream, cursor, None, head.id.seq - cursor.seq, reason)
        items: list[Item] = [gap]
        if head.ended:
            items.append(Ended(stream, head.id, head.state))
        return items, Position(head.id, head.id, proven=True)
    if cursor < head.id:
        # The newest entries were deleted by hand; the chain goes on at the head.
        gap = Gap(stream, cursor, None, head.id.seq - cursor.seq, GapReason.DELETED)
        return [gap], Position(head.id, head.id, proven=True)
    if cursor == head.base and page.first is None:
        return [], Position(position.cursor, None, proven=True)
    reason = GapReason.RESET if position.proven else GapReason.AHEAD
    return _restart(stream, cursor, page.first, reason)


def _restart(
    stream: StreamName, cursor: EntryId, first: EntryId | None, reason: GapReason
) -> tuple[list[Item], Position]:
    return [Gap(stream, cursor, first, None, reason)], Position(ZERO, None, proven=True)

"""The chain: what a reader at a cursor is given next, and how it knows that nothing is missing.

Rules of this file (PROTOCOL.md §5)
1. A reader at cursor c missed nothing exactly when the next record's `prev` is c. Nothing else is proof:
   numbers are reused after a lost suffix, so cursors and heads are compared for equality.
2. A discontinuity is a `Gap`, before the record that follows it; never silence. Its `cursor` is a place from which a
   reader that was cut off right after it goes on.
3. After gap(reset) and gap(ahead) the history that exists now is replayed from its first retained record.
4. Foreign entries are passed on, outside the chain: they neither prove nor break it. A reader whose last entry is a
   foreign one keeps the last record of the chain beside it; one that comes back with only the foreign id is checked by
   order (rule 1 needs a record): a next record whose `prev` is larger than that id was preceded by others. It is not
   told of a record that was deleted by hand just before that entry.
5. Pure: values in, values out. Every step with entries to give moves the cursor; a step without either settles at the
   head or starts again at the first entry, and that only with a gap.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tailrace.core.event import Ended, Gap, GapReason, Item, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import Head, Page

__all__ = ["Position", "advance", "at_head", "follows", "start"]


class Position(msgspec.Struct, frozen=True, gc=False):
    """How far a reader got in one stream."""

    cursor: EntryId
    """The last entry it was given, foreign ones included; what it resumes from."""
    chained: EntryId | None
    """The last record of the chain it was given; None: unknown (the cursor is a foreign entry, or history begins anew),
    so that the next record is taken as it comes unless its order says otherwise."""
    proven: bool
    """Whether the cursor was seen to be part of the history that exists now."""


def start(cursor: EntryId) -> Position:
    """A reader that says it has everything up to `cursor` (ZERO: nothing)."""
    # Records count from 1: an id with number 0 is a foreign entry's.
    known = cursor if cursor.seq > 0 or cursor == ZERO else None
    return Position(cursor, known, proven=False)


def at_head(head: Head) -> Position:
    """A reader that wants only what comes from now on."""
    return Position(max(head.id, head.tip), head.id, proven=True)


def follows(position: Position, record: Record) -> bool:
    """Whether `record` is exactly the next one for a reader at `position`."""
    return record.prev is not None and record.prev == position.chained


def advance(stream: StreamName, position: Position, page: Page) -> tuple[list[Item], Position]:
    """Turn a page read at `position.cursor` into what the reader is given, and its new position.

    When it answers the cursor ZERO after another one, history begins anew: the caller reads on from there.
    """
    records = page.records
    if records and records[0].id == position.cursor:
        # The cursor itself is there: proof that it is part of this history.
        position = _found(position, records[0])
        items, position = _walk(stream, position, records[1:], page.head)
    elif records:
        items, moved = _enter(stream, position, page)
        if moved is None:
            return _restart(stream, position, page)
        position = moved
    elif _lost(position, page.head):
        return _restart(stream, position, page)
    else:
        items = []
    return (items, position) if page.more else _settle(stream, items, position, page)


def _found(position: Position, record: Record) -> Position:
    if not record.foreign:
        return Position(record.id, record.id, proven=True)
    known = position.chained if position.chained != record.id else None
    return Position(record.id, known, proven=True)


def _walk(stream: StreamName, position: Position, records: Sequence[Record], head: Head) -> tuple[list[Item], Position]:
    """Follow the chain through entries that come after `position`; holes in the middle become gaps."""
    items: list[Item] = []
    cursor, chained = position.cursor, position.chained
    for record in records:
        prev = record.prev
        if prev is not None:
            if prev != chained and (chained is not None or prev > cursor):
                items.append(_hole(stream, cursor, chained, record, head))
            chained = record.id
        items.append(record)
        cursor = record.id
    return items, Position(cursor, chained, proven=True)


def _hole(stream: StreamName, cursor: EntryId, chained: EntryId | None, record: Record, head: Head) -> Gap:
    """Two neighbours in the stream that are not neighbours in the chain: entries between them were deleted, or the
    second one begins another history. What was given up to here stays true, so nothing is replayed."""
    prev = record.prev or ZERO
    place = max(cursor, prev)
    if chained is None:
        return Gap(stream, cursor, record.id, None, GapReason.DELETED, place)
    missed = _missed(chained, record.id, record.id.seq - 1, head)
    if _from_base(chained, record.id, head):
        return Gap(stream, cursor, record.id, missed, head.base_reason, place)
    if prev > chained and missed is not None:
        return Gap(stream, cursor, record.id, missed, GapReason.DELETED, place)
    return Gap(stream, cursor, record.id, None, GapReason.RESET, place)


def _enter(stream: StreamName, position: Position, page: Page) -> tuple[list[Item], Position | None]:
    """The cursor's own entry is not there: does what comes next prove it? None: the cursor is not of this history."""
    cursor, chained, head = position.cursor, position.chained, page.head
    first, record = page.records[0], next((record for record in page.records if not record.foreign), None)
    trimmed = page.first == first.id
    reason = GapReason.TRIMMED if trimmed else GapReason.DELETED
    gap: Gap | None = None
    # What a reader has of the chain that is told here of everything before the page; unknown if there is a loss in it.
    prev = record.prev or ZERO if record is not None else None
    joined = prev if prev is not None and prev < first.id else None
    if cursor == ZERO and chained is None:
        chained = joined  # History begins anew, and was announced.
    elif chained != cursor and trimmed:
        # The last thing it has was a foreign entry, now gone; nobody counts those.
        gap = Gap(stream, cursor, first.id, None, reason, max(cursor, joined or ZERO))
        chained = joined
    elif chained is None:
        # A foreign entry was deleted, or it went with the end of a history that was lost: nothing tells which.
        return [], None
    elif prev == chained:
        pass
    elif record is None or prev is None:
        return _enter_foreign(stream, position, page, reason)
    else:
        missed = _missed(chained, record.id, record.id.seq - 1, head)
        if chained == ZERO:
            reason = GapReason.TRIMMED
        elif _from_base(chained, record.id, head):
            reason = head.base_reason
        elif prev < chained or missed is None:
            return [], None
        if joined is not None:
            # Before the first record there is no id but ZERO, if nothing older is left that it would bring again.
            place = ZERO if prev == ZERO and trimmed else max(cursor, prev)
            gap = Gap(stream, cursor, first.id, missed, reason, place)
            chained = joined
        # Otherwise foreign entries come first, and the loss is behind them: the walk announces it there.
    items, moved = _walk(stream, Position(cursor, chained, proven=True), page.records, head)
    return ([gap, *items] if gap is not None else items), moved


def _enter_foreign(
    stream: StreamName, position: Position, page: Page, reason: GapReason
) -> tuple[list[Item], Position | None]:
    """The cursor's own entry is gone and only foreign entries follow: the head decides, if they are the last."""
    cursor, chained, head, first = position.cursor, position.chained or ZERO, page.head, page.records[0]
    if page.more:
        if chained == ZERO:
            # Nothing was read yet; the first record will tell how many came before it.
            return _walk(stream, position, page.records, head)
        gap = Gap(stream, cursor, first.id, None, reason, cursor)
        items, moved = _walk(stream, Position(cursor, None, proven=True), page.records, head)
        return [gap, *items], moved
    if head.id < chained:
        return [], None
    missed, crossed = _missed(chained, head.id, head.id.seq, head), _from_base(chained, head.id, head)
    if head.id != chained and missed is None and not crossed:
        return [], None
    items, moved = _walk(stream, Position(cursor, head.id, proven=True), page.records, head)
    if head.id == chained:
        return items, moved
    reason = head.base_reason if crossed else reason
    place = head.id if head.id < first.id else cursor
    return [Gap(stream, cursor, first.id, missed, reason, place), *items], moved


def _settle(stream: StreamName, items: list[Item], position: Position, page: Page) -> tuple[list[Item], Position]:
    """The page reached the stream's end: what is left of the chain, up to the head, is gone; then perhaps the end."""
    head, cursor, chained = page.head, position.cursor, position.chained
    known = chained if chained is not None else cursor
    if head.id > known:
        missed = _missed(chained, head.id, head.id.seq, head) if chained is not None else None
        cursor = max(cursor, head.id)
        items.append(Gap(stream, position.cursor, None, missed, _end_reason(page), cursor))
        position = Position(cursor, head.id, proven=True)
    elif chained is None or chained == head.id:
        # Nothing of the chain lies behind a foreign cursor, so all of it is known.
        position = Position(cursor, head.id, proven=True)
    if head.ended and position.chained == head.id:
        items.append(Ended(stream, position.cursor, head.state))
    return items, position


def _end_reason(page: Page) -> GapReason:
    nothing_left = page.first is None and not page.records
    expired = nothing_left and page.head.ended and page.head.state is not StreamState.DELETED
    return GapReason.EXPIRED if expired else GapReason.DELETED


def _lost(position: Position, head: Head) -> bool:
    """Whether an empty answer means that the cursor is not part of what exists now."""
    known = position.chained if position.chained is not None else position.cursor
    same_history = known > head.base or head.base == ZERO
    # A smaller id with a number that is not smaller: the numbers between were given out twice.
    reused = same_history and ZERO < known < head.id and known.seq >= head.id.seq
    return (known > head.id and known != head.base) or reused


def _restart(stream: StreamName, position: Position, page: Page) -> tuple[list[Item], Position]:
    reason = GapReason.RESET if position.proven or page.records or position.cursor <= page.head.id else GapReason.AHEAD
    return [Gap(stream, position.cursor, page.first, None, reason, ZERO)], Position(ZERO, None, proven=True)


def _from_base(after: EntryId, upto: EntryId, head: Head) -> bool:
    """Whether the two lie in different incarnations."""
    return ZERO < after <= head.base < upto


def _missed(after: EntryId, upto: EntryId, number: int, head: Head) -> int | None:
    """How many records lie between a reader's last one and `upto`, which is or follows record `number`."""
    if after == ZERO:
        return number
    if not _from_base(after, upto, head):
        # Not even one: the numbers between were given out twice, so `after` is not of this history.
        return number - after.seq if number > after.seq else None
    # Before the base there may have been incarnations that nobody remembers, or meta was lost: nothing tells which one
    # a reader's last record belongs to, but for the base itself.
    return number if after == head.base else None

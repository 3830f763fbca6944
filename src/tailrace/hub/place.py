"""Where in a stream a time is."""

from __future__ import annotations

from tailrace.core.chain import Position, at_head, start
from tailrace.core.cursor import Since
from tailrace.core.ids import ZERO, EntryId, id_before
from tailrace.core.names import StreamName
from tailrace.eventlog.base import Log

__all__ = ["place_of_time"]


async def place_of_time(event_log: Log, stream: StreamName, since: Since) -> Position:
    """The position from which a reader is given the first entry at or after a time, and all that follow.

    Raises:
        LogUnavailable: the log did not answer.
    """
    page = await event_log.range(stream, start=EntryId(since.ms, 0), limit=1)
    if not page.records:
        return at_head(page.head)
    record = page.records[0]
    if record.id == page.first:
        # Nothing older is retained: begin at the first record, with the gap before it if there is one.
        return start(ZERO)
    if record.prev is not None:
        return start(record.prev)
    # A foreign entry names none before it, and no id but an entry's proves a place.
    before = await event_log.range(stream, end=id_before(record.id), limit=1, reverse=True)
    return start(before.records[0].id if before.records else ZERO)

"""A stream as a list: everything that can happen to one in Redis, for the tests of the chain."""

from __future__ import annotations

import msgspec

from tailrace.core.event import GapReason, Json, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import Head, Page

STREAM = StreamName.parse("run:42")
_JUMP = 1_000_000


class StreamModel:
    """`entries` is what is retained, `chain` the records that this history had, in order, all incarnations."""

    def __init__(self) -> None:
        self.entries: list[Record] = []
        self.head = Head()
        self.older_head = self.head
        self.chain: list[Record] = []
        self.uncounted: set[EntryId] = set()
        """Records of incarnations that meta has forgotten: how many came after them is not to be known."""
        self.removed: set[EntryId] = set()
        """Deleted by hand."""
        self.clock = 1_000
        self.top = ZERO

    # -- what happens to it --------------------------------------------------------------------------------

    def append(self, count: int, elapsed: int = 0) -> None:
        """`count` records by one call, in a new incarnation if the entries of the one before are gone."""
        self.older_head = self.head
        self.clock += elapsed
        for _ in range(count):
            self._append_one()

    def _append_one(self) -> None:
        head = self.head
        ms = max(self.clock, head.id.ms)
        if head.state in (StreamState.EXPIRED, StreamState.DELETED):
            reason = GapReason.EXPIRED if head.state is StreamState.EXPIRED else GapReason.DELETED
            head = Head(incarnation=head.incarnation + 1, base=head.id, base_reason=reason)
            ms = max(ms, self.top.ms) + 1
        elif head.state is StreamState.MISSING and self.top != ZERO:
            # Entries, but nothing is known of them: they are somebody's, or meta was lost.
            head = Head(incarnation=1, base=self.top, base_reason=GapReason.RESET)
            ms = max(ms, self.top.ms + 1)
        elif EntryId(ms, head.id.seq + 1) <= self.top:
            # Somebody's entry is in the way.
            ms = self.top.ms + 1
        record = self._entry(EntryId(ms, head.id.seq + 1), head.id)
        incarnation = max(head.incarnation, 1)
        self.head = msgspec.structs.replace(head, id=record.id, state=StreamState.OPEN, incarnation=incarnation)
        self.chain.append(record)

    def append_foreign(self, seq: int, elapsed: int = 0) -> None:
        """A plain XADD, of an id of its own choice."""
        self.clock += elapsed
        ms = max(self.clock, self.top.ms)
        self._entry(EntryId(ms, seq) if EntryId(ms, seq) > self.top else EntryId(ms + 1, seq), None)

    def _entry(self, id_: EntryId, prev: EntryId | None) -> Record:
        record = Record(STREAM, id_, prev, "a", Json(b"1"), self.clock)
        self.entries.append(record)
        self.top = id_
        return record

    def trim(self, count: int) -> None:
        """Retention takes the oldest entries."""
        del self.entries[:count]
        self.older_head = self.head

    def remove(self, index: int) -> None:
        """XDEL."""
        if self.entries:
            self.removed.add(self.entries.pop(index % len(self.entries)).id)
            self.older_head = self.head

    def end(self, state: StreamState) -> None:
        """Close, expire or delete."""
        if self.head.state is StreamState.MISSING:
            return
        self.head = msgspec.structs.replace(self.head, state=state)
        self.older_head = self.head
        if state is not StreamState.CLOSED:
            self.entries.clear()

    def lose(self, count: int) -> None:
        """A crash takes the last entries, and what meta knew of them; the clock has moved on since."""
        if len(self.entries) <= count:
            return
        first = self.entries[-count].id
        lost = [record for record in self.chain if record.id >= first]
        if not lost or any(record.prev == ZERO for record in lost):
            return
        del self.entries[-count:]
        del self.chain[-len(lost) :]
        self.head = msgspec.structs.replace(self.head, id=lost[0].prev or ZERO, state=StreamState.OPEN)
        self._after_loss()

    def flush(self) -> None:
        """Everything is gone."""
        self.entries.clear()
        self.chain.clear()
        self.head = Head()
        self._after_loss()

    def forget_meta(self) -> None:
        """Meta is gone, the entries are not."""
        self.uncounted.update(record.id for record in self.chain)
        self.head = Head()
        self._after_loss()

    def _after_loss(self) -> None:
        self.older_head = self.head
        self.clock = max(self.clock, self.top.ms) + _JUMP
        self.top = self.entries[-1].id if self.entries else ZERO

    # -- what is asked of it -------------------------------------------------------------------------------

    def page(self, at: EntryId, limit: int, *, stale: bool = False) -> Page:
        """A read, as a log answers it; `stale`: the last append came between head and entries."""
        found = [entry for entry in self.entries if entry.id >= at]
        # The cursor itself does not count: a page of nothing else would lead nowhere.
        limit += bool(found) and found[0].id == at
        records = tuple(found[:limit])
        proves = bool(records) and (records[0].id == at or records[0].prev == at)
        first = self.entries[0].id if self.entries and not proves else None
        return Page(records, len(found) > limit, self.older_head if stale else self.head, first)

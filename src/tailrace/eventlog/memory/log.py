"""The log in memory: the same promises as on Redis, for tests, documentation and single-process tools.

Nothing survives the process, and nothing is shared between processes. The clock is injected: retention and expiry
follow it. All changes happen within one loop turn, so every call is atomic.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence

import msgspec

from tailrace.core.codec import Prepared
from tailrace.core.event import Event, Json, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.kinds import Kinds
from tailrace.core.names import StreamName, foreign_type
from tailrace.core.page import Head, Page
from tailrace.errors import AlreadyClosed, NotFound, UsageError
from tailrace.eventlog.base import Appended, StreamInfo, TailListener
from tailrace.eventlog.limits import ENTRY_OVERHEAD, TOMBSTONE_SECONDS, prepare_call
from tailrace.eventlog.memory.state import StreamMemory, add, check, floor_of, id_of, known_uids, make_page
from tailrace.eventlog.memory.tail import MemoryTail
from tailrace.eventlog.receipt import Receipt

__all__ = ["MemoryLog"]

_NODE = 100
"""Retention works in steps of this many entries, as MAXLEN ~ does."""


class MemoryLog:
    """See `Log` (base.py) for what every method promises.

    Args:
        kinds: the policies.
        clock: Unix time in seconds.
    """

    def __init__(self, *, kinds: Kinds | None = None, clock: Callable[[], float] = time.time) -> None:
        self._kinds = kinds if kinds is not None else Kinds()
        self._clock = clock
        self._streams: dict[StreamName, StreamMemory] = {}
        self._tails: list[MemoryTail] = []
        self._closed = False

    # -- writing ----------------------------------------------------------------------------------------------------

    async def append(
        self,
        stream: StreamName,
        events: Sequence[Event],
        *,
        expected_seq: int | None = None,
        owner_epoch: int | None = None,
        close: bool = False,
    ) -> list[Appended]:
        """Append events."""
        prepared = prepare_call(events, self._kinds.of(stream), close=close)
        state = self._find(stream, create=True)
        return self._append(stream, state, prepared, expected_seq, owner_epoch, close)

    async def retry(self, receipt: object) -> list[Appended]:
        """Store a numbered call, once."""
        if not isinstance(receipt, Receipt):
            raise UsageError("not a receipt of a log")
        state = self._find(receipt.stream, create=True)
        number, answer = state.producers.get(receipt.pid, (0, []))
        if receipt.n > number:
            answer = self._append(
                receipt.stream,
                state,
                receipt.events,
                receipt.expected_seq,
                receipt.owner_epoch,
                receipt.close,
            )
            state.producers[receipt.pid] = (receipt.n, [Appended(one.id, True) for one in answer])
        return answer[receipt.offset : receipt.offset + receipt.count]

    def _append(
        self,
        stream: StreamName,
        state: StreamMemory,
        events: Sequence[Prepared],
        expected_seq: int | None,
        owner_epoch: int | None,
        close: bool,
    ) -> list[Appended]:
        if state.fresh and not events:
            raise NotFound("there is no such stream", stream=stream)
        check(state, 0 if state.fresh else state.last.seq, expected_seq, owner_epoch)
        known = known_uids(state, events)
        if all(event.uid in known for event in events) and events and not close:
            return [Appended(known[event.uid or ""], True) for event in events]
        if state.fresh:
            state.begin(self._clock())
        now = self._now_ms()
        records, answer = add(stream, state, events, known, max(now, floor_of(state)), now)
        if owner_epoch is not None:
            state.epoch = max(owner_epoch, state.epoch or 0)
        self._retain(stream, state, close=close)
        self._tell(stream, records, changed=close)
        return answer

    def _retain(self, stream: StreamName, state: StreamMemory, *, close: bool) -> None:
        kind, now = self._kinds.of(stream), self._clock()
        life = kind.closed_ttl_seconds if close else None
        if close:
            state.state = StreamState.CLOSED
        if life is None:
            life = kind.idle_ttl_seconds if state.idle_seconds is None else state.idle_seconds
        if life is not None:
            state.expires = state.dies_at = now + life
        entries = state.entries
        if entries is None:
            return
        if len(entries) >= kind.max_length + _NODE:
            del entries[: len(entries) - kind.max_length]
        if kind.max_age_seconds is not None:
            oldest = EntryId(int((now - kind.max_age_seconds) * 1000), 0)
            old = bisect_left(entries, oldest, key=id_of)
            if old >= _NODE or old == len(entries):
                del entries[:old]

    # -- reading ----------------------------------------------------------------------------------------------------

    async def read(self, stream: StreamName, at: EntryId, *, limit: int = 1_000) -> Page:
        """Read from `at` on."""
        state = self._find(stream)
        entries = state.entries or []
        return make_page(state, entries[bisect_left(entries, at, key=id_of) :], limit, self._clock(), own=at)

    async def range(
        self,
        stream: StreamName,
        *,
        start: EntryId | None = None,
        end: EntryId | None = None,
        limit: int = 100,
        reverse: bool = False,
    ) -> Page:
        """Read a range."""
        state = self._find(stream)
        entries = state.entries or []
        first = 0 if start is None else bisect_left(entries, start, key=id_of)
        last = len(entries) if end is None else bisect_right(entries, end, key=id_of)
        chosen = entries[first:last]
        return make_page(state, chosen[::-1] if reverse else chosen, limit, self._clock())

    async def heads(self, streams: Sequence[StreamName]) -> Mapping[StreamName, Head]:
        """Where the streams end."""
        return {stream: self._head(stream) for stream in streams}

    async def info(self, stream: StreamName) -> StreamInfo:
        """Describe a stream."""
        state = self._find(stream)
        entries, head = state.entries or [], state.head(self._clock())
        return StreamInfo(
            stream,
            head.state,
            len(entries),
            entries[0].id if entries else None,
            head.id if head.id != ZERO else None,
            head.incarnation,
            None if state.dies_at is None else state.dies_at - self._clock(),
            sum(len(record.data) + ENTRY_OVERHEAD for record in entries),
        )

    # -- managing ---------------------------------------------------------------------------------------------------

    async def close(self, stream: StreamName) -> Head:
        """End a stream."""
        state = self._find(stream)
        if state.entries is None or state.last == ZERO:
            raise NotFound("there is no such stream", stream=stream)
        if state.state is not StreamState.CLOSED:
            self._retain(stream, state, close=True)
            self._tell(stream, [], changed=True)
        return state.head(self._clock())

    async def delete(self, stream: StreamName) -> bool:
        """Delete a stream."""
        state = self._find(stream)
        if state.entries is None:
            return False
        if state.last == ZERO:
            state.last = state.generated
        state.drop_entries()
        state.state, state.expires = StreamState.DELETED, None
        state.forget_at = self._clock() + TOMBSTONE_SECONDS
        self._tell(stream, [], changed=True)
        return True

    async def expire(self, stream: StreamName, seconds: float | None, *, sliding: bool = False) -> bool:
        """Let a stream expire."""
        state = self._find(stream)
        if state.entries is None:
            return False
        state.expires = state.dies_at = None if seconds is None else self._clock() + seconds
        state.idle_seconds = seconds if sliding else None
        return True

    async def trim(self, stream: StreamName, *, max_length: int) -> int:
        """Keep the newest records."""
        entries = self._find(stream).entries or []
        removed = max(0, len(entries) - max(0, max_length))
        del entries[:removed]
        return removed

    def open_tail(self, listener: TailListener) -> MemoryTail:
        """Make a live end."""
        return MemoryTail(self._tails, self._head, listener)

    async def ping(self) -> float:
        """Answer at once."""
        return 0.0

    async def aclose(self) -> None:
        """Forget everything."""
        self._closed = True
        self._streams.clear()
        self._tails.clear()

    # -- what others do to a stream, for tests -----------------------------------------------------------------------

    def add_foreign(self, stream: StreamName, fields: Mapping[str, str], *, at: EntryId | None = None) -> EntryId:
        """Write an entry as somebody else's plain XADD would."""
        state = self._find(stream, create=True)
        top = state.generated
        now = self._now_ms()
        entry = at if at is not None else EntryId(now, 0) if now > top.ms else EntryId(top.ms, top.seq + 1)
        if entry <= top:
            raise ValueError("the id is equal or smaller than the top item's")
        if state.entries is None:
            state.entries = []
        data = Json(msgspec.json.encode(dict(fields)))
        record = Record(stream, entry, None, foreign_type(fields.get("type", "")), data, entry.ms)
        state.entries.append(record)
        state.generated = entry
        self._tell(stream, [record], changed=False)
        return entry

    def drop(self, stream: StreamName, *entries: EntryId) -> None:
        """Delete single entries, as XDEL does; the head does not know."""
        state = self._find(stream)
        if state.entries is not None:
            state.entries = [record for record in state.entries if record.id not in entries]

    # -- inside -----------------------------------------------------------------------------------------------------

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _head(self, stream: StreamName) -> Head:
        return self._find(stream).head(self._clock())

    def _find(self, stream: StreamName, *, create: bool = False) -> StreamMemory:
        if self._closed:
            raise AlreadyClosed("the log was closed")
        state = self._streams.get(stream)
        now = self._clock()
        if state is not None:
            if state.entries is not None and state.dies_at is not None and now >= state.dies_at:
                state.forget_at = state.dies_at + TOMBSTONE_SECONDS
                state.drop_entries()
            if state.forget_at is not None and now >= state.forget_at:
                del self._streams[stream]
                state = None
        if state is None:
            state = StreamMemory()
            if create:
                self._streams[stream] = state
        return state

    def _tell(self, stream: StreamName, records: list[Record], *, changed: bool) -> None:
        for tail in self._tails:
            tail.changed(stream, records, changed=changed)

"""The state of one stream in memory, and the pure steps on it."""

from __future__ import annotations

from collections.abc import Sequence

from tailrace.core.codec import Prepared
from tailrace.core.event import GapReason, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import MISSING, Head, Page
from tailrace.errors import Fenced, IdempotencyConflict, SequenceMismatch, StreamClosed
from tailrace.eventlog.base import Appended
from tailrace.eventlog.limits import ENTRY_OVERHEAD, MAX_UIDS, PAGE_BYTES, body_of, size_of

__all__ = ["StreamMemory", "add", "check", "floor_of", "id_of", "known_uids", "make_page"]


class StreamMemory:
    """Everything about one stream, as PROTOCOL.md §9.3 has it; `entries` is None when they are gone."""

    def __init__(self) -> None:
        self.entries: list[Record] | None = None
        self.generated = ZERO
        """The last id in `entries`, whoever wrote it; ids never come again while the entries are there."""
        self.last = ZERO
        self.state = StreamState.MISSING
        """What was said last: open, closed or deleted; see `head` for what is."""
        self.inc = 0
        self.base = ZERO
        self.why = GapReason.RESET
        self.largest = 0
        self.expires: float | None = None
        """When it was last to expire; stays when it did, to tell an expiry from a deletion by hand."""
        self.dies_at: float | None = None
        """When the entries go."""
        self.idle_seconds: float | None = None
        """The life that each append gives the stream, where that is not its kind's."""
        self.forget_at: float | None = None
        self.epoch: int | None = None
        self.uids: dict[str, tuple[bytes, EntryId]] = {}
        self.producers: dict[str, tuple[int, list[Appended]]] = {}

    def head(self, now: float) -> Head:
        """Where the stream ends."""
        state = self.state
        if self.entries is not None:
            state = StreamState.CLOSED if state is StreamState.CLOSED else StreamState.OPEN
        elif self.last == ZERO:
            return MISSING
        elif state is not StreamState.DELETED:
            expired = self.expires is not None and self.expires <= now
            state = StreamState.EXPIRED if expired else StreamState.DELETED
        return Head(self.last, state, self.inc, self.base, self.why, self.largest)

    @property
    def fresh(self) -> bool:
        """Whether the next record begins a new incarnation."""
        return self.entries is None or self.last == ZERO or self.state is StreamState.DELETED

    def begin(self, now: float) -> None:
        """Begin a new incarnation."""
        reasons = {StreamState.EXPIRED: GapReason.EXPIRED, StreamState.DELETED: GapReason.DELETED}
        if self.last != ZERO:
            ended = StreamState.DELETED if self.state is StreamState.DELETED else self.head(now).state
            self.base, self.why = self.last, reasons[ended]
        else:
            self.base, self.why = self.generated, GapReason.RESET
        self.inc += 1
        self.entries = self.entries if self.entries is not None else []
        self.last = ZERO
        self.state = StreamState.OPEN
        self.expires, self.forget_at = self.dies_at, None
        self.idle_seconds = None
        self.uids.clear()

    def drop_entries(self) -> None:
        """The entries are gone."""
        self.entries = None
        self.generated = ZERO
        self.dies_at = None
        self.uids.clear()


def id_of(record: Record) -> EntryId:
    return record.id


def floor_of(stream: StreamMemory) -> int:
    """The smallest `ms` of the next id."""
    if stream.last == ZERO:
        return max(stream.base.ms + 1, stream.generated.ms + (stream.generated.seq > 0))
    return max(stream.last.ms, stream.generated.ms + (stream.generated.seq > stream.last.seq))


def check(state: StreamMemory, seq: int, expected_seq: int | None, owner_epoch: int | None) -> None:
    if not state.fresh and state.state is StreamState.CLOSED:
        raise StreamClosed("the stream was closed")
    if owner_epoch is not None and state.epoch is not None and owner_epoch < state.epoch:
        raise Fenced("another producer has taken the stream", epoch=state.epoch)
    if expected_seq is not None and expected_seq != seq:
        raise SequenceMismatch(f"the head's seq is {seq}", seq=seq)


def known_uids(state: StreamMemory, events: Sequence[Prepared]) -> dict[str, EntryId]:
    known: dict[str, EntryId] = {}
    bodies: dict[str, bytes] = {}
    for index, event in enumerate(events):
        uid = event.uid
        if uid is None:
            continue
        body = body_of(event)
        before = None if state.fresh else state.uids.get(uid)
        if before is not None:
            known[uid] = before[1]
        if (before[0] if before is not None else bodies.setdefault(uid, body)) != body:
            raise IdempotencyConflict(f"the uid {uid!r} was used with another body", uid=uid, index=index)
    return known


def add(
    stream: StreamName, state: StreamMemory, events: Sequence[Prepared], known: dict[str, EntryId], ms: int, now: int
) -> tuple[list[Record], list[Appended]]:
    records: list[Record] = []
    answer: list[Appended] = []
    for event in events:
        if event.uid is not None and event.uid in known:
            answer.append(Appended(known[event.uid], True))
            continue
        entry = EntryId(ms, state.last.seq + 1)
        labels = (event.uid, event.key, event.actor, event.trace)
        record = Record(stream, entry, state.last, event.type, event.data, now, *labels)
        if event.uid is not None:
            known[event.uid] = entry
            state.uids[event.uid] = (body_of(event), entry)
            if len(state.uids) > MAX_UIDS:
                del state.uids[next(iter(state.uids))]
        if state.entries is not None:
            state.entries.append(record)
        state.last = state.generated = entry
        state.largest = max(state.largest, size_of(event))
        records.append(record)
        answer.append(Appended(entry))
    return records, answer


def make_page(state: StreamMemory, chosen: list[Record], limit: int, now: float, *, own: EntryId | None = None) -> Page:
    """A bounded page. A reader's `own` entry counts for no limit: a page of it alone would lead nowhere."""
    entries = state.entries or []
    taken = int(bool(chosen) and chosen[0].id == own)
    most, size = taken + max(1, limit), 0
    for record in chosen[taken:most]:
        if size >= PAGE_BYTES:
            break
        size += len(record.data) + ENTRY_OVERHEAD
        taken += 1
    return Page(tuple(chosen[:taken]), taken < len(chosen), state.head(now), entries[0].id if entries else None)

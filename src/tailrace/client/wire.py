"""JSON from the gateway to records, gaps and control events, and events to JSON (PROTOCOL.md §6, §7)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import msgspec

from tailrace.core.event import Degraded, Ended, Event, Gap, GapReason, Json, Record, StreamState
from tailrace.core.ids import ZERO, EntryId
from tailrace.core.names import StreamName
from tailrace.errors import CorruptRecord, InvalidCursor

__all__ = ["Closed", "Opened", "PageAnswer", "Told", "decode_control", "decode_page", "decode_record", "encode_events"]


class _Envelope(msgspec.Struct):
    id: str
    prev: str | None
    stream: str
    type: str
    time: int
    data: msgspec.Raw
    uid: str | None = None
    key: str | None = None
    actor: str | None = None
    trace: str | None = None


class _Place(msgspec.Struct):
    cursor: str
    head: str | None = None


class _Control(msgspec.Struct):
    control: str
    streams: dict[str, _Place] = {}
    stream: str | None = None
    after: str | None = None
    before: str | None = None
    missed: int | None = None
    reason: str | None = None
    cursor: str | None = None
    at: str | None = None
    state: str | None = None
    code: int = 0
    active: bool = False
    retry_after: float | None = None
    detail: str = ""


class _Page(msgspec.Struct):
    events: list[_Envelope]
    has_more: bool
    next_id: str | None = None
    gap: _Control | None = None
    gaps: list[_Control] = []


class Opened(msgspec.Struct, frozen=True):
    """The connection's first event: where the reader is in each stream."""

    cursors: dict[StreamName, EntryId]


class Closed(msgspec.Struct, frozen=True):
    """The server is about to end the connection, or refused it."""

    code: int
    reason: str
    retry_after: float | None
    detail: str


class PageAnswer(msgspec.Struct, frozen=True):
    """One page of history."""

    records: tuple[Record, ...]
    more: bool
    next_id: str | None
    gaps: tuple[Gap, ...]
    """What is missing between the records, or before the first."""

    def items(self) -> Iterator[Record | Gap]:
        """Records and gaps, each gap at its place."""
        following: dict[EntryId | None, list[Gap]] = {}
        for gap in self.gaps:
            following.setdefault(gap.before, []).append(gap)
        newest_first = len(self.records) > 1 and self.records[0].id > self.records[-1].id
        for record in self.records:
            gaps = following.pop(record.id, [])
            if not newest_first:
                yield from gaps
            yield record
            if newest_first:
                yield from gaps
        for gaps in following.values():
            yield from gaps


Told: TypeAlias = Opened | Closed | Gap | Ended | Degraded

_ENVELOPE = msgspec.json.Decoder(_Envelope)
_CONTROL = msgspec.json.Decoder(_Control)
_PAGE = msgspec.json.Decoder(_Page)


def decode_record(data: bytes) -> Record:
    """Read an envelope.

    Raises:
        CorruptRecord: not an envelope.
    """
    try:
        return _record(_ENVELOPE.decode(data))
    except (ValueError, RecursionError, InvalidCursor) as exc:
        raise CorruptRecord(f"the server sent something that is no record: {exc}") from exc


def decode_control(data: bytes) -> Told | None:
    """Read a control event; None: one that this version does not know and may ignore.

    Raises:
        CorruptRecord: not a control event.
    """
    try:
        return _told(_CONTROL.decode(data))
    except (ValueError, RecursionError, InvalidCursor) as exc:
        raise CorruptRecord(f"the server sent a control event that cannot be read: {exc}") from exc


def decode_page(body: bytes) -> PageAnswer:
    """Read the answer of a history request.

    Raises:
        CorruptRecord: not a page.
    """
    try:
        page = _PAGE.decode(body)
        records = tuple(_record(each) for each in page.events)
        gaps = [_told(each) for each in page.gaps or ([page.gap] if page.gap is not None else [])]
    except (ValueError, RecursionError, InvalidCursor) as exc:
        raise CorruptRecord(f"the server sent something that is no page: {exc}") from exc
    return PageAnswer(records, page.has_more, page.next_id, tuple(each for each in gaps if isinstance(each, Gap)))


def encode_events(events: Sequence[Event]) -> bytes:
    """The JSON array of events whose data is `Json` already."""
    return b"[%b]" % b",".join(map(_encode_event, events))


def _encode_event(event: Event) -> bytes:
    parts = [b'{"type":%b,"data":%b' % (msgspec.json.encode(event.type), event.data)]
    labels = (("uid", event.uid), ("key", event.key), ("actor", event.actor), ("trace", event.trace))
    parts += [b',"%b":%b' % (name.encode(), msgspec.json.encode(text)) for name, text in labels if text is not None]
    return b"".join(parts) + b"}"


def _record(envelope: _Envelope) -> Record:
    return Record(
        StreamName(envelope.stream),
        EntryId.parse(envelope.id),
        EntryId.parse(envelope.prev) if envelope.prev is not None else None,
        envelope.type,
        Json(envelope.data),
        envelope.time,
        envelope.uid,
        envelope.key,
        envelope.actor,
        envelope.trace,
    )


def _told(control: _Control) -> Told | None:
    kind = control.control
    if kind == "open":
        return Opened({StreamName(name): EntryId.parse(place.cursor) for name, place in control.streams.items()})
    if kind == "gap" and control.stream is not None:
        return Gap(
            StreamName(control.stream),
            _id(control.after) or ZERO,
            _id(control.before),
            control.missed,
            GapReason(control.reason or ""),
            _id(control.cursor) or ZERO,
        )
    if kind == "closed" and control.stream is not None:
        return Ended(StreamName(control.stream), _id(control.at) or ZERO, StreamState(control.state or ""))
    if kind in ("closed", "refused"):
        return Closed(control.code, control.reason or "", control.retry_after, control.detail)
    if kind == "degraded":
        return Degraded(control.active, control.retry_after or 1.0)
    return None


def _id(text: Any) -> EntryId | None:
    return EntryId.parse(text) if isinstance(text, str) else None

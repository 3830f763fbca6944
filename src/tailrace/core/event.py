"""Events and what readers of a stream are given: records, gaps and changes of a stream's state."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeAlias

import msgspec

from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName

__all__ = ["SKIPPED", "Degraded", "Ended", "Event", "Gap", "GapReason", "Item", "Json", "Record", "StreamState"]

SKIPPED = "events.skipped"
"""Type of the event by which a producer says how many events at its place it could not store."""


class Json(bytes):
    """One JSON value as minified UTF-8 that was fully decoded once: valid, finite numbers, bounded depth.

    Made only by `core.codec`; whoever holds one need not look again.
    """

    __slots__ = ()


class Event(msgspec.Struct, frozen=True, kw_only=False):
    """Something that happened, as the application says it."""

    type: str
    data: Any = None
    """Any JSON value, or a `Json` that is stored as it is."""
    uid: str | None = None
    """The caller's own name for this event in its stream: the same uid is stored once among the last 1 024."""
    key: str | None = None
    """Conflation key: a reader that asked for it may be given only the latest event per key when it lags."""
    actor: str | None = None
    trace: str | None = None
    """W3C `traceparent`."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """An event in a stream. Immutable, shared by all its readers."""

    stream: StreamName
    id: EntryId
    prev: EntryId | None
    """Id of the record before; `ZERO` for the first. None: a foreign entry, outside the chain."""
    type: str
    data: Json
    time: int
    """Server clock at the append, Unix milliseconds. May step back; order is the ids'."""
    uid: str | None = None
    key: str | None = None
    actor: str | None = None
    trace: str | None = None

    @property
    def foreign(self) -> bool:
        """Whether the entry was written by a plain XADD of somebody else."""
        return self.prev is None


class GapReason(StrEnum):
    """Why records are missing."""

    TRIMMED = "trimmed"
    """Retention removed them."""
    RESET = "reset"
    """The log lost or replaced its end; the cursor is not part of the new history."""
    AHEAD = "ahead"
    """The cursor is beyond the stream's head: it was never part of this history."""
    EXPIRED = "expired"
    """The stream reached the end of its life."""
    DELETED = "deleted"
    """The stream, or an entry in it, was deleted."""
    REFUSED = "refused"
    """The producer could not store them and said so later."""


class Gap(msgspec.Struct, frozen=True, gc=False):
    """An announced loss between two positions of one stream."""

    stream: StreamName
    after: EntryId
    """The reader's cursor: the last record it has."""
    before: EntryId | None
    """The next record it will be given; None when there is none (yet)."""
    missed: int | None
    """How many records were lost; None when nobody can know."""
    reason: GapReason
    cursor: EntryId
    """Where the reader is once it was told: resuming from here loses nothing and repeats no record."""


class StreamState(StrEnum):
    """What can happen to a stream next."""

    MISSING = "missing"
    """Never written, or forgotten."""
    OPEN = "open"
    CLOSED = "closed"
    """Its producer ended it; readable until it expires."""
    EXPIRED = "expired"
    DELETED = "deleted"


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The reader has everything and nothing more will come: the stream is closed, expired or deleted."""

    stream: StreamName
    at: EntryId
    state: StreamState


class Degraded(msgspec.Struct, frozen=True, gc=False):
    """The log stopped (`active`) or started again (not `active`) to answer; nothing is lost by it."""

    active: bool
    retry_after: float = 1.0


Item: TypeAlias = Record | Gap | Ended | Degraded
"""What a subscription yields."""

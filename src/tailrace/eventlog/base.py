"""What a log promises. One contract suite (tests/contract) holds every implementation to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from tailrace.core.event import Event, Record, StreamState
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.core.page import Head, Page

__all__ = ["Appended", "Log", "StreamInfo", "Tail", "TailListener"]


class Appended(msgspec.Struct, frozen=True, gc=False):
    """The log's answer for one event."""

    id: EntryId
    duplicate: bool = False
    """The same uid (or the same numbered call) was stored before; `id` is that record's."""


class StreamInfo(msgspec.Struct, frozen=True):
    """A stream as operators see it."""

    stream: StreamName
    state: StreamState
    length: int
    first_id: EntryId | None
    last_id: EntryId | None
    incarnation: int
    ttl_seconds: float | None
    memory_bytes: int | None = None


class Log(Protocol):
    """A store of streams. All waiting calls have an overall deadline and never retry behind the caller's back
    in a way that could store an event twice."""

    async def append(
        self,
        stream: StreamName,
        events: Sequence[Event],
        *,
        expected_seq: int | None = None,
        owner_epoch: int | None = None,
        close: bool = False,
    ) -> list[Appended]:
        """Append events, all or none, and return their ids in order.

        Atomic per stream: readers see the events exactly when they are in the log. Appends of one log object to one
        stream keep the order of the calls. Cancelled after sending: the events may be in the log.

        Args:
            stream: where to.
            events: 1 to 1 000 events, together at most 8 MiB.
            expected_seq: append only if the head's `seq` is this (0: an empty stream).
            owner_epoch: append only if no producer with a larger epoch has taken the stream.
            close: end the stream with these events (`events` may then be empty).

        Raises:
            Malformed, TooLarge: an event that may not be stored.
            StreamClosed, SequenceMismatch, Fenced, IdempotencyConflict: the stream's state forbids it.
            LogUnavailable: nothing was stored. OutcomeUnknown: perhaps; `retry(error.receipt)` settles it.
        """

    async def retry(self, receipt: object) -> list[Appended]:
        """Send the append of an `OutcomeUnknown` again: it is stored once, whatever became of the first try.

        Raises: as `append`.
        """

    async def read(self, stream: StreamName, at: EntryId, *, limit: int = 1_000) -> Page:
        """Read entries from `at` (inclusive) on, at most `limit`, and fewer when they are large.

        If the entry `at` is there it is the first one and does not count: a page with `more` holds at least one other,
        however large, for it is read by a reader whose cursor is `at` and who must get on.

        Raises:
            LogUnavailable: the log did not answer in time.
        """

    async def range(
        self,
        stream: StreamName,
        *,
        start: EntryId | None = None,
        end: EntryId | None = None,
        limit: int = 100,
        reverse: bool = False,
    ) -> Page:
        """Read entries with `start <= id <= end`, from the end when `reverse`. `first` is always set.

        Raises:
            LogUnavailable: the log did not answer in time.
        """

    async def heads(self, streams: Sequence[StreamName]) -> Mapping[StreamName, Head]:
        """Where the streams end; a stream that never was has the head `MISSING`."""

    async def info(self, stream: StreamName) -> StreamInfo:
        """Describe a stream."""

    async def close(self, stream: StreamName) -> Head:
        """End a stream: no more appends. Closing twice is the same as once.

        Raises:
            NotFound: there is no such stream.
        """

    async def delete(self, stream: StreamName) -> bool:
        """Delete a stream's entries; a tombstone stays for 7 days, so that ids stay larger. False: it was not there."""

    async def expire(self, stream: StreamName, seconds: float | None, *, sliding: bool = False) -> bool:
        """Let a stream expire in `seconds` (None: never), or `sliding`: that long after its last append.

        False: it was not there.
        """

    async def trim(self, stream: StreamName, *, max_length: int) -> int:
        """Keep the newest `max_length` records, and what the slowest durable group needs. Return how many were removed.

        Readers that had not come so far are told gap(trimmed).
        """

    def open_tail(self, listener: TailListener) -> Tail:
        """Make the live end of this log for one hub; run it with `Tail.run`."""

    async def ping(self) -> float:
        """Round trip of a real command, in seconds.

        Raises:
            LogUnavailable: no answer in time.
        """

    async def aclose(self) -> None:
        """Give back everything. Appends that were sent are waited for, briefly."""


class TailListener(Protocol):
    """What a tail tells. All calls come from the event loop, never wait, and never raise."""

    def on_records(self, stream: StreamName, records: Sequence[Record]) -> None:
        """New records in the order they came. Duplicates and holes are possible; the chain tells."""

    def on_head(self, stream: StreamName, head: Head) -> None:
        """Where the stream really ends now, as asked from the log: after a doubt, or because its state changed."""

    def on_doubt(self, streams: Sequence[StreamName] | None) -> None:
        """Pushes may have been lost for these streams (None: for all): read on from the log."""

    def on_degraded(self, degraded: bool) -> None:
        """The log stopped, or started again, to answer."""


class Tail(Protocol):
    """The live end of a log for one hub."""

    async def run(self) -> None:
        """Own the connections until cancelled; reconnects for ever. A defect raises and ends its owner."""

    async def watch(self, stream: StreamName) -> Head:
        """Begin to push a stream's records and return its head, read after the subscription was acknowledged:
        every record after that head is pushed, or told by `on_head` or `on_doubt` within 1 s.

        Raises:
            LogUnavailable: not acknowledged in time; the stream is not watched.
        """

    def unwatch(self, stream: StreamName) -> None:
        """Stop pushing a stream."""

    @property
    def watching(self) -> int:
        """How many streams are watched."""

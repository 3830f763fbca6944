"""What the client needs from the two ways to a log: over HTTP (`remote`) and straight on Redis (`direct`)."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeAlias

import msgspec

from tailrace.client.wire import PageAnswer
from tailrace.core.codec import prepare
from tailrace.core.cursor import Resume, Since, Special, parse_cursor, parse_resume
from tailrace.core.event import Event, Item
from tailrace.core.ids import EntryId
from tailrace.core.names import StreamName
from tailrace.errors import InvalidCursor
from tailrace.eventlog.base import Appended, StreamInfo

__all__ = [
    "CALL_SECONDS",
    "Backend",
    "FollowOptions",
    "Link",
    "PageQuery",
    "Place",
    "Source",
    "checked_event",
    "pause_before",
    "resume_of",
]

Place: TypeAlias = str | EntryId | datetime | None
"""Where to begin: a cursor that was given out, an id, a time, `"0"` (the first record), `"$"` (now), None (default)."""


CALL_SECONDS = 10.0
MAX_EVENT_BYTES = 8_388_608


class Link(msgspec.Struct, frozen=True):
    """The state of a subscription's connection, as its `on_link` function is told."""

    up: bool
    detail: str = ""
    """Why it is down."""
    retry_seconds: float = 0.0
    """When it is tried again."""


class FollowOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a subscription behaves."""

    heartbeat_seconds: float = 15.0
    """The server's heartbeat; three times as long without a byte, and the connection is given up."""
    on_link: Callable[[Link], None] | None = None


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which records of a stream."""

    start: EntryId | None = None
    end: EntryId | None = None
    since: EntryId | None = None
    limit: int = 100
    reverse: bool = False
    types: tuple[str, ...] = ()


class Source(Protocol):
    """One open reading of streams. Not shared between tasks."""

    give_up_seconds: float | None
    """How long to go without a connection; None: for ever."""

    async def next(self) -> Item | None:
        """Wait for the next item; None: every stream has ended. Cancelled, nothing is lost: call it again."""

    async def aclose(self) -> None:
        """Stop reading."""


class Backend(Protocol):
    """One way to a log."""

    call_seconds: float
    """How long a call is tried when nothing else is said."""
    batch_events: int
    """How many events one append may carry."""

    async def append(
        self, stream: StreamName, events: Sequence[Event], *, seconds: float, owner_epoch: int | None = None
    ) -> list[Appended]:
        """Append events, all or none; try until `seconds` are over.

        Raises:
            LogUnavailable: nothing was stored. OutcomeUnknown: perhaps; `retry(error.receipt)` settles it.
            Fenced: a producer with a larger epoch has taken the stream.
        """

    async def retry(self, receipt: object, *, seconds: float) -> list[Appended]:
        """Send the append of an `OutcomeUnknown` again."""

    def follow(
        self, resume: Mapping[StreamName, Resume], options: FollowOptions, give_up_seconds: float | None
    ) -> Source:
        """Read streams live."""

    async def page(self, stream: StreamName, query: PageQuery) -> PageAnswer:
        """Read one page of history."""

    async def info(self, stream: StreamName) -> StreamInfo:
        """Describe a stream."""

    async def close(self, stream: StreamName) -> None:
        """End a stream."""

    async def delete(self, stream: StreamName) -> bool:
        """Delete a stream."""

    async def aclose(self) -> None:
        """Give back all connections."""


def checked_event(event: Event) -> Event:
    """Check an event, with its data as JSON; a server may refuse more.

    Raises:
        Malformed, TooLarge: no server would take it.
    """
    checked = prepare(event, max_bytes=MAX_EVENT_BYTES)
    return Event(checked.type, checked.data, checked.uid, checked.key, checked.actor, checked.trace)


def resume_of(place: Place | Mapping[str, Place], streams: Collection[StreamName]) -> dict[StreamName, Resume]:
    """Understand what a caller gave as `since`.

    Raises:
        InvalidCursor: not a place, or one id for several streams.
    """
    if isinstance(place, Mapping):
        given = {StreamName.parse(name): each for name, each in place.items()}
        return {stream: _one(given.get(stream)) for stream in streams}
    if isinstance(place, str):
        return parse_cursor(place, streams)
    one = _one(place)
    if isinstance(one, EntryId) and len(streams) > 1:
        raise InvalidCursor("an id is a cursor of one stream; give a mapping or the subscription's cursor")
    return dict.fromkeys(streams, one)


def _one(place: Place) -> Resume:
    if place is None:
        return Special.DEFAULT
    if isinstance(place, datetime):
        return Since(int(place.timestamp() * 1_000))
    if isinstance(place, EntryId):
        return place
    return parse_resume(place)


def pause_before(attempt: int, *, base: float = 0.25, cap: float = 15.0) -> float:
    """How long to wait before the next attempt (0 is the first retry): full jitter, so that clients spread out."""
    return random.uniform(0, min(cap, base * 2 ** min(attempt, 16)))
